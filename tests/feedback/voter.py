"""A process that votes as fast as it can and says so after each acknowledgement, until somebody kills it."""

import asyncio
from multiprocessing.connection import Connection
from pathlib import Path

from feedback.database import Database
from feedback.signals import Signals, Thumb


def vote_forever(folder: Path, completion_id: str, first: int, acknowledged: Connection) -> None:
    async def run() -> None:
        signals = Signals(Database.in_folder(folder))
        for number in range(first, first + 1_000_000):
            await signals.vote("vis_a", Thumb(completion_id, 1 if number % 2 else -1, (), None, str(number)))
            acknowledged.send(number)

    asyncio.run(run())
