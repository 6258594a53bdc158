"""A question asked for the third time goes to a person: two answers have missed it."""

import asyncio
import contextlib

import pytest

from feedback.database import Database
from feedback.lookback import Lookback
from feedback.signals import Signals
from tests.server.desk.test_handoff import House
from tests.server.fakes import ScriptedChat

pytestmark = pytest.mark.anyio

SAME = ("How long can I return tea?", "I mean how long do I have to return the tea", "no, how long can I return tea")
PATIENCE_S = 60
OTHER = ("How long can I return tea?", "Do you ship to Norway?", "When do you open on Sundays?")


@pytest.mark.parametrize("questions", [SAME, OTHER], ids=["again", "other"])
async def test_only_who_asks_the_same_again_and_again_gets_a_person(database: Database, questions: tuple[str, ...]) -> None:
    house = await House(database, ScriptedChat(script=("Thirty days [1].",))).open()
    lookback = Lookback(database, Signals(database))
    looked: asyncio.Queue[str] = asyncio.Queue()
    house.handoffs.on_kept = lookback.kept

    def on_looked(conversation_id: str) -> None:
        house.handoffs.failures_seen(conversation_id)
        looked.put_nowait(conversation_id)

    lookback.on_looked = on_looked
    looking = asyncio.create_task(lookback.run())
    for question in questions:
        assert await house.state() == "bot"
        await house.ask(question)
        await asyncio.wait_for(looked.get(), PATIENCE_S)
    while house.handoffs._tasks:
        await asyncio.gather(*house.handoffs._tasks)
    assert await house.reasons() == (["failure"] if questions is SAME else [])
    looking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await looking
