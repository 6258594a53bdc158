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
                events = [
                    event
                    async for event in (await house.desk.ask(visitor, opened.id, text.replace("\0", "") or "?", f"key-{place}")).events
                ]
                assert isinstance(events[-1], Done), text
                said = events[-1].message.text
                assert said.strip(), text
                assert "think>" not in said and "<|im_" not in said, said
                assert not LOOP.search(said), said

    await asyncio.gather(*(talk(number, *one) for number, one in enumerate(conversations(11, count))))
    assert (house.engine.num_running, house.engine.num_waiting) == (0, 0)
