"""The llama.cpp backend with a real model: sharing, fairness of room, and answers that do not depend on the company they keep."""

from collections.abc import Iterator

import pytest

from backends.llamacpp.backend import LlamaBackend
from backends.protocol import Admission, EngineOptions
from backends.scheduler import Scheduler
from backends.sequence import CacheScope, FinishReason, Priority, SamplingParams, Sequence, Thinking
from backends.wire import TokenEvent

PUBLIC = list(range(40, 140))
GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def options(model_path: str) -> EngineOptions:
    return EngineOptions(model_path, "kefu-mini", max_sequences=8, num_kv_tokens=4096, threads=1)


@pytest.fixture
def backend(options: EngineOptions) -> Iterator[LlamaBackend]:
    backend = LlamaBackend(options)
    yield backend
    backend.close()


def _desk(seq_id: int, question: list[int], sampling: SamplingParams = GREEDY, private: str | None = None) -> Sequence:
    scope = CacheScope(len(PUBLIC), "desk", private or f"conversation {seq_id}")
    tokens = PUBLIC + question
    return Sequence(seq_id, tokens, len(tokens), sampling, scope)


def _run(scheduler: Scheduler) -> dict[int, list[TokenEvent]]:
    events: dict[int, list[TokenEvent]] = {}
    while scheduler.has_work:
        for event in scheduler.step():
            events.setdefault(event.seq_id, []).append(event)
    return events


def _answer(backend: LlamaBackend, *sequences: Sequence) -> dict[int, list[int]]:
    scheduler = Scheduler(backend)
    for seq in sequences:
        scheduler.submit(seq)
    return {seq_id: [e.token_id for e in events if e.token_id >= 0] for seq_id, events in _run(scheduler).items()}


def test_eight_that_arrive_together_compute_their_shared_prefix_once(backend: LlamaBackend) -> None:
    scheduler = Scheduler(backend)
    sequences = [_desk(i, [200 + i, 300 + i, 9]) for i in range(8)]
    for seq in sequences:
        scheduler.submit(seq)
    _run(scheduler)
    assert [seq.num_cached for seq in sequences] == [0] + [len(PUBLIC)] * 7
    held = backend.cache_stats().num_used
    assert held <= len(PUBLIC) + sum(len(seq.token_ids) - len(PUBLIC) for seq in sequences)


def test_a_conversation_reuses_its_own_turns_and_nobody_elses(backend: LlamaBackend) -> None:
    first = _desk(1, [200, 201, 202], private="ann")
    _answer(backend, first)
    history = first.token_ids[len(PUBLIC) : -1]
    again = _desk(2, [*history, 205, 206], private="ann")
    stranger = _desk(3, [*history, 205, 206], private="bo")
    answers = _answer(backend, again), _answer(backend, stranger)
    assert again.num_cached >= len(PUBLIC) + len(history) - 1
    assert stranger.num_cached == len(PUBLIC)
    assert answers[0][2] == answers[1][3], "a warm cache changes no answer"


def test_in_company_as_alone(backend: LlamaBackend) -> None:
    questions = {i: [200 + 7 * i, 210 + i, 220 - i] for i in range(8)}
    together = _answer(backend, *[_desk(i, q) for i, q in questions.items()])
    alone = {i: _answer(backend, _desk(i + 100, q))[i + 100] for i, q in questions.items()}
    assert together == alone


def test_a_seed_gives_the_same_text_whatever_else_runs(backend: LlamaBackend) -> None:
    def drawn(seq_id: int, seed: int) -> Sequence:
        return _desk(seq_id, [250, 251], SamplingParams(temperature=1.0, top_k=40, seed=seed, max_tokens=24))

    alone = _answer(backend, drawn(1, seed=5))[1]
    company = [_desk(10 + i, [260 + i]) for i in range(5)]
    assert _answer(backend, drawn(2, seed=5), *company)[2] == alone
    assert _answer(backend, drawn(3, seed=6))[3] != alone


def test_when_room_runs_out_the_answers_are_still_the_same(model_path: str) -> None:
    roomy = LlamaBackend(EngineOptions(model_path, "m", max_sequences=4, num_kv_tokens=4096, threads=1))
    tight = LlamaBackend(EngineOptions(model_path, "m", max_sequences=4, num_kv_tokens=512, threads=1))
    sampling = SamplingParams(temperature=0.0, max_tokens=120, logit_bias=dict.fromkeys(roomy.spec.eos_token_ids, -100.0))
    try:
        wanted = _answer(roomy, *[_desk(i, [300 + i] * 20, sampling) for i in range(4)])
        scheduler = Scheduler(tight)
        for i in range(4):
            scheduler.submit(_desk(i, [300 + i] * 20, sampling))
        got = {i: [e.token_id for e in events if e.token_id >= 0] for i, events in _run(scheduler).items()}
        assert scheduler.totals.preemptions > 0
        assert got == wanted
    finally:
        roomy.close()
        tight.close()


