"""The desk over the whole house: our engine in its own process, a real model, a real database."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path

import httpx
import numpy as np
import pytest
from sqlalchemy import Connection, select

from backends.adapter import AdapterRegistry
from backends.llamacpp.tokenizer import LlamaTokenizer
from backends.mini.shop import load_shop
from backends.protocol import EngineDied, EngineOptions
from backends.supervisor import Supervisor
from feedback.calls import Call, Calls
from feedback.database import Database
from feedback.inbox import Inbox, Move
from feedback.record import Message, Record, new_id
from feedback.tables import completion, message
from server.chat.service import ChatService
from server.desk.demo.orders import demo_orders
from server.desk.desk import Desk
from server.desk.handoff import Handoffs
from server.desk.policy import OFFER, Policy
from server.desk.policy_file import DEMO, load_policy, parse_policy
from server.desk.tools import Confirm, DeskTools
from server.desk.tools_file import DEMO_TOOLS, load_tools
from server.desk.turn import Delta, Done, Event, Failed, Held
from server.settings import DeskSettings
from tests.backends.lora import random_matrices, write_mlx

pytestmark = pytest.mark.anyio

VISITOR = "vis_a"
QUESTIONS = ("How long does delivery take?", "And to an island?", "我的退款什么时候到？")


class House:
    """Everything between the routes and the model."""

    def __init__(self, model_path: str, data_dir: Path) -> None:
        self.supervisor = Supervisor(EngineOptions(path=model_path, name="test", max_sequences=4, data_dir=str(data_dir)))
        self.engine = self.supervisor.client
        self.tokenizer = LlamaTokenizer(model_path)
        self.database = Database.in_folder(data_dir)
        self.record = Record(self.database)
        policies = {language: Policy.of(load_shop(language), language, terms) for language, terms in load_policy(DEMO).items()}
        self.chat = ChatService(self.engine, lambda: self.tokenizer)
        self.chat.adapters = self.adapters = AdapterRegistry(data_dir / "adapters", "tone")
        self.desk = Desk(self.chat, self.record, policies, DeskSettings(max_answer_tokens=200), self.engine.wait_s)

    async def is_up(self) -> None:
        async with asyncio.timeout(60):
            while not self.engine.is_ready:
                await asyncio.sleep(0.02)

    async def ask(self, conversation_id: str, question: str, key: str) -> list[Event]:
        answer = await self.desk.ask(VISITOR, conversation_id, question, key)
        return [event async for event in answer.events]

    async def completions(self, conversation_id: str) -> list[dict[str, object]]:
        made = select(completion).join(message).where(message.c.conversation_id == conversation_id).order_by(message.c.seq)

        def work(connection: Connection) -> list[dict[str, object]]:
            return [dict(row) for row in connection.execute(made).mappings()]

        return await self.database.read(work)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def living(model_path: str, data_dir: Path) -> AsyncIterator[House]:
    """A house with its engine up."""
    house = House(model_path, data_dir)
    await house.supervisor.start()
    await house.is_up()
    yield house
    await house.desk.close()
    await house.supervisor.stop()
    house.database.close()


@pytest.fixture(scope="module")
async def house(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with living(model_path, tmp_path_factory.mktemp("house") / "data") as house:
        yield house


async def test_a_conversation_is_answered_kept_and_never_computed_twice(house: House) -> None:
    house.desk.warm()
    conversation = await house.desk.open_conversation(VISITOR, "en")
    for number, question in enumerate(QUESTIONS):
        events = await house.ask(conversation.id, question, f"key-{number}")
        end = events[-1]
        assert isinstance(end, Done)
        assert end.message.text == "".join(event.text for event in events if isinstance(event, Delta))
        assert "think>" not in end.message.text
    messages = await house.record.messages(conversation.id)
    assert [each.role for each in messages] == ["user", "assistant"] * len(QUESTIONS)
    rows = await house.completions(conversation.id)
    for row in rows:
        prompt, made = row["prompt_token_ids"], row["completion_token_ids"]
        assert isinstance(prompt, list) and isinstance(made, list)
        assert len(row["logprobs"]) == len(made) > 0  # type: ignore[arg-type]
        assert np.nanmax([x for x in row["logprobs"] if x is not None]) <= 0  # type: ignore[attr-defined]
        assert row["model_sha256"] == house.engine.spec.sha256
    # The next prompt may differ from what was computed from the last answer on, never before it.
    spoken = messages[1].text + QUESTIONS[1]
    num_new = len(house.tokenizer.encode(spoken, special=False)) + 16
    assert rows[1]["num_cached_tokens"] >= len(rows[1]["prompt_token_ids"]) - num_new  # type: ignore[operator, arg-type]


async def test_a_model_that_says_what_the_policy_forbids_is_asked_twice_and_not_heard(house: House) -> None:
    text = DEMO.read_text(encoding="utf-8").replace('"trust me"', '"working days", "working day"')
    policies = {language: Policy.of(load_shop(language), language, terms) for language, terms in parse_policy(text.encode()).items()}
    desk = Desk(house.chat, house.record, policies, DeskSettings(max_answer_tokens=200), house.engine.wait_s)
    opened = await desk.open_conversation(VISITOR, "en")
    answer = await desk.ask(VISITOR, opened.id, "How many working days does standard shipping take?", "key")
    events = [event async for event in answer.events]
    assert isinstance(events[-1], Done) and events[-1].message.text == OFFER["en"]
    first, second = await house.completions(opened.id)
    assert [row["violations"][0]["kind"] for row in (first, second)] == ["must_not_say"] * 2  # type: ignore[index]
    assert first["seed"] != second["seed"] and first["prompt_token_ids"] == second["prompt_token_ids"]
    assert second["num_cached_tokens"] >= len(second["prompt_token_ids"]) - 1  # type: ignore[operator, arg-type]
    assert first["policy_version"] == policies["en"].version
    assert (house.engine.num_running, house.engine.num_waiting) == (0, 0)


async def test_the_demo_shops_tools_work_whatever_the_model_makes_of_them(house: House) -> None:
    calls = Calls(house.database)
    mounts = {"all://orders.demo": httpx.ASGITransport(demo_orders(date(2030, 5, 12)))}
    house.desk.tools = DeskTools(load_tools(DEMO_TOOLS), calls, lambda visitor_id: ("", ""), mounts)
    try:
        opened = await house.desk.open_conversation(VISITOR, "en")
        events = await house.ask(opened.id, "Where is my order K12345?", "key-0")
        assert isinstance(events[-1], Done) and events[-1].message.text
        assert (await calls.pending(opened.id) is not None) == any(isinstance(event, Confirm) for event in events)
        box = house.desk.tools.of(VISITOR, "en")
        looked_up = await box.look_up(Call("call_1", "get_order", '{"order_id": "K12345"}'))
        assert looked_up.result == '{"order_id": "K12345", "status": "shipped", "expected": "14 May"}'
        for _ in range(2):  # the second time it is cancelled already, which is as good
            cancelled = await box.carry_out(Call("call_2", "cancel_order", '{"order_id": "QK-40021"}'))
            assert cancelled.result == '{"order_id": "QK-40021", "status": "cancelled"}'
        refused = await box.carry_out(Call("call_3", "cancel_order", '{"order_id": "B8830"}'))
        assert (refused.status, refused.result) == ("failed", '{"order_id": "B8830", "error": "already shipped"}')
        with pytest.raises(PermissionError):
            await box.look_up(Call("call_4", "cancel_order", '{"order_id": "K12345"}'))
    finally:
        house.desk.tools = None


async def test_a_customer_who_leaves_frees_the_engine(house: House) -> None:
    conversation = await house.desk.open_conversation(VISITOR, "zh")
    answer = await house.desk.ask(VISITOR, conversation.id, QUESTIONS[2], "key-0")
    assert await anext(answer.events)
    answer.hang_up()
    async with asyncio.timeout(2):
        while house.engine.num_running or house.engine.num_waiting or (await house.desk.current(VISITOR)).answering:
            await asyncio.sleep(0.01)
    assert all(row["status"] == "interrupted" for row in await house.completions(conversation.id))


async def test_the_engine_killed_with_a_question_in_hand_is_an_honest_end_and_the_next_question_works(house: House) -> None:
    conversation = await house.desk.open_conversation(VISITOR, "en")
    engine_pid = house.supervisor.engine_pid or 0
    os.kill(engine_pid, signal.SIGSTOP)  # a fast engine would have answered before it is killed
    answer = await house.desk.ask(VISITOR, conversation.id, QUESTIONS[0], "key-0")
    os.kill(engine_pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        events = [event async for event in answer.events]
    assert isinstance(events[-1], Failed) and isinstance(events[-1].error, EngineDied)
    said = "".join(event.text for event in events if isinstance(event, Delta))
    kept = [each for each in await house.record.messages(conversation.id) if each.role == "assistant"]
    assert [(each.text, each.status) for each in kept] == ([(said, "interrupted")] if said.strip() else [])
    await house.is_up()
    assert isinstance((await house.ask(conversation.id, QUESTIONS[1], "key-1"))[-1], Done)


async def test_while_a_person_has_it_the_model_is_silent_and_then_goes_on_from_what_they_said(house: House) -> None:
    await house.is_up()
    handoffs = Handoffs(house.desk, Inbox(house.database), DeskSettings(), on_waiting=lambda *waiting: None)
    opened = await house.desk.open_conversation(VISITOR, "en")

    async def ask(question: str, key: str) -> list[Event]:
        return [event async for event in (await handoffs.ask(VISITOR, opened.id, question, key)).events]

    answer = await handoffs.ask(VISITOR, opened.id, QUESTIONS[0], "key-0")
    await handoffs.move(opened.id, Move("human", "agent", "Ann", ("bot",), agent="Ann"))
    assert house.engine.num_running + house.engine.num_waiting == 0
    assert isinstance([event async for event in answer.events][-1], Done)
    num_made = len(await house.completions(opened.id))
    assert isinstance((await ask(QUESTIONS[1], "key-1"))[-1], Held)
    assert "".join([told async for told in house.desk.draft(opened.id, "en") if isinstance(told, str)]).strip()
    await handoffs.say(opened.id, Message(new_id("msg"), "agent", "To the islands too.", "key-a", author="Ann", gold=True))
    assert len(await house.completions(opened.id)) == num_made
    await handoffs.move(opened.id, Move("bot", "agent", "Ann", ("human",), held_by="Ann"))
    assert isinstance((await ask(QUESTIONS[0], "key-2"))[-1], Done)
    prompt = (await house.completions(opened.id))[-1]["prompt_token_ids"]
    text = b"".join(house.tokenizer.token_bytes(token_id) for token_id in prompt).decode()  # type: ignore[attr-defined]
    assert "To the islands too." in text
    await handoffs.close()


async def test_customers_talk_to_the_chosen_adapter_and_the_record_says_so(house: House, tmp_path: Path, model_path: str) -> None:
    await house.is_up()
    opened = await house.desk.open_conversation(VISITOR, "en")
    await house.ask(opened.id, QUESTIONS[0], "plain")
    key = house.adapters.add("tone", write_mlx(tmp_path / "mlx", random_matrices(1, 0.005)), Path(model_path))
    house.desk.warm()
    await house.ask(opened.id, QUESTIONS[1], "tuned")
    house.adapters.remove("tone")
    await house.ask(opened.id, QUESTIONS[0], "plain again")
    assert [made["adapter"] for made in await house.completions(opened.id)] == [None, key, None]
