"""Insights count what happened, alike in both kinds of database, and say nothing of too few."""

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from feedback.database import Database
from feedback.inbox import Inbox, Move
from feedback.insights import DAY_MS, MIN_NUM, WEEK_MS, Insights, Measure, Slice, _queries, quantile
from feedback.record import Conversation, Message, Record, Retrieved, new_id
from feedback.signals import Csat, Signals, Thumb
from feedback.statistics import wilson
from tests.feedback.conftest import Clock, made
from tests.feedback.eight_weeks import seed

pytestmark = pytest.mark.anyio
MONDAY_MS = int(datetime(2026, 1, 5, tzinfo=UTC).timestamp()) * 1000


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.ms = MONDAY_MS + 2 * DAY_MS
    return clock


async def asked(database: Database, name: str, at_ms: int, adapter: str | None = None, score: float = 2.0, **changed: object) -> str:
    """A conversation of one answered question; the id of its completion."""
    record, how = Record(database), made(adapter=adapter, **changed)
    await record.add_conversation(Conversation(name, f"vis_{name}", "en", created_at_ms=at_ms))
    question = Message(new_id("msg"), "user", "How long?", client_message_id=new_id("key"), created_at_ms=at_ms)
    answer = Message(new_id("msg"), "assistant", "Seven days.", reply_to_id=question.id, created_at_ms=at_ms)
    await record.add_message(name, question)
    await record.add_message(name, answer, how, seen=(Retrieved("p1", "1", score),))
    return how.id


async def resolve(database: Database, clock: Clock, name: str) -> None:
    inbox = Inbox(database, clock)
    await inbox.move(name, Move("waiting", "failure", "system", ("bot",)))
    await inbox.move(name, Move("human", "agent", "Mei", ("waiting",), agent="Mei"))
    await inbox.move(name, Move("resolved", "agent", "Mei", ("human",)))


def told(measure: Measure) -> tuple[int, int]:
    """Hits and cases of a share."""
    return round(measure.value * measure.num), measure.num


async def test_each_number_counts_what_it_says(database: Database, signals: Signals, clock: Clock) -> None:
    now = clock.ms
    good = await asked(database, "good", now - 2 * DAY_MS, first_answer_ms=1000.0, num_reasoning_tokens=10)
    bad = await asked(database, "bad", now - 2 * DAY_MS, "round-1@ab", score=0.5, first_answer_ms=3000.0, num_reasoning_tokens=None)
    await asked(database, "quiet", now - 2 * DAY_MS)
    await asked(database, "fresh", now)
    await asked(database, "earlier", now - 3 * WEEK_MS)
    clock.ms = now - 2 * DAY_MS + 5_000
    await signals.vote("vis_good", Thumb(good, -1, (), None, "1"))
    await signals.vote("vis_good", Thumb(good, 1, (), None, "2"))
    await signals.did("vis_bad", bad, "edit")
    await resolve(database, clock, "bad")
    await signals.rate("vis_bad", Csat("bad", 2, None, "3"))
    clock.ms = now + 1
    fresh = await Insights(database, clock).overview(1, "week")
    quick = await asked(database, "quick", now)
    await signals.vote("vis_quick", Thumb(quick, 1, (), None, "4"))
    clock.ms = now
    (week,) = (found := await Insights(database, clock).overview(1, "week")).slices
    assert week.key == "2026-01-05" and fresh.whole.contained.num == 4
    for whole in (week, found.whole):
        assert (told(whole.contained), told(whole.confirmed), told(whole.assumed), told(whole.reopened)) == ((4, 5), (1, 3), (1, 3), (0, 3))
        assert (told(whole.rated), told(whole.content), told(whole.asked_again), told(whole.unanswered)) == ((1, 1), (0, 1), (1, 5), (1, 5))
        assert (told(whole.liked), whole.counts) == ((1, 1), {"gaps": 1, "up": 1, "down": 0, "quarantined": 1})
        assert (whole.reasons, whole.signals) == ({"failure": 1}, {"thumb": 1, "edit": 1, "csat": 1})
        assert (whole.first_answer_s.num, whole.thought_tokens.num) == (2, 4)
    by_adapter = {one.key: one for one in (await Insights(database, clock).overview(1, "adapter")).slices}
    assert {key: told(one.contained) for key, one in by_adapter.items()} == {"": (4, 4), "round-1@ab": (0, 1)}
    assert by_adapter["round-1@ab"].signals == {"edit": 1, "csat": 1} and by_adapter["round-1@ab"].reasons == {"failure": 1}
    assert [one.contained.num for one in (await Insights(database, clock).overview(4, "week")).slices] == [1, 0, 0, 5]


