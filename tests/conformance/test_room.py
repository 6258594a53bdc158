"""Who computes what: shared prefixes, room, fairness, aborts in every state."""

import pytest

from backends.protocol import Admission, Backend, OutOfRoom
from backends.scheduler import Scheduler
from backends.sequence import CacheScope, FinishReason, Priority, SamplingParams, Sequence
from tests.conformance.conftest import MakeBackend
from tests.conformance.desk import GREEDY, PUBLIC, answer, desk, endless, run


def test_those_that_arrive_together_compute_their_shared_prefix_once(backend: Backend) -> None:
    sequences = [desk(i, [200 + i, 300 + i, 9]) for i in range(6)]
    run(Scheduler(backend), sequences)
    assert [seq.num_cached for seq in sequences] == [0] + [len(PUBLIC)] * 5
    held = backend.cache_stats().num_used
    assert held <= len(PUBLIC) + sum(len(seq.token_ids) - len(PUBLIC) for seq in sequences), "the shared prefix is kept once"


def test_a_conversation_reuses_its_own_turns_and_nobody_elses(backend: Backend) -> None:
    first = desk(1, [200, 201, 202], private="ann")
    answer(backend, first)
    history = first.token_ids[len(PUBLIC) : -1]
    again = desk(2, [*history, 205, 206], private="ann")
    stranger = desk(3, [*history, 205, 206], private="bo")
    answers = answer(backend, again), answer(backend, stranger)
    assert again.num_cached >= len(PUBLIC) + len(history) - 1
    assert stranger.num_cached == len(PUBLIC)
    assert answers[0][2] == answers[1][3], "a warm cache changes no answer"


def test_over_five_turns_with_dropped_thinking_only_what_is_new_is_computed(backend: Backend) -> None:
    history: list[int] = []
    for turn in range(5):
        question = [200 + turn, 201, 202 + turn]
        seq = desk(turn, history + question, private="ann")
        seq.reuse_output = False
        answer(backend, seq)
        assert len(PUBLIC) + len(history) + len(question) - seq.num_cached <= len(question) + (0 if turn else len(PUBLIC))
        history += [*question, 400 + turn, 401]
        warm = desk(100 + turn, list(history), SamplingParams(max_tokens=0), private="ann")
        warm.priority = Priority.IDLE
        answer(backend, warm)


def test_old_prefixes_are_evicted_and_the_public_part_stays(make: MakeBackend) -> None:
    backend = make(max_sequences=2, num_kv_tokens=256)
    for i in range(8):
        seq = desk(i, [300 + i] * 40, SamplingParams(temperature=0.0, max_tokens=2))
        answer(backend, seq)
        assert seq.num_cached == (len(PUBLIC) if i else 0)
    assert backend.cache_stats().num_evicted > 0
    assert backend.cache_stats().num_used <= 256


def test_a_short_prompt_passes_a_long_one(make: MakeBackend) -> None:
    backend = make(batch_tokens=80)
    scheduler = Scheduler(backend)
    long = Sequence(1, [5 + i % 300 for i in range(300)], 300, GREEDY, CacheScope(private="a"))
    scheduler.submit(long)
    scheduler.step()
    scheduler.submit(Sequence(2, [7, 8, 9], 3, GREEDY, CacheScope(private="b")))
    seen: list[int] = []
    while not seen:
        seen = [event.seq_id for event in scheduler.step() if event.token_id >= 0]
    assert seen == [2]
    assert long.num_uncomputed > 0


def test_a_warm_up_leaves_its_prompt_ready(backend: Backend) -> None:
    warm = desk(1, [250, 251, 252], SamplingParams(max_tokens=0), private="ann")
    warm.priority = Priority.IDLE
    assert answer(backend, warm) == {}
    follow_up = desk(2, [250, 251, 252, 253], private="ann")
    answer(backend, follow_up)
    assert follow_up.num_cached == len(PUBLIC) + 3


@pytest.mark.parametrize("steps", [0, 1, 3, 6])
def test_an_abort_in_any_state_frees_the_place_and_changes_no_answer(make: MakeBackend, steps: int) -> None:
    backend = make(max_sequences=2, batch_tokens=80)
    wanted = answer(backend, desk(9, [251]))[9]
    scheduler = Scheduler(backend)
    for seq in (desk(1, [250] * 60, endless(backend, 50)), desk(2, [251]), desk(3, [252] * 30, endless(backend, 50))):
        scheduler.submit(seq)
    got = [event for _ in range(steps) for event in scheduler.step()]
    scheduler.abort(1)
    scheduler.abort(3)
    events = run(scheduler)
    ends = {event.seq_id: event.finish_reason for each in events.values() for event in each if event.finish_reason}
    assert ends[1] is ends[3] is FinishReason.ABORT
    tokens = [e.token_id for e in [*got, *events.get(2, [])] if e.seq_id == 2 and e.token_id >= 0]
    assert tokens == wanted
    assert backend.admission(desk(4, [251])) is Admission.YES
    assert backend.start(desk(5, [253])) == len(PUBLIC)


def test_a_pass_that_is_broken_off_computed_nothing_and_can_be_done_again(backend: Backend) -> None:
    seq = Sequence(1, [5 + i % 100 for i in range(100)], 100, GREEDY, CacheScope(private="a"))
    backend.start(seq)
    backend.watch(lambda: True)
    assert backend.step() == []
    assert seq.num_computed == 0
    backend.watch(lambda: False)
    (first,) = backend.step()
    fresh = Sequence(2, list(seq.token_ids), 100, GREEDY, CacheScope(private="b"))
    assert first.token_id == answer(backend, fresh)[2][0]


def test_out_of_room_is_said_before_anything_is_computed(make: MakeBackend) -> None:
    backend = make(max_sequences=2, num_kv_tokens=256, batch_tokens=512)
    pair = [Sequence(i, [5 + i + j % 90 for j in range(200)], 200, GREEDY, CacheScope(private=str(i))) for i in range(2)]
    for seq in pair:
        backend.start(seq)
    with pytest.raises(OutOfRoom):
        backend.step()
    assert [seq.num_computed for seq in pair] == [0, 0]


def _strays(rounds: int, backend: Backend) -> list[tuple[int, int]]:
    """Round and number of each interleaved conversation, every one with a canary, that did not go as it goes alone.

    Some are cut short, and room is too small for all of them.
    """
    strays = []
    canaries = {i: [500 + 3 * i, 501 + 3 * i, 502 + 3 * i] for i in range(4)}
    alone = {i: answer(backend, desk(i, [*canary, 250], private=f"solo {i}"))[i] for i, canary in canaries.items()}
    for number in range(rounds):
        scheduler = Scheduler(backend)
        for i, canary in canaries.items():
            scheduler.submit(desk(i, [*canary, 250], private=f"{number} {i}"))
        cut = number % len(canaries)
        events = [event for _ in range(1 + number % 5) for event in scheduler.step()]
        scheduler.abort(cut)
        events += [event for each in run(scheduler).values() for event in each]
        for i in canaries:
            tokens = [event.token_id for event in events if event.seq_id == i and event.token_id >= 0]
            if tokens != alone[i] and not (i == cut and tokens == alone[i][: len(tokens)]):
                strays.append((number, i))
    return strays


def test_interleaved_conversations_keep_their_secrets(make: MakeBackend) -> None:
    assert _strays(3, make(max_sequences=3, num_kv_tokens=256)) == []


@pytest.mark.soak
def test_interleaved_conversations_keep_their_secrets_over_200_rounds(make: MakeBackend) -> None:
    assert _strays(200, make(max_sequences=3, num_kv_tokens=256)) == []
