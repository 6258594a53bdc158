"""Signals: how an answer was received. The ledger only grows; what counts is decided by weight, and a zero says why."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, exists, func, insert, select, update

from feedback.database import Database
from feedback.record import NotFound, new_id, now_ms
from feedback.tables import completion, conversation, message, release, signal
from feedback.weighing import Signal, Weighed, weigh

# Where these limits come from: a vote needs time to be meant, and few voters must not be able to steer a training round.
MIN_READING_MS = 1_500
MAX_VOTE_AGE_MS = 24 * 3_600_000
MAX_FLIP_MS = 10 * 60_000
MAX_VOTES_PER_DAY = 20
DAY_MS = 24 * 3_600_000
MAX_NETWORKS = 10_000
OBSERVED = ("kind", "completion_id", "value", "actor", "source_message_id", "span", "prob", "propensity", "other_id", "side")
LEDGER = tuple(name for name in Signal.__slots__ if name not in ("question", "is_released"))

# One answer in so many asks for a thumb, drawn at random: the votes on these are a fair sample.
PROPENSITY = 0.05

Done = Literal["regenerate", "edit", "copy"]
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
class Observation:
    """What nobody pressed and somebody or something saw. It is stored once, however often it is noted.

    `detector` is a name and a version; `source_message_id` is the message that says it, all of it unless `span` says where.
    """

    kind: str
    completion_id: str
    value: float
    actor: Literal["visitor", "agent", "system"] = "system"
    detector: tuple[str, str] = ("lookback", "1")
    source_message_id: str | None = None
    span: str | None = None
    prob: float | None = None
    propensity: float | None = None
    other_id: str | None = None
    side: str | None = None

    @property
    def key(self) -> str:
        said = f"{self.kind} {self.completion_id} {self.source_message_id}"
        return f"{self.kind}:{hashlib.sha256(said.encode()).hexdigest()[:24]}"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of two answers is better: `value` 1 the answer `message_id`, -1 the one offered beside it, 0 both alike."""

    message_id: str
    value: Literal[1, 0, -1]
    dwell_ms: int
    idempotency_key: str
    tags: tuple[str, ...] = ()
    comment: str | None = None


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
        self._networks: dict[str, str] = {}
        # Whether an answer, by its completion's id, asks for a thumb: a salted draw that always falls alike.
        self.asks: Callable[[str], bool] = lambda completion_id: False

    def seen(self, visitor_id: str, network: str) -> None:
        """From which network a visitor comes now, as a salted hash; their next signals carry it."""
        self._networks.pop(visitor_id, None)
        self._networks[visitor_id] = network
        if len(self._networks) > MAX_NETWORKS:
            del self._networks[next(iter(self._networks))]

    async def note(self, conversation_id: str, visitor_id: str, seen: Sequence[Observation]) -> int:
        """Store what is not stored yet; returns how much that was."""
        return await self._database.write(lambda connection: self.note_in(connection, conversation_id, visitor_id, seen))

    def note_in(self, connection: Connection, conversation_id: str, visitor_id: str, seen: Sequence[Observation]) -> int:
        """`note` inside a transaction of the caller's."""
        keys = select(signal.c.idempotency_key).where(signal.c.conversation_id == conversation_id)
        known, num_new = set(connection.execute(keys).scalars()), 0
        for each in seen:
            if each.key in known:
                continue
            known.add(each.key)
            row = {name: getattr(each, name) for name in OBSERVED} | {"detector": each.detector[0], "detector_version": each.detector[1]}
            row |= {"conversation_id": conversation_id, "visitor_id": visitor_id, "network": self._networks.get(visitor_id)}
            row |= {"weight": float(each.value != 0), "tags": [], "idempotency_key": each.key, "created_at_ms": self._clock()}
            connection.execute(insert(signal).values(id=new_id("sig"), **row))
            num_new += 1
        return num_new

    async def supersede(self, signal_id: str, changed: Mapping[str, object]) -> None:
        """Put a new row in a signal's place, without its words and with what is `changed`; once. Raises NotFound."""

        def work(connection: Connection) -> None:
            old = connection.execute(select(signal).where(signal.c.id == signal_id)).mappings().first()
            if old is None:
                raise NotFound("no such signal")
            if connection.execute(select(signal.c.id).where(signal.c.retracts_id == signal_id)).first():
                return
            row = {name: value for name, value in old.items() if name not in ("seq", "comment")} | {"tags": []} | dict(changed)
            row |= {"id": new_id("sig"), "idempotency_key": new_id("instead"), "retracts_id": signal_id}
            connection.execute(insert(signal).values(**row))

        await self._database.write(work)

    async def release(self, signal_ids: Sequence[str], reviewer: str) -> None:
        """Let signals out of quarantine, or a detector's unsure ones count, in the name of who looked at them. Raises NotFound."""

        def work(connection: Connection) -> None:
            for signal_id in signal_ids:
                if connection.execute(select(signal.c.id).where(signal.c.id == signal_id)).first() is None:
                    raise NotFound("no such signal")
                if connection.execute(select(release.c.signal_id).where(release.c.signal_id == signal_id)).first() is None:
                    row = {"signal_id": signal_id, "reviewer": reviewer, "created_at_ms": self._clock()}
                    connection.execute(insert(release).values(**row))

        await self._database.write(work)

    async def ledger(self, since_ms: int = 0) -> list[Signal]:
        """Every signal from then on, oldest first, for `feedback.weighing.weigh`."""
        return await self._database.read(lambda connection: read_ledger(connection, since_ms))

    async def vote(self, visitor_id: str, thumb: Thumb) -> Receipt:
        """Store a vote, once per key, and return after COMMIT.

        A vote that should not count is stored with weight 0 and a reason. A changed vote retracts the one before. Raises
        NotFound when this visitor received no such answer, KeyReused when the key came with another vote, RecordUnavailable.
        """
        return await self._database.write(lambda connection: self._vote(connection, visitor_id, thumb))

    async def rate(self, visitor_id: str, csat: Csat) -> Receipt:
        """Store a rating, once per key; a changed one retracts the one before. Raises NotFound when there is nothing resolved to rate."""
        return await self._database.write(lambda connection: self._rate(connection, visitor_id, csat))

    async def did(self, visitor_id: str, completion_id: str, kind: Done) -> Receipt:
        """Store, once per answer, that its visitor asked for it again, put the question in other words, or copied it. Raises as `vote`."""
        return await self._database.write(lambda connection: self._did(connection, visitor_id, completion_id, kind))

    async def choose(self, visitor_id: str, conversation_id: str, choice: Choice) -> Receipt:
        """Store a choice, once per key, and let the chosen answer stand on the screen from now on. A later choice retracts the one before.

        Raises NotFound when this visitor was offered no such two, or has gone on since; KeyReused, RecordUnavailable.
        """
        return await self._database.write(lambda connection: self._choose(connection, visitor_id, conversation_id, choice))

    def _choose(self, connection: Connection, visitor_id: str, conversation_id: str, choice: Choice) -> Receipt:
        offer = _offer(connection, visitor_id, conversation_id, choice.message_id)
        offered = ("conversation_id", "completion_id", "visitor_id", "other_id", "side", "propensity")
        target = {"kind": "pairwise", **{name: offer[name] for name in offered}}
        if known := _known(connection, target, choice):
            return known
        if offer["is_over"]:
            raise NotFound("no such offer")
        now = self._clock()
        dwell_ms = min(choice.dwell_ms, now - offer["created_at_ms"])
        standing = _standing(connection, signal.c.completion_id == offer["completion_id"], "pairwise")
        hasty: Reason | None = "too_early" if dwell_ms < MIN_READING_MS else None
        reason = _too_many(connection, visitor_id, now) or hasty or _untimely(offer, now) or _unchanged(standing, choice, now)
        row = {**target, "reason": reason, "network": self._networks.get(visitor_id), "dwell_ms": dwell_ms, "created_at_ms": now}
        seen = {"shown": True, "status": "complete"} if choice.value < 0 else {"shown": False, "status": "offered"}
        connection.execute(update(completion).where(completion.c.id == offer["other_id"]).values(**seen))
        return _add(connection, row, choice, standing)

    def _did(self, connection: Connection, visitor_id: str, completion_id: str, kind: Done) -> Receipt:
        answer, now = _received(connection, visitor_id, completion_id), self._clock()
        said = Thumb(completion_id, 1 if kind == "copy" else -1, (), None, f"{kind}:{completion_id}")
        target = {"conversation_id": answer["conversation_id"], "completion_id": completion_id, "visitor_id": visitor_id}
        if known := _known(connection, target, said):
            return known
        row = {**target, "kind": kind, "reason": _untimely(answer, now), "network": self._networks.get(visitor_id), "created_at_ms": now}
        return _add(connection, row, said, None)

    def _vote(self, connection: Connection, visitor_id: str, thumb: Thumb) -> Receipt:
        answer = _received(connection, visitor_id, thumb.completion_id)
        target = {"conversation_id": answer["conversation_id"], "completion_id": thumb.completion_id, "visitor_id": visitor_id}
        if known := _known(connection, target, thumb):
            return known
        now = self._clock()
        standing = _standing(connection, signal.c.completion_id == thumb.completion_id, "thumb")
        reason = _too_many(connection, visitor_id, now) or _untimely(answer, now) or _unchanged(standing, thumb, now)
        asked = {"propensity": PROPENSITY if self.asks(thumb.completion_id) else None, "network": self._networks.get(visitor_id)}
        return _add(connection, {**target, **asked, "kind": "thumb", "reason": reason, "created_at_ms": now}, thumb, standing)

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


