"""What was acknowledged is on disk, whatever happens to the process, the file or the disk."""

import asyncio
import multiprocessing
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import alembic.command
import alembic.op
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from feedback.database import Database, RecordUnavailable
from feedback.record import Record
from feedback.signals import Signals, Thumb
from feedback.tables import completion, metadata
from tests.feedback.conftest import answered
from tests.feedback.voter import vote_forever

KILLS = 20
TEARS = 60
Work = Callable[[Connection], object]


@contextmanager
def opened(folder: Path) -> Iterator[Database]:
    database = Database.in_folder(folder)
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path / "data") as database:
        yield database


def add_visitor(name: str) -> Work:
    return lambda connection: connection.execute(text("INSERT INTO visitor VALUES (:id, 1)"), {"id": name})


def set_pragma(assignment: str) -> Work:
    return lambda connection: connection.exec_driver_sql(f"PRAGMA {assignment}").close()


def num_visitors(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM visitor")).scalar_one())


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


@pytest.mark.anyio
async def test_a_killed_process_loses_no_acknowledged_vote_and_doubles_none(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        completion_id = await answered(Record(database))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.feedback.voter"])
    chance = random.Random(1)
    acknowledged: set[int] = set()
    next_number = 0
    for _ in range(KILLS):
        theirs, ours = context.Pipe()
        process = context.Process(target=vote_forever, args=(tmp_path, completion_id, next_number, theirs))
        process.start()
        theirs.close()
        enough = len(acknowledged) + chance.randrange(1, 12)
        try:
            while len(acknowledged) < enough:
                acknowledged.add(ours.recv())
            process.kill()
            while True:
                acknowledged.add(ours.recv())
        except EOFError:
            process.join()
        next_number = max(acknowledged) + 1
    stored = [int(str(key)) for (key,) in rows(tmp_path / "kefu.db", "SELECT idempotency_key FROM signal")]
    assert acknowledged <= set(stored)
    assert len(stored) == len(set(stored))
    assert len(acknowledged) >= KILLS
    assert rows(tmp_path / "kefu.db", "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.anyio
async def test_a_torn_log_opens_and_keeps_what_had_reached_the_disk(tmp_path: Path) -> None:
    reached: list[int] = []
    source, log = tmp_path / "source" / "kefu.db", tmp_path / "source" / "kefu.db-wal"
    with opened(tmp_path / "source") as database:
        await database.write(set_pragma("wal_autocheckpoint=0"))
        for number in range(40):
            await database.write(add_visitor(f"vis_{number}"))
            reached.append(log.stat().st_size)
        main_bytes, log_bytes = source.read_bytes(), log.read_bytes()
    chance = random.Random(2)
    for number in range(TEARS):
        torn = tmp_path / f"torn-{number}.db"
        cut = chance.randrange(len(log_bytes))
        garbage = chance.randbytes(chance.choice((0, 100, 5000)))
        torn.write_bytes(main_bytes)
        torn.with_name(f"{torn.name}-wal").write_bytes(log_bytes[:cut] + garbage)
        assert rows(torn, "PRAGMA integrity_check") == [("ok",)]
        is_migrated = rows(torn, "SELECT 1 FROM sqlite_master WHERE name = 'visitor'")
        stored = {name for (name,) in rows(torn, "SELECT id FROM visitor")} if is_migrated else set()
        assert stored >= {f"vis_{number}" for number, size in enumerate(reached) if size <= cut}


@pytest.mark.anyio
async def test_a_full_disk_refuses_votes_keeps_reading_and_recovers(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        completion_id = await answered(Record(database))
        signals = Signals(database)
        vote = Thumb(completion_id, -1, (), "x" * 20_000, "key")
        await database.write(set_pragma("max_page_count=1"))
        with pytest.raises(RecordUnavailable, match="no space is left"):
            await signals.vote("vis_a", vote)
        assert await database.read(num_visitors) == 1
        assert rows(tmp_path / "kefu.db", "SELECT count(*) FROM signal") == [(0,)]
        await database.write(set_pragma("max_page_count=100000"))
        assert (await signals.vote("vis_a", vote)).is_new
        assert rows(tmp_path / "kefu.db", "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.anyio
async def test_a_database_that_somebody_holds_is_unavailable_until_they_let_go(database: Database, tmp_path: Path) -> None:
    await database.write(set_pragma("busy_timeout=20"))
    with closing(sqlite3.connect(tmp_path / "data" / "kefu.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RecordUnavailable, match="busy"):
            await database.write(add_visitor("vis_a"))
        assert await database.read(num_visitors) == 0
        other.execute("ROLLBACK")
    await database.write(add_visitor("vis_a"))
    assert await database.read(num_visitors) == 1


@pytest.mark.anyio
async def test_a_read_only_database_is_unavailable(database: Database) -> None:
    await database.write(set_pragma("query_only=1"))
    with pytest.raises(RecordUnavailable, match="read-only"):
        await database.write(add_visitor("vis_a"))


@pytest.mark.anyio
async def test_a_damaged_page_is_a_typed_error(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        await database.write(add_visitor("vis_a"))
    path = tmp_path / "kefu.db"
    [(page,)] = rows(path, "SELECT rootpage FROM sqlite_master WHERE name = 'visitor'")
    [(size,)] = rows(path, "PRAGMA page_size")
    with path.open("r+b") as file:
        file.seek((int(str(page)) - 1) * int(str(size)))
        file.write(b"\xff" * int(str(size)))
    with opened(tmp_path) as database, pytest.raises(RecordUnavailable, match="damaged"):
        await database.read(lambda connection: connection.execute(text("SELECT created_at_ms FROM visitor")).all())


@pytest.mark.parametrize("content", [b"not a database, but long enough to be taken for one" * 100, b"SQLite format 3\0" + bytes(4000)])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "kefu.db").write_bytes(content)
    with pytest.raises(RecordUnavailable, match="damaged"):
        Database.in_folder(tmp_path)
    assert (tmp_path / "kefu.db").read_bytes() == content


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordUnavailable, match="cannot be opened"):
        Database.in_folder(tmp_path / "file" / "data")


@pytest.mark.anyio
async def test_many_writers_at_once_are_all_kept(database: Database) -> None:
    await asyncio.gather(*(database.write(add_visitor(f"vis_{number}")) for number in range(50)))
    assert await database.read(num_visitors) == 50


@pytest.mark.anyio
async def test_every_connection_is_as_durable_as_promised(database: Database) -> None:
    wanted = {"journal_mode": "wal", "synchronous": 2, "fullfsync": 1, "checkpoint_fullfsync": 1, "mmap_size": 0, "foreign_keys": 1}

    def settings(connection: Connection) -> dict[str, object]:
        return {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in wanted}

    assert await database.write(settings) == wanted
    assert await database.read(settings) == wanted


@pytest.mark.anyio
async def test_the_migrations_make_the_tables_that_the_code_knows(database: Database) -> None:
    assert await database.read(lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)) == []


@pytest.mark.anyio
async def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        await database.write(add_visitor("vis_a"))
    before = rows(tmp_path / "kefu.db", "SELECT sql FROM sqlite_master")
    with opened(tmp_path) as database:
        assert await database.read(num_visitors) == 1
    assert rows(tmp_path / "kefu.db", "SELECT sql FROM sqlite_master") == before


def age(folder: Path, revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace a folder's database by one of an older revision that holds the same rows, as far as it has columns for them."""
    (folder / "kefu.db").rename(folder / "new.db")
    upgrade = alembic.command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(alembic.command, "upgrade", lambda config, _: upgrade(config, revision))
        Database.in_folder(folder).close()
    with closing(sqlite3.connect(folder / "kefu.db")) as old:
        old.execute("ATTACH ? AS new", (str(folder / "new.db"),))
        for (name,) in old.execute("SELECT name FROM main.sqlite_master WHERE sql LIKE 'CREATE TABLE%'").fetchall():
            columns = ", ".join(row[1] for row in old.execute(f"PRAGMA main.table_info({name})"))
            if not name.startswith(("alembic", "sqlite")):
                old.execute(f"INSERT INTO main.{name} ({columns}) SELECT {columns} FROM new.{name}")
        old.commit()


@pytest.mark.anyio
async def test_an_older_database_keeps_its_answers_and_takes_those_of_an_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as database:
        old = await answered(Record(database))
        await Signals(database).vote("vis_a", Thumb(old, 1, (), None, "key"))
    age(tmp_path, "0001", monkeypatch)
    with opened(tmp_path) as database:
        untold = await answered(Record(database), prompt_token_ids=None, completion_token_ids=None, logprobs=None, template_sha256=None)
        kept = {row.id: row for row in await database.read(lambda connection: connection.execute(select(completion)).all())}
        assert not await database.read(lambda connection: connection.execute(text("PRAGMA foreign_key_check")).all())
        assert await database.read(lambda connection: connection.execute(text("PRAGMA integrity_check")).scalar_one()) == "ok"
    assert (kept[old].prompt_token_ids, kept[old].logprobs, kept[old].model_sha256) == ([1, 2, 151_645], [-0.5, None], "0" * 64)
    assert (kept[old].violations, kept[untold].violations) == (None, [])
    assert (kept[untold].prompt_token_ids, kept[untold].logprobs, kept[untold].template_sha256) == (None, None, None)
    assert rows(tmp_path / "kefu.db", "SELECT completion_id, value FROM signal") == [(old, 1.0)]


def test_a_migration_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(alembic.op, "create_index", fail)
        with pytest.raises(KeyboardInterrupt):
            Database.in_folder(tmp_path)
    assert rows(tmp_path / "kefu.db", "SELECT name FROM sqlite_master") == []
    Database.in_folder(tmp_path).close()


@pytest.mark.anyio
async def test_a_database_of_a_newer_kefu_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        await database.write(lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(RecordUnavailable, match="not known to this version"):
        Database.in_folder(tmp_path)


def test_the_tables_can_be_made_by_postgresql() -> None:
    dialect = postgresql.dialect()
    for table in metadata.sorted_tables:
        assert str(CreateTable(table).compile(dialect=dialect))
        assert all(str(CreateIndex(index).compile(dialect=dialect)) for index in table.indexes)
