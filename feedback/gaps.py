"""Gaps: what customers ask and the knowledge does not answer, alike questions together."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, and_, exists, func, or_, select

from feedback.database import Database
from feedback.grams import STOP, Vectors, stems, terms
from feedback.retrieval import FITS
from feedback.tables import citation, completion, message, retrieval

MAX_QUESTIONS = 2000
ALIKE = 0.25


@dataclass(frozen=True, slots=True)
class Gap:
    """A suggested article: what it would answer, the newest question first."""

    questions: tuple[str, ...]


class Gaps:
    """Read from what was said; nothing is kept."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def largest(self, limit: int = 20) -> list[Gap]:
        """The questions whose answer cited nothing, or that no passage fitted, in groups; the largest groups first."""
        questions = await self._database.read(_unanswered)
        return [Gap(group) for group in sorted(_groups(questions), key=len, reverse=True)[:limit]]


def _unanswered(connection: Connection) -> list[str]:
    answer = message.alias("answer")
    best = select(func.max(retrieval.c.score)).where(retrieval.c.completion_id == completion.c.id).scalar_subquery()
    cites = exists().where(citation.c.completion_id == completion.c.id)
    joined = message.join(answer, answer.c.reply_to_id == message.c.id).join(completion, completion.c.message_id == answer.c.id)
    asked = select(message.c.text).select_from(joined).where(and_(completion.c.status == "complete", or_(~cites, best < FITS)))
    newest = asked.order_by(message.c.created_at_ms.desc(), message.c.id).limit(MAX_QUESTIONS)
    return [row.text for row in connection.execute(newest) if terms(row.text)]


def _groups(questions: list[str]) -> Iterator[tuple[str, ...]]:
    """Each question joins the group of the first earlier one that it is most like."""
    told = [" ".join(stem for stem in stems(question) if stem not in STOP) for question in questions]
    vectors, led = Vectors(told), dict[int, list[int]]()
    for number, question in enumerate(told):
        leaders = np.fromiter(led, np.int64, len(led))
        likeness = vectors.dot(question)[leaders]
        if len(leaders) and likeness.max() >= ALIKE:
            led[int(leaders[likeness.argmax()])].append(number)
        else:
            led[number] = [number]
    yield from (tuple(questions[number] for number in numbers) for numbers in led.values())
