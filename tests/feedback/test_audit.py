"""Nobody edits, moves or takes away a row of the audit log unnoticed."""

from pathlib import Path

import pytest
from sqlalchemy import text

from feedback.audit import Audit, BrokenChain
from feedback.database import Database

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


async def test_two_servers_write_one_chain(postgres_url: str, tmp_path: Path) -> None:
    import asyncio

    databases = [Database(postgres_url), Database(postgres_url)]
    audits = [Audit(database, tmp_path / f"head{number}") for number, database in enumerate(databases)]
    await asyncio.gather(*(audits[number % 2].write("wei", "sign_in", str(number)) for number in range(20)))
    assert [await audit.verify() for audit in audits] == [20, 20]
    for database in databases:
        database.close()
