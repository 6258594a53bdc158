"""The inbox: whose a conversation is (the bot's, nobody's yet, a person's), how that changes, and what agents write in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, and_, case, delete, exists, func, insert, or_, select, update

from feedback.database import Database
from feedback.record import MUTE, Conversation, Message, NotFound, State, append_message, lock_state, new_id, now_ms, read_messages
from feedback.signals import KeyReused
from feedback.tables import canned_answer, completion, conversation, handoff, message, signal, tool_call

Reason = Literal["request", "policy", "failure", "check", "agent", "hours", "timeout"]
# Every change of state there is, and what it may be made for. A form left while nobody came is waiting that goes on.
TRANSITIONS: Mapping[tuple[State, State], frozenset[Reason]] = {
    ("bot", "waiting"): frozenset({"request", "policy", "failure", "check", "hours"}),
    ("bot", "human"): frozenset({"agent"}),
    ("waiting", "waiting"): frozenset({"timeout", "hours"}),
    ("waiting", "human"): frozenset({"agent"}),
    ("waiting", "bot"): frozenset({"request", "agent"}),
    ("waiting", "resolved"): frozenset({"agent"}),
    ("human", "waiting"): frozenset({"agent"}),
    ("human", "human"): frozenset({"agent"}),
    ("human", "bot"): frozenset({"agent"}),
    ("human", "resolved"): frozenset({"agent"}),
    ("resolved", "bot"): frozenset({"request"}),
    ("resolved", "closed"): frozenset({"timeout"}),
}
NUM_FAILURES = 2
MAX_ROWS = 200
PREVIEW_CHARS = 160


class StateChanged(Exception):
    """This cannot be done to the conversation as it is now; perhaps somebody else was faster."""


@dataclass(frozen=True, slots=True)
class Move:
    """A wish to change a conversation's state.

    `sources` are the states it may start from. `agent` is who has the conversation afterwards; `held_by` must have it before, if a person
    has. `actor` is `visitor`, `system` or an agent's name; `contact` is what an offline form held.
    """

    to: State
    reason: Reason
    actor: str
    sources: tuple[State, ...]
    agent: str | None = None
    held_by: str | None = None
    contact: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """Where a conversation stands. `place` is 1 for whoever is next, 0 when not waiting; `agent_messages` are those not yet seen."""

    state: State
    agent: str | None
    place: int
    waiting_at_ms: int | None
    has_form: bool
    is_rated: bool
    agent_messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the inbox. `seq`, `role` and `text` are of the last message; `reason` is of the last change of state."""

    id: str
    state: State
    agent: str | None
    language: str
    waiting_at_ms: int | None
    reason: Reason | None
    seq: int
    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Handoff:
    """One change of state; the fields are the columns of its table."""

    from_state: State
    to_state: State
    reason: Reason
    actor: str
    contact: dict[str, str] | None
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Story:
    """All there is to know: every message, notes included, and every change of state, oldest first."""

    conversation: Conversation
    messages: list[Message]
    handoffs: list[Handoff]


@dataclass(frozen=True, slots=True)
class CannedAnswer:
    id: str
    title: str
    text: str


