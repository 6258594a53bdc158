"""A laptop as a server: awake while somebody waits for an answer, and honest after it has slept."""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

JUMP_S = 5.0


def caffeinate() -> tuple[str, ...]:
    """macOS's own program, which lets go by itself when this process ends, however it ends; nothing elsewhere."""
    return ("/usr/bin/caffeinate", "-i", "-w", str(os.getpid())) if sys.platform == "darwin" else ()


class Awake:
    """Keeps the machine from falling asleep, by a program that runs as long as `keep` was last told True. A closed lid still wins."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    async def keep(self, is_needed: bool) -> None:
        """Hold or let go. Cheap when nothing changes."""
        if is_needed and self._command and (self._process is None or self._process.returncode is not None):
            self._process = await asyncio.create_subprocess_exec(*self._command)
        elif not is_needed and self._process is not None:
            process, self._process = self._process, None
            if process.returncode is None:
                process.terminate()
            await process.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.keep(False)


class SleepWatch:
    """Notices that the wall clock ran ahead of the monotonic one, which stands still while the machine sleeps."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._ahead: Callable[[], float] = lambda: wall() - monotonic()
        self._last = self._ahead()

    def slept_s(self) -> float:
        """Seconds lost since the last look; 0 for less than JUMP_S, and for a clock that was set back."""
        last, self._last = self._last, self._ahead()
        return self._last - last if self._last - last > JUMP_S else 0.0
