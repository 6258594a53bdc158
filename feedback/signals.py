"""Signals: how an answer was received. The ledger only grows; what counts is decided by weight, and a zero says why."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, exists, func, insert, select

from feedback.database import Database
from feedback.record import NotFound, new_id, now_ms
from feedback.tables import completion, conversation, message, signal

# Where these limits come from: a vote needs time to be meant, and few voters must not be able to steer a training round.
MIN_READING_MS = 1_500
MAX_VOTE_AGE_MS = 24 * 3_600_000
MAX_FLIP_MS = 10 * 60_000
MAX_VOTES_PER_DAY = 20
DAY_MS = 24 * 3_600_000

Replacement = Literal["regenerate", "edit"]
Reason = Literal["too_early", "too_late", "daily_cap", "duplicate", "changed_late", "not_complete"]


class KeyReused(Exception):
    """An idempotency key came back with another vote."""


@dataclass(frozen=True, slots=True)
class Thumb:
    """A customer's vote on one answer: `value` 1 or -1."""

    completion_id: str
    value: Literal[1, -1]
    tags: tuple[str, ...]
    comment: str | None
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class Csat:
    """How content a customer is with a conversation that was resolved: 1 to 5."""

    conversation_id: str
    value: int
    comment: str | None
    idempotency_key: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """The signal's id; `is_new` is False when the same key had been stored before."""

    signal_id: str
    is_new: bool
    conversation_id: str


