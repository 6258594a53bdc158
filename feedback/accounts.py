"""Accounts: the agents who may use the console, and who is signed in."""

import asyncio
import contextlib
import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from feedback import credentials
from feedback.credentials import AccountError, BadPassword, Role, WrongPassword, fold, hash_token
from feedback.database import Database, RecordUnavailable
from feedback.record import new_id, now_ms
from feedback.tables import agent, session

MAX_NAME_CHARS = 100
SESSION_MS, IDLE_MS, SEEN_EVERY_MS = 7 * 24 * 3_600_000, 12 * 3_600_000, 60_000


@dataclass(frozen=True, slots=True)
class Agent:
    """A person who works here. With `must_change_password` they were given theirs and can do nothing else before choosing one."""

    id: str
    name: str
    role: Role
    must_change_password: bool
    created_at_ms: int
    disabled_at_ms: int | None


class Accounts:
    """Agents and sessions. A session ends when it expires, after 12 idle hours, or when its agent's password or account does."""

    def __init__(self, database: Database, clock: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._clock = clock
        self._hashing = asyncio.Lock()  # one at a time, for memory's sake

    async def add(self, name: str, role: Role, password: str, *, must_change: bool) -> Agent:
        """Raises AccountError."""
        login, name = fold(name), unicodedata.normalize("NFKC", name).strip()
        if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
            raise AccountError(f"a name has 1 to {MAX_NAME_CHARS} printable characters")
        added = Agent(new_id("agt"), name, role, must_change, self._clock(), None)
        row = {field: getattr(added, field) for field in added.__slots__}
        row |= {"login": login, "password_hash": await self._hash(login, password)}
        try:
            await self._database.write(lambda connection: connection.execute(insert(agent).values(row)))
        except IntegrityError as error:
            raise AccountError(f"there is an agent {name!r} already") from error
        return added

    async def agents(self) -> list[Agent]:
        """All of them, the disabled too, oldest first."""
        rows = select(agent).order_by(agent.c.created_at_ms, agent.c.id)
        return await self._database.read(lambda connection: [_agent(row) for row in connection.execute(rows).mappings()])

    async def find(self, name: str) -> Agent:
        """Raises AccountError."""
        row = await self._row(agent.c.login == fold(name))
        if row is None:
            raise AccountError(f"there is no agent {name!r}")
        return _agent(row)

    async def sign_in(self, name: str, password: str) -> tuple[Agent, str]:
        """The agent and the token of a new session. Raises WrongPassword, after the same work whatever is wrong."""
        row = await self._row(agent.c.login == fold(name))
        async with self._hashing:
            is_right = await asyncio.to_thread(credentials.is_password, password, row["password_hash"] if row else credentials.NOBODYS_HASH)
        if row is None or not is_right or row["disabled_at_ms"] is not None:
            raise WrongPassword("no agent has this name and this password")
        token, now = secrets.token_urlsafe(32), self._clock()
        times = {"created_at_ms": now, "seen_at_ms": now, "expires_at_ms": now + SESSION_MS}

        def work(connection: Connection) -> None:
            connection.execute(delete(session).where(session.c.expires_at_ms <= now))
            still = select(agent.c.id).where(agent.c.id == row["id"], agent.c.password_hash == row["password_hash"])
            if connection.execute(still).first() is None:
                raise WrongPassword("the password was changed just now")
            connection.execute(insert(session).values(token_sha256=hash_token(token), agent_id=row["id"], **times))

        await self._database.write(work)
        return _agent(row), token

    async def signed_in(self, token: str) -> Agent | None:
        """Whose session this is, while it lasts."""
        now, mine = self._clock(), session.c.token_sha256 == hash_token(token)
        lasts = (session.c.expires_at_ms > now, session.c.seen_at_ms > now - IDLE_MS, agent.c.disabled_at_ms.is_(None))
        wanted = select(agent, session.c.seen_at_ms).select_from(session.join(agent)).where(mine, *lasts)
        row = await self._database.read(lambda connection: connection.execute(wanted).mappings().first())
        if row and row["seen_at_ms"] < now - SEEN_EVERY_MS:
            # Who can read but not write (a full disk) may go on reading.
            with contextlib.suppress(RecordUnavailable):
                await self._database.write(lambda connection: connection.execute(update(session).where(mine).values(seen_at_ms=now)))
        return _agent(row) if row else None

    async def sign_out(self, token: str) -> None:
        await self._database.write(
            lambda connection: connection.execute(delete(session).where(session.c.token_sha256 == hash_token(token)))
        )

    async def set_password(self, name: str, password: str, *, must_change: bool) -> None:
        """Ends all sessions of this agent. Raises AccountError."""
        hashed = await self._hash(fold(name), password)
        await self._change(name, {"password_hash": hashed, "must_change_password": must_change})

    async def set_role(self, name: str, role: Role) -> None:
        """Counts from the agent's next click. Raises AccountError."""
        await self._change(name, {"role": role})

    async def set_disabled(self, name: str, *, disabled: bool) -> None:
        """Ends all sessions of this agent. Raises AccountError."""
        await self._change(name, {"disabled_at_ms": self._clock() if disabled else None})

    async def _change(self, name: str, values: dict[str, object]) -> None:
        found = await self.find(name)

        def work(connection: Connection) -> None:
            connection.execute(update(agent).where(agent.c.id == found.id).values(values))
            connection.execute(delete(session).where(session.c.agent_id == found.id))

        await self._database.write(work)

    async def _hash(self, login: str, password: str) -> str:
        if not credentials.MIN_PASSWORD_CHARS <= len(password) <= credentials.MAX_PASSWORD_CHARS or fold(password) == login:
            raise BadPassword("a password has 12 to 200 characters and is not the name")
        async with self._hashing:
            return await asyncio.to_thread(credentials.hash_password, password)

    async def _row(self, which: ColumnElement[bool]) -> RowMapping | None:
        return await self._database.read(lambda connection: connection.execute(select(agent).where(which)).mappings().first())


def _agent(row: RowMapping) -> Agent:
    return Agent(**{field: row[field] for field in Agent.__slots__})
