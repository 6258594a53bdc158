"""A vote counts once, in time, for an answer its visitor received; everything stays in the ledger."""

import pytest
from sqlalchemy import Connection, select

from feedback.database import Database
from feedback.record import NotFound, Record
from feedback.signals import DAY_MS, MAX_FLIP_MS, MAX_VOTES_PER_DAY, KeyReused, Signals, Thumb
from feedback.tables import signal
from tests.feedback.conftest import Clock, answered

pytestmark = pytest.mark.anyio

Row = tuple[int, float, str | None, bool]


def thumb(completion_id: str, value: int, key: str, tags: tuple[str, ...] = (), comment: str | None = None) -> Thumb:
    return Thumb(completion_id, 1 if value > 0 else -1, tags, comment, key)


async def ledger(database: Database) -> list[Row]:
    """Each signal's value, weight, reason, and whether it retracts another."""

    def work(connection: Connection) -> list[Row]:
        rows = connection.execute(select(signal).order_by(signal.c.seq))
        return [(int(row.value), row.weight, row.reason, row.retracts_id is not None) for row in rows]

    return await database.read(work)


async def test_a_vote_is_kept_once_per_key(record: Record, signals: Signals, clock: Clock, database: Database) -> None:
    completion_id = await answered(record)
    clock.ms += 2_000
    vote = thumb(completion_id, -1, "key", ("wrong",), "不对")
    first = await signals.vote("vis_a", vote)
    again = await signals.vote("vis_a", vote)
    assert (first.is_new, again.is_new, again.signal_id) == (True, False, first.signal_id)
    assert await ledger(database) == [(-1, 1.0, None, False)]
    with pytest.raises(KeyReused):
        await signals.vote("vis_a", thumb(completion_id, 1, "key"))


async def test_only_who_received_the_answer_can_vote(record: Record, signals: Signals, clock: Clock, database: Database) -> None:
    completion_id = await answered(record, "vis_a")
    await answered(record, "vis_b")
    hidden = await answered(record, "vis_b", shown=False)
    clock.ms += 2_000
    for target in (completion_id, "cmpl_none", hidden, "' OR 1=1--"):
        with pytest.raises(NotFound, match=r"^no such answer$"):
            await signals.vote("vis_b", thumb(target, -1, "key"))
    assert await ledger(database) == []


@pytest.mark.parametrize(("age_ms", "reason"), [(0, "too_early"), (2_000, None), (DAY_MS + 1, "too_late")])
async def test_a_replaced_answer_is_noted_once_and_costs_no_vote(
    record: Record, signals: Signals, clock: Clock, database: Database, age_ms: int, reason: str | None
) -> None:
    completion_id = await answered(record, at_ms=clock.ms)
    clock.ms += age_ms
    for _ in range(2):
        await signals.did("vis_a", completion_id, "regenerate")
    weight = 0.0 if reason else 1.0
    assert await ledger(database) == [(-1, weight, reason, False)]
    with pytest.raises(NotFound):
        await signals.did("vis_b", completion_id, "edit")
    await signals.did("vis_a", completion_id, "edit")
    await signals.vote("vis_a", thumb(completion_id, 1, "key"))
    assert await ledger(database) == [(-1, weight, reason, False)] * 2 + [(1, weight, reason, False)]
    conversation = await record.current_conversation("vis_a")
    assert (await record.messages(conversation.id))[-1].thumb == 1


async def test_two_visitors_may_use_the_same_key(record: Record, signals: Signals, clock: Clock) -> None:
    mine, theirs = await answered(record, "vis_a"), await answered(record, "vis_b")
    clock.ms += 2_000
    first = await signals.vote("vis_a", thumb(mine, 1, "key"))
    second = await signals.vote("vis_b", thumb(theirs, 1, "key"))
    assert second.is_new
    assert first.signal_id != second.signal_id


@pytest.mark.parametrize(
    ("age_ms", "reason"),
    [(-3_600_000, "too_early"), (0, "too_early"), (1_499, "too_early"), (1_500, None), (DAY_MS, None), (DAY_MS + 1, "too_late")],
)
async def test_a_vote_out_of_time_weighs_nothing(
    record: Record, signals: Signals, clock: Clock, database: Database, age_ms: int, reason: str | None
) -> None:
    completion_id = await answered(record, at_ms=clock.ms)
    clock.ms += age_ms
    await signals.vote("vis_a", thumb(completion_id, 1, "key"))
    assert await ledger(database) == [(1, 0.0 if reason else 1.0, reason, False)]


async def test_a_broken_answers_vote_weighs_nothing(record: Record, signals: Signals, clock: Clock, database: Database) -> None:
    completion_id = await answered(record, status="interrupted")
    clock.ms += 2_000
    await signals.vote("vis_a", thumb(completion_id, -1, "key"))
    assert await ledger(database) == [(-1, 0.0, "not_complete", False)]


async def test_a_changed_mind_retracts_and_keeps_its_history(record: Record, signals: Signals, clock: Clock, database: Database) -> None:
    completion_id = await answered(record)
    clock.ms += 2_000
    await signals.vote("vis_a", thumb(completion_id, 1, "1"))
    clock.ms += 60_000
    await signals.vote("vis_a", thumb(completion_id, -1, "2"))
    await signals.vote("vis_a", thumb(completion_id, -1, "3"))
    await signals.vote("vis_a", thumb(completion_id, -1, "4", ("wrong",), "the price"))
    clock.ms += MAX_FLIP_MS + 1
    await signals.vote("vis_a", thumb(completion_id, 1, "5"))
    await signals.vote("vis_a", thumb(completion_id, -1, "6", ("wrong", "unclear")))
    assert await ledger(database) == [
        (1, 1.0, None, False),
        (-1, 1.0, None, True),
        (-1, 0.0, "duplicate", False),
        (-1, 1.0, None, True),
        (1, 0.0, "changed_late", False),
        (-1, 1.0, None, True),
    ]
    conversation = await record.current_conversation("vis_a")
    assert [message.thumb for message in await record.messages(conversation.id)] == [None, -1]


async def test_a_vote_that_came_too_early_can_be_cast_again(record: Record, signals: Signals, clock: Clock, database: Database) -> None:
    completion_id = await answered(record)
    await signals.vote("vis_a", thumb(completion_id, 1, "1"))
    clock.ms += 5_000
    await signals.vote("vis_a", thumb(completion_id, 1, "2"))
    assert [weight for _, weight, _, _ in await ledger(database)] == [0.0, 1.0]


async def test_one_visitors_votes_of_a_day_are_capped(record: Record, signals: Signals, clock: Clock, database: Database) -> None:
    answers = [await answered(record) for _ in range(MAX_VOTES_PER_DAY + 1)]
    clock.ms += 2_000
    for number, completion_id in enumerate(answers):
        await signals.vote("vis_a", thumb(completion_id, 1, f"key-{number}"))
    other = await answered(record, "vis_b")
    await signals.vote("vis_b", thumb(other, 1, "key"))
    reasons = [reason for _, _, reason, _ in await ledger(database)]
    assert reasons == [None] * MAX_VOTES_PER_DAY + ["daily_cap", None]
    clock.ms += DAY_MS + 2_000
    next_day = await answered(record, at_ms=clock.ms - 2_000)
    await signals.vote("vis_a", thumb(next_day, 1, "next day"))
    assert (await ledger(database))[-1][2] is None
