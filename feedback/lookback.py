"""Looking back: what a conversation says about its answers without anybody pressing anything. Never on the way of a reply."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from sqlalchemy import Connection, and_, delete, false, func, insert, or_, select

from feedback import rephrase
from feedback.database import Database, RecordUnavailable
from feedback.likeness import MAX_CHARS, Meanings, Rows
from feedback.record import Message, newest_branch, now_ms, read_messages
from feedback.rephrase import FIRES, Friction, Turn, classify
from feedback.signals import DAY_MS, PROPENSITY, Observation, Signals
from feedback.tables import conversation, handoff, lookback, message

DETECTOR = "rephrase"
MAX_VERSION_CHARS = 32
BATCH = 200
MAX_KNOWN = 2000
EVERY_S = 3600
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Story:
    """A conversation as it stands: `requests` are the times at which its customer asked for a person."""

    id: str
    visitor_id: str
    mark: int
    messages: Sequence[Message]
    requests: Sequence[int]


class Understanding(Protocol):
    """An embedding model: its name, and unit vectors of questions, [n, d]; None when it is away."""

    name: str

    async def of_questions(self, questions: Sequence[str]) -> Rows | None: ...


class Lookback:
    """Writes the signals of turns not yet looked at. What a crash cuts off is looked at again, and nothing is written twice.

    While `model` is there, turns are compared by its vectors too.
    """

    model: Understanding | None = None

    def __init__(self, database: Database, signals: Signals, clock: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._signals = signals
        self._clock = clock
        self._kept: asyncio.Queue[str] = asyncio.Queue()
        self.on_looked: Callable[[str], object] = lambda conversation_id: None
        self._known: dict[str, Rows] = {}

    def kept(self, conversation_id: str) -> None:
        """Something was said in a conversation; `run` will look at it."""
        self._kept.put_nowait(conversation_id)

    async def run(self) -> None:
        """Look at what a crash left out, then at each conversation that goes on, and hourly for silence; until cancelled.

        `on_looked` is told of each that goes on, once its signals are written, whichever look wrote them.
        """
        conversation_id: str | None = None
        while True:
            try:
                await self.sweep(conversation_id)
                if conversation_id:
                    self.on_looked(conversation_id)
            except RecordUnavailable as error:
                log.warning("nothing was looked back at: %s", error)
            conversation_id = None
            with contextlib.suppress(TimeoutError):
                conversation_id = await asyncio.wait_for(self._kept.get(), EVERY_S)

    async def sweep(self, conversation_id: str | None = None) -> int:
        """Look at one conversation, or at all that went on since; returns how many were looked at. Raises RecordUnavailable."""
        num = 0
        while stories := await self._database.read(lambda connection: _unseen(connection, conversation_id, self._clock())):
            for story in stories:
                await self._look(story)
            num += len(stories)
        return num

    async def _look(self, story: Story) -> None:
        now = self._clock()
        seen = list(observe(story, now, self._signals.asks, await self._meanings(story)))
        settled = not story.messages or story.messages[-1].created_at_ms < now - DAY_MS

        def work(connection: Connection) -> None:
            self._signals.note_in(connection, story.id, story.visitor_id, seen)
            connection.execute(delete(lookback).where(lookback.c.conversation_id == story.id))
            connection.execute(insert(lookback).values(conversation_id=story.id, mark=story.mark, is_settled=settled))

        await self._database.write(work)

    async def _meanings(self, story: Story) -> Meanings | None:
        """What an embedding model finds of the customer's turns; None where words must do."""
        said = [each.text[:MAX_CHARS] for each in story.messages if each.role == "user"]
        if self.model is None or len(said) < 2:
            return None
        needed = [*Meanings.strangers(), *said]
        unknown = [text for text in dict.fromkeys(needed) if text not in self._known]
        rows = await self.model.of_questions(unknown) if unknown else np.zeros(0, np.float32)
        if rows is None:
            return None
        self._known |= zip(unknown, rows, strict=True)
        if len(self._known) > MAX_KNOWN:
            self._known = {text: self._known[text] for text in needed}
        return Meanings(self._known, self.model.name)


