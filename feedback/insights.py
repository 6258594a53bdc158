"""Insights: how the desk does, by week or by adapter, from what was said and how it was received."""

from collections import Counter, defaultdict, namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from typing import Literal

import numpy as np
from sqlalchemy import Connection, Select, and_, func, select

from feedback.database import Database
from feedback.record import MUTE, now_ms
from feedback.retrieval import FITS
from feedback.statistics import wilson
from feedback.tables import completion, conversation, handoff, message, retrieval, signal

By = Literal["week", "adapter"]
# Of fewer cases nothing is said: of 20 Wilson's interval is still up to 40 points wide.
MIN_NUM = 20
MAX_ADAPTERS = 8
DAY_MS = 24 * 3_600_000
WEEK_MS = 7 * DAY_MS
FIRST_MONDAY_MS = 4 * DAY_MS  # 1970-01-05
# After so long a silence nobody is expected to write again.
SETTLED_MS = DAY_MS
# The customer said it once more, in whatever way.
AGAIN = frozenset({"rephrase", "repeat", "correction", "edit"})
CONTENT_FROM = 4  # of 5


@dataclass(frozen=True, slots=True)
class Measure:
    """A number and its 95% interval, from `num` cases: a share from 0 to 1, or a quantile in the unit of what was measured."""

    value: float
    low: float
    high: float
    num: int

    @classmethod
    def share(cls, hits: Iterable[bool]) -> "Measure":
        told = list(hits)
        return cls(sum(told) / max(len(told), 1), *wilson(sum(told), len(told)), len(told))

    @property
    def is_enough(self) -> bool:
        return self.num >= MIN_NUM


@dataclass(frozen=True, slots=True)
class Slice:
    """One week (`key` is its Monday, UTC, as 2026-01-05) or one adapter ("": none). A conversation belongs to the week it began in.

    Of conversations: `contained` (no person took it and none is waited for); of those silent for a day also `confirmed` (the customer
    said so), `assumed` (the bot or a person had the last word and nobody complained) and `reopened`. Of resolved ones `rated`, and of
    those `content`. Of answers `asked_again` and `unanswered` (no passage fitted). Of standing votes `liked`. `counts` holds gaps, up,
    down, quarantined; `reasons` why a conversation left the bot; `signals` how many of each kind stand.
    """

    key: str
    contained: Measure
    confirmed: Measure
    assumed: Measure
    reopened: Measure
    rated: Measure
    content: Measure
    asked_again: Measure
    unanswered: Measure
    liked: Measure
    first_answer_s: Measure
    first_answer_p95_s: Measure
    thought_tokens: Measure
    thought_p95_tokens: Measure
    counts: Mapping[str, int]
    reasons: Mapping[str, int]
    signals: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Overview:
    """The whole period, and its slices: weeks in order, an empty one too, or the adapters with most conversations."""

    whole: Slice
    slices: list[Slice]


