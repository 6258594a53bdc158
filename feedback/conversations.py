"""Conversations as the team sees them: found by words and filters, and one of them whole."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import ColumnElement, Connection, Select, and_, exists, func, select, tuple_

from feedback.database import Database
from feedback.record import Conversation, Message, NotFound, Record, Unshown
from feedback.tables import citation, completion, conversation, message, signal

MADE = (
    *("model", "adapter", "engine", "engine_version", "quantization", "template_sha256", "policy_version", "knowledge_version"),
    *("reasoning", "num_cached_tokens", "num_reasoning_tokens", "forced_close", "ttft_ms", "first_answer_ms", "total_ms", "seed"),
)
VOTED = ("value", "tags", "comment", "weight", "reason", "actor", "created_at_ms")


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked for; None and "" do not narrow. Times are milliseconds, `until_ms` excluded."""

    words: str = ""
    language: str | None = None
    thumb: Literal["up", "down"] | None = None
    cited: Literal["yes", "no"] | None = None
    since_ms: int | None = None
    until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """One line of the list. `text` is what matched, or the first question."""

    id: str
    language: str
    created_at_ms: int
    num_messages: int
    text: str | None
    num_up: int
    num_down: int
    is_cited: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """A message with how it was made and how it was received; both empty for a customer's own."""

    message: Message
    made: Mapping[str, object]
    votes: list[Mapping[str, object]]


class Conversations:
    """Every visitor's conversations, read only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def search(self, wanted: Search, before: tuple[int, str] | None, limit: int) -> list[Found]:
        """The newest that fit, begun before the one whose (created_at_ms, id) is given."""
        chosen = _list(wanted.words).where(*_conditions(wanted))
        if before:
            chosen = chosen.where(tuple_(conversation.c.created_at_ms, conversation.c.id) < before)
        newest = chosen.order_by(conversation.c.created_at_ms.desc(), conversation.c.id.desc()).limit(limit)
        return await self._database.read(lambda connection: [Found(**row) for row in connection.execute(newest).mappings()])

    async def whole(self, conversation_id: str) -> tuple[Conversation, list[Turn]]:
        """Raises NotFound."""

        one = select(conversation).where(conversation.c.id == conversation_id)
        row = await self._database.read(lambda connection: connection.execute(one).mappings().first())
        if row is None:
            raise NotFound("no such conversation")
        made, votes = await self._database.read(
            lambda connection: (_made(connection, conversation_id), _votes(connection, conversation_id))
        )
        messages = await Record(self._database).messages(conversation_id)
        turns = [(said, made.get(said.id, {})) for said in messages]
        return Conversation(**row), [Turn(said, how, votes.get(how.get("completion_id"), [])) for said, how in turns]


def _list(words: str) -> Select[*tuple[object, ...]]:
    mine = message.c.conversation_id == conversation.c.id
    told = _has_words(words) if words else message.c.role == "user"
    text = select(message.c.text).where(mine, told).order_by(message.c.seq).limit(1).scalar_subquery()
    count = select(func.count()).select_from(message).where(mine).scalar_subquery()
    up, down = (select(func.count()).select_from(signal).where(_thumb(value)).scalar_subquery() for value in (1, -1))
    told_of = {"num_messages": count, "text": text, "num_up": up, "num_down": down, "is_cited": _answer(cites=True)}
    return select(*conversation.c["id", "language", "created_at_ms"], *(column.label(name) for name, column in told_of.items()))


def _conditions(wanted: Search) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.words:
        conditions.append(exists().where(message.c.conversation_id == conversation.c.id, _has_words(wanted.words)))
    if wanted.language:
        conditions.append(conversation.c.language == wanted.language)
    if wanted.thumb:
        conditions.append(exists().where(_thumb(1 if wanted.thumb == "up" else -1)))
    if wanted.cited:
        conditions.append(_answer(cites=wanted.cited == "yes"))
    if wanted.since_ms is not None:
        conditions.append(conversation.c.created_at_ms >= wanted.since_ms)
    if wanted.until_ms is not None:
        conditions.append(conversation.c.created_at_ms < wanted.until_ms)
    return conditions


def _has_words(words: str) -> ColumnElement[bool]:
    """Every word somewhere in one message; Chinese has no spaces, so there it is the phrase."""
    return and_(*(message.c.text.icontains(word, autoescape=True) for word in words.split()))


def _thumb(value: int) -> ColumnElement[bool]:
    """The last press on an answer of this conversation."""
    later = signal.alias("later")
    again = exists().where(later.c.completion_id == signal.c.completion_id, later.c.kind == "thumb", later.c.seq > signal.c.seq)
    return and_(signal.c.conversation_id == conversation.c.id, signal.c.kind == "thumb", signal.c.value == value, ~again)


def _answer(*, cites: bool) -> ColumnElement[bool]:
    """Some answer that a customer saw does, or does not, name a source."""
    cited = exists().where(citation.c.completion_id == completion.c.id)
    shown = and_(message.c.conversation_id == conversation.c.id, completion.c.message_id == message.c.id, completion.c.shown)
    return exists().where(shown, cited if cites else ~cited)


def _made(connection: Connection, conversation_id: str) -> dict[str, Mapping[str, object]]:
    columns = (completion.c.message_id, completion.c.id.label("completion_id"), *completion.c[*MADE])
    rows = select(*columns).select_from(completion.join(message)).where(message.c.conversation_id == conversation_id)
    rows = rows.where(completion.c.status.not_in(get_args(Unshown)))
    return {row["message_id"]: dict(row) for row in connection.execute(rows).mappings()}


def _votes(connection: Connection, conversation_id: str) -> dict[object, list[Mapping[str, object]]]:
    votes: dict[object, list[Mapping[str, object]]] = defaultdict(list)
    pressed = and_(signal.c.conversation_id == conversation_id, signal.c.kind == "thumb")
    rows = select(signal.c.completion_id, *signal.c[*VOTED]).where(pressed).order_by(signal.c.seq)
    for row in connection.execute(rows).mappings():
        votes[row["completion_id"]].append(dict(row))
    return votes
