"""The database, SQLite or PostgreSQL: one thread owns every write and every checkpoint, readers have connections of their own."""

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import alembic.command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, DataError, IntegrityError, ProgrammingError

logger = logging.getLogger(__name__)
T = TypeVar("T")

NUM_READERS = 2
WRITE_TRIES = 4
# Two processes that start together upgrade one after the other.
UPGRADE_LOCK = 0x6B656675
BUSY_TIMEOUT_MS = 3000
MIGRATIONS = Path(__file__).parent / "migrations"
FIRST_SAFE_SQLITE = (3, 51, 3)

# WAL and FULL: a commit is on the platter before it is acknowledged; macOS needs fullfsync to mean it. No mmap, and only the
# writer's connection ever commits or checkpoints: two connections doing so at once meet SQLite's WAL-reset bug (before 3.51.3).
SQLITE_PRAGMAS = (
    f"busy_timeout={BUSY_TIMEOUT_MS}",
    "journal_mode=WAL",
    "synchronous=FULL",
    "fullfsync=1",
    "checkpoint_fullfsync=1",
    "mmap_size=0",
    "foreign_keys=ON",
    "secure_delete=ON",  # what is deleted is overwritten
)
SQLITE_REASONS = {
    sqlite3.SQLITE_FULL: "full: no space is left on its disk",
    sqlite3.SQLITE_BUSY: "busy",
    sqlite3.SQLITE_LOCKED: "busy",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
}


class RecordUnavailable(Exception):
    """The database cannot take or give rows now: full, busy, read-only, damaged. Nothing of the failed work was kept."""


class Database:
    """Rows on disk behind two doors: `write` returns after COMMIT, `read` sees one snapshot.

    Work is a function of a Connection and nothing else; it runs on the writer thread or on a reader thread, in one transaction.
    Both doors raise RecordUnavailable when the database fails, and whatever the work itself raises, with nothing kept. Work that
    writes may be called again: on PostgreSQL another process can write between what it reads and what it inserts.
    """

    def __init__(self, url: str) -> None:
        """Open `url` (`sqlite:///...` or `postgresql://...`) and upgrade its schema as needed. Raises RecordUnavailable."""
        self._write_engine = _make_engine(url, begin="BEGIN IMMEDIATE", pool_size=1)
        self._read_engine = _make_engine(url, begin="BEGIN", pool_size=NUM_READERS)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="record-writer")
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="record-reader")
        try:
            self._writer.submit(_transact, self._write_engine, _upgrade, 1).result()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, url: str, data_dir: Path) -> "Database":
        """The database at `url`, or the one of the data folder when there is none. Raises RecordUnavailable."""
        return cls(url) if url else cls.in_folder(data_dir)

    @classmethod
    def in_folder(cls, data_dir: Path) -> "Database":
        """The SQLite database of a data folder: folder mode 0700, file mode 0600. Raises RecordUnavailable."""
        path = data_dir / "kefu.db"
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            data_dir.chmod(0o700)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            path.chmod(0o600)
        except OSError as error:
            raise RecordUnavailable(f"{path} cannot be opened: {error.strerror}") from error
        if sqlite3.sqlite_version_info < FIRST_SAFE_SQLITE:
            logger.warning("SQLite %s is older than 3.51.3; keep other programs from writing to %s", sqlite3.sqlite_version, path)
        return cls(f"sqlite:///{path}")

    async def write(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, _transact, self._write_engine, work, WRITE_TRIES)

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, _transact, self._read_engine, work)

    async def vacuum(self) -> None:
        """Write a SQLite file anew from its rows, so that no page keeps what was deleted or moved."""
        await asyncio.get_running_loop().run_in_executor(self._writer, _maintain, self._write_engine, "VACUUM")

    async def truncate_log(self) -> None:
        """Bring SQLite's write-ahead log into the file and cut it to nothing: until then it holds what was deleted."""
        await asyncio.get_running_loop().run_in_executor(self._writer, _maintain, self._write_engine, "PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Finish what is queued, then close. The writer's connection closes last, so that it does the final checkpoint."""
        for executor, engine in ((self._readers, self._read_engine), (self._writer, self._write_engine)):
            executor.shutdown(wait=True)
            engine.dispose()


def _transact(engine: Engine, work: Callable[[Connection], T], tries: int = 1) -> T:
    try:
        with engine.begin() as connection:
            return work(connection)
    except IntegrityError:
        if tries > 1 and engine.dialect.name != "sqlite":
            return _transact(engine, work, tries - 1)
        raise
    except (ProgrammingError, DataError):
        raise
    except DatabaseError as error:
        raise _unavailable(error.orig) from error


def _maintain(engine: Engine, statement: str) -> None:
    """What SQLite does only outside a transaction; nothing on PostgreSQL. A row that begins with 1 says that it gave up."""
    if engine.dialect.name != "sqlite":
        return
    bare = engine.raw_connection()
    try:
        if (bare.cursor().execute(statement).fetchone() or (0,))[0]:
            raise RecordUnavailable(f"the database is {SQLITE_REASONS[sqlite3.SQLITE_BUSY]}")
    except sqlite3.Error as error:
        raise _unavailable(error) from error
    finally:
        bare.close()


def _unavailable(error: BaseException | None) -> RecordUnavailable:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return RecordUnavailable(f"the database is {SQLITE_REASONS.get(code, 'not answering')}")


def _make_engine(url: str, begin: str, pool_size: int) -> Engine:
    parsed = make_url(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    options: dict[str, bool | str] = {} if is_sqlite else {"pool_pre_ping": True}
    if begin == "BEGIN" and not is_sqlite:
        options["isolation_level"] = "REPEATABLE READ"
    try:
        # An error's text may reach a log; what a customer wrote may not.
        engine = create_engine(parsed, pool_size=pool_size, max_overflow=0, hide_parameters=True, **options)
    except ImportError as error:
        raise RecordUnavailable("the database needs psycopg: pip install 'psycopg[binary]'") from error
    if is_sqlite:

        @event.listens_for(engine, "connect")
        def set_pragmas(connection: sqlite3.Connection, _: object) -> None:
            connection.isolation_level = None  # transactions begin and end below, never inside the driver
            for pragma in SQLITE_PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def begin_transaction(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

    return engine


def _upgrade(connection: Connection) -> None:
    """Bring the schema to the newest revision inside the caller's transaction: all of it or nothing."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(UPGRADE_LOCK)))
    try:
        alembic.command.upgrade(config, "head")
    except CommandError as error:
        raise RecordUnavailable(f"the database's schema is not known to this version of kefu: {error}") from error
