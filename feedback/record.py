"""The record: conversations, their messages, and how each answer was made."""

import base64
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, get_args

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, exists, func, insert, select, update

from feedback.calls import Call
from feedback.database import Database
from feedback.tables import citation, completion, conversation, message, retrieval, signal, tool_call, visitor

Role = Literal["user", "assistant", "agent", "note"]
State = Literal["bot", "waiting", "human", "resolved", "closed"]
Status = Literal["complete", "stopped", "interrupted"]
Unshown = Literal["rejected", "called", "offered"]
# In these states a person answers, now or soon, and the bot says nothing.
MUTE: frozenset[State] = frozenset({"waiting", "human"})
MESSAGE_COLUMNS = ("id", "role", "text", "client_message_id", "reply_to_id", "replaces_id", "created_at_ms", "author", "gold")


class NotFound(Exception):
    """No such thing, or another visitor's: the two are not told apart."""


def new_id(prefix: str) -> str:
    """An id nobody can guess: 100 random bits after the noun it names."""
    return f"{prefix}_{base64.b32encode(secrets.token_bytes(13)).decode().lower()[:20]}"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Conversation:
    """One visitor's chat. Nothing of it may train a model unless the visitor says so. `state` says whose it is: see feedback/inbox.py."""

    id: str
    visitor_id: str
    language: str
    consent_train: bool = False
    created_at_ms: int = field(default_factory=now_ms)
    state: State = "bot"
    agent: str | None = None
    state_at_ms: int = 0
    waiting_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Citation:
    """`number` as the answer spells it, `[1]`; the passage as it read then."""

    number: int
    passage_id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A passage that stood in an answer's prompt, and what retrieval made of it."""

    passage_id: str
    version: str
    score: float


@dataclass(frozen=True, slots=True)
class Message:
    """One turn as it was on the screen. `completion_id` is set where a customer may vote; `thumb` is their last press.

    `author` is an agent's name; `gold` marks what a person answered; `seq` is 0 until it is on disk.
    `replaces_id` names the question that was edited or the answer that was asked for again. `asks_thumb` and `has_second`
    (there is another answer to compare it with) are only known while it is new.
    """

    id: str
    role: Role
    text: str
    client_message_id: str | None = None
    reply_to_id: str | None = None
    replaces_id: str | None = None
    status: Status = "complete"
    completion_id: str | None = None
    finish_reason: str | None = None
    citations: tuple[Citation, ...] = ()
    thumb: int | None = None
    created_at_ms: int = field(default_factory=now_ms)
    author: str | None = None
    gold: bool = False
    seq: int = field(default=0, compare=False)
    asks_thumb: bool = field(default=False, compare=False)
    has_second: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """All a later training round needs to know about one generated answer; the fields are the columns of its table.

    `violations` is what the policy's checks found: dicts of `kind`, `text` and `detail`. An attempt that they ended is `rejected`; one that
    called a tool instead of answering is `called`; of a message that waits beside another, out of sight, it is `offered`.
    """

    id: str
    shown: bool
    status: Status | Unshown
    finish_reason: str
    content: str
    reasoning: str
    prompt_token_ids: list[int] | None
    completion_token_ids: list[int] | None
    logprobs: list[float | None] | None
    sampling: dict[str, object]
    seed: int
    model: str
    model_sha256: str | None
    quantization: str | None
    engine: str
    engine_version: str
    adapter: str | None
    template_sha256: str | None
    policy_version: str
    knowledge_version: str
    num_cached_tokens: int | None
    num_reasoning_tokens: int | None
    forced_close: bool
    ttft_ms: float | None
    first_answer_ms: float | None
    total_ms: float
    violations: list[dict[str, str]] = field(default_factory=list)


def newest_branch(said: Iterable[Message]) -> list[Message]:
    """What is left on the screen of everything said: a message that replaces another takes its place and ends what followed it."""
    branch: list[Message] = []
    for each in said:
        replaced = next((place for place, kept in enumerate(branch) if kept.id == each.replaces_id), None)
        branch = [*branch[:replaced], each]
    return branch


