"""Starts the engine process, watches it and starts it again, within a budget."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections import deque

import msgspec

from backends.client import EngineClient
from backends.protocol import EngineDown, EngineOptions, ModelSpec
from backends.worker import LOAD_FAILED_EXIT

log = logging.getLogger("kefu.engine")

CRASHES_ALLOWED = 3
CRASH_WINDOW_S = 15 * 60.0
# A hard kill can leave wired GPU memory allocated until reboot, so the engine gets this long to leave by itself.
TERM_GRACE_S = 30.0
RESTART_DELAY_S = 0.5
STALL_S = 120.0
DRAIN_S, PAUSED_RETRY_S = 60.0, 60


class Supervisor:
    """One engine process at a time. `client` is valid from the start and outlives every engine."""

    def __init__(self, options: EngineOptions, max_waiting: int = 64) -> None:
        self.client = EngineClient(max_waiting)
        self.num_restarts = 0
        self._options = options
        self._crashes: deque[float] = deque(maxlen=CRASHES_ALLOWED)
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False

    @property
    def engine_pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Begin; returns at once. The client refuses requests until the model is loaded."""
        self._task = asyncio.create_task(self._supervise())

    async def pause(self, reason: str) -> None:
        """Let the engine go; whoever is being answered gets DRAIN_S to hear the end, and nobody new comes in."""
        self.client.down(reason, PAUSED_RETRY_S, is_paused=True)
        for _ in range(int(DRAIN_S / RESTART_DELAY_S)):
            if not self.client.num_running + self.client.num_waiting:
                break
            await asyncio.sleep(RESTART_DELAY_S)
        await self.stop()

    async def resume(self) -> None:
        """After `pause`: begin again; returns at once."""
        self.client.down("the model is loading again", 5)
        self._is_stopping = False
        await self.start()

    async def loaded(self) -> ModelSpec:
        """The model, once it is there. Raises EngineDown when the first attempt failed."""
        while True:
            try:
                return self.client.spec
            except EngineDown as error:
                if error.retry_after_s is None or self.num_restarts:
                    raise
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """SIGTERM, then patience, then SIGKILL."""
        self._is_stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), TERM_GRACE_S)
            except TimeoutError:
                process.kill()
        if self._task is not None:
            await self._task

    async def _supervise(self) -> None:
        while not self._is_stopping:
            status = await self._run_once()
            if self._is_stopping or not self._may_restart(status):
                return
            await asyncio.sleep(RESTART_DELAY_S)
            self.num_restarts += 1

    def _may_restart(self, status: int) -> bool:
        if status == LOAD_FAILED_EXIT:
            return False
        if not self.client.has_loaded:
            ending = signal.Signals(-status).name if status < 0 else f"status {status}"
            self.client.down(f"the engine died ({ending}) while it loaded {self._options.path}: the file is broken or memory short", None)
            return False
        now = time.monotonic()
        self._crashes.append(now)
        log.error("the engine of %s ended with status %d", self._options.name, status)
        if len(self._crashes) == CRASHES_ALLOWED and now - self._crashes[0] < CRASH_WINDOW_S:
            reason = (
                f"the engine crashed {CRASHES_ALLOWED} times in {CRASH_WINDOW_S / 60:.0f} minutes (last status {status}) and stays down"
            )
            self.client.down(reason, None)
            return False
        self.client.down("the engine crashed and is starting again", 10)
        return True

    async def _run_once(self) -> int:
        """One engine from start to exit; returns its exit status (negative: the signal that ended it)."""
        ours, theirs = socket.socketpair()
        with theirs:
            options = msgspec.json.encode(self._options).decode()
            command = (sys.executable, "-m", "backends.worker", str(theirs.fileno()), options)
            self._process = await asyncio.create_subprocess_exec(
                *command, pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL, env=_environment()
            )
        if self._is_stopping:
            self._process.terminate()
        reader, writer = await asyncio.open_connection(sock=ours)
        watchdog = asyncio.create_task(self._watch(self._process))
        await self.client.attach(reader, writer)
        status = await self._process.wait()
        watchdog.cancel()
        return status

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """An engine whose step loop has not turned for STALL_S is ended; the restart budget then applies."""
        while process.returncode is None:
            await asyncio.sleep(1.0)
            if self.client.stats is not None and self.client.beat_age_s > STALL_S:
                log.error("the engine has not moved for %.0f s: ending it", self.client.beat_age_s)
                process.terminate()
                await asyncio.sleep(TERM_GRACE_S)
                process.kill()


def _environment() -> dict[str, str]:
    """The engine finds the same packages as the web process; when ggml aborts, no debugger is attached to it."""
    paths = [path for path in sys.path if path]
    return {"GGML_NO_BACKTRACE": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
