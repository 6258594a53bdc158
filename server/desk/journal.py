"""The journal: what the record could not take yet waits here, in order, so that a full disk does not end a chat."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from feedback.database import RecordUnavailable
from feedback.record import Conversation, Message

logger = logging.getLogger(__name__)
Work = Callable[[], Awaitable[object]]

MAX_CONVERSATIONS = 200


@dataclass(slots=True)
class _Backlog:
    conversation: Conversation
    works: list[Work] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)


class Journal:
    """Every write of a conversation goes through here. What waits is lost when the process ends; the customer is not told otherwise:
    an answer that is not on disk cannot be voted on.
    """

    def __init__(self) -> None:
        self._backlogs: dict[str, _Backlog] = {}

    async def write(self, conversation: Conversation, work: Work, said: Message | None = None) -> bool:
        """Do what waits for this conversation, then `work`. False when the record is unavailable and it all goes on waiting."""
        backlog = self._backlogs.setdefault(conversation.id, _Backlog(conversation))
        backlog.works.append(work)
        backlog.messages.extend([said] if said else [])
        try:
            while backlog.works:
                await backlog.works[0]()
                del backlog.works[0]
        except RecordUnavailable as error:
            logger.error("conversation kept in memory: %s", error)
            self._forget_oldest()
            return False
        del self._backlogs[conversation.id]
        return True

    def conversation(self, conversation_id: str) -> Conversation | None:
        backlog = self._backlogs.get(conversation_id)
        return backlog.conversation if backlog else None

    def current_conversation(self, visitor_id: str) -> Conversation | None:
        mine = (backlog.conversation for backlog in self._backlogs.values() if backlog.conversation.visitor_id == visitor_id)
        return max(mine, key=lambda conversation: conversation.created_at_ms, default=None)

    def messages(self, conversation_id: str) -> list[Message]:
        """What was said and is not on disk yet."""
        backlog = self._backlogs.get(conversation_id)
        return list(backlog.messages) if backlog else []

    def _forget_oldest(self) -> None:
        while len(self._backlogs) > MAX_CONVERSATIONS:
            del self._backlogs[next(iter(self._backlogs))]
