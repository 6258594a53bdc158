"""Offers: a second answer beside the one that was given, for a customer who cares to say which is better."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy import Connection, and_, exists, func, or_, select

from feedback.database import Database
from feedback.record import Completion, Message, Retrieved, append_answer, lock_state, newest_branch, read_messages
from feedback.signals import Observation, Signals
from feedback.tables import conversation, message, signal

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Offer:
    """Two answers to one question, the second as it was made and with the passages it saw; the first stands on `side`."""

    first: Message
    second: Message
    made: Completion
    seen: Sequence[Retrieved]
    propensity: float
    side: Side


class Offers:
    """What is offered, on disk. Both methods raise RecordUnavailable."""

    def __init__(self, database: Database, signals: Signals) -> None:
        self._database = database
        self._signals = signals

    async def may(self, conversation_id: str, first: Message) -> bool:
        """Whether a second answer may stand beside `first`: its customer agreed to training and has the bot, nothing was said since, and
        the answer before had none beside it.
        """
        return await self._database.read(lambda connection: _visitor(connection, conversation_id, first) is not None)

    async def add(self, conversation_id: str, offer: Offer) -> bool:
        """Keep the second answer, out of sight until it is chosen, and that it was offered; False when it no longer may be."""

        def work(connection: Connection) -> bool:
            lock_state(connection, conversation_id)
            visitor_id, first_id = _visitor(connection, conversation_id, offer.first), offer.first.completion_id
            if visitor_id is None or first_id is None:
                return False
            append_answer(connection, conversation_id, offer.second, replace(offer.made, shown=False, status="offered"), offer.seen)
            noted = Observation("offer", first_id, 0.0, propensity=offer.propensity, other_id=offer.made.id, side=offer.side)
            self._signals.note_in(connection, conversation_id, visitor_id, [noted])
            return True

        return await self._database.write(work)


def _visitor(connection: Connection, conversation_id: str, first: Message) -> str | None:
    """Whom a second answer may be offered to; None when it may not."""
    newest = select(func.max(message.c.seq)).where(message.c.conversation_id == conversation_id).scalar_subquery()
    is_last = exists().where(message.c.id == first.id, message.c.conversation_id == conversation_id, message.c.seq == newest)
    agreed = and_(conversation.c.id == conversation_id, conversation.c.consent_train, conversation.c.state == "bot", is_last)
    visitor_id: str | None = connection.execute(select(conversation.c.visitor_id).where(agreed)).scalar()
    said = newest_branch(read_messages(connection, message.c.conversation_id == conversation_id)) if visitor_id else []
    before = next((str(each.completion_id) for each in reversed(said[:-1]) if each.role == "assistant"), "")
    offered = and_(signal.c.kind == "offer", or_(signal.c.completion_id == before, signal.c.other_id == before))
    return None if connection.execute(select(signal.c.id).where(offered)).first() else visitor_id