async def test_who_comes_back_was_not_helped(database: Database, signals: Signals, clock: Clock) -> None:
    await asked(database, "back", clock.ms - 2 * DAY_MS)
    await resolve(database, clock, "back")
    await signals.rate("vis_back", Csat("back", 5, None, "1"))
    confirmed = (await Insights(database, clock).overview(2, "week")).whole
    await Inbox(database, clock).move("back", Move("bot", "request", "visitor", ("resolved",)))
    reopened = (await Insights(database, clock).overview(2, "week")).whole
    assert [(told(one.confirmed), told(one.reopened)) for one in (confirmed, reopened)] == [((1, 1), (0, 1)), ((0, 1), (1, 1))]


async def test_slices_add_up_to_the_whole(database: Database, clock: Clock) -> None:
    await seed(database, clock.ms)
    for weeks, by in ((10, "week"), (10, "adapter")):
        found = await Insights(database, clock).overview(weeks, by)  # type: ignore[arg-type]
        assert len(found.slices) == (10 if by == "week" else 2)
        names = [name for name in Slice.__slots__ if isinstance(getattr(found.whole, name), Measure)]
        assert len(names) == 13
        assert {n: sum(getattr(one, n).num for one in found.slices) for n in names} == {n: getattr(found.whole, n).num for n in names}
    base, adapter = found.slices
    assert adapter.contained.low > base.contained.value and adapter.first_answer_s.high < base.first_answer_s.low


async def test_nothing_is_known_of_an_empty_record(database: Database, clock: Clock) -> None:
    found = await Insights(database, clock).overview(3, "week")
    assert [one.key for one in found.slices] == ["2025-12-22", "2025-12-29", "2026-01-05"]
    assert all(one.contained == Measure(0, 0, 1, 0) and not one.thought_tokens.is_enough for one in (found.whole, *found.slices))
    assert (await Insights(database, clock).overview(3, "adapter")).slices == []


async def test_long_rows_are_not_read(database: Database) -> None:
    query = _queries(1)[1].compile(compile_kwargs={"literal_binds": True})
    if database._read_engine.dialect.name == "sqlite":
        plan = await database.read(lambda connection: connection.execute(text(f"EXPLAIN QUERY PLAN {query}")).all())
        assert any("COVERING INDEX completion_measured (created_at_ms>?)" in row[3] for row in plan)


def brute_wilson(hits: int, num: int) -> Sequence[float]:
    """The shares that a score test at 5% does not refuse."""
    kept = [p / 10_000 for p in range(10_001) if abs(hits / num - p / 10_000) <= 1.96 * (p / 10_000 * (1 - p / 10_000) / num) ** 0.5]
    return kept[0], kept[-1]


@pytest.mark.parametrize(("hits", "num"), [(0, 20), (20, 20), (3, 25), (700, 1000)])
def test_an_interval_holds_the_shares_that_are_not_refused(hits: int, num: int) -> None:
    assert wilson(hits, num) == pytest.approx(brute_wilson(hits, num), abs=2e-4)
    assert Measure.share([True] * hits + [False] * (num - hits)).is_enough == (num >= MIN_NUM)


def test_a_quantile_lies_within_its_interval() -> None:
    values = [float(each) for each in range(1000)]
    assert quantile(values, 0.5) == Measure(500.0, 469.0, 530.0, 1000)
    tail = quantile(values, 0.95)
    assert tail.low < tail.value == 950.0 < tail.high < 1000
    assert quantile([], 0.5).num == 0
