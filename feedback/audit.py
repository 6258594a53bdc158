"""The audit log: who did what, in rows that only grow and whose hashes tell when one was edited, moved or taken away."""

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import Connection, insert, select, text

from feedback.database import Database
from feedback.record import now_ms
from feedback.tables import audit

log = logging.getLogger("kefu.audit")
GENESIS = "0" * 64


class BrokenChain(Exception):
    """The log is not what was written; the message names the first row that does not fit."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One deed. `detail` holds versions, counts and ids, never what a customer wrote."""

    seq: int
    at_ms: int
    actor: str
    action: str
    subject: str
    detail: dict[str, object]
    prev_hash: str

    @property
    def hash(self) -> str:
        """SHA-256 over the row as canonical JSON: sorted keys, no spaces, UTF-8."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


class Audit:
    """The log, and a file beside it that remembers its newest row: without it nobody would miss the last rows."""

    def __init__(self, database: Database, head_file: Path, clock: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._head_file = head_file
        self._clock = clock

    async def write(self, actor: str, action: str, subject: str, detail: dict[str, object] | None = None) -> None:
        """Put a deed on disk. `actor` is an agent's name, "command line" or "visitor"; `detail` must survive JSON."""

        def work(connection: Connection) -> Entry:
            if connection.dialect.name == "postgresql":  # where another server may write at the same time
                connection.execute(text("LOCK TABLE audit IN EXCLUSIVE MODE"))
            last = connection.execute(select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)).first()
            seq, prev_hash = (last.seq + 1, last.hash) if last else (1, GENESIS)
            entry = Entry(seq, self._clock(), actor, action, subject, detail or {}, prev_hash)
            connection.execute(insert(audit).values(**asdict(entry), hash=entry.hash))
            return entry

        self._remember(await self._database.write(work))

    async def page(self, before: int | None, limit: int) -> list[Entry]:
        """The newest entries, those with a smaller `seq` than `before`."""
        rows = select(*audit.c[*Entry.__slots__]).order_by(audit.c.seq.desc()).limit(limit)
        rows = rows if before is None else rows.where(audit.c.seq < before)
        return await self._database.read(lambda connection: [Entry(*row) for row in connection.execute(rows)])

    async def verify(self) -> int:
        """How many rows the whole log has. Raises BrokenChain."""
        return await self._database.read(self._verify)

    def _verify(self, connection: Connection) -> int:
        num_rows, prev_hash = 0, GENESIS
        head_seq, head_hash = self._head()
        for *fields, stored_hash in connection.execute(select(*audit.c[*Entry.__slots__, "hash"]).order_by(audit.c.seq)):
            entry, num_rows = Entry(*fields), num_rows + 1
            if entry.seq != num_rows:
                raise BrokenChain(f"row {num_rows} is missing")
            if (entry.prev_hash, entry.hash) != (prev_hash, stored_hash):
                raise BrokenChain(f"row {num_rows} is not what was written")
            if num_rows == head_seq and stored_hash != head_hash:
                raise BrokenChain(f"row {num_rows} or one before it was written anew")
            prev_hash = stored_hash
        if num_rows < head_seq:
            raise BrokenChain(f"row {num_rows + 1} is missing, and all after it up to row {head_seq}")
        return num_rows

    def _head(self) -> tuple[int, str]:
        with suppress(OSError, ValueError):
            seq, head_hash = self._head_file.read_text(encoding="ascii").split()
            return int(seq), head_hash
        return 0, GENESIS

    def _remember(self, entry: Entry) -> None:
        """Replies of two writes may pass each other: only a newer row takes the place of the last."""
        if entry.seq <= self._head()[0]:
            return
        new = self._head_file.with_suffix(".new")
        try:
            new.write_text(f"{entry.seq} {entry.hash}\n", encoding="ascii")
            new.replace(self._head_file)
        except OSError as error:
            log.warning("the newest audit row is not remembered in %s: %s", self._head_file, error.strerror)
