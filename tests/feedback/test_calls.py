"""Calls of tools on disk: what waits for a yes is taken once."""

import asyncio
from dataclasses import replace

import pytest

from feedback.calls import CONFIRM_WITHIN_MS, Call, Calls
from feedback.database import Database
from feedback.record import Conversation, Message, Record, new_id
from tests.feedback.conftest import made

pytestmark = pytest.mark.anyio


async def test_a_pending_call_is_taken_once_within_its_time_and_its_conversation(database: Database) -> None:
    record, calls = Record(database), Calls(database)
    opened = [Conversation(new_id("conv"), "vis_a", "en") for _ in range(2)]
    for conversation in opened:
        await record.add_conversation(conversation)
    here, there = (conversation.id for conversation in opened)
    completion, looked_up = made(status="called"), Call("call_0", "get_order", "{}", "done", '{"status": "\0"}', 3.5)
    fresh = Call("call_1", "cancel_order", '{"order_id": "K1"}', "pending", completion_id=completion.id)
    old = replace(fresh, id="call_2", created_at_ms=fresh.created_at_ms - CONFIRM_WITHIN_MS - 1)
    await record.add_message(here, Message(new_id("msg"), "assistant", "Shall I?"), None, [completion], (), [looked_up, fresh, old])
    assert await calls.pending(here) == fresh and await calls.pending(there) is None
    assert await calls.take(there, fresh.id, "running") is None
    assert await calls.take(here, old.id, "running") is None
    taken = await asyncio.gather(*(calls.take(here, fresh.id, "running") for _ in range(5)))
    assert [each for each in taken if each] == [replace(fresh, status="running")]
    await calls.finish(replace(fresh, status="done", result="{}", duration_ms=1.0))
    await calls.drop(here)
    assert await calls.pending(here) is None and await calls.take(here, fresh.id, "declined") is None