class Record:
    """What was said. Methods that write return after COMMIT; all raise RecordUnavailable when the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_conversation(self, opened: Conversation) -> None:
        """Put a conversation on disk, once, with its visitor when this is their first."""

        def work(connection: Connection) -> None:
            if connection.execute(select(conversation.c.id).where(conversation.c.id == opened.id)).first():
                return
            if connection.execute(select(visitor.c.id).where(visitor.c.id == opened.visitor_id)).first() is None:
                connection.execute(insert(visitor).values(id=opened.visitor_id, created_at_ms=opened.created_at_ms))
            connection.execute(insert(conversation).values(**asdict(opened)))

        await self._database.write(work)

    async def current_conversation(self, visitor_id: str) -> Conversation:
        """The visitor's newest conversation. Raises NotFound."""
        return await self._database.read(lambda connection: _conversation(connection, conversation.c.visitor_id == visitor_id))

    async def conversation(self, conversation_id: str, visitor_id: str) -> Conversation:
        """Raises NotFound, also when it is another visitor's."""
        mine = and_(conversation.c.id == conversation_id, conversation.c.visitor_id == visitor_id)
        return await self._database.read(lambda connection: _conversation(connection, mine))

    async def set_consent(self, conversation_id: str, visitor_id: str, *, consent_train: bool) -> None:
        """Keep whether the visitor lets this conversation train a model; the next export heeds it. Raises NotFound."""
        mine = and_(conversation.c.id == conversation_id, conversation.c.visitor_id == visitor_id)

        def work(connection: Connection) -> None:
            if connection.execute(update(conversation).where(mine).values(consent_train=consent_train)).rowcount != 1:
                raise NotFound("no such conversation")

        await self._database.write(work)

    async def messages(self, conversation_id: str) -> list[Message]:
        """Everything said in a conversation, oldest first. Agents' notes are not: neither the customer nor the model hears them."""
        said = and_(message.c.conversation_id == conversation_id, message.c.role != "note")
        return await self._database.read(lambda connection: read_messages(connection, said))

    async def add_message(
        self,
        conversation_id: str,
        said: Message,
        made: Completion | None = None,
        others: Sequence[Completion] = (),
        seen: Sequence[Retrieved] = (),
        calls: Sequence[Call] = (),
    ) -> None:
        """Put a message on disk, once: an answer with how it was made, what it cites, its unshown completions, the tools
        they called, and the passages that all of them saw, best first.

        What the bot says in a conversation that a person has, or that waits for one, is not kept.
        """

        def work(connection: Connection) -> None:
            if connection.execute(select(message.c.id).where(message.c.id == said.id)).first():
                return
            if lock_state(connection, conversation_id) in MUTE and said.role == "assistant":
                return
            append_answer(connection, conversation_id, said, made, seen, others)
            if calls:
                place = {"conversation_id": conversation_id, "message_id": said.id}
                connection.execute(insert(tool_call), [place | asdict(call) for call in calls])

        await self._database.write(work)


def lock_state(connection: Connection, conversation_id: str) -> State:
    """Whose the conversation is, until this transaction ends. Raises NotFound."""
    # On PostgreSQL two processes may change one conversation; SQLite has one writer and leaves FOR UPDATE out.
    locked = select(conversation.c.state).where(conversation.c.id == conversation_id).with_for_update()
    state: State | None = connection.execute(locked).scalar()
    if state is None:
        raise NotFound("no such conversation")
    return state


def append_message(connection: Connection, conversation_id: str, said: Message) -> None:
    """Insert a message after the last one of a conversation that this transaction has locked."""
    last = select(func.coalesce(func.max(message.c.seq), 0)).where(message.c.conversation_id == conversation_id)
    row = {column: getattr(said, column) for column in MESSAGE_COLUMNS}
    place = {"conversation_id": conversation_id, "seq": connection.execute(last).scalar_one() + 1}
    connection.execute(insert(message).values(**place, **row))


def append_answer(
    connection: Connection,
    conversation_id: str,
    said: Message,
    made: Completion | None,
    seen: Sequence[Retrieved],
    others: Sequence[Completion] = (),
) -> None:
    """`append_message`, with how it was made, what it cites and the passages it saw."""
    append_message(connection, conversation_id, said)
    for attempt in (*others, *([made] if made else [])):
        connection.execute(insert(completion).values(message_id=said.id, created_at_ms=said.created_at_ms, **asdict(attempt)))
    if made and seen:
        ranked = [{"completion_id": made.id, "rank": rank, **asdict(one)} for rank, one in enumerate(seen, 1)]
        connection.execute(insert(retrieval), ranked)
    if made and said.citations:
        connection.execute(insert(citation), [{"completion_id": made.id, **asdict(one)} for one in said.citations])


def _conversation(connection: Connection, which: ColumnElement[bool]) -> Conversation:
    newest = select(conversation).where(which).order_by(conversation.c.created_at_ms.desc(), conversation.c.id).limit(1)
    row = connection.execute(newest).mappings().first()
    if row is None:
        raise NotFound("no such conversation")
    return Conversation(**row)


def read_messages(connection: Connection, which: ColumnElement[bool]) -> list[Message]:
    """The messages that `which` picks, oldest first, with citations and thumbs; not those that wait beside another, out of sight."""
    beside = completion.alias("beside")
    which = and_(which, ~exists().where(beside.c.message_id == message.c.id, beside.c.status == "offered"))
    made = select(message, *completion.c["shown", "status", "finish_reason"], completion.c.id.label("completion_id"))
    answers = message.outerjoin(completion, and_(completion.c.message_id == message.c.id, completion.c.status.not_in(get_args(Unshown))))
    rows = connection.execute(made.select_from(answers).where(which).order_by(message.c.seq)).mappings().all()
    cited: dict[str, list[Citation]] = defaultdict(list)
    citations = select(citation).select_from(citation.join(completion).join(message)).where(which)
    for row in connection.execute(citations.order_by(citation.c.number)):
        cited[row.completion_id].append(Citation(row.number, row.passage_id, row.title, row.text))
    judged = signal.join(completion, completion.c.id == signal.c.completion_id).join(message)
    thumbs = select(*signal.c["completion_id", "value"]).select_from(judged)
    thumbs = thumbs.where(which, signal.c.kind == "thumb").order_by(signal.c.seq)
    pressed = {row.completion_id: int(row.value) for row in connection.execute(thumbs)}
    return [_message(row, tuple(cited[row["completion_id"]]), pressed.get(row["completion_id"])) for row in rows]


def _message(row: RowMapping, cited: tuple[Citation, ...], thumb: int | None) -> Message:
    said = Message(**{column: row[column] for column in MESSAGE_COLUMNS}, seq=row["seq"])
    if row["completion_id"] is None:
        return said
    shown_id = row["completion_id"] if row["shown"] else None
    made = {"status": row["status"], "finish_reason": row["finish_reason"], "completion_id": shown_id}
    return replace(said, citations=cited, thumb=thumb, **made)