def test_old_prefixes_are_evicted_and_the_public_part_stays(options: EngineOptions, model_path: str) -> None:
    backend = LlamaBackend(EngineOptions(model_path, "m", max_sequences=2, num_kv_tokens=512, threads=1))
    try:
        for i in range(12):
            seq = _desk(i, [300 + i] * 60)
            _answer(backend, seq)
            assert seq.num_cached == (len(PUBLIC) if i else 0)
        assert backend.cache_stats().num_evicted > 0
    finally:
        backend.close()


def test_a_short_prompt_passes_a_long_one(backend: LlamaBackend) -> None:
    scheduler = Scheduler(backend)
    long = Sequence(1, [5 + i % 300 for i in range(2500)], 2500, GREEDY, CacheScope(private="a"))
    scheduler.submit(long)
    scheduler.step()
    scheduler.submit(Sequence(2, [7, 8, 9], 3, GREEDY, CacheScope(private="b")))
    seen: list[int] = []
    while not seen:
        seen = [event.seq_id for event in scheduler.step() if event.token_id >= 0]
    assert seen == [2]
    assert long.num_uncomputed > 0


def test_logprobs_are_of_the_unmodified_distribution_and_sorted(backend: LlamaBackend) -> None:
    scheduler = Scheduler(backend)
    scheduler.submit(_desk(1, [250], SamplingParams(temperature=0.0, max_tokens=8, num_top_logprobs=5)))
    events = [e for e in _run(scheduler)[1] if e.token_id >= 0]
    for event in events:
        values = [logprob for _, logprob in event.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert event.logprob is not None
        assert event.logprob <= 0
        assert event.top_logprobs[0] == (event.token_id, pytest.approx(event.logprob))


def test_logit_bias_forbids_and_forces(backend: LlamaBackend) -> None:
    plain = _answer(backend, _desk(1, [250]))[1]
    forbidden = _answer(backend, _desk(2, [250], SamplingParams(temperature=0.0, max_tokens=24, logit_bias={plain[0]: -100.0})))[2]
    forced = _answer(backend, _desk(3, [250], SamplingParams(temperature=0.0, max_tokens=4, logit_bias={77: 100.0})))[3]
    assert plain[0] not in forbidden
    assert forced == [77] * 4


def test_a_forced_close_is_computed_like_any_other_token(backend: LlamaBackend) -> None:
    close = (60, 61, 62)
    sampling = SamplingParams(temperature=0.0, max_tokens=20, logit_bias=dict.fromkeys(backend.spec.eos_token_ids, -100.0))
    seq = _desk(1, [250], sampling)
    seq.thinking = Thinking(open_id=1, close_id=61, close_ids=close, starts_open=True, budget=5)
    seq.in_thought = True
    tokens = _answer(backend, seq)[1]
    assert tuple(tokens[5:8]) == close
    given = Sequence(2, seq.token_ids[: len(PUBLIC) + 1 + 8], 0, sampling, CacheScope(private="other"))
    given.num_prompt_tokens = len(given.token_ids)
    assert _answer(backend, given)[2][:5] == tokens[8:13], "the answer continues from the close as if it had been prompted"


def test_a_warm_up_leaves_its_prompt_ready(backend: LlamaBackend) -> None:
    warm = _desk(1, [250, 251, 252], SamplingParams(max_tokens=0), private="ann")
    warm.priority = Priority.IDLE
    assert _answer(backend, warm) == {}
    follow_up = _desk(2, [250, 251, 252, 253], private="ann")
    _answer(backend, follow_up)
    assert follow_up.num_cached == len(PUBLIC) + 3


def test_an_abort_in_the_middle_frees_the_place_and_keeps_the_prefix(backend: LlamaBackend) -> None:
    scheduler = Scheduler(backend)
    seq = _desk(1, [250], SamplingParams(temperature=0.0, max_tokens=500, logit_bias=dict.fromkeys(backend.spec.eos_token_ids, -100.0)))
    scheduler.submit(seq)
    for _ in range(5):
        scheduler.step()
    scheduler.abort(1)
    assert scheduler.step()[-1].finish_reason is FinishReason.ABORT
    assert not scheduler.has_work
    assert backend.admission(_desk(2, [251])) is Admission.YES
    assert backend.start(_desk(2, [251])) == len(PUBLIC)


def test_a_pass_that_is_broken_off_computed_nothing_and_can_be_done_again(backend: LlamaBackend) -> None:
    seq = Sequence(1, [5 + i % 200 for i in range(300)], 300, GREEDY, CacheScope(private="a"))
    backend.start(seq)
    backend.watch(lambda: True)
    assert backend.step() == []
    assert seq.num_computed == 0
    backend.watch(lambda: False)
    (first,) = backend.step()
    fresh = Sequence(2, list(seq.token_ids), 300, GREEDY, CacheScope(private="b"))
    assert first.token_id == _answer(backend, fresh)[2][0]