class Signals:
    """The append-only ledger."""

    def __init__(self, database: Database, clock: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._clock = clock

    async def vote(self, visitor_id: str, thumb: Thumb) -> Receipt:
        """Store a vote, once per key, and return after COMMIT.

        A vote that should not count is stored with weight 0 and a reason. A changed vote retracts the one before. Raises
        NotFound when this visitor received no such answer, KeyReused when the key came with another vote, RecordUnavailable.
        """
        return await self._database.write(lambda connection: self._vote(connection, visitor_id, thumb))

    async def rate(self, visitor_id: str, csat: Csat) -> Receipt:
        """Store a rating, once per key; a changed one retracts the one before. Raises NotFound when there is nothing resolved to rate."""
        return await self._database.write(lambda connection: self._rate(connection, visitor_id, csat))

    async def replaced(self, visitor_id: str, completion_id: str, kind: Replacement) -> None:
        """Store, once per answer, that its visitor asked for it again or put the question in other words. Raises as `vote` does."""
        await self._database.write(lambda connection: self._replaced(connection, visitor_id, completion_id, kind))

    def _replaced(self, connection: Connection, visitor_id: str, completion_id: str, kind: Replacement) -> None:
        answer, now = _received(connection, visitor_id, completion_id), self._clock()
        said = Thumb(completion_id, -1, (), None, f"{kind}:{completion_id}")
        target = {"conversation_id": answer["conversation_id"], "completion_id": completion_id, "visitor_id": visitor_id}
        if _known(connection, target, said) is None:
            _add(connection, {**target, "kind": kind, "reason": _untimely(answer, now), "created_at_ms": now}, said, None)

    def _vote(self, connection: Connection, visitor_id: str, thumb: Thumb) -> Receipt:
        answer = _received(connection, visitor_id, thumb.completion_id)
        target = {"conversation_id": answer["conversation_id"], "completion_id": thumb.completion_id, "visitor_id": visitor_id}
        if known := _known(connection, target, thumb):
            return known
        now = self._clock()
        standing = _standing(connection, signal.c.completion_id == thumb.completion_id, "thumb")
        reason = _too_many(connection, visitor_id, now) or _untimely(answer, now) or _unchanged(standing, thumb, now)
        return _add(connection, {**target, "kind": "thumb", "reason": reason, "created_at_ms": now}, thumb, standing)

    def _rate(self, connection: Connection, visitor_id: str, csat: Csat) -> Receipt:
        mine = and_(conversation.c.id == csat.conversation_id, conversation.c.visitor_id == visitor_id, conversation.c.state == "resolved")
        if connection.execute(select(conversation.c.id).where(mine)).first() is None:
            raise NotFound("no such conversation to rate")
        target = {"conversation_id": csat.conversation_id, "completion_id": None, "visitor_id": visitor_id}
        if known := _known(connection, target, csat):
            return known
        now = self._clock()
        standing = _standing(connection, signal.c.conversation_id == csat.conversation_id, "csat")
        reason = _too_many(connection, visitor_id, now)
        return _add(connection, {**target, "kind": "csat", "reason": reason, "created_at_ms": now}, csat, standing)


def _known(connection: Connection, target: Mapping[str, object], said: Thumb | Csat) -> Receipt | None:
    """The signal that came with this key before. Raises KeyReused when it was another one."""
    by_key = and_(signal.c.visitor_id == target["visitor_id"], signal.c.idempotency_key == said.idempotency_key)
    known = connection.execute(select(signal).where(by_key)).mappings().first()
    if known is None:
        return None
    if any(known[column] != value for column, value in target.items()) or not _says_the_same(known, said):
        raise KeyReused("this idempotency_key came with another vote before")
    return Receipt(known["id"], is_new=False, conversation_id=known["conversation_id"])


def _add(connection: Connection, row: Mapping[str, object], said: Thumb | Csat, standing: RowMapping | None) -> Receipt:
    counts = row["reason"] is None
    retracts_id = standing["id"] if standing is not None and counts else None
    meant = {"value": said.value, "tags": list(said.tags), "comment": said.comment, "idempotency_key": said.idempotency_key}
    signal_id = new_id("sig")
    judged = {"weight": float(counts), "retracts_id": retracts_id, "actor": "visitor"}
    connection.execute(insert(signal).values(id=signal_id, **row, **meant, **judged))
    return Receipt(signal_id, is_new=True, conversation_id=str(row["conversation_id"]))


def _received(connection: Connection, visitor_id: str, completion_id: str) -> RowMapping:
    answers = select(*message.c["conversation_id", "created_at_ms"], completion.c.status)
    mine = and_(completion.c.id == completion_id, completion.c.shown, conversation.c.visitor_id == visitor_id)
    row = connection.execute(answers.select_from(completion.join(message).join(conversation)).where(mine)).mappings().first()
    if row is None:
        raise NotFound("no such answer")
    return row


def _standing(connection: Connection, target: ColumnElement[bool], kind: str) -> RowMapping | None:
    """The vote that counts now: the newest with weight that no later one retracts."""
    later = signal.alias("later")
    counts = and_(target, signal.c.kind == kind, signal.c.weight > 0)
    votes = select(signal).where(counts, ~exists().where(later.c.retracts_id == signal.c.id))
    return connection.execute(votes.order_by(signal.c.seq.desc()).limit(1)).mappings().first()


def _too_many(connection: Connection, visitor_id: str, now: int) -> Reason | None:
    today = and_(signal.c.visitor_id == visitor_id, signal.c.kind == "thumb", signal.c.created_at_ms > now - DAY_MS)
    count = connection.execute(select(func.count()).select_from(signal).where(today)).scalar_one()
    return "daily_cap" if count >= MAX_VOTES_PER_DAY else None


def _untimely(answer: RowMapping, now: int) -> Reason | None:
    age_ms = now - answer["created_at_ms"]
    if age_ms < MIN_READING_MS:
        return "too_early"
    if age_ms > MAX_VOTE_AGE_MS:
        return "too_late"
    return "not_complete" if answer["status"] == "interrupted" else None


def _unchanged(standing: RowMapping | None, thumb: Thumb, now: int) -> Reason | None:
    """Tags and a comment may follow the thumb at any time; the thumb itself may turn for ten minutes."""
    if standing is None:
        return None
    if _says_the_same(standing, thumb):
        return "duplicate"
    return "changed_late" if standing["value"] != thumb.value and now - standing["created_at_ms"] > MAX_FLIP_MS else None


def _says_the_same(row: RowMapping, thumb: Thumb | Csat) -> bool:
    said = (int(row["value"]), tuple(row["tags"]), row["comment"])
    return said == (thumb.value, thumb.tags, thumb.comment)