class Inbox:
    """Conversations as agents see them. Methods that write return after COMMIT; all raise RecordUnavailable when the database fails."""

    def __init__(self, database: Database, clock: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._clock = clock

    async def move(self, conversation_id: str, move: Move) -> None:
        """Change the state, and keep that it changed: of several moves at once one wins. Raises NotFound, StateChanged."""
        await self._database.write(lambda connection: _move(connection, conversation_id, move, self._clock()))

    async def say(self, conversation_id: str, said: Message) -> Message:
        """Keep an agent's message or note, once per client_message_id. Raises NotFound, KeyReused; StateChanged when it is not theirs."""

        def work(connection: Connection) -> Message:
            state = lock_state(connection, conversation_id)
            same = and_(message.c.conversation_id == conversation_id, message.c.client_message_id == said.client_message_id)
            if known := read_messages(connection, same):
                if (known[0].role, known[0].text, known[0].author) != (said.role, said.text, said.author):
                    raise KeyReused("this client_message_id came with another text before")
                return known[0]
            agent = connection.execute(select(conversation.c.agent).where(conversation.c.id == conversation_id)).scalar()
            if said.role == "agent" and (state, agent) != ("human", said.author):
                raise StateChanged("take the conversation before you answer in it")
            append_message(connection, conversation_id, said)
            return read_messages(connection, same)[0]

        return await self._database.write(work)

    async def status(self, conversation_id: str, after_seq: int = 0) -> Status | None:
        """None for a conversation that is not on disk."""
        return await self._database.read(lambda connection: _status(connection, conversation_id, after_seq))

    async def rows(self, states: tuple[State, ...]) -> list[Row]:
        """Conversations in these states: those waiting first, the longest wait on top."""
        return await self._database.read(lambda connection: _rows(connection, states))

    async def story(self, conversation_id: str) -> Story:
        """Raises NotFound."""

        def work(connection: Connection) -> Story:
            found = connection.execute(select(conversation).where(conversation.c.id == conversation_id)).mappings().first()
            if found is None:
                raise NotFound("no such conversation")
            events = select(*handoff.c[tuple(Handoff.__slots__)]).where(handoff.c.conversation_id == conversation_id)
            handoffs = [Handoff(**row) for row in connection.execute(events.order_by(handoff.c.seq)).mappings()]
            return Story(Conversation(**found), read_messages(connection, message.c.conversation_id == conversation_id), handoffs)

        return await self._database.read(work)

    async def is_failing(self, conversation_id: str) -> bool:
        """Did the bot fail twice in a row since the conversation was last handed over?"""
        return await self._database.read(lambda connection: _is_failing(connection, conversation_id))

    async def close_resolved(self, before_ms: int) -> int:
        """Close for good what was resolved before; returns how many."""

        def work(connection: Connection) -> int:
            old = select(conversation.c.id).where(conversation.c.state == "resolved", conversation.c.state_at_ms < before_ms)
            ids = connection.execute(old).scalars().all()
            for each in ids:
                _move(connection, each, Move("closed", "timeout", "system", ("resolved",)), self._clock())
            return len(ids)

        return await self._database.write(work)

    async def canned(self) -> list[CannedAnswer]:
        """By title."""
        rows = select(canned_answer).order_by(canned_answer.c.title, canned_answer.c.id)
        return await self._database.read(lambda connection: [CannedAnswer(**row) for row in connection.execute(rows).mappings()])

    async def put_canned(self, answer: CannedAnswer) -> None:
        """Add it, or replace the one of the same id."""

        def work(connection: Connection) -> None:
            connection.execute(delete(canned_answer).where(canned_answer.c.id == answer.id))
            connection.execute(insert(canned_answer).values(id=answer.id, title=answer.title, text=answer.text))

        await self._database.write(work)

    async def delete_canned(self, answer_id: str) -> None:
        await self._database.write(
            lambda connection: connection.execute(delete(canned_answer).where(canned_answer.c.id == answer_id)).close()
        )


def _move(connection: Connection, conversation_id: str, move: Move, now: int) -> None:
    columns = conversation.c["state", "agent", "waiting_at_ms", "visitor_id"]
    was = connection.execute(select(*columns).where(conversation.c.id == conversation_id)).first()
    if was is None:
        raise NotFound("no such conversation")
    if was.state not in move.sources or move.reason not in TRANSITIONS.get((was.state, move.to), ()):
        raise StateChanged(f"this cannot be done to a conversation that is {was.state}")
    if was.state == "human" and move.held_by not in (None, was.agent):
        raise StateChanged("somebody else has this conversation")
    still = and_(
        conversation.c.id == conversation_id, conversation.c.state == was.state, conversation.c.agent.is_not_distinct_from(was.agent)
    )
    waiting_at_ms = (was.waiting_at_ms or now) if move.to in MUTE else None
    changed = {"state": move.to, "agent": move.agent or was.agent, "state_at_ms": now, "waiting_at_ms": waiting_at_ms}
    if connection.execute(update(conversation).where(still).values(**changed)).rowcount != 1:
        raise StateChanged("somebody else changed this conversation just now")
    event = {"from_state": was.state, "to_state": move.to, "reason": move.reason, "actor": move.actor, "contact": move.contact}
    connection.execute(insert(handoff).values(conversation_id=conversation_id, created_at_ms=now, **event))
    if was.state == "resolved" and move.to == "bot":
        target = {"conversation_id": conversation_id, "visitor_id": was.visitor_id, "created_at_ms": now}
        said = {"kind": "reopen", "value": 1.0, "tags": [], "weight": 1.0, "actor": "system", "idempotency_key": new_id("reopen")}
        connection.execute(insert(signal).values(id=new_id("sig"), **target, **said))


def _status(connection: Connection, conversation_id: str, after_seq: int) -> Status | None:
    columns = conversation.c["state", "agent", "waiting_at_ms", "state_at_ms"]
    now = connection.execute(select(*columns).where(conversation.c.id == conversation_id)).first()
    if now is None:
        return None
    place = 0
    if now.state == "waiting":
        ahead = and_(conversation.c.state == "waiting", conversation.c.waiting_at_ms <= now.waiting_at_ms)
        before_me = (conversation.c.waiting_at_ms < now.waiting_at_ms) | (conversation.c.id <= conversation_id)
        place = connection.execute(select(func.count()).select_from(conversation).where(ahead, before_me)).scalar_one()
    forms = select(handoff.c.seq).where(handoff.c.conversation_id == conversation_id, handoff.c.contact.is_not(None))
    form = connection.execute(forms.where(handoff.c.created_at_ms >= (now.waiting_at_ms or 0)).limit(1)).first()
    rated = select(signal.c.id).where(signal.c.conversation_id == conversation_id, signal.c.kind == "csat")
    rating = connection.execute(rated.where(signal.c.created_at_ms >= now.state_at_ms).limit(1)).first()
    unseen = and_(message.c.conversation_id == conversation_id, message.c.role == "agent", message.c.seq > after_seq)
    said = tuple(read_messages(connection, unseen))
    has_form = form is not None and now.state == "waiting"
    return Status(now.state, now.agent, place, now.waiting_at_ms, has_form, rating is not None, said)


def _rows(connection: Connection, states: tuple[State, ...]) -> list[Row]:
    said = message.alias()
    newest = select(func.max(said.c.seq)).where(said.c.conversation_id == conversation.c.id, said.c.role != "note").scalar_subquery()
    moves = select(handoff.c.reason).where(handoff.c.conversation_id == conversation.c.id)
    reason = moves.order_by(handoff.c.seq.desc()).limit(1).scalar_subquery().label("reason")
    last = and_(message.c.conversation_id == conversation.c.id, message.c.seq == newest)
    text = func.substr(func.coalesce(message.c.text, ""), 1, PREVIEW_CHARS).label("text")
    spoken = (func.coalesce(message.c.seq, 0).label("seq"), func.coalesce(message.c.role, "").label("role"), text)
    query = select(*conversation.c["id", "state", "agent", "language", "waiting_at_ms"], reason, *spoken)
    query = query.select_from(conversation.outerjoin(message, last)).where(conversation.c.state.in_(states))
    rank = case((conversation.c.state == "waiting", 0), (conversation.c.state == "human", 1), else_=2)
    order = (rank, conversation.c.waiting_at_ms, conversation.c.created_at_ms.desc(), conversation.c.id)
    return [Row(**row) for row in connection.execute(query.order_by(*order).limit(MAX_ROWS)).mappings()]


def _is_failing(connection: Connection, conversation_id: str) -> bool:
    handed = select(func.coalesce(func.max(handoff.c.created_at_ms), 0)).where(handoff.c.conversation_id == conversation_id)
    since = connection.execute(handed).scalar_one()
    mine = and_(message.c.conversation_id == conversation_id, message.c.role.in_(("user", "assistant")))
    complaint = exists().where(signal.c.conversation_id == conversation_id, signal.c.kind.in_(("thumb", "rephrase")))
    written = exists().where(completion.c.message_id == message.c.id, completion.c.shown)
    fallback = exists().where(mine, message.c.role == "assistant", ~written)
    if not connection.execute(select(or_(complaint, fallback))).scalar_one():
        return False  # as nearly always, and told without reading what was said
    left = select(tool_call.c.message_id).where(tool_call.c.conversation_id == conversation_id, tool_call.c.status == "declined")
    declined = set(connection.execute(left).scalars())
    later = signal.alias()
    stands = ~exists().where(later.c.retracts_id == signal.c.id)
    repeats = select(signal.c.source_message_id).where(signal.c.conversation_id == conversation_id, signal.c.kind == "rephrase")
    asked_again = set(connection.execute(repeats.where(signal.c.weight > 0, stands)).scalars())
    failed: list[bool | None] = []
    asks_again, before = False, ""
    for said in read_messages(connection, and_(mine, message.c.created_at_ms > since)):
        if said.role == "assistant" and before in declined:
            before = ""  # that nothing was done is what the customer wanted to hear
        elif said.role == "assistant":
            before = said.id
            unknown = asks_again and not said.thumb
            failed.append(_failed(said) or (None if unknown else False))
        else:
            asks_again = said.id in asked_again
            failed[-1:] = [True if asks_again else failed[-1]] if failed else []
    # Of the answer to what was asked again nothing is known yet: until then the two before it count.
    last = failed[-NUM_FAILURES - 1 : -1] if failed and failed[-1] is None else failed[-NUM_FAILURES:]
    return len(last) == NUM_FAILURES and all(last)


def _failed(answer: Message) -> bool:
    """A thumb down, or a fallback sentence in the answer's place."""
    return answer.thumb == -1 or (answer.completion_id is None and answer.status == "complete" and answer.finish_reason != "tool_calls")
