"""What waits for the disk does not outlive the conversation that it is of."""

import pytest

from feedback.database import RecordUnavailable
from feedback.record import Conversation, Message, NotFound
from server.desk.journal import Journal

pytestmark = pytest.mark.anyio


async def test_what_waits_for_an_erased_conversation_is_forgotten() -> None:
    async def full() -> None:
        raise RecordUnavailable("full")

    async def erased() -> None:
        raise NotFound("no such conversation")

    journal, opened = Journal(), Conversation("conv_a", "vis_a", "en")
    works = iter([full, erased])
    assert not await journal.write(opened, lambda: next(works)(), Message("msg_a", "user", "hello"))
    assert [message.text for message in journal.messages("conv_a")] == ["hello"]
    with pytest.raises(NotFound):
        await journal.write(opened, erased)
    assert (journal.conversation("conv_a"), journal.messages("conv_a")) == (None, [])
