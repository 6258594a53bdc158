"""Sequences as a support desk sends them, and what comes back. Prompts and answers are short: MLX on a CPU is slow."""

from collections.abc import Iterable

from backends.protocol import Backend, EngineOptions
from backends.scheduler import Scheduler
from backends.sequence import CacheScope, SamplingParams, Sequence
from backends.wire import TokenEvent

PUBLIC = list(range(40, 90))
GREEDY = SamplingParams(temperature=0.0, max_tokens=10)
OPTIONS = EngineOptions("", "kefu-mini", max_sequences=8, num_kv_tokens=4096, batch_tokens=256, threads=1)


def desk(seq_id: int, question: list[int], sampling: SamplingParams = GREEDY, private: str | None = None) -> Sequence:
    """A question of one conversation after the persona that all share."""
    tokens = PUBLIC + question
    return Sequence(seq_id, tokens, len(tokens), sampling, CacheScope(len(PUBLIC), "desk", private or f"conversation {seq_id}"))


def endless(backend: Backend, max_tokens: int) -> SamplingParams:
    """Greedy, and never ends by itself."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, logit_bias=dict.fromkeys(backend.spec.eos_token_ids, -100.0))


def run(scheduler: Scheduler, sequences: Iterable[Sequence] = ()) -> dict[int, list[TokenEvent]]:
    """Every event until nothing is left to do, by sequence."""
    for seq in sequences:
        scheduler.submit(seq)
    events: dict[int, list[TokenEvent]] = {}
    while scheduler.has_work:
        for event in scheduler.step():
            events.setdefault(event.seq_id, []).append(event)
    return events


def answer(backend: Backend, *sequences: Sequence) -> dict[int, list[int]]:
    """The tokens each sequence got, all of them running at once."""
    events = run(Scheduler(backend), sequences)
    return {seq_id: [e.token_id for e in each if e.token_id >= 0] for seq_id, each in events.items()}