def read_ledger(connection: Connection, since_ms: int = 0) -> list[Signal]:
    """Every signal from then on, oldest first, with the question that its answer answered."""
    asked = message.alias("asked")
    answers = signal.outerjoin(completion, completion.c.id == signal.c.completion_id).outerjoin(message)
    joined = answers.outerjoin(asked, asked.c.id == message.c.reply_to_id).outerjoin(release, release.c.signal_id == signal.c.id)
    extra = (func.coalesce(asked.c.text, "").label("question"), release.c.reviewer.is_not(None).label("is_released"))
    rows = select(*signal.c[*LEDGER], *extra).select_from(joined).where(signal.c.created_at_ms >= since_ms)
    found = connection.execute(rows.order_by(signal.c.seq)).mappings()
    return [Signal(**{**row, "tags": tuple(row["tags"]), "is_released": bool(row["is_released"])}) for row in found]


def weighed(connection: Connection) -> list[Weighed]:
    """What every signal counts for."""
    return weigh(read_ledger(connection))


def _known(connection: Connection, target: Mapping[str, object], said: Thumb | Choice | Csat) -> Receipt | None:
    """The signal that came with this key before. Raises KeyReused when it was another one."""
    by_key = and_(signal.c.visitor_id == target["visitor_id"], signal.c.idempotency_key == said.idempotency_key)
    known = connection.execute(select(signal).where(by_key)).mappings().first()
    if known is None:
        return None
    if any(known[column] != value for column, value in target.items()) or not _says_the_same(known, said):
        raise KeyReused("this idempotency_key came with another vote before")
    return Receipt(known["id"], is_new=False, conversation_id=known["conversation_id"])


