"""Erasing: the one exception to tables that only grow. What hangs on a visitor's rows is found by foreign keys, not by a list."""

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, exists, func, or_, select

from feedback.audit import Audit, exported_to
from feedback.database import Database
from feedback.evaluation import forget_changes
from feedback.record import NotFound, now_ms
from feedback.rounds import Rounds
from feedback.tables import conversation, metadata, visitor
from feedback.training.job import TrainingFailed
from feedback.training.rows import snapshot_sha256
from feedback.writers import PROVENANCE, conversation_hash

EXPORT_FOLDER = "export"
# One line an erasure: its time and the hash of the visitor's id. A backup that is put back must not bring an older copy of this file.
TOMBSTONES = "erased.visitors"
# One line an export that was deleted because it held an erased visitor's rows: what was trained on it must be trained anew.
STALE = "erased.exports"


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure took: rows by table, and exports. Those `elsewhere` hold rows too, but are not in the data folder and stay."""

    rows: Mapping[str, int]
    exports: Collection[Path]
    elsewhere: Collection[Path]


def reached(roots: Mapping[Table, ColumnElement[bool]]) -> dict[Table, ColumnElement[bool]]:
    """Which rows must go with those of `roots`, by table: whatever leads there by foreign keys. Parents come first."""
    found: dict[Table, ColumnElement[bool]] = {}
    for table in metadata.sorted_tables:
        keys = [key for key in table.foreign_keys if key.column.table in found]
        links = [key.parent.in_(select(key.column).where(found[key.column.table])) for key in keys]
        if table in roots:
            found[table] = roots[table]
        elif links:
            found[table] = or_(*links)
    return found


def delete_rows(connection: Connection, roots: Mapping[Table, ColumnElement[bool]]) -> dict[str, int]:
    """Delete the rows of `roots` and what is reached from them; returns how many went, by table."""
    doomed = reversed(reached(roots).items())
    counts = {table.name: connection.execute(delete(table).where(which)).rowcount for table, which in doomed}
    return {name: count for name, count in counts.items() if count}


def visitors_without_conversations(which: ColumnElement[bool]) -> dict[Table, ColumnElement[bool]]:
    """Those of `which` of whom nothing is left but that they were here."""
    return {visitor: and_(which, ~exists().where(conversation.c.visitor_id == visitor.c.id))}


class Eraser:
    """Deletes visitors, and remembers their ids' hashes, so that a backup does not bring them back. All methods raise RecordUnavailable."""

    def __init__(self, database: Database, log: Audit, data_dir: Path, clock: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._log = log
        self._data_dir = data_dir
        self._clock = clock

    async def conversations(self, visitor_id: str) -> list[str]:
        """The ids of a visitor's conversations."""
        mine = select(conversation.c.id).where(conversation.c.visitor_id == visitor_id).order_by(conversation.c.id)
        return await self._database.read(lambda connection: list(connection.execute(mine).scalars()))

    async def exports_holding(self, visitor_id: str) -> list[Path]:
        """The folders of exports with rows of this visitor: those in the data folder and wherever else `kefu export` wrote."""
        subjects = await self._database.read(exported_to)
        hashes = {conversation_hash(each) for each in await self.conversations(visitor_id)}
        folders = {path.resolve() for path in (self._data_dir / EXPORT_FOLDER, *map(Path, subjects))}
        exports = sorted(export for folder in folders if folder.is_dir() for export in folder.iterdir() if export.is_dir())
        return await asyncio.to_thread(lambda: [export for export in exports if _holds(export, hashes)])

    async def erase(self, visitor_id: str, actor: str) -> Erased:
        """Delete everything of a visitor, on disk when this returns. What it could not finish, the same call finishes.

        Raises NotFound for a visitor who was never here, OSError when an export cannot be deleted.
        """
        one = select(visitor.c.id).where(visitor.c.id == visitor_id)
        is_here = await self._database.read(lambda connection: connection.execute(one).first() is not None)
        if not is_here and _hash(visitor_id) not in self._tombstones():
            raise NotFound("no such visitor")
        now = self._clock()
        _append(self._data_dir / TOMBSTONES, f"{now} {_hash(visitor_id)}")
        erased = await self._erase(visitor_id, now)
        await self._finish(erased, visitor_id, actor)
        return erased

    async def replay(self) -> int:
        """Erase again whom a restored backup brought back; returns how many they were. What they said since they were erased stays."""
        tombstones = self._tombstones()
        since = func.coalesce(func.min(conversation.c.created_at_ms), visitor.c.created_at_ms).label("since_ms")
        all_ = select(visitor.c.id, since).select_from(visitor.outerjoin(conversation)).group_by(visitor.c.id)
        seen = await self._database.read(lambda connection: connection.execute(all_).all() if tombstones else [])
        back = {row.id: at_ms for row in seen if row.since_ms <= (at_ms := tombstones.get(_hash(row.id), -1))}
        num_back = 0
        for visitor_id, at_ms in back.items():
            if (erased := await self._erase(visitor_id, at_ms)).rows:
                await self._finish(erased, visitor_id, "system")
                num_back += 1
        return num_back

    async def _erase(self, visitor_id: str, until_ms: int) -> Erased:
        # The exports go first: which they are is known only from the rows.
        holding, inside = await self.exports_holding(visitor_id), self._data_dir.resolve()
        exports = [each for each in holding if each.is_relative_to(inside)]
        for export in holding:
            _append(self._data_dir / STALE, export.name)
            await self._retire(export)
        for export in exports:
            await asyncio.to_thread(shutil.rmtree, export)
        forget_changes(self._data_dir)
        theirs = and_(conversation.c.visitor_id == visitor_id, conversation.c.created_at_ms <= until_ms)

        def work(connection: Connection) -> dict[str, int]:
            rows = delete_rows(connection, {conversation: theirs})
            return rows | delete_rows(connection, visitors_without_conversations(visitor.c.id == visitor_id))

        rows = await self._database.write(work)
        return Erased(rows, exports, [each for each in holding if each not in exports])

    async def _retire(self, export: Path) -> None:
        """Rounds that learnt from this export serve no more, and keep no copy of its rows."""
        with suppress(TrainingFailed):
            snapshot, rounds = snapshot_sha256(export), Rounds(self._database)
            await rounds.erased(snapshot)
            for one in await rounds.all():
                if one.snapshot_sha256 == snapshot:
                    shutil.rmtree(self._data_dir / "rounds" / one.id / "rows", ignore_errors=True)

    async def _finish(self, erased: Erased, visitor_id: str, actor: str) -> None:
        await self._database.vacuum()
        await self._database.truncate_log()
        await self._log.write(actor, "visitor_erased", _hash(visitor_id), {"rows": dict(erased.rows), "exports": len(erased.exports)})

    def _tombstones(self) -> dict[str, int]:
        """When each visitor was last erased, by the hash of their id."""
        path = self._data_dir / TOMBSTONES
        lines = path.read_text(encoding="ascii").split("\n") if path.exists() else []
        return {name: int(at_ms) for at_ms, _, name in (line.partition(" ") for line in lines) if name}


def _holds(export: Path, hashes: Collection[str]) -> bool:
    """Whether an export has rows of these conversations; one that was never finished may have any."""
    provenance = export / PROVENANCE
    if not provenance.is_file():
        return export.name.startswith(".")
    with provenance.open(encoding="utf-8") as lines:
        return any(json.loads(line)["conversation"] in hashes for line in lines)


def _hash(visitor_id: str) -> str:
    return hashlib.sha256(visitor_id.encode()).hexdigest()


def _append(path: Path, line: str) -> None:
    """On disk when this returns."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "a", encoding="ascii") as file:
        file.write(f"{line}\n")
        file.flush()
        os.fsync(file.fileno())
