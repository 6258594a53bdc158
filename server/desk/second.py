"""A second answer, made once the first is there: the customer may say which is better, or go on as if there were none."""

import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from backends.protocol import EngineBusy
from feedback.calls import Call
from feedback.database import RecordUnavailable
from feedback.offers import Offer, Offers
from feedback.record import Completion, Conversation, Message, NotFound, Retrieved
from feedback.rewards import action_of
from feedback.similar import near_duplicates
from server.chat.service import ChatStream
from server.desk.tool import Caller
from server.desk.tools import Toolbox
from server.desk.turn import Accepted, Brief, Event, Offered, Queued, Turn

MAX_DRAWN = 200


@dataclass(frozen=True, slots=True)
class _Drawn:
    """An answer that may have a second, with what it was given with."""

    first: Message
    brief: Brief
    seen: Sequence[Retrieved]


class Seconds:
    """Second answers, one at most in a conversation. They wait for the page to ask for them, and go when the conversation goes on."""

    def __init__(self, offers: Offers, share: float, draws: Callable[[str], bool]) -> None:
        """`draws` says by a completion's id, with chance `share`, whether that answer has a second."""
        self._offers = offers
        self._share = share
        self._draws = draws
        # Would this answer ask for a thumb? Then it is not offered: those that ask are drawn from all answers, not from preferred ones.
        self.asks: Callable[[str], bool] = lambda completion_id: False
        self._drawn = dict[str, _Drawn]()
        self._turns = dict[str, Turn]()

    def draw(self, conversation: Conversation, first: Message, brief: Brief, seen: Sequence[Retrieved]) -> Message:
        """The answer, knowing whether it has a second: only one that answers, whole, to a customer who agreed to training."""
        if not (conversation.consent_train and first.completion_id and is_whole(first) and self._draws(first.completion_id)):
            return first
        self._drawn[conversation.id] = _Drawn(first, brief, seen)
        if len(self._drawn) > MAX_DRAWN:
            del self._drawn[next(iter(self._drawn))]
        return replace(first, has_second=True)

    def forget(self, conversation_id: str) -> None:
        """The conversation goes on: what was drawn or is being made is not offered any more."""
        self._drawn.pop(conversation_id, None)
        if turn := self._turns.pop(conversation_id, None):
            turn.hang_up()

    async def close(self) -> None:
        """End what is being made."""
        for conversation_id, turn in list(self._turns.items()):
            self.forget(conversation_id)
            await turn.wait_kept()

    async def begin(self, conversation_id: str, message_id: str) -> tuple[AsyncGenerator[Event, None], Callable[[], None]]:
        """What its customer is told, and how to say that nobody listens. Raises NotFound, ContextTooLong, EngineBusy, EngineDown."""
        drawn = self._drawn.get(conversation_id)
        is_ours = drawn is not None and drawn.first.id == message_id and await self._offers.may(conversation_id, drawn.first)
        if drawn is None or not is_ours or self._drawn.get(conversation_id) is not drawn:
            raise NotFound("no such message")
        del self._drawn[conversation_id]
        offers: list[Offer] = []
        turn: Turn

        async def keep(answer: Message, made: Completion | None, others: list[Completion], calls: list[Call]) -> Message:
            second = replace(answer, reply_to_id=drawn.first.reply_to_id, replaces_id=drawn.first.id)
            is_wanted = self._turns.get(conversation_id) is turn and not (others or calls)
            if made and is_wanted and is_whole(second) and not self.asks(made.id) and not near_duplicates([drawn.first.text, second.text]):
                side: Literal["left", "right"] = secrets.choice(("left", "right"))
                offer = Offer(drawn.first, second, made, drawn.seen, self._share, side)
                with suppress(RecordUnavailable, NotFound):
                    if await self._offers.add(conversation_id, offer):
                        offers.append(offer)
            return second

        # One attempt, which does nothing in the world.
        brief = replace(drawn.brief, open=_once, box=Toolbox({}, Caller(drawn.brief.policy.language)))
        turn = self._turns[conversation_id] = Turn(drawn.brief.open(()), brief, keep, lambda place: 0)
        return self._told(conversation_id, turn, drawn.first.id, offers), turn.hang_up

    async def _told(self, conversation_id: str, turn: Turn, message_id: str, offers: Sequence[Offer]) -> AsyncGenerator[Event, None]:
        try:
            yield Accepted(message_id)
            async for event in turn.events():
                if isinstance(event, Queued):  # whoever waits for a first answer comes first
                    turn.hang_up()
            for offer in offers if self._turns.get(conversation_id) is turn else ():
                yield Offered(offer.second, offer.side)
        finally:
            if self._turns.get(conversation_id) is turn:
                del self._turns[conversation_id]


def is_whole(answer: Message) -> bool:
    """Whether a complete answer answers, and from a passage: it offers no person, asks nothing back, refuses nothing, is no small talk."""
    is_complete = answer.status == "complete" and answer.finish_reason == "stop"
    return is_complete and bool(answer.citations) and action_of(answer.text) == "answer"


def _once(calls: Sequence[Call]) -> ChatStream:
    raise EngineBusy(0)
