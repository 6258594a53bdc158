"""The review queue: pairs that a person looks at before they train, two raters each, and how far raters agree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, and_, exists, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from feedback.database import Database
from feedback.pairs import Row
from feedback.record import NotFound, now_ms
from feedback.tables import completion, conversation, message, pair, review

Verdict = Literal["good", "bad"]
NUM_RATERS = 2
# What a person can decide; the rest is decided.
REVIEWABLE = (None, "unsure", "needs_regeneration")


class AlreadyRated(Exception):
    """This rater has judged this pair before."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pair to judge. `chosen` None: only whether `rejected` deserves it can be judged."""

    id: str
    conversation_id: str
    question: str
    chosen: str | None
    rejected: str
    origin: str
    strength: float
    problem: str | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Over the pairs that two people have judged. `kappa` (Cohen 1960) is None where everybody always says the same."""

    num_pairs: int
    observed: float
    kappa: float | None


class Reviews:
    """The pairs on disk, and what was said of them."""

    def __init__(self, database: Database, clock: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._clock = clock

    async def offer(self, rows: Sequence[Row]) -> int:
        """Put pairs into the queue, or bring what is there up to date while nobody has judged it; returns how many are new."""
        return await self._database.write(
            lambda connection: sum(_offer(connection, row, self._clock()) for row in rows if row.kind == "dpo")
        )

    async def next_for_review(self, rater: str) -> Waiting | None:
        """What this rater should look at next: first what another has judged already, then the strongest."""
        votes = select(func.count()).where(review.c.pair_id == pair.c.id).scalar_subquery()
        mine = exists().where(review.c.pair_id == pair.c.id, review.c.rater == rater)
        shown = (pair.c.id, pair.c.conversation_id, message.c.text.label("question"), pair.c.chosen, completion.c.content.label("rejected"))
        joined = pair.join(message, message.c.id == pair.c.question_id).join(completion, completion.c.id == pair.c.rejected_id)
        joined = joined.join(conversation, conversation.c.id == pair.c.conversation_id)
        wanted = select(*shown, pair.c.origin, pair.c.strength, pair.c.problem).select_from(joined)
        open_ = and_(votes < NUM_RATERS, ~mine, conversation.c.consent_train, pair.c.problem.is_(None) | pair.c.problem.in_(REVIEWABLE[1:]))
        first = wanted.where(open_).order_by(votes.desc(), pair.c.strength.desc(), pair.c.id).limit(1)
        row = await self._database.read(lambda connection: connection.execute(first).mappings().first())
        return Waiting(**row) if row else None

    async def judge(self, pair_id: str, rater: str, verdict: Verdict, reason: str | None = None) -> None:
        """Keep a verdict. Raises NotFound, AlreadyRated."""
        said = {"pair_id": pair_id, "rater": rater, "verdict": verdict, "reason": reason, "created_at_ms": self._clock()}

        def work(connection: Connection) -> None:
            if connection.execute(select(pair.c.id).where(pair.c.id == pair_id)).first() is None:
                raise NotFound("no such pair")
            connection.execute(insert(review).values(**said))

        try:
            await self._database.write(work)
        except IntegrityError as error:
            raise AlreadyRated("you have judged this pair before") from error

    async def verdicts(self) -> dict[str, list[Verdict]]:
        """Every verdict, oldest first, by pair."""
        return await self._database.read(read_verdicts)

    async def agreement(self) -> Agreement:
        """Of the first two verdicts on every pair that has them."""
        return agreement([(each[0], each[1]) for each in (await self.verdicts()).values() if len(each) >= NUM_RATERS])


def agreement(judged: Sequence[tuple[Verdict, Verdict]]) -> Agreement:
    """Cohen's kappa with the raters' own rates of `good`: agreement beyond chance."""
    if not judged:
        return Agreement(0, 0.0, None)
    observed = sum(one == two for one, two in judged) / len(judged)
    first, second = (sum(pair[rater] == "good" for pair in judged) / len(judged) for rater in (0, 1))
    expected = first * second + (1 - first) * (1 - second)
    return Agreement(len(judged), observed, None if expected == 1 else (observed - expected) / (1 - expected))


def regenerated(connection: Connection) -> dict[str, str]:
    """The answers that were made for pairs, by pair."""
    rows = connection.execute(select(pair.c.id, pair.c.chosen).where(pair.c.origin == "regenerated", pair.c.chosen.is_not(None)))
    return {row.id: row.chosen for row in rows}


def read_verdicts(connection: Connection) -> dict[str, list[Verdict]]:
    """Every verdict, oldest first, by pair."""
    said: dict[str, list[Verdict]] = {}
    for row in connection.execute(select(review).order_by(review.c.seq)):
        said.setdefault(row.pair_id, []).append(row.verdict)
    return said


def _offer(connection: Connection, row: Row, now: int) -> bool:
    values = {"chosen": row.answer, "chosen_ref": row.answer_id, "origin": row.origin, "strength": row.strength, "problem": row.problem}
    if connection.execute(select(pair.c.id).where(pair.c.id == row.id)).first():
        # What was judged stays what was judged, and an answer that was made is not made again.
        unjudged = and_(pair.c.id == row.id, ~exists().where(review.c.pair_id == row.id), pair.c.origin != "regenerated")
        connection.execute(update(pair).where(unjudged).values(**values))
        return False
    about = {"conversation_id": row.case.conversation_id, "question_id": row.case.question_id, "rejected_id": row.rejected_id}
    connection.execute(insert(pair).values(id=row.id, created_at_ms=now, **about, **values))
    return True
