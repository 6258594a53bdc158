"""Awake while answers are open, honest after sleep."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from backends.protocol import EngineDown
from backends.sequence import SamplingParams
from server.app import watch_sleep
from server.awake import Awake, SleepWatch, caffeinate
from server.chat.service import ChatJob, ChatMessage, ChatService
from tests.server.fakes import ByteTokenizer, ScriptedEngine

pytestmark = pytest.mark.anyio

# Stands in for caffeinate: says that it lives, and that it was asked to end.
STAND_IN = """
import signal, sys, time
log = open(sys.argv[1], "a", buffering=1)
def end(*_):
    log.write("end\\n"); sys.exit()
signal.signal(signal.SIGTERM, end)
log.write("begin\\n")
time.sleep(60)
"""


async def _until(path: Path, text: str) -> None:
    async with asyncio.timeout(20):
        while not path.exists() or path.read_text() != text:
            await asyncio.sleep(0.02)


async def test_the_program_lives_exactly_while_it_is_needed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with Awake((sys.executable, "-c", STAND_IN, str(log))) as awake:
        await awake.keep(False)
        assert not log.exists()
        await awake.keep(True)
        await _until(log, "begin\n")
        await awake.keep(True)
        await awake.keep(False)
        assert log.read_text() == "begin\nend\n"
        await awake.keep(True)
        await _until(log, "begin\nend\nbegin\n")
    assert log.read_text() == "begin\nend\nbegin\nend\n"


async def test_elsewhere_than_on_a_mac_nothing_is_started() -> None:
    expected = ("/usr/bin/caffeinate", "-i", "-w", str(os.getpid())) if sys.platform == "darwin" else ()
    assert caffeinate() == expected
    async with Awake(()) as awake:
        await awake.keep(True)


async def test_only_a_wall_clock_that_ran_ahead_is_sleep() -> None:
    now = {"wall": 1000.0, "monotonic": 50.0}
    watch = SleepWatch(lambda: now["wall"], lambda: now["monotonic"])
    for wall_s, monotonic_s, slept_s in ((10, 10, 0), (4, 0, 0), (3600, 1, 3599), (1, 1, 0), (-600, 1, 0), (1, 1, 0)):
        now["wall"] += wall_s
        now["monotonic"] += monotonic_s
        assert watch.slept_s() == pytest.approx(slept_s)


class Probed(ScriptedEngine):
    """An engine that counts how often it had to prove itself."""

    num_proofs = 0

    async def prove(self) -> str:
        self.num_proofs += 1
        return ""


async def test_after_sleep_open_answers_fail_with_the_reason_and_the_engine_is_tried(tmp_path: Path) -> None:
    engine, now, log = Probed(), {"wall": 0.0}, tmp_path / "log"
    chat = ChatService(engine, ByteTokenizer)
    clock = SleepWatch(lambda: now["wall"], lambda: 0.0)
    awake = Awake((sys.executable, "-c", STAND_IN, str(log)))
    watch = asyncio.create_task(watch_sleep(chat, engine, awake, clock))  # type: ignore[arg-type]
    stream = chat.open(ChatJob((ChatMessage("user", "hi"),), SamplingParams(max_tokens=100)))
    await _until(log, "begin\n")
    now["wall"] += 7200
    with pytest.raises(EngineDown, match="slept"):
        async for _ in stream:
            pass
    await stream.aclose()
    await _until(log, "begin\nend\n")
    assert (engine.num_proofs, chat.num_open) == (1, 0)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
