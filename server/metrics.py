"""Metrics for Prometheus, under the field's names. Labels come from fixed sets: no id and no path ever becomes one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from backends.wire import Stats
from server.chat.service import ChatResult

FAST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


@dataclass(frozen=True, slots=True)
class EngineNumbers:
    """What the engine's side has to say at this moment."""

    num_waiting: int
    num_running: int
    num_restarts: int
    stats: Stats | None
    is_embedder_up: bool = False


class Metrics:
    """One registry. `engine` gives waiting, running, restarts, and the engine's own numbers when there are any."""

    def __init__(self, engine: Callable[[], EngineNumbers]) -> None:
        self._registry = registry = CollectorRegistry()
        registry.register(_EngineCollector(engine))
        self._requests = Counter("kefu_requests", "Requests by route and status.", ["method", "route", "status"], registry=registry)
        self._seconds = Histogram("kefu_request_seconds", "Time to the end of the response.", ["route"], buckets=FAST, registry=registry)
        self._rejections = Counter("kefu_rejections", "Requests refused for lack of room or right.", ["reason"], registry=registry)
        self._answers = Counter("kefu_answers", "Answers by how they ended.", ["finish_reason"], registry=registry)
        self._failures = Counter(
            "kefu_check_failures", "Answers that failed a check of the policy, by check.", ["check"], registry=registry
        )
        self._ttft = Histogram("kefu_time_to_first_token_seconds", "Until the first token of any kind.", buckets=FAST, registry=registry)
        self._first_answer = Histogram(
            "kefu_time_to_first_answer_token_seconds", "Until the first token after the thought.", buckets=FAST, registry=registry
        )
        self._thought = Histogram("kefu_thought_tokens", "Length of a thought.", buckets=TOKENS, registry=registry)
        self._prompt = Counter("kefu_prompt_tokens", "Prompt tokens, cached ones included.", registry=registry)
        self._cached = Counter("kefu_cached_tokens", "Prompt tokens that were not computed again.", registry=registry)
        self._completion = Counter("kefu_completion_tokens", "Tokens made, thoughts included.", registry=registry)
        self._reasoning = Counter("kefu_reasoning_tokens", "Tokens of thoughts.", registry=registry)

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        known = method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if reason := _REASONS.get(status):
            self._rejections.labels(reason).inc()

    def observe_result(self, result: ChatResult) -> None:
        """Count one answer; what was made before it was cut off counts too."""
        self._answers.labels(result.finish_reason).inc()
        if not result.shares_prompt:
            self._prompt.inc(result.num_prompt_tokens or 0)
            self._cached.inc(result.num_cached or 0)
        self._completion.inc(result.num_completion_tokens or 0)
        self._reasoning.inc(result.num_reasoning_tokens or 0)
        if result.ttft_ms is not None:
            self._ttft.observe(result.ttft_ms / 1000)
        if result.first_answer_ms is not None:
            self._first_answer.observe(result.first_answer_ms / 1000)
        if result.num_reasoning_tokens:
            self._thought.observe(result.num_reasoning_tokens)

    def observe_check(self, kind: str) -> None:
        """Count an answer that failed this check."""
        self._failures.labels(kind).inc()

    def render(self) -> bytes:
        """The text format."""
        return generate_latest(self._registry)


_REASONS = {401: "key", 408: "body_timeout", 413: "body_too_large", 429: "limit", 431: "headers", 503: "no_room"}


class _EngineCollector:
    def __init__(self, engine: Callable[[], EngineNumbers]) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        numbers = self._engine()
        yield GaugeMetricFamily("kefu_num_requests_waiting", "Requests without a place in the engine.", numbers.num_waiting)
        yield GaugeMetricFamily("kefu_num_requests_running", "Requests being computed.", numbers.num_running)
        yield CounterMetricFamily("kefu_engine_restarts", "Times the engine was started again.", numbers.num_restarts)
        yield GaugeMetricFamily("kefu_engine_up", "1 while an engine is loaded and beating.", int(numbers.stats is not None))
        yield GaugeMetricFamily("kefu_embedder_up", "1 while an embedding model is loaded.", int(numbers.is_embedder_up))
        stats = numbers.stats
        if stats is None:
            return
        yield GaugeMetricFamily("kefu_num_warmups", "Prompts to be computed ahead when nothing else is.", stats.num_idle)
        yield GaugeMetricFamily("kefu_kv_tokens", "KV room in tokens.", stats.cache.num_kv_tokens)
        yield GaugeMetricFamily("kefu_kv_tokens_used", "KV room in use or kept as prefixes.", stats.cache.num_used)
        yield CounterMetricFamily("kefu_prefix_evictions", "Kept prefixes given up for room.", stats.cache.num_evicted)
        yield CounterMetricFamily("kefu_guessed_tokens", "Tokens computed ahead on a guess.", stats.cache.num_guessed)
        yield CounterMetricFamily("kefu_kept_guesses", "Guessed tokens that came true.", stats.cache.num_kept)
        yield CounterMetricFamily("kefu_preemptions", "Answers that gave up their room and resumed.", stats.preemptions_total)
        yield CounterMetricFamily("kefu_forced_closes", "Thoughts closed by a budget or by hand.", stats.forced_closes_total)
        yield CounterMetricFamily("kefu_loop_closes", "Thoughts and answers closed because they went in circles.", stats.loop_closes_total)
        yield GaugeMetricFamily("kefu_engine_peak_memory_bytes", "Most memory the engine has held.", stats.peak_memory_bytes)
