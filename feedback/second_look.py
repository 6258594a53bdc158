"""The second look: a model judges what the rephrase detector found. Never on the way of a reply, and only where it judges well."""

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, func, select

from feedback.database import Database, RecordUnavailable
from feedback.likeness import MAX_CHARS, lexicon, script_of, sigmoid
from feedback.lookback import DETECTOR, MAX_VERSION_CHARS
from feedback.rephrase import AGAIN, FIRES, KINDS
from feedback.signals import Signals
from feedback.tables import completion, message, release, signal

JUDGE, VERSION = "rephrase_judge", "1"
CHANCE, EVERY_S = 0.5, 30.0
MAX_ANSWER_CHARS = 1200
KIND, RESOLVES = "kind", "first_answer_resolves_it"
_PROPERTIES = {KIND: {"enum": list(KINDS)}, RESOLVES: {"type": "boolean"}}
SCHEMA = {"type": "object", "properties": _PROPERTIES, "required": [KIND, RESOLVES], "additionalProperties": False}
log = logging.getLogger(__name__)
Messages = list[Mapping[str, str]]


def prompt(question: str, answer: str, turn: str) -> Messages:
    """What a judge is told, in the customer's language. The texts stand in it as JSON: none can end early and speak for it."""
    said = {"question": question[:MAX_CHARS], "first_answer": answer[:MAX_ANSWER_CHARS], "next_turn": turn[:MAX_CHARS]}
    system = {"role": "system", "content": lexicon().judge[script_of(turn)]}
    return [system, {"role": "user", "content": json.dumps(said, ensure_ascii=False)}]


def opinion(said: str) -> tuple[bool, bool] | None:
    """Whether the turn asks again, and whether the first answer would have resolved it; None for what is no opinion."""
    try:
        told = json.loads(said)
        return (told[KIND] in AGAIN, bool(told[RESOLVES])) if told[KIND] in KINDS else None
    except (ValueError, LookupError, TypeError):
        return None


def believed(prob: float, is_against: bool, right: float) -> float:
    """The detector's probability once a judge who is right so often has spoken; the two are taken as independent."""
    odds, weight = (math.log(each / (1 - each)) for each in (min(max(prob, 1e-6), 1 - 1e-6), right))
    return sigmoid(odds + (weight if is_against else -weight))


@dataclass(slots=True)
class SecondLook:
    """Puts a judged row in place of each of the detector's that nobody has decided on; `right` is how often this judge is.

    `ask(messages, session)` gives what a model said under SCHEMA and the model's name, or two empty words when it is away.
    """

    database: Database
    ask: Callable[[Messages, str], Awaitable[tuple[str, str]]]
    right: float
    last: int = 0

    async def run(self) -> None:
        """Look at what was found since, again and again, until cancelled; not at all where the judge is no better than a coin."""
        while self.right > CHANCE:
            try:
                while await self.look():
                    pass
            except RecordUnavailable as error:
                log.warning("nothing was judged: %s", error)
            await asyncio.sleep(EVERY_S)

    async def look(self) -> bool:
        """Judge the next signal; False when none is left or the model is away. Raises RecordUnavailable."""
        found = await self.database.read(lambda connection: _next(connection, self.last))
        if found is None:
            return False
        said, model = await self.ask(prompt(found["question"], found["answer"], found["turn"]), found["conversation_id"])
        if told := opinion(said):
            # Who did not read a right answer says nothing against it.
            prob = believed(found["prob"], told[0] and not told[1], self.right)
            row = {"value": -1.0, "weight": 1.0} if prob >= FIRES else {"value": 0.0, "weight": 0.0, "reason": "judged"}
            row |= {"prob": round(prob, 4), "detector": JUDGE, "detector_version": f"{VERSION}+{model}"[:MAX_VERSION_CHARS]}
            await Signals(self.database).supersede(found["id"], row)
        self.last = found["seq"] if said else self.last
        return bool(said)


def _next(connection: Connection, last: int) -> RowMapping | None:
    """The first signal of the detector after `last` that stands as it was written, with the three texts that it is about."""
    asked, turn, later = message.alias(), message.alias(), signal.alias()
    texts = asked.c.text.label("question"), func.coalesce(message.c.text, "").label("answer"), turn.c.text.label("turn")
    told = signal.join(completion, completion.c.id == signal.c.completion_id).join(message, message.c.id == completion.c.message_id)
    told = told.join(asked, asked.c.id == message.c.reply_to_id).join(turn, turn.c.id == signal.c.source_message_id)
    told = told.outerjoin(later, later.c.retracts_id == signal.c.id).outerjoin(release, release.c.signal_id == signal.c.id)
    query = select(*signal.c["seq", "id", "prob", "conversation_id"], *texts).select_from(told).order_by(signal.c.seq).limit(1)
    query = query.where(signal.c.detector == DETECTOR, signal.c.prob.is_not(None), signal.c.seq > last)
    return connection.execute(query.where(later.c.id.is_(None), release.c.signal_id.is_(None))).mappings().first()
