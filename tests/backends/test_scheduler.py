"""The scheduler's edges, over a backend whose tokens are scripted."""

from collections.abc import Callable
from random import Random

import pytest

from backends.protocol import Admission, CacheStats, ModelSpec, OutOfRoom, StepOutput
from backends.repetition import SHORTEST_LOOP, is_looping
from backends.scheduler import Scheduler
from backends.sequence import FinishReason, Priority, SamplingParams, Sequence, Thinking
from backends.wire import TokenEvent

EOS, OPEN, CLOSE = 0, 1, 2
CLOSE_IDS = (90, CLOSE, 91)
SPEC = ModelSpec("fake", "fake", "0", "", "", 500, 500, 4, (EOS,), 0, 0)


class ScriptedBackend:
    """Gives each sequence the tokens of its script, then counts upwards; room is a number of tokens."""

    spec = SPEC

    def __init__(self, script: dict[int, list[int]] | None = None, room: int = 10_000) -> None:
        self.running: list[Sequence] = []
        self.wait_for: set[int] = set()
        self.room = room
        self._script = {seq_id: list(tokens) for seq_id, tokens in (script or {}).items()}
        self._next = 1000

    def admission(self, seq: Sequence) -> Admission:
        if seq.seq_id in self.wait_for:
            return Admission.WAIT
        used = sum(len(s.token_ids) for s in self.running) + len(seq.token_ids)
        return Admission.YES if len(self.running) < SPEC.max_sequences and used <= self.room else Admission.FULL

    def start(self, seq: Sequence) -> int:
        self.running.append(seq)
        return 0

    def step(self) -> list[StepOutput]:
        if sum(len(s.token_ids) for s in self.running) > self.room:
            raise OutOfRoom
        outputs = []
        for seq in self.running:
            seq.num_computed = len(seq.token_ids)
            if seq.sampling.max_tokens:
                outputs.append(StepOutput(seq, self._token(seq), -0.5))
        return outputs

    def _token(self, seq: Sequence) -> int:
        script = self._script.get(seq.seq_id)
        if script:
            return script.pop(0)
        self._next += 1
        return self._next

    def stop(self, seq: Sequence) -> None:
        self.running.remove(seq)

    def watch(self, should_break_off: Callable[[], bool]) -> None:
        """Its passes are instant."""

    def cache_stats(self) -> CacheStats:
        return CacheStats(self.room, 0, 0, 0)

    def close(self) -> None:
        self.running.clear()


def _sequence(seq_id: int, max_tokens: int = 20, prompt: int = 5, **fields: object) -> Sequence:
    return Sequence(seq_id, [7] * prompt, prompt, SamplingParams(max_tokens=max_tokens), **fields)  # type: ignore[arg-type]


def _thinking(budget: int | None = None) -> Thinking:
    return Thinking(OPEN, CLOSE, CLOSE_IDS, starts_open=True, budget=budget)


def _run(scheduler: Scheduler, until: Callable[[], bool] = lambda: False, limit: int = 2000) -> dict[int, list[TokenEvent]]:
    events: dict[int, list[TokenEvent]] = {}
    for _ in range(limit):
        for event in scheduler.step():
            events.setdefault(event.seq_id, []).append(event)
        if until() or not scheduler.has_work:
            return events
    raise AssertionError("the scheduler never came to rest")


def _tokens(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events if event.token_id >= 0]


def test_a_sequence_starts_emits_and_ends_once() -> None:
    scheduler = Scheduler(ScriptedBackend({1: [11, 12, EOS]}))
    scheduler.submit(_sequence(1))
    events = _run(scheduler)[1]
    assert events[0].num_cached == 0
    assert _tokens(events) == [11, 12, EOS]
    assert [e.finish_reason for e in events if e.finish_reason] == [FinishReason.STOP]


def test_max_tokens_ends_with_length() -> None:
    scheduler = Scheduler(ScriptedBackend())
    scheduler.submit(_sequence(1, max_tokens=3))
    events = _run(scheduler)[1]
    assert len(_tokens(events)) == 3
    assert events[-1].finish_reason is FinishReason.LENGTH