def observe(story: Story, now: int, asks: Callable[[str], bool], meanings: Meanings | None = None) -> Iterator[Observation]:
    """Every signal in a conversation, from its beginning. Pure."""
    branch = newest_branch(story.messages)
    for each in story.messages:
        if each.completion_id and asks(each.completion_id):
            yield Observation("ask", each.completion_id, 0.0, propensity=PROPENSITY)
        if each.completion_id and each.status == "stopped":
            yield Observation("stop", each.completion_id, -1.0, "visitor")
    for at_ms in story.requests:
        if answer := _last_answer([each for each in branch if each.created_at_ms <= at_ms]):
            yield Observation("handoff_request", str(answer.completion_id), -1.0, "visitor")
    for place, each in enumerate(branch):
        before = branch[:place]
        if each.role == "agent" and (answer := _last_answer(before)) and not any(one.role == "agent" for one in before):
            yield Observation("agent_correction", str(answer.completion_id), -1.0, "agent", source_message_id=each.id)
        if each.role == "user" and before and before[-1].role == "assistant":
            yield from _said_next(each, before, story.requests, meanings)
    if branch and branch[-1].completion_id and branch[-1].created_at_ms < now - DAY_MS:
        yield Observation("silence", branch[-1].completion_id, 1.0)


def _said_next(said: Message, before: Sequence[Message], requests: Sequence[int], meanings: Meanings | None) -> Iterator[Observation]:
    answer, questions = before[-1], [each for each in before if each.role == "user"]
    verdict = classify(turn_of(said, before, requests, meanings))
    detector = DETECTOR, f"{rephrase.VERSION}+{meanings.model}"[:MAX_VERSION_CHARS] if meanings else rephrase.VERSION
    if verdict.prob >= FIRES:
        again = questions[-verdict.span]
        target = next((each for each in before if each.reply_to_id == again.id and each.role == "assistant"), answer)
        kinds = ("rephrase", "correction") if verdict.kind == "correction" else ("rephrase",)
        for kind in kinds if target.completion_id else ():
            where = {"source_message_id": said.id, "span": f"0:{len(said.text)}", "prob": round(verdict.prob, 4)}
            yield Observation(kind, str(target.completion_id), -1.0, "visitor", detector, **where)  # type: ignore[arg-type]
    elif answer.completion_id and verdict.kind == "closing" and rephrase.thanks(said.text):
        yield Observation("gratitude", answer.completion_id, 1.0, "visitor", detector, source_message_id=said.id)


def turn_of(said: Message, before: Sequence[Message], requests: Sequence[int] = (), meanings: Meanings | None = None) -> Turn:
    """A customer's message as the detector sees it; `before` ends in the bot's answer."""
    answer = before[-1]
    friction: set[Friction] = set()
    if answer.thumb == -1:
        friction.add("thumb_down")
    if answer.status == "stopped":
        friction.add("stop")
    if any(answer.created_at_ms <= at_ms <= said.created_at_ms for at_ms in requests):
        friction.add("handoff_request")
    earlier = tuple(each.text for each in before if each.role == "user")[-rephrase.NUM_EARLIER :]
    gap_s = (said.created_at_ms - answer.created_at_ms) / 1000
    like = tuple(meanings(each, said.text) for each in earlier) if meanings else ()
    return Turn(said.text, earlier, answer.text, gap_s, frozenset(friction), answer.completion_id is not None, like)


def _last_answer(said: Sequence[Message]) -> Message | None:
    return next((each for each in reversed(said) if each.role == "assistant" and each.completion_id), None)


def _unseen(connection: Connection, conversation_id: str | None, now: int) -> list[Story]:
    """Conversations that went on since they were looked at, or that have been silent for a day since."""
    mine = message.c.conversation_id == conversation.c.id
    newest = select(func.coalesce(func.max(message.c.seq), 0)).where(mine).scalar_subquery()
    moves = select(func.count()).select_from(handoff).where(handoff.c.conversation_id == conversation.c.id).scalar_subquery()
    last = select(func.max(message.c.created_at_ms)).where(mine).scalar_subquery()
    mark = (newest + moves).label("mark")
    silent = and_(lookback.c.is_settled == false(), last < now - DAY_MS)
    wanted = or_(lookback.c.mark.is_(None), lookback.c.mark < newest + moves, silent)
    query = select(conversation.c.id, conversation.c.visitor_id, mark)
    query = query.select_from(conversation.outerjoin(lookback, lookback.c.conversation_id == conversation.c.id)).where(wanted)
    if conversation_id:
        query = query.where(conversation.c.id == conversation_id)
    return [_story(connection, *row) for row in connection.execute(query.order_by(conversation.c.id).limit(BATCH)).all()]


def _story(connection: Connection, conversation_id: str, visitor_id: str, mark: int) -> Story:
    said = read_messages(connection, and_(message.c.conversation_id == conversation_id, message.c.role != "note"))
    asked = and_(handoff.c.conversation_id == conversation_id, handoff.c.reason == "request", handoff.c.to_state == "waiting")
    requests = connection.execute(select(handoff.c.created_at_ms).where(asked).order_by(handoff.c.seq)).scalars().all()
    return Story(conversation_id, visitor_id, mark, said, list(requests))
