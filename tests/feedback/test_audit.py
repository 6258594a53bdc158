"""Nobody edits, moves or takes away a row of the audit log unnoticed."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text

from feedback.audit import DAY_MS, Audit, BrokenChain, exported_to
from feedback.database import Database
from tests.feedback.conftest import Clock

pytestmark = pytest.mark.anyio


@pytest.fixture
async def audit(database: Database, tmp_path: Path) -> Audit:
    audit = Audit(database, tmp_path / "audit.head")
    for number in range(1, 6):
        await audit.write("wei", "sign_in", f"agt_{number}", {"名": [number, 0.1, None, True], "b": {"z": 1, "a": 2}})
    return audit


async def test_a_whole_chain_is_whole_and_is_read_newest_first(audit: Audit) -> None:
    assert await audit.verify() == 5
    newest = await audit.page(None, 2)
    assert [entry.seq for entry in newest] == [5, 4]
    assert [entry.seq for entry in await audit.page(4, 10)] == [3, 2, 1]


@pytest.mark.parametrize(
    ("tampering", "named"),
    [
        ("UPDATE audit SET actor = 'mei' WHERE seq = 3", "row 3 is not"),
        ("UPDATE audit SET detail = '{}' WHERE seq = 1", "row 1 is not"),
        ("UPDATE audit SET at_ms = at_ms + 1 WHERE seq = 5", "row 5 is not"),
        ("UPDATE audit SET hash = prev_hash WHERE seq = 2", "row 2 is not"),
        ("DELETE FROM audit WHERE seq = 1", "row 1 is missing"),
        ("DELETE FROM audit WHERE seq = 4", "row 4 is missing"),
        ("DELETE FROM audit WHERE seq = 5", "row 5 is missing"),
        ("DELETE FROM audit", "row 1 is missing, and all after it up to row 5"),
        ("UPDATE audit SET seq = CASE seq WHEN 2 THEN -3 WHEN 3 THEN -2 ELSE seq END WHERE seq IN (2, 3)", "row 2 is not"),
    ],
)
async def test_tampering_is_named(audit: Audit, database: Database, tampering: str, named: str) -> None:
    await database.write(lambda connection: connection.execute(text(tampering)))
    await database.write(lambda connection: connection.execute(text("UPDATE audit SET seq = -seq WHERE seq < 0")))
    with pytest.raises(BrokenChain, match=named):
        await audit.verify()


async def test_a_chain_that_was_computed_again_is_named_too(audit: Audit, database: Database, tmp_path: Path) -> None:
    await database.write(lambda connection: connection.execute(text("DELETE FROM audit")))
    forger = Audit(database, tmp_path / "elsewhere")
    for number in range(1, 6):
        await forger.write("mei", "sign_in", f"agt_{number}")
    assert await forger.verify() == 5
    with pytest.raises(BrokenChain, match="row 5 or one before it was written anew"):
        await audit.verify()


@pytest.fixture
async def cut(database: Database, tmp_path: Path, clock: Clock) -> Audit:
    """A log whose rows 1 to 3 were cut on the eleventh day; rows 4 to 8 stand, of which 6 says so."""
    clock.ms = 100 * DAY_MS
    audit = Audit(database, tmp_path / "audit.head", clock)
    for action in ("export", "sign_in", "sign_in"):
        await audit.write("wei", action, f"/backup/{action}")
    clock.ms += 9 * DAY_MS
    for number in (4, 5):
        await audit.write("wei", "sign_in", f"agt_{number}")
    clock.ms += 2 * DAY_MS
    await audit.cut(10)
    for number in (7, 8):
        await audit.write("wei", "sign_in", f"agt_{number}")
    return audit


async def test_a_lawful_cut_leaves_a_whole_chain_and_goes_on(cut: Audit, database: Database, clock: Clock) -> None:
    assert [entry.seq for entry in await cut.page(None, 9)] == [8, 7, 6, 5, 4]
    assert await cut.verify() == 5
    await cut.cut(10)
    assert await cut.verify() == 5
    clock.ms += 400 * DAY_MS
    await cut.cut(10)
    assert [(entry.seq, entry.action) for entry in await cut.page(None, 9)] == [(9, "audit_cut")]
    assert await cut.verify() == 1
    # An erasure still knows where exports lie of which every row is gone.
    assert await database.read(exported_to) == {"/backup/export"}
    await cut.write("wei", "sign_in", "agt_10")
    assert await cut.verify() == 2


@pytest.mark.parametrize("tampering", ["UPDATE audit SET actor = 'mei' WHERE seq = 4", "UPDATE audit SET at_ms = 0 WHERE seq > 3"])
async def test_evidence_is_not_cut_off(cut: Audit, database: Database, tmp_path: Path, clock: Clock, tampering: str) -> None:
    head = (tmp_path / "audit.head").read_text()
    await database.write(lambda connection: connection.execute(text(tampering)))
    clock.ms += 9 * DAY_MS
    await cut.cut(10)
    assert [entry.seq for entry in await cut.page(None, 9)] == [8, 7, 6, 5, 4] and (tmp_path / "audit.head").read_text() == head
    with pytest.raises(BrokenChain, match="row 4 is not"):
        await cut.verify()


async def test_a_wrong_clock_cuts_nothing_off_that_stands_before(database: Database, tmp_path: Path, clock: Clock) -> None:
    audit = Audit(database, tmp_path / "audit.head", clock)
    for clock.ms in (500 * DAY_MS, 0, 501 * DAY_MS):
        await audit.write("wei", "sign_in", "agt_1")
    await audit.cut(10)
    assert await audit.verify() == 3


@pytest.mark.parametrize(
    ("tampering", "named"),
    [
        ("DELETE FROM audit WHERE seq = 4", "row 4 is missing"),
        ("DELETE FROM audit WHERE seq <= 5", "row 4 is missing"),
        ("DELETE FROM audit WHERE seq = 6", "row 1 is missing"),
        ("DELETE FROM audit WHERE seq <= 6", "row 1 is missing"),
        ("UPDATE audit SET actor = 'mei' WHERE seq = 4", "row 4 is not"),
        ("UPDATE audit SET prev_hash = '0' WHERE seq = 4", "row 4 is not"),
        ("UPDATE audit SET subject = '2' WHERE seq = 6", "row 6 is not"),
        ("UPDATE audit SET action = 'sign_in' WHERE seq = 6", "row 1 is missing"),
        ("UPDATE audit SET detail = '{}' WHERE seq = 6", "row 1 is missing"),
        ("UPDATE audit SET seq = 3 WHERE seq = 4", "row 4 is missing"),
        ("UPDATE audit SET action = 'audit_cut' WHERE seq = 8", "row 1 is missing"),
        ("DELETE FROM audit", "row 1 is missing, and all after it up to row 8"),
    ],
)
async def test_tampering_around_a_cut_is_named(cut: Audit, database: Database, tampering: str, named: str) -> None:
    await database.write(lambda connection: connection.execute(text(tampering)))
    with pytest.raises(BrokenChain, match=named):
        await cut.verify()


async def test_a_forged_cut_is_named(cut: Audit, database: Database, tmp_path: Path, clock: Clock) -> None:
    """Whoever can write to the database can cut as the server does, but not in the file beside it."""
    await cut.cut(10)
    forger, clock.ms = Audit(database, tmp_path / "elsewhere", clock), clock.ms + 100 * DAY_MS
    await forger.write("mei", "sign_in", "agt_9")
    await forger.cut(10)
    assert await forger.verify() == 2
    with pytest.raises(BrokenChain, match="row 8 was cut before its time"):
        await cut.verify()
    await cut.cut(10)
    with pytest.raises(BrokenChain, match="row 8 was cut before its time"):
        await cut.verify()


async def test_two_servers_cut_one_log(postgres_url: str, tmp_path: Path, clock: Clock) -> None:
    databases = [Database(postgres_url), Database(postgres_url)]
    first, second = (Audit(database, tmp_path / f"head{number}", clock) for number, database in enumerate(databases))
    await first.write("wei", "sign_in", "agt_1")
    await second.write("wei", "sign_in", "agt_2")
    clock.ms += 10 * DAY_MS
    for audit in (first, second):
        await audit.cut(10)
    assert [await first.verify(), await second.verify()] == [2, 2]
    third = Audit(databases[0], tmp_path / "head2", clock)
    await third.write("wei", "sign_in", "agt_3")
    await third.cut(10)
    assert await third.verify() == 3
    clock.ms += DAY_MS
    await asyncio.gather(first.cut(10), second.cut(10))
    assert [await each.verify() for each in (first, second, third)] == [2, 2, 2]
    # A server that was away complains of what went meanwhile, until it has seen as much grow old.
    clock.ms += 20 * DAY_MS
    await first.cut(10)
    assert await first.verify() == 1
    with pytest.raises(BrokenChain, match="row 4 was cut before its time"):
        await second.verify()
    clock.ms += 10 * DAY_MS
    await second.cut(10)
    assert await second.verify() == 1
    for database in databases:
        database.close()


async def test_two_servers_write_one_chain(postgres_url: str, tmp_path: Path) -> None:
    databases = [Database(postgres_url), Database(postgres_url)]
    audits = [Audit(database, tmp_path / f"head{number}") for number, database in enumerate(databases)]
    await asyncio.gather(*(audits[number % 2].write("wei", "sign_in", str(number)) for number in range(20)))
    assert [await audit.verify() for audit in audits] == [20, 20]
    for database in databases:
        database.close()