class Insights:
    """Read from the record; nothing is kept."""

    def __init__(self, database: Database, clock: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._clock = clock

    async def overview(self, weeks: int, by: By) -> Overview:
        """This week and the ones before it, `weeks` in all. Raises RecordUnavailable."""
        now = self._clock()
        monday = now - (now - FIRST_MONDAY_MS) % WEEK_MS
        mondays = [monday - WEEK_MS * ago for ago in reversed(range(weeks))]
        return await self._database.read(lambda connection: _overview(connection, mondays, now, by))


def quantile(values: Sequence[float], q: float) -> Measure:
    """The q-quantile; its interval runs between the order statistics at Wilson's bounds of q, whatever the distribution."""
    ordered, num = np.sort(np.asarray(values, float)), len(values)
    if not num:
        return Measure(0.0, 0.0, 0.0, 0)
    at = (q, *wilson(q * num, num))
    value, low, high = (float(ordered[min(num - 1, int(share * num))]) for share in at)
    return Measure(value, low, high, num)


# Made of rows at once: an attribute of these is read ten times as quickly as one of SQLAlchemy's rows.
_Opened = namedtuple("_Opened", "id created_at_ms state last_role last_at_ms")
_Answer = namedtuple("_Answer", "conversation_id seq id shown adapter num_reasoning_tokens first_answer_ms score")
_Signal = namedtuple("_Signal", "id conversation_id completion_id kind value weight retracts_id")
_Move = namedtuple("_Move", "conversation_id from_state to_state reason")


@dataclass(frozen=True, slots=True)
class _Told:
    """What was read, of the whole period or of one slice."""

    opened: list[_Opened] = field(default_factory=list)
    answers: list[_Answer] = field(default_factory=list)
    signals: list[_Signal] = field(default_factory=list)
    moves: list[_Move] = field(default_factory=list)


class _Facts:
    """What is known of the conversations, however they are sliced. Of signals only what stands: a changed vote retracts the one before."""

    def __init__(self, told: _Told, settled_ms: int) -> None:
        gone = {row.retracts_id for row in told.signals}
        standing = [row for row in told.signals if row.weight > 0 and row.id not in gone]
        self.standing = {row.id for row in standing}
        self.thumbs = {row.completion_id: row.value for row in standing if row.kind == "thumb"}
        self.ratings = {row.conversation_id: row.value for row in standing if row.kind == "csat"}
        self.again = {row.completion_id for row in standing if row.kind in AGAIN}
        self.reopened = {row.conversation_id for row in standing if row.kind == "reopen"}
        self.resolved = {move.conversation_id for move in told.moves if move.to_state == "resolved"}
        self.taken = self.resolved | {move.conversation_id for move in told.moves if move.to_state == "human"}
        self.last = {answer.conversation_id: answer for answer in sorted(told.answers, key=attrgetter("seq"))}
        self.settled_ms = settled_ms

    def outcome(self, one: _Opened) -> str:
        """How a conversation that was silent for a day ended."""
        if one.id in self.reopened:
            return "reopened"
        thumb = self.thumbs.get(self.last[one.id].id, 0) if one.id in self.last else 0
        rating = self.ratings.get(one.id)
        if thumb > 0 if rating is None else rating >= CONTENT_FROM:
            return "confirmed"
        is_quiet = one.last_role != "user" and one.state not in MUTE and thumb == 0 and rating is None
        return "assumed" if is_quiet else "open"


def _overview(connection: Connection, mondays: Sequence[int], now: int, by: By) -> Overview:
    opened, answers, signals, moves = (connection.execute(query) for query in _queries(mondays[0]))
    told = _Told([*map(_Opened._make, opened)], [*map(_Answer._make, answers)], [*map(_Signal._make, signals)], [*map(_Move._make, moves)])
    facts = _Facts(told, now - SETTLED_MS)
    groups = _groups(told, facts, mondays, by)
    slices = [_slice(key, facts, group) for key, group in groups.items() if key is not None]
    if by == "adapter":
        slices = sorted(slices, key=lambda each: -each.contained.num)[:MAX_ADAPTERS]
    return Overview(_slice("", facts, told), slices)


def _groups(told: _Told, facts: _Facts, mondays: Sequence[int], by: By) -> dict[str | None, _Told]:
    """By week, or by adapter: then a conversation is its last answer's, and None's where the bot never answered."""
    groups: defaultdict[str | None, _Told] = defaultdict(_Told)
    own: dict[str | None, str] = {}
    if by == "week":
        weeks = [datetime.fromtimestamp(monday / 1000, UTC).date().isoformat() for monday in mondays]
        groups.update({week: _Told() for week in weeks})
        # What begins while this is read belongs to this week.
        home = {one.id: weeks[min((one.created_at_ms - mondays[0]) // WEEK_MS, len(weeks) - 1)] for one in told.opened}
    else:
        home = {conversation_id: answer.adapter or "" for conversation_id, answer in facts.last.items()}
        own = {answer.id: answer.adapter or "" for answer in told.answers}
    for one in told.opened:
        groups[home.get(one.id)].opened.append(one)
    for answer in told.answers:
        groups[own.get(answer.id, home[answer.conversation_id])].answers.append(answer)
    for row in told.signals:
        groups[own.get(row.completion_id, home.get(row.conversation_id))].signals.append(row)
    for move in told.moves:
        groups[home.get(move.conversation_id)].moves.append(move)
    return groups


def _slice(key: str, facts: _Facts, told: _Told) -> Slice:
    outcomes = [facts.outcome(one) for one in told.opened if one.last_at_ms <= facts.settled_ms]
    shown = [answer for answer in told.answers if answer.shown]
    seconds = [answer.first_answer_ms / 1000 for answer in shown if answer.first_answer_ms is not None]
    tokens = [answer.num_reasoning_tokens for answer in shown if answer.num_reasoning_tokens is not None]
    fits = [answer.score >= FITS for answer in told.answers if answer.score is not None]
    standing = [row for row in told.signals if row.id in facts.standing]
    likes = [row.value > 0 for row in standing if row.kind == "thumb"]
    quarantined = sum(row.kind == "thumb" and row.weight == 0 for row in told.signals)
    return Slice(
        key,
        contained=Measure.share(one.id not in facts.taken and one.state not in MUTE for one in told.opened),
        **{name: Measure.share(outcome == name for outcome in outcomes) for name in ("confirmed", "assumed", "reopened")},
        rated=Measure.share(one.id in facts.ratings for one in told.opened if one.id in facts.resolved),
        content=Measure.share(facts.ratings[one.id] >= CONTENT_FROM for one in told.opened if one.id in facts.ratings),
        asked_again=Measure.share(answer.id in facts.again for answer in shown),
        unanswered=Measure.share(not each for each in fits),
        liked=Measure.share(likes),
        first_answer_s=quantile(seconds, 0.5),
        first_answer_p95_s=quantile(seconds, 0.95),
        thought_tokens=quantile(tokens, 0.5),
        thought_p95_tokens=quantile(tokens, 0.95),
        counts={"gaps": fits.count(False), "up": likes.count(True), "down": likes.count(False), "quarantined": quarantined},
        reasons=Counter(move.reason for move in told.moves if move.from_state == "bot"),
        signals=Counter(row.kind for row in standing),
    )


def _queries(since_ms: int) -> tuple[Select[*tuple[object, ...]], ...]:
    """Conversations with their last message, answers, signals, changes of state: of conversations begun since then."""
    begun, said = conversation.c.created_at_ms >= since_ms, message.alias()
    newest = select(func.max(said.c.seq)).where(said.c.conversation_id == conversation.c.id).scalar_subquery()
    ends = conversation.join(message, and_(message.c.conversation_id == conversation.c.id, message.c.seq == newest))
    told = message.c.role.label("last_role"), message.c.created_at_ms.label("last_at_ms")
    opened = select(*conversation.c["id", "created_at_ms", "state"], *told).select_from(ends)
    best = and_(retrieval.c.completion_id == completion.c.id, retrieval.c.rank == 1)
    made = completion.join(message).join(conversation).outerjoin(retrieval, best)
    how = completion.c["id", "shown", "adapter", "num_reasoning_tokens", "first_answer_ms"]
    answers = select(*message.c["conversation_id", "seq"], *how, retrieval.c.score).select_from(made)
    # No answer is older than its conversation: the index on the answers' times narrows both.
    answers = answers.where(completion.c.created_at_ms >= since_ms, completion.c.status == "complete")
    signals = select(*signal.c[_Signal._fields]).select_from(conversation.join(signal))
    moves = select(*handoff.c[_Move._fields]).select_from(conversation.join(handoff))
    return opened.where(begun), answers.where(begun), signals.where(begun), moves.where(begun)
