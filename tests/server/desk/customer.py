"""A customer of a scripted desk, and what can be asked about what they heard."""

import asyncio

from sqlalchemy import Connection, select

from feedback.database import Database
from feedback.record import Conversation, Message
from feedback.tables import completion
from server.desk.desk import Desk
from server.desk.turn import Delta, Done, Event, Restart
from tests.server.fakes import ScriptedChat, ScriptedStream

VISITOR = "vis_a"


class Customer:
    """Asks, and remembers what is heard."""

    def __init__(self, desk: Desk, conversation: Conversation) -> None:
        self.desk = desk
        self.id = conversation.id
        self.num_sent = 0

    async def ask(self, text: str, key: str | None = None) -> list[Event]:
        self.num_sent += 1
        answer = await self.desk.ask(VISITOR, self.id, text, key or f"key-{self.num_sent}")
        return [event async for event in answer.events]

    def asking(self, text: str, key: str | None = None) -> "asyncio.Task[list[Event]]":
        return asyncio.create_task(self.ask(text, key))


async def opened(chat: ScriptedChat, number: int = 1) -> ScriptedStream:
    """The stream of the n-th question, once the desk has opened it."""
    async with asyncio.timeout(5):
        while len(chat.streams) < number:
            await asyncio.sleep(0.005)
    return chat.streams[number - 1]


def answer_in(events: list[Event]) -> Message:
    end = events[-1]
    assert isinstance(end, Done)
    return end.message


def said_in(events: list[Event]) -> str:
    """What is on the screen in the end."""
    said = ""
    for event in events:
        said = "" if isinstance(event, Restart) else said + event.text if isinstance(event, Delta) else said
    return said


async def completions(database: Database) -> list[dict[str, object]]:
    def work(connection: Connection) -> list[dict[str, object]]:
        return [dict(row) for row in connection.execute(select(completion)).mappings()]

    return await database.read(work)
