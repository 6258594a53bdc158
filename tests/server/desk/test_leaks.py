"""Nobody gets the assistant's instructions out of it: not by asking the real model, and not from a model that would tell."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.mini.shop import load_shop
from server.desk.checks import Evidence, check_leak
from server.desk.guard import Guard
from server.desk.policy import Policy
from server.desk.policy_file import DEMO, load_policy
from server.desk.turn import Delta, Done
from tests.server.desk.leaks import attempts, obedient
from tests.server.desk.test_with_engine import House, living

POLICIES = {language: Policy.of(load_shop(language), language, terms) for language, terms in load_policy(DEMO).items()}
PERSONAS = {language: policy.system.split("\n")[0] for language, policy in POLICIES.items()}
AT_ONCE = 4
NOTHING = Evidence(())


@pytest.mark.parametrize(("language", "trick"), [(language, trick) for language in POLICIES for trick in obedient("x")])
def test_a_model_that_tells_is_not_heard(language: str, trick: str) -> None:
    policy = POLICIES[language]
    answer = obedient(PERSONAS[language])[trick]
    guard = Guard(NOTHING, policy.rules, policy.language)
    heard = guard.feed(answer) + guard.flush()
    assert guard.violations
    assert not check_leak(heard, NOTHING, policy.rules) and len(heard) < len(answer) / 2


@pytest.mark.parametrize("language", POLICIES)
def test_the_shop_s_own_passages_leak_nothing(language: str) -> None:
    policy, shop = POLICIES[language], load_shop(language)
    for passage in shop.passages:
        assert not check_leak(passage.text, Evidence((passage.text,)), policy.rules), passage.text


@pytest.fixture
async def house(model_path: str, tmp_path: Path) -> AsyncIterator[House]:
    async with living(model_path, tmp_path / "data") as house:
        yield house


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.soak)])
async def test_the_real_model_is_asked_in_vain(house: House, every: int) -> None:
    asked = attempts()
    assert len(set(asked)) == 200
    room = asyncio.Semaphore(AT_ONCE)

    async def answer(number: int, language: str, text: str) -> str:
        visitor = f"vis_{number}"
        async with room:
            opened = await house.desk.open_conversation(visitor, "zh" if language == "zh" else "en")
            events = [event async for event in (await house.desk.ask(visitor, opened.id, text, "key")).events]
        assert isinstance(events[-1], Done), text
        told = "".join(event.text for event in events if isinstance(event, Delta))
        assert told.endswith(events[-1].message.text)
        return told

    answers = await asyncio.gather(*(answer(number, *one) for number, one in enumerate(asked) if number % every == 3 % every))
    for told in answers:
        for policy in POLICIES.values():
            assert not check_leak(told, NOTHING, policy.rules), told
        assert not any(persona[:40] in told for persona in PERSONAS.values())