def _add(connection: Connection, row: Mapping[str, object], said: Thumb | Choice | Csat, standing: RowMapping | None) -> Receipt:
    counts = row["reason"] is None
    retracts_id = standing["id"] if standing is not None and counts else None
    meant = {"value": said.value, "tags": list(said.tags), "comment": said.comment, "idempotency_key": said.idempotency_key}
    signal_id = new_id("sig")
    judged = {"weight": float(counts and said.value != 0), "retracts_id": retracts_id, "actor": "visitor"}
    connection.execute(insert(signal).values(id=signal_id, **row, **meant, **judged))
    return Receipt(signal_id, is_new=True, conversation_id=str(row["conversation_id"]))


def _received(connection: Connection, visitor_id: str, completion_id: str) -> RowMapping:
    answers = select(*message.c["conversation_id", "created_at_ms"], completion.c.status)
    mine = and_(completion.c.id == completion_id, completion.c.shown, conversation.c.visitor_id == visitor_id)
    row = connection.execute(answers.select_from(completion.join(message).join(conversation)).where(mine)).mappings().first()
    if row is None:
        raise NotFound("no such answer")
    return row


def _offer(connection: Connection, visitor_id: str, conversation_id: str, message_id: str) -> RowMapping:
    """The answer `message_id` and the one offered beside it; `is_over` once anything was said after them. Raises NotFound."""
    later = message.alias("later")
    is_over = exists().where(later.c.conversation_id == message.c.conversation_id, later.c.seq > message.c.seq + 1).label("is_over")
    mine = (signal.c.kind == "offer", signal.c.visitor_id == visitor_id, signal.c.conversation_id == conversation_id)
    joined = signal.join(completion, completion.c.id == signal.c.completion_id).join(message)
    offers = select(signal, completion.c.status, is_over).select_from(joined).where(*mine, message.c.id == message_id)
    row = connection.execute(offers).mappings().first()
    if row is None:
        raise NotFound("no such offer")
    return row


def _standing(connection: Connection, target: ColumnElement[bool], kind: str) -> RowMapping | None:
    """The vote that counts now: the newest with weight that no later one retracts."""
    later = signal.alias("later")
    counts = and_(target, signal.c.kind == kind, signal.c.weight > 0)
    votes = select(signal).where(counts, ~exists().where(later.c.retracts_id == signal.c.id))
    return connection.execute(votes.order_by(signal.c.seq.desc()).limit(1)).mappings().first()


def _too_many(connection: Connection, visitor_id: str, now: int) -> Reason | None:
    today = and_(signal.c.visitor_id == visitor_id, signal.c.kind.in_(("thumb", "pairwise")), signal.c.created_at_ms > now - DAY_MS)
    count = connection.execute(select(func.count()).select_from(signal).where(today)).scalar_one()
    return "daily_cap" if count >= MAX_VOTES_PER_DAY else None


def _untimely(answer: RowMapping, now: int) -> Reason | None:
    age_ms = now - answer["created_at_ms"]
    if age_ms < MIN_READING_MS:
        return "too_early"
    if age_ms > MAX_VOTE_AGE_MS:
        return "too_late"
    return "not_complete" if answer["status"] == "interrupted" else None


def _unchanged(standing: RowMapping | None, thumb: Thumb | Choice, now: int) -> Reason | None:
    """Tags and a comment may follow the thumb at any time; the thumb itself may turn for ten minutes."""
    if standing is None:
        return None
    if _says_the_same(standing, thumb):
        return "duplicate"
    return "changed_late" if standing["value"] != thumb.value and now - standing["created_at_ms"] > MAX_FLIP_MS else None


def _says_the_same(row: RowMapping, thumb: Thumb | Choice | Csat) -> bool:
    said = (int(row["value"]), tuple(row["tags"]), row["comment"])
    return said == (thumb.value, thumb.tags, thumb.comment)
