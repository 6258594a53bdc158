"""What was said goes on its day, also when nobody was there to see the day, and not before; so does what was said of it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, update

from feedback.audit import Audit
from feedback.database import Database
from feedback.erase import Eraser
from feedback.record import Message, Record
from feedback.retention import DAY_MS, Days, Retention
from feedback.signals import Signals, Thumb
from feedback.tables import conversation, handoff, review, signal, visitor
from tests.feedback.conftest import Clock, answered
from tests.feedback.test_erase import counts, fill, talk

pytestmark = pytest.mark.anyio


@pytest.fixture
def audit(database: Database, tmp_path: Path, clock: Clock) -> Audit:
    return Audit(database, tmp_path / "audit.head", clock)


@pytest.fixture
def eraser(database: Database, audit: Audit, tmp_path: Path, clock: Clock) -> Eraser:
    return Eraser(database, audit, tmp_path / "data", clock)


@pytest.fixture
def retention(database: Database, eraser: Eraser, audit: Audit, clock: Clock) -> Retention:
    return Retention(database, eraser, audit, Days(), clock)


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


async def test_nothing_goes_where_nothing_shall(database: Database, eraser: Eraser, audit: Audit, clock: Clock) -> None:
    kept = await talk(database, "vis_a", "hello", at_ms=1)
    await database.write(lambda connection: fill(connection, "vis_whole"))
    await audit.write("wei", "sign_in", "agt_1")
    before = await texts(database)
    clock.ms = 10_000 * DAY_MS
    assert await Retention(database, eraser, audit, Days(0, 0, 0, 0), clock).sweep() == 0
    assert kept in await ids(database) and await audit.verify() == 1
    assert await texts(database) == before


async def texts(database: Database) -> list[Sequence[object]]:
    columns = {signal: signal.c.comment, review: review.c.reason, handoff: handoff.c.contact}
    rows = [select(column, table.c.redacted_at_ms).order_by(table.c.seq) for table, column in columns.items()]
    return await database.read(lambda connection: [tuple(row) for one in rows for row in connection.execute(one)])


async def test_feedback_is_redacted_once_where_its_conversation_stays(
    database: Database, eraser: Eraser, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feedback.retention.BATCH", 2)
    audit = Audit(database, tmp_path / "audit.head", clock)
    signals, phone, mail = Signals(database, clock), "13912345678", "li@example.com"
    said = [f"call {phone} or {mail}", f"again: {phone}", None, "too slow"]
    completion_id, begun = await answered(Record(database), at_ms=clock.ms), clock.ms + 60_000
    clock.ms = begun
    receipts = [await signals.vote("vis_a", Thumb(completion_id, 1, (), each, f"key_{n}")) for n, each in enumerate(said)]
    moved = {
        "conversation_id": receipts[0].conversation_id,
        "from_state": "bot",
        "to_state": "waiting",
        "reason": "form",
        "actor": "visitor",
    }
    form = {**moved, "contact": {"email": mail, "message": f"{phone}?"}, "created_at_ms": begun}
    await database.write(lambda connection: connection.execute(insert(handoff).values(**form)))
    retention, before = Retention(database, eraser, audit, Days(0, 0, 180, 0), clock), await texts(database)
    clock.ms = begun + 180 * DAY_MS - 1
    await retention.sweep()
    assert await texts(database) == before and [row[0] for row in before[:-1]] == said
    clock.ms = now = begun + 180 * DAY_MS
    await retention.sweep()
    redacted = await texts(database)
    assert redacted == [
        ("call [PHONE_1] or [EMAIL_1]", now),
        ("again: [PHONE_1]", now),
        (None, None),
        ("too slow", now),
        ({"email": "[EMAIL_1]", "message": "[PHONE_1]?"}, now),
    ]
    clock.ms += DAY_MS
    await retention.sweep()
    assert await texts(database) == redacted
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(secret.encode() in each for each in files for secret in (phone, mail))


async def test_a_verdict_s_reason_is_redacted_with_the_other_feedback(
    database: Database, eraser: Eraser, audit: Audit, clock: Clock
) -> None:
    await database.write(lambda connection: fill(connection, "vis_whole"))
    for table in (signal, review, handoff):
        await database.write(lambda connection, table=table: connection.execute(update(table).values(redacted_at_ms=None)))
    clock.ms += 200 * DAY_MS
    await Retention(database, eraser, audit, Days(0, 0, 180, 0), clock).sweep()
    rows = await texts(database)
    assert len(rows) == 3 and all("[PHONE_1]" in str(row[0]) and row[1] == clock.ms for row in rows)
    assert not any("13912345678" in str(row) for row in rows)


async def test_the_audit_log_keeps_a_year(audit: Audit, retention: Retention, clock: Clock) -> None:
    begun = clock.ms = 400 * DAY_MS
    await audit.write("wei", "sign_in", "agt_1")
    clock.ms = begun + 366 * DAY_MS - 1
    await retention.sweep()
    assert [entry.seq for entry in await audit.page(None, 9)] == [1]
    clock.ms += 1
    await retention.sweep()
    await retention.sweep()
    assert [(entry.seq, entry.action) for entry in await audit.page(None, 9)] == [(2, "audit_cut")]
    assert await audit.verify() == 1


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
