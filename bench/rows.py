"""One measurement is one row: its fields, medians over repeats, JSON lines."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bench.client import Reply


@dataclass(frozen=True, slots=True)
class Row:
    """What one workload cost on one server: seconds, tokens, bytes. None means that it does not apply or could not be known.

    `ideal_tokens` is the fewest prompt tokens that had to be computed; `computed_tokens` is what was. `tokens_per_s` counts
    completion tokens over the whole wall time, prefill and queue included; `decode_tokens_per_s` from the first token anywhere to
    the last; `stream_tokens_per_s` is the median stream's own rate. `worst_ttft_s` is the last customer's first token.
    `client_cpu_s` is what the bench itself took from the machine, `web_cpu_s` what the server took outside its engine.
    """

    server: str
    workload: str
    streams: int = 1
    repeats: int = 1
    requests: int | None = None
    ended_early: int | None = None
    wall_s: float | None = None
    ttft_s: float | None = None
    worst_ttft_s: float | None = None
    first_answer_s: float | None = None
    worst_answer_s: float | None = None
    tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    stream_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    computed_tokens: int | None = None
    ideal_tokens: int | None = None
    completion_tokens: int | None = None
    peak_memory_bytes: int | None = None
    client_cpu_s: float | None = None
    web_cpu_s: float | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        return self.server, self.workload, self.streams


def summarize(server: str, workload: str, replies: Sequence[Reply], wall_s: float) -> Row:
    """The row of requests that ran together for `wall_s` seconds."""
    firsts = [reply.first_s for reply in replies if reply.first_s is not None]
    ttfts = [reply.ttft_s for reply in replies if reply.ttft_s is not None]
    answers = [reply.first_answer_s - reply.sent_s for reply in replies if reply.first_answer_s is not None]
    rates = [reply.decode_tokens_per_s for reply in replies if reply.decode_tokens_per_s is not None]
    prompt = sum(reply.prompt_tokens for reply in replies)
    cached = sum(reply.cached_tokens for reply in replies)
    completion = sum(reply.completion_tokens for reply in replies)
    decode_s = max(reply.end_s for reply in replies) - min(firsts) if firsts else 0.0
    # Each stream's first token was computed by its prefill, so a rate of decoding counts the ones after it.
    decoded = completion - len(replies)
    return Row(
        server=server,
        workload=workload,
        streams=len(replies),
        requests=len(replies),
        ended_early=sum(reply.finish_reason != "length" for reply in replies),
        wall_s=wall_s,
        ttft_s=statistics.median(ttfts) if ttfts else None,
        worst_ttft_s=max(ttfts, default=None),
        first_answer_s=statistics.median(answers) if answers else None,
        tokens_per_s=completion / wall_s,
        decode_tokens_per_s=decoded / decode_s if decoded > 0 and decode_s > 0 else None,
        stream_tokens_per_s=statistics.median(rates) if rates else None,
        prompt_tokens=prompt,
        cached_tokens=cached,
        computed_tokens=prompt - cached,
        completion_tokens=completion,
    )


def median_of(rows: Sequence[Row]) -> Row:
    """The field-wise median of repeats of one measurement; whole numbers stay whole (the lower middle one)."""
    if len({row.key for row in rows}) != 1:
        raise ValueError("a median needs repeats of one measurement")
    middle: dict[str, float | None] = {}
    for name in (field.name for field in fields(Row) if field.name not in ("server", "workload", "streams", "repeats")):
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        whole = all(isinstance(value, int) for value in values)
        middle[name] = (statistics.median_low(values) if whole else statistics.median(values)) if values else None
    first = asdict(rows[0])
    return Row(**{**first, **middle, "repeats": len(rows)})


def medians(rows: Iterable[Row]) -> list[Row]:
    """One row per measurement, in the order of their first appearance."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.key, []).append(row)
    return [median_of(group) for group in groups.values()]


def write_json_lines(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object per line, every field of Row present."""
    path.write_text("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
