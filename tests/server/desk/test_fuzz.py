"""Whatever is typed into the desk gets an answer that ends: the built-in model behind the engine's guards. The long run is `make soak`."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.desk.turn import Done
from tests.backends.mini.test_fuzz import conversations
from tests.server.desk.test_with_engine import House, living

AT_ONCE = 4
LOOP = re.compile(r"(.{3,80}?)\1{7}", re.DOTALL)


@pytest.fixture
async def house(model_path: str, tmp_path: Path) -> AsyncIterator[House]:
    async with living(model_path, tmp_path / "data") as house:
        yield house


@pytest.mark.anyio
@pytest.mark.parametrize("count", [12, pytest.param(2000, marks=pytest.mark.soak)])
async def test_every_question_gets_a_whole_answer(house: House, count: int) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def talk(number: int, language: str, turns: list[str]) -> None:
        visitor = f"vis_{number}"
        async with room:
            opened = await house.desk.open_conversation(visitor, "zh" if language == "zh" else "en")
            for place, text in enumerate(turns):
                asked = await house.desk.ask(visitor, opened.id, text.replace("\0", "") or "?", f"key-{place}")
                last = [event async for event in asked.events][-1]
                if fault := _fault(last):
                    faults.append((number, text, fault))

    faults = list[tuple[int, str, str]]()
    await asyncio.gather(*(talk(number, *one) for number, one in enumerate(conversations(11, count))))
    assert faults == []
    assert (house.engine.num_running, house.engine.num_waiting) == (0, 0)


def _fault(last: object) -> str:
    """What is wrong with the last event of an answer; nothing is empty."""
    if not isinstance(last, Done):
        return f"ends with {last}"
    said = last.message.text
    is_whole = said.strip() and "think>" not in said and "<|im_" not in said and not LOOP.search(said)
    return "" if is_whole else f"says {said!r}"