def test_a_spent_thinking_budget_inserts_the_close_and_the_answer_goes_on() -> None:
    scheduler = Scheduler(ScriptedBackend({1: [21, 22, 23, 31, 32, EOS]}))
    scheduler.submit(_sequence(1, thinking=_thinking(budget=3)))
    events = _run(scheduler)[1]
    assert _tokens(events) == [21, 22, 23, *CLOSE_IDS, 31, 32, EOS]
    assert all(e.logprob is None for e in events if e.token_id in CLOSE_IDS)
    assert scheduler.totals.forced_closes == 1


def test_an_efforts_budget_shrinks_with_the_queue_and_an_exact_one_does_not() -> None:
    def num_thought(waiting: int, least: int | None) -> int:
        backend = ScriptedBackend()
        backend.wait_for = set(range(2, 2 + waiting))
        scheduler = Scheduler(backend)
        scheduler.submit(_sequence(1, max_tokens=60, thinking=Thinking(OPEN, CLOSE, CLOSE_IDS, starts_open=True, budget=24, least=least)))
        for seq_id in backend.wait_for:
            scheduler.submit(_sequence(seq_id))
        events = _run(scheduler, until=lambda: scheduler.totals.forced_closes == 1)[1]
        return _tokens(events).index(CLOSE_IDS[0])

    assert num_thought(0, 3) == 24
    assert num_thought(SPEC.max_sequences, 3) == 12
    assert num_thought(SPEC.max_sequences * 100, 3) == 3
    assert num_thought(SPEC.max_sequences, None) == 24


def test_an_end_token_inside_the_thought_closes_it_instead_of_answering_nothing() -> None:
    scheduler = Scheduler(ScriptedBackend({1: [21, EOS, 31, EOS]}))
    scheduler.submit(_sequence(1, thinking=_thinking()))
    assert _tokens(_run(scheduler)[1]) == [21, *CLOSE_IDS, 31, EOS]


def test_a_loop_in_the_thought_is_closed_and_one_in_the_answer_ends_it() -> None:
    scheduler = Scheduler(ScriptedBackend({1: [5, 6] * 200}))
    scheduler.submit(_sequence(1, max_tokens=400, thinking=_thinking()))
    events = _run(scheduler)[1]
    assert scheduler.totals.loop_closes == 2
    assert events[-1].finish_reason is FinishReason.REPETITION
    assert len(_tokens(events)) < 2 * SHORTEST_LOOP + 40


def test_answer_now_closes_the_thought_of_that_sequence_only() -> None:
    scheduler = Scheduler(ScriptedBackend())
    for seq_id in (1, 2):
        scheduler.submit(_sequence(seq_id, max_tokens=10, thinking=_thinking()))
    scheduler.step()
    scheduler.close_thought(1)
    events = _run(scheduler)
    assert CLOSE in _tokens(events[1])
    assert CLOSE not in _tokens(events[2])


@pytest.mark.parametrize("state", ["waiting", "running", "idle"])
def test_abort_from_any_state_ends_it_at_once_and_frees_the_place(state: str) -> None:
    backend = ScriptedBackend()
    scheduler = Scheduler(backend)
    seq = _sequence(1, max_tokens=400)
    seq.priority = Priority.IDLE if state == "idle" else Priority.ACTIVE
    scheduler.submit(seq)
    if state == "running":
        scheduler.step()
    scheduler.abort(1)
    events = scheduler.step()
    assert backend.running == []
    assert not scheduler.has_work
    assert [e.finish_reason for e in events if e.finish_reason] == ([] if state == "idle" else [FinishReason.ABORT])
    scheduler.abort(1)


def test_the_newest_gives_way_when_room_runs_out_and_resumes_with_everything_it_had() -> None:
    backend = ScriptedBackend(room=60)
    scheduler = Scheduler(backend)
    for seq_id in (1, 2, 3):
        scheduler.submit(_sequence(seq_id, max_tokens=25))
    events = _run(scheduler)
    assert scheduler.totals.preemptions > 0
    assert all(len(_tokens(events[seq_id])) == 25 for seq_id in (1, 2, 3))
    assert [sum(e.num_cached >= 0 for e in events[seq_id]) for seq_id in (1, 2, 3)] == [1, 1, 1]


