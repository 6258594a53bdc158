"""Several answers to one prompt, side by side."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from server.chat.stream import ChatStream, TextDelta


class Choices:
    """An async iterator over the streams of one request: whatever comes next, with the index of its stream.

    Raises what the first stream raises that fails. Whoever opened the streams closes them, and this before.
    """

    def __init__(self, streams: Sequence[ChatStream]) -> None:
        self.streams = streams
        self._deltas = self._merge()

    async def opened(self) -> None:
        """Return when every answer is certain to begin. Raises EngineError."""
        for stream in self.streams:
            await stream.opened()

    def __aiter__(self) -> AsyncGenerator[tuple[int, TextDelta], None]:
        return self._deltas

    async def aclose(self) -> None:
        await self._deltas.aclose()

    async def _merge(self) -> AsyncGenerator[tuple[int, TextDelta], None]:
        if len(self.streams) == 1:
            async for delta in self.streams[0]:
                yield 0, delta
            return
        coming = {asyncio.ensure_future(anext(stream, None)): index for index, stream in enumerate(self.streams)}
        try:
            while coming:
                done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    index = coming.pop(task)
                    if (next_delta := task.result()) is not None:
                        coming[asyncio.ensure_future(anext(self.streams[index], None))] = index
                        yield index, next_delta
        finally:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)
