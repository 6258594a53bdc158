"""The audit log: who did what, in rows that only grow and whose hashes tell when one was edited, moved or taken away."""

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import Connection, delete, func, insert, select, text

from feedback.database import Database
from feedback.record import now_ms
from feedback.tables import audit

log = logging.getLogger("kefu.audit")
GENESIS = "0" * 64
DAY_MS = 24 * 3_600_000
CUT = "audit_cut"
EXPORT_ACTIONS = ("export", "export_without_redaction")


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
        self._remember(await self._database.write(lambda connection: self._append(connection, actor, action, subject, detail or {})))

    async def cut(self, days: int) -> None:
        """Let the rows go that were written more than `days` whole days ago (UTC). A deed says up to which row, and that row's hash.

        A log that is not what was written is left as it is.
        """
        midnight = (self._clock() // DAY_MS - days) * DAY_MS
        try:
            # One day more than goes now: another server may be the first to cut.
            due = await self._database.read(lambda connection: self._due(connection, midnight + DAY_MS))
            self._remember(None, due)
            if entry := await self._database.write(lambda connection: self._cut(connection, midnight)):
                self._remember(entry, due)
        except BrokenChain as error:
            log.warning("old audit rows stay: %s", error)

    def _append(self, connection: Connection, actor: str, action: str, subject: str, detail: dict[str, object]) -> Entry:
        _lock(connection)
        last = connection.execute(select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)).first()
        seq, prev_hash = (last.seq + 1, last.hash) if last else (1, GENESIS)
        entry = Entry(seq, self._clock(), actor, action, subject, detail, prev_hash)
        connection.execute(insert(audit).values(**asdict(entry), hash=entry.hash))
        return entry

    def _due(self, connection: Connection, before_ms: int) -> int:
        """What may be cut from now on; before this file knew of cuts, every one may."""
        due, was_due = _last_before(connection, before_ms), self._head()[2]
        if was_due is None or due > was_due:
            self._check(connection)
        return max(due, _newest_cut(connection)[0]) if was_due is None else due

    def _cut(self, connection: Connection, before_ms: int) -> Entry | None:
        _lock(connection)
        if not (seq := _last_before(connection, before_ms)):
            return None
        self._check(connection)
        last_hash = connection.execute(select(audit.c.hash).where(audit.c.seq == seq)).scalar_one()
        detail: dict[str, object] = {"up_to": seq, "hash": last_hash, "exports": sorted(exported_to(connection))}
        deed = self._append(connection, "system", CUT, str(seq), detail)
        connection.execute(delete(audit).where(audit.c.seq <= seq))
        return deed

    async def page(self, before: int | None, limit: int) -> list[Entry]:
        """The newest entries, those with a smaller `seq` than `before`."""
        rows = select(*audit.c[*Entry.__slots__]).order_by(audit.c.seq.desc()).limit(limit)
        rows = rows if before is None else rows.where(audit.c.seq < before)
        return await self._database.read(lambda connection: [Entry(*row) for row in connection.execute(rows)])

    async def verify(self) -> int:
        """How many rows the whole log has, those aside that were cut when their time was over. Raises BrokenChain."""
        return await self._database.read(self._verify)

    def _verify(self, connection: Connection) -> int:
        num_rows, num_cut, due = self._check(connection), _newest_cut(connection)[0], self._head()[2]
        if due is not None and num_cut > due:
            raise BrokenChain(f"row {num_cut} was cut before its time")
        return num_rows

    def _check(self, connection: Connection) -> int:
        num_cut, prev_hash, _ = _newest_cut(connection)
        num_rows, (head_seq, head_hash, _) = num_cut, self._head()
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
        return num_rows - num_cut

    def _head(self) -> tuple[int, str, int | None]:
        """The newest row's seq and hash, and the last row that may have been cut, once that is known."""
        with suppress(OSError, ValueError):
            seq, head_hash, *due = self._head_file.read_text(encoding="ascii").split()
            return int(seq), head_hash, int(due[0]) if due else None
        return 0, GENESIS, None

    def _remember(self, entry: Entry | None, due: int | None = None) -> None:
        """Replies of two writes may pass each other: only a newer row takes the place of the last."""
        seq, head_hash, was_due = was = self._head()
        if entry and entry.seq > seq:
            seq, head_hash = entry.seq, entry.hash
        due = max((each for each in (due, was_due) if each is not None), default=None)
        if not seq or (seq, head_hash, due) == was:
            return
        new = self._head_file.with_suffix(".new")
        try:
            new.write_text(f"{seq} {head_hash} {'' if due is None else due}\n", encoding="ascii")
            new.replace(self._head_file)
        except OSError as error:
            log.warning("the newest audit row is not remembered in %s: %s", self._head_file, error.strerror)


def exported_to(connection: Connection) -> set[str]:
    """Every folder that an export was written to, also those that only rows told which are cut."""
    logged = select(audit.c.subject).where(audit.c.action.in_(EXPORT_ACTIONS)).distinct()
    return {*connection.execute(logged).scalars(), *_newest_cut(connection)[2]}


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # where another server may write at the same time
        connection.execute(text("LOCK TABLE audit IN EXCLUSIVE MODE"))


def _last_before(connection: Connection, ms: int) -> int:
    """The last of the older rows that the log begins with, or 0. One row that a wrong clock dated takes no others with it."""
    first_young = select(func.min(audit.c.seq)).where(audit.c.at_ms >= ms).scalar_subquery()
    last = select(func.max(audit.c.seq)).where(audit.c.at_ms < ms, audit.c.seq < func.coalesce(first_young, 2**31 - 1))
    return connection.execute(last).scalar() or 0


def _newest_cut(connection: Connection) -> tuple[int, str, list[str]]:
    """The last row that was cut, its hash, and where exports had been written. What it is worth, the chain and the head file tell."""
    deeds = select(audit.c.detail).where(audit.c.action == CUT).order_by(audit.c.seq.desc()).limit(1)
    match connection.execute(deeds).scalar():
        case {"up_to": int(seq), "hash": str(last_hash), "exports": list(exports)}:
            return seq, last_hash, exports
    return 0, GENESIS, []
