"""The journal: what the record could not take yet waits here, in order, so that a full disk does not end a chat."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from feedback.database import RecordUnavailable
from feedback.record import Conversation, Message, NotFound

logger = logging.getLogger(__name__)
Work = Callable[[], Awaitable[object]]

MAX_CONVERSATIONS = 200


@dataclass(frozen=True, slots=True)
class _Entry:
    work: Work
    said: Message | None


@dataclass(slots=True)
class _Backlog:
    conversation: Conversation
    entries: list[_Entry] = field(default_factory=list)


class Journal:
    """Every write of a conversation goes through here. What waits is lost if the process ends before there is space again."""

    def __init__(self) -> None:
        self._backlogs: dict[str, _Backlog] = {}

    async def write(self, conversation: Conversation, work: Work, said: Message | None = None) -> bool:
        """Do what waits for this conversation, then `work`. False when the record is unavailable and it all goes on waiting."""
        backlog = self._backlogs.setdefault(conversation.id, _Backlog(conversation))
        backlog.entries.append(_Entry(work, said))
        try:
            while backlog.entries:
                await backlog.entries[0].work()
                del backlog.entries[0]
        except RecordUnavailable as error:
            logger.error("conversation kept in memory: %s", error)
            self._forget_oldest()
            return False
        except NotFound:  # erased meanwhile: what waits must not outlive it
            self._backlogs.pop(conversation.id, None)
            raise
        self._backlogs.pop(conversation.id, None)
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
        return [entry.said for entry in backlog.entries if entry.said] if backlog else []

    def _forget_oldest(self) -> None:
        while len(self._backlogs) > MAX_CONVERSATIONS:
            del self._backlogs[next(iter(self._backlogs))]
