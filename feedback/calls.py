"""Calls of tools: what was asked of them, whether the customer agreed, and what came of it."""

import time
from dataclasses import asdict, dataclass, field
from typing import Literal

from sqlalchemy import ColumnElement, Connection, and_, func, select, update

from feedback.database import Database
from feedback.tables import tool_call

# `pending` waits for the customer's yes; `running` for longer than the tool's timeout means that the server ended meanwhile.
CallStatus = Literal["pending", "running", "done", "failed", "declined", "dropped"]
CONFIRM_WITHIN_MS = 10 * 60_000


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `arguments` is the JSON of an object, as the model wrote it; `result` what the model was told. Its id confirms it."""

    id: str
    name: str
    arguments: str
    status: CallStatus = "running"
    result: str = ""
    duration_ms: float = 0.0
    completion_id: str | None = None
    created_at_ms: int = field(default_factory=_now_ms)


class Calls:
    """Calls that wait for a yes, and what became of them. Every method raises RecordUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def pending(self, conversation_id: str) -> Call | None:
        """The call that the customer may still confirm."""
        newest = select(*_COLUMNS).where(_is_pending(conversation_id)).order_by(tool_call.c.created_at_ms.desc()).limit(1)

        def work(connection: Connection) -> Call | None:
            row = connection.execute(newest).mappings().first()
            return Call(**row) if row else None

        return await self._database.read(work)

    async def take(self, conversation_id: str, call_id: str, status: Literal["running", "declined"]) -> Call | None:
        """The pending call of this id, now in `status`, so that nobody can take it again; None when there is none to take."""
        taken = and_(_is_pending(conversation_id), tool_call.c.id == call_id)

        def work(connection: Connection) -> Call | None:
            if not connection.execute(update(tool_call).where(taken).values(status=status)).rowcount:
                return None
            return Call(**connection.execute(select(*_COLUMNS).where(tool_call.c.id == call_id)).mappings().one())

        return await self._database.write(work)

    async def counts(self, since_ms: int) -> dict[tuple[str, CallStatus], int]:
        """How many calls of each tool ended how, of those made since."""
        made = select(tool_call.c.name, tool_call.c.status, func.count()).where(tool_call.c.created_at_ms >= since_ms)
        rows = made.group_by(tool_call.c.name, tool_call.c.status)
        return await self._database.read(lambda connection: {(name, status): num for name, status, num in connection.execute(rows)})

    async def finish(self, call: Call) -> None:
        """Keep what came of a call that was taken."""
        values = {name: value for name, value in asdict(call).items() if name in ("status", "result", "duration_ms")}
        query = update(tool_call).where(tool_call.c.id == call.id).values(**values)
        await self._database.write(lambda connection: connection.execute(query).close())

    async def drop(self, conversation_id: str) -> None:
        """Nothing waits for a yes any more: the customer went on."""
        query = update(tool_call).where(_is_pending(conversation_id)).values(status="dropped")
        await self._database.write(lambda connection: connection.execute(query).close())


_COLUMNS = tuple(tool_call.c[name] for name in Call.__slots__)


def _is_pending(conversation_id: str) -> ColumnElement[bool]:
    is_fresh = tool_call.c.created_at_ms > _now_ms() - CONFIRM_WITHIN_MS
    return and_(tool_call.c.conversation_id == conversation_id, tool_call.c.status == "pending", is_fresh)
