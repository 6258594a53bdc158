"""What was said goes on its day, also when nobody was there to see the day, and not before."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import func, select

from feedback.audit import Audit
from feedback.database import Database
from feedback.erase import Eraser
from feedback.record import Message, Record
from feedback.retention import DAY_MS, Retention
from feedback.tables import conversation, visitor
from tests.feedback.conftest import Clock
from tests.feedback.test_erase import counts, fill, talk

pytestmark = pytest.mark.anyio


@pytest.fixture
def eraser(database: Database, tmp_path: Path, clock: Clock) -> Eraser:
    return Eraser(database, Audit(database, tmp_path / "audit.head"), tmp_path / "data", clock)


@pytest.fixture
def retention(database: Database, eraser: Eraser, clock: Clock) -> Retention:
    return Retention(database, eraser, 30, 180, clock)


async def ids(database: Database) -> set[str]:
    return set(await database.read(lambda connection: connection.execute(select(conversation.c.id)).scalars().all()))


async def test_a_conversation_goes_thirty_days_after_its_last_message(database: Database, retention: Retention, clock: Clock) -> None:
    begun = clock.ms
    await talk(database, "vis_a", "hello", at_ms=begun)
    lively = await talk(database, "vis_b", "hello", at_ms=begun)
    consented = await talk(database, "vis_c", "hello", at_ms=begun)
    await Record(database).set_consent(consented, "vis_c", consent_train=True)
    await Record(database).add_message(lively, Message("msg_x", "user", "hm", created_at_ms=begun + 5))
    clock.ms = begun + 30 * DAY_MS - 1
    assert await retention.sweep() == 0
    clock.ms = begun + 30 * DAY_MS
    assert [await retention.sweep(), await retention.sweep()] == [1, 0]
    assert await ids(database) == {lively, consented}
    assert await database.read(lambda connection: connection.execute(select(func.count()).select_from(visitor)).scalar_one()) == 2
    clock.ms = begun + 179 * DAY_MS
    assert await retention.sweep() == 1 and await ids(database) == {consented}
    await Record(database).set_consent(consented, "vis_c", consent_train=False)
    assert await retention.sweep() == 1 and set((await counts(database)).values()) == {0}


async def test_nothing_goes_where_nothing_shall(database: Database, eraser: Eraser, clock: Clock) -> None:
    kept = await talk(database, "vis_a", "hello", at_ms=1)
    clock.ms = 10_000 * DAY_MS
    assert await Retention(database, eraser, 0, 0, clock).sweep() == 0
    assert await ids(database) == {kept}


async def test_after_downtime_everything_that_is_over_goes_at_the_start(
    database: Database, retention: Retention, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feedback.retention.BATCH", 4)
    await database.write(lambda connection: fill(connection, "vis_whole"))
    for number in range(10):
        await talk(database, f"vis_{number}", "hello", at_ms=clock.ms)
    clock.ms += 400 * DAY_MS
    running = asyncio.create_task(retention.run())
    async with asyncio.timeout(20):
        while set((await counts(database)).values()) != {0}:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
