"""Gaps: what customers ask and the knowledge does not answer, alike questions together; and what people answered instead of the bot."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, and_, exists, func, or_, select

from feedback.database import Database
from feedback.grams import STOP, Vectors, stems, terms
from feedback.retrieval import FITS
from feedback.sentences import size
from feedback.tables import citation, completion, message, retrieval, tool_call

MAX_QUESTIONS = 2000
# Of a full passage: what is shorter is a greeting rather than an answer.
MIN_ANSWER_SIZE = 0.05
ALIKE = 0.25


@dataclass(frozen=True, slots=True)
class Gap:
    """A suggested article: what it would answer, the newest question first, and what a person answered. `id` is that question's message."""

    id: str
    questions: tuple[str, ...]
    answer: str = ""


class Gaps:
    """Read from what was said; nothing is kept."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def largest(self, limit: int = 20) -> list[Gap]:
        """The questions whose answer cited nothing, or that no passage fitted, in groups; the largest groups first."""
        questions = await self._database.read(_unanswered)
        groups = _groups([text for _, text in questions])
        found = [Gap(questions[group[0]][0], tuple(questions[number][1] for number in group)) for group in groups]
        return sorted(found, key=lambda gap: len(gap.questions), reverse=True)[:limit]

    async def told(self, limit: int = 20) -> list[Gap]:
        """What people answered after a hand-over, the newest first; what they wrote to one question is one answer."""
        return (await self._database.read(_told))[:limit]


def _told(connection: Connection) -> list[Gap]:
    asked, earlier = message.alias("asked"), message.alias("earlier")
    before = (earlier.c.conversation_id == message.c.conversation_id, earlier.c.role == "user", earlier.c.seq < message.c.seq)
    last = select(func.max(earlier.c.seq)).where(*before).correlate(message).scalar_subquery()
    joined = message.join(asked, and_(asked.c.conversation_id == message.c.conversation_id, asked.c.seq == last))
    columns = (asked.c.id, asked.c.text, message.c.text.label("answer"))
    rows = select(*columns).select_from(joined).where(message.c.gold).order_by(message.c.created_at_ms.desc(), message.c.seq.desc())
    answers: dict[str, Gap] = {}
    for row in connection.execute(rows.limit(MAX_QUESTIONS)):
        newer = answers.get(row.id)
        answers[row.id] = Gap(row.id, (row.text,), f"{row.answer}\n{newer.answer}" if newer else row.answer)
    return [gap for gap in answers.values() if size(gap.answer) >= MIN_ANSWER_SIZE]


def _unanswered(connection: Connection) -> list[tuple[str, str]]:
    answer = message.alias("answer")
    best = select(func.max(retrieval.c.score)).where(retrieval.c.completion_id == completion.c.id).scalar_subquery()
    cites = exists().where(citation.c.completion_id == completion.c.id)
    joined = message.join(answer, answer.c.reply_to_id == message.c.id).join(completion, completion.c.message_id == answer.c.id)
    # What a tool answers, or a yes to it, asks for no article.
    by_tool = or_(exists().where(tool_call.c.message_id == answer.c.id), exists().where(tool_call.c.id == message.c.client_message_id))
    unanswered = and_(completion.c.status == "complete", or_(~cites, best < FITS), ~by_tool)
    asked = select(message.c.id, message.c.text).select_from(joined).where(unanswered)
    newest = asked.order_by(message.c.created_at_ms.desc(), message.c.id).limit(MAX_QUESTIONS)
    return [(row.id, row.text) for row in connection.execute(newest) if terms(row.text)]


def _groups(questions: Sequence[str]) -> Iterator[list[int]]:
    """Places of alike questions: each joins the group of the first earlier one that it is most like."""
    told = [" ".join(stem for stem in stems(question) if stem not in STOP) for question in questions]
    vectors, led = Vectors(told), dict[int, list[int]]()
    for number, question in enumerate(told):
        leaders = np.fromiter(led, np.int64, len(led))
        likeness = vectors.dot(question)[leaders]
        if len(leaders) and likeness.max() >= ALIKE:
            led[int(leaders[likeness.argmax()])].append(number)
        else:
            led[number] = [number]
    yield from led.values()