def test_one_that_fills_the_cache_alone_has_reached_its_length() -> None:
    scheduler = Scheduler(ScriptedBackend(room=12))
    scheduler.submit(_sequence(1, max_tokens=100))
    assert _run(scheduler)[1][-1].finish_reason is FinishReason.LENGTH


def test_waiting_for_a_prefix_lets_others_pass_but_a_full_house_keeps_the_order() -> None:
    backend = ScriptedBackend(room=30)
    backend.wait_for = {1}
    scheduler = Scheduler(backend)
    scheduler.submit(_sequence(1))
    scheduler.submit(_sequence(2, prompt=20))
    scheduler.submit(_sequence(3, prompt=20))
    scheduler.submit(_sequence(4))
    scheduler.step()
    assert [seq.seq_id for seq in scheduler.running] == [2]
    assert [seq.seq_id for seq in scheduler.waiting] == [1, 3, 4]


def test_a_warm_up_runs_only_when_nobody_waits_and_says_nothing() -> None:
    scheduler = Scheduler(ScriptedBackend())
    warm = _sequence(9, max_tokens=0, priority=Priority.IDLE)
    scheduler.submit(warm)
    scheduler.submit(_sequence(1, max_tokens=3))
    scheduler.step()
    assert [seq.seq_id for seq in scheduler.running] == [1]
    events = _run(scheduler)
    assert list(events) == [1]
    assert warm.num_computed == 5


def test_real_work_interrupts_a_warm_up() -> None:
    class Slow(ScriptedBackend):
        def step(self) -> list[StepOutput]:
            return [] if all(seq.priority is Priority.IDLE for seq in self.running) else super().step()

    scheduler = Scheduler(Slow())
    scheduler.submit(_sequence(9, max_tokens=0, priority=Priority.IDLE))
    scheduler.step()
    assert [seq.seq_id for seq in scheduler.running] == [9]
    scheduler.submit(_sequence(1))
    scheduler.step()
    assert [seq.seq_id for seq in scheduler.running] == [1]
    assert [seq.seq_id for seq in scheduler.idle] == [9]


def test_the_loop_detector_leaves_lists_tables_and_short_runs_alone() -> None:
    assert not is_looping([5] * 80, 80)
    assert not is_looping(list(range(96)), 96)
    assert not is_looping([5] * 400, 40)
    table = [token for row in range(16) for token in (1, 2, 3, 100 + row, 4, 5)]
    assert not is_looping(table, len(table))
    assert is_looping([5] * 96, 96)
    assert is_looping(list(range(64)) * 4, 256)


def test_the_loop_detector_sees_phrases_in_any_order_and_passages_said_a_third_time() -> None:
    random = Random(1)
    phrases = [[random.randrange(1000) for _ in range(24)] for _ in range(2)]
    shuffled = [token for _ in range(20) for token in random.choice(phrases)]
    assert is_looping(shuffled, 480) and not is_looping(shuffled[:128], 128)
    passage = [random.randrange(1000) for _ in range(320)]
    assert is_looping(passage * 3, 960)
    assert not is_looping(passage * 2, 640)
    rows = [token for n in range(64) for token in [*phrases[0], 2000 + n, *phrases[1][:4]]][:1600]
    assert not is_looping(rows, 1600)


def test_an_answer_that_repeats_the_drafts_of_its_thought_is_no_loop() -> None:
    random = Random(2)
    draft = [random.randrange(1000, 2000) for _ in range(140)]
    scheduler = Scheduler(ScriptedBackend({1: [*draft, 5, *draft, 6, CLOSE, *draft, EOS]}))
    scheduler.submit(_sequence(1, max_tokens=1000, thinking=_thinking()))
    assert _run(scheduler)[1][-1].finish_reason is FinishReason.STOP
    assert scheduler.totals.loop_closes == 0
