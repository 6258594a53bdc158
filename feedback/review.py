"""The review queue: pairs that a person looks at before they train, two raters each, and how far raters agree."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, exists, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from feedback.database import Database
from feedback.pairs import Passage, Row, read_passages
from feedback.record import Message, NotFound, newest_branch, now_ms, read_messages
from feedback.tables import completion, conversation, message, pair, review, signal

# Whoever cannot tell has abstained: somebody else is asked in their place.
Verdict = Literal["good", "bad", "unsure"]
NUM_RATERS = 2
KEPT = ("id", "conversation_id", "rejected_id", "chosen", "chosen_ref", "origin", "problem")
# Judged, a pair stays as it is: one whose answer has yet to be made or to be accepted waits for that first.
_REVIEWABLE = and_(pair.c.chosen.is_not(None), pair.c.problem.is_(None) | (pair.c.problem == "unsure"))
_UNMADE = and_(pair.c.chosen.is_(None), pair.c.problem == "needs_regeneration")


class AlreadyRated(Exception):
    """This rater has judged this pair before."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A signal on one of the answers that no later one takes back; `said` is the message that says it, `reason` why it does not count."""

    completion_id: str
    kind: str
    value: float
    prob: float | None
    tags: list[str]
    comment: str | None
    reason: str | None
    said: str | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pair to judge: the screen `before` the question, both answers with the passages they were given, and what was heard of them."""

    id: str
    conversation_id: str
    before: Sequence[Message]
    question: str
    rejected: str
    rejected_id: str
    rejected_passages: Sequence[Passage]
    chosen: str
    chosen_ref: str | None
    chosen_passages: Sequence[Passage]
    heard: Sequence[Heard]
    origin: str
    problem: str | None

    @property
    def seen(self) -> str:
        """Names what was shown: a verdict on it counts for nothing else."""
        return _digest(self.chosen)


@dataclass(frozen=True, slots=True)
class Left:
    """How many pairs wait for this rater, and how many for a better answer to be made."""

    num_waiting: int
    num_unmade: int


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
        first = _agreed().where(_open_to(rater)).order_by(_num_decided().desc(), pair.c.strength.desc(), pair.c.id).limit(1)

        def work(connection: Connection) -> Waiting | None:
            row = connection.execute(first).mappings().first()
            return _waiting(connection, row) if row else None

        return await self._database.read(work)

    async def left(self, rater: str) -> Left:
        """What is still to do."""
        counts = [select(func.count()).select_from(_agreed().where(which).subquery()) for which in (_open_to(rater), _UNMADE)]
        return await self._database.read(lambda connection: Left(*(connection.execute(count).scalar_one() for count in counts)))

    async def judge(self, pair_id: str, seen: str, rater: str, verdict: Verdict, reason: str | None = None) -> None:
        """Keep a verdict on a pair as it was `seen`. Raises NotFound, also when it is another by now, and AlreadyRated."""
        said = {"pair_id": pair_id, "rater": rater, "verdict": verdict, "reason": reason, "created_at_ms": self._clock()}

        def work(connection: Connection) -> None:
            chosen = connection.execute(select(pair.c.chosen).where(pair.c.id == pair_id)).scalar()
            if chosen is None or _digest(chosen) != seen:
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
        """Of the first two who could tell, on every pair that has them."""
        decided = [[one for one in each if one != "unsure"] for each in (await self.verdicts()).values()]
        return agreement([(each[0], each[1]) for each in decided if len(each) >= NUM_RATERS])


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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _num_decided() -> ColumnElement[int]:
    told = and_(review.c.pair_id == pair.c.id, review.c.verdict != "unsure")
    return select(func.count()).where(told).correlate(pair).scalar_subquery()


def _open_to(rater: str) -> ColumnElement[bool]:
    mine = exists().where(review.c.pair_id == pair.c.id, review.c.rater == rater)
    return and_(_REVIEWABLE, _num_decided() < NUM_RATERS, ~mine)


def _agreed() -> Select[*tuple[object, ...]]:
    """The pairs of those who let their words train."""
    return select(pair).where(exists().where(conversation.c.id == pair.c.conversation_id, conversation.c.consent_train))


def _waiting(connection: Connection, row: RowMapping) -> Waiting:
    said = read_messages(connection, and_(message.c.conversation_id == row["conversation_id"], message.c.role != "note"))
    asked = next(each for each in said if each.id == row["question_id"])
    refused = select(message.c.text).join(completion, completion.c.message_id == message.c.id).where(completion.c.id == row["rejected_id"])
    *before, question = newest_branch(each for each in said if each.seq <= asked.seq)
    # An answer that was made for the pair saw what the rejected one did.
    chosen_by = row["rejected_id"] if row["origin"] == "regenerated" else row["chosen_ref"]
    answers = [each for each in (row["rejected_id"], row["chosen_ref"]) if each]
    seen = read_passages(connection, answers)
    return Waiting(
        **{name: row[name] for name in KEPT},
        before=before,
        question=question.text,
        rejected=connection.execute(refused).scalar_one(),
        rejected_passages=seen.get(row["rejected_id"], ()),
        chosen_passages=seen.get(chosen_by, ()),
        heard=_heard(connection, answers),
    )


def _heard(connection: Connection, answers: Sequence[str]) -> list[Heard]:
    later = signal.alias("later")
    columns = (*signal.c["completion_id", "kind", "value", "prob", "tags", "comment", "reason"], message.c.text.label("said"))
    rows = select(*columns).select_from(signal.outerjoin(message, message.c.id == signal.c.source_message_id)).order_by(signal.c.seq)
    meant = and_(signal.c.completion_id.in_(answers), signal.c.value != 0, ~exists().where(later.c.retracts_id == signal.c.id))
    return [Heard(**row) for row in connection.execute(rows.where(meant)).mappings()]


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
