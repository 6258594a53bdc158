"""The desk with tools: what is looked up at once, what waits for a yes, and who may say it."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import select, update

from backends.protocol import EngineBusy, EngineDied
from feedback.calls import CONFIRM_WITHIN_MS, Calls
from feedback.database import Database
from feedback.gaps import Gaps
from feedback.inbox import Inbox
from feedback.record import NotFound, Record
from feedback.tables import completion, tool_call
from server.chat.template import ChatTemplate
from server.desk.desk import Answer, Desk
from server.desk.tools import KEPT, MAX_CALLS, OUTCOME, SIGN_IN, Confirm, DeskTools
from server.desk.tools_file import load_tools
from server.desk.turn import Delta, Event, Failed, LookingUp
from server.errors import InvalidRequest
from tests.server.desk.customer import VISITOR, Customer, answer_in, opened
from tests.server.desk.shop_server import INJECTED, ShopServer, shop_server
from tests.server.fakes import ByteTokenizer, ScriptedChat

pytestmark = pytest.mark.anyio

ORDER = '{"order_id": "K1"}'
FILE = """
hosts = ["HOST"]
[tools.get_order]
description = { en = "Look up an order", zh = "查询订单" }
url = "http://HOST/orders/{order_id}"
[tools.get_order.arguments]
required = ["order_id"]
properties.order_id = { type = "string", description = { en = "Order", zh = "订单号" } }

[tools.hostile]
description = { en = "Look up notes", zh = "查备注" }
url = "http://HOST/hostile"

[tools.cancel_order]
description = { en = "Cancel an order", zh = "取消订单" }
confirm = { en = "Shall I cancel order {order_id}?", zh = "要取消订单 {order_id} 吗？" }
method = "POST"
url = "http://HOST/cancel/{order_id}"
[tools.cancel_order.arguments]
required = ["order_id"]
properties.order_id = { type = "string", description = { en = "Order", zh = "订单号" } }

[tools.refuse]
description = { en = "Give up", zh = "放弃" }
method = "POST"
url = "http://HOST/missing"

[tools.my_orders]
description = { en = "The customer's orders", zh = "顾客的订单" }
url = "http://HOST/of/{customer.id}"
"""


@pytest.fixture(scope="module")
def shop() -> Iterator[ShopServer]:
    with shop_server() as shop:
        yield shop


@pytest.fixture(autouse=True)
def known(desk: Desk, database: Database, shop: ShopServer, tmp_path: Path) -> dict[str, tuple[str, str]]:
    """Who is signed in; the desk has tools."""
    path, known = tmp_path / "tools.toml", dict[str, tuple[str, str]]()
    path.write_text(FILE.replace("HOST", shop.host), encoding="utf-8")
    desk.tools = DeskTools(load_tools(path), Calls(database), lambda visitor_id: known.get(visitor_id, ("", "")), {})
    shop.asked.clear()
    return known


async def _events(answer: Answer) -> list[Event]:
    return [event async for event in answer.events]


async def _asked_first(customer: Customer, chat: ScriptedChat, tool: str = "cancel_order", arguments: str = ORDER) -> Confirm:
    asking = customer.asking("cancel K1 please")
    (await opened(chat, len(chat.streams) + 1)).call(tool, arguments)
    confirm = (await asking)[-2]
    assert isinstance(confirm, Confirm)
    return confirm


async def _rows(database: Database) -> list[dict[str, object]]:
    query = select(tool_call).order_by(tool_call.c.created_at_ms, tool_call.c.id)
    return await database.read(lambda connection: [dict(row) for row in connection.execute(query).mappings()])


async def test_what_only_reads_is_looked_up_at_once_and_counts_as_evidence(
    chat: ScriptedChat, customer: Customer, database: Database, shop: ShopServer
) -> None:
    asking = customer.asking("where is K1?")
    first = await opened(chat)
    first.say("One moment. ")
    first.call("get_order", ORDER)
    second = await opened(chat, 2)
    second.say("It arrives on 12 May.")
    second.end()
    events = await asking
    answer = answer_in(events)
    assert answer.text == "It arrives on 12 May." and LookingUp() in events
    assert shop.asked == [("GET", "/orders/K1", "")]
    called, told = second.job.messages[-2:]
    assert (called.role, called.tool_calls[0].name, told.role) == ("assistant", "get_order", "tool")
    assert told.content == '{"order_id": "K1", "status": "shipped", "expected": "12 May"}'
    assert second.job.tool_use == first.job.tool_use and first.job.tool_use.takes_one
    (row,) = await _rows(database)
    assert (row["name"], row["arguments"], row["status"], row["result"]) == ("get_order", ORDER, "done", told.content)
    assert (row["completion_id"], row["message_id"]) == (first.completion_id, answer.id)
    query = select(completion.c.id, completion.c.status)
    made = await database.read(lambda connection: {row.id: row.status for row in connection.execute(query)})
    assert made == {first.completion_id: "called", second.completion_id: "complete"}
    assert await Gaps(database).largest() == []


async def test_a_date_that_no_tool_told_does_not_pass(chat: ScriptedChat, customer: Customer) -> None:
    asking = customer.asking("where is K1?")
    (await opened(chat)).call("get_order", ORDER)
    (await opened(chat, 2)).say("It arrives on 13 May. And")
    third = await opened(chat, 3)
    assert third.job.messages[-1].role == "tool"
    third.say("It arrives on 12 May.")
    third.end()
    assert answer_in(await asking).text == "It arrives on 12 May."


async def test_what_changes_something_waits_for_the_button(
    desk: Desk, chat: ScriptedChat, customer: Customer, database: Database, shop: ShopServer
) -> None:
    confirm = await _asked_first(customer, chat)
    assert (confirm.tool, confirm.arguments) == ("cancel_order", (("Order", "K1"),))
    history = await desk.current(VISITOR)
    assert history.confirm == confirm and shop.asked == []
    assert (history.messages[-1].text, history.messages[-1].completion_id) == ("Shall I cancel order K1?", None)
    answer = await desk.decide(VISITOR, customer.id, confirm.call_id, "running")
    stream = await opened(chat, 2)
    assert shop.asked == [("POST", "/cancel/K1", "")]
    assert [message.role for message in stream.job.messages[-3:]] == ["user", "assistant", "tool"]
    stream.say("Done: your order K1 has been cancelled.")
    stream.end()
    said = answer_in(await _events(answer))
    assert said.text == "Done: your order K1 has been cancelled." and said.completion_id
    assert (await desk.current(VISITOR)).confirm is None
    (row,) = await _rows(database)
    assert (row["status"], row["message_id"]) == ("done", history.messages[-1].id)


async def test_nobody_confirms_twice_late_or_for_another(
    desk: Desk, chat: ScriptedChat, customer: Customer, database: Database, shop: ShopServer
) -> None:
    confirm = await _asked_first(customer, chat)
    mine = await desk.open_conversation(VISITOR, "en")
    with pytest.raises(NotFound):
        await desk.decide("vis_b", customer.id, confirm.call_id, "running")
    for conversation_id, call_id in ((mine.id, confirm.call_id), (customer.id, "call_000000000000000000000000")):
        with pytest.raises(InvalidRequest):
            await desk.decide(VISITOR, conversation_id, call_id, "running")
    old = update(tool_call).values(created_at_ms=tool_call.c.created_at_ms - CONFIRM_WITHIN_MS)
    await database.write(lambda connection: connection.execute(old).close())
    with pytest.raises(InvalidRequest):
        await desk.decide(VISITOR, customer.id, confirm.call_id, "running")
    assert shop.asked == []
    confirm = await _asked_first(customer, chat)
    chat.script = ("Done.",)
    decisions = [desk.decide(VISITOR, customer.id, confirm.call_id, "running") for _ in range(3)]
    ended = await asyncio.gather(*decisions, return_exceptions=True)
    assert sum(isinstance(each, Answer) for each in ended) == 1
    for each in ended:
        if isinstance(each, Answer):
            await _events(each)
    with pytest.raises(InvalidRequest):
        await desk.decide(VISITOR, customer.id, confirm.call_id, "running")
    assert shop.asked == [("POST", "/cancel/K1", "")]


async def test_a_no_and_a_new_question_leave_everything(
    desk: Desk, chat: ScriptedChat, customer: Customer, database: Database, shop: ShopServer
) -> None:
    for _ in range(2):
        confirm = await _asked_first(customer, chat)
        events = await _events(await desk.decide(VISITOR, customer.id, confirm.call_id, "declined"))
        assert answer_in(events).text == KEPT["en"]
    assert not await Inbox(database).is_failing(customer.id)
    confirm = await _asked_first(customer, chat)
    chat.script = ("Hello.",)
    await customer.ask("yes, but when do you open?")
    with pytest.raises(InvalidRequest):
        await desk.decide(VISITOR, customer.id, confirm.call_id, "running")
    assert [row["status"] for row in await _rows(database)] == ["declined", "declined", "dropped"] and shop.asked == []


@pytest.mark.parametrize(("said", "status"), [("Yes, please!", "done"), ("好的", "done"), ("no, thanks", "declined"), ("算了", "declined")])
async def test_a_yes_or_no_in_words_decides(
    desk: Desk, chat: ScriptedChat, customer: Customer, database: Database, shop: ShopServer, said: str, status: str
) -> None:
    await _asked_first(customer, chat)
    chat.script = ("Done.",)
    key = str(uuid4())
    for _ in range(2):  # sent again after a lost connection, it is answered again and done once
        answer = answer_in(await _events(await desk.ask(VISITOR, customer.id, said, key)))
    assert [row["status"] for row in await _rows(database)] == [status]
    assert shop.asked == ([("POST", "/cancel/K1", "")] if status == "done" else [])
    assert answer.text == "Done." or (status == "declined" and answer.text in KEPT.values())
    assert not await Inbox(database).is_failing(customer.id)


@pytest.mark.parametrize("failure", ["busy", "dies", "lies"])
async def test_what_was_done_is_told_even_when_the_model_cannot(
    desk: Desk, chat: ScriptedChat, customer: Customer, record: Record, failure: str
) -> None:
    confirm = await _asked_first(customer, chat)
    chat.refuse = EngineBusy(7) if failure == "busy" else None
    chat.script = ("You get 99 days.",) if failure == "lies" else None
    answer = await desk.decide(VISITOR, customer.id, confirm.call_id, "running")
    if failure == "dies":
        (await opened(chat, 2)).die(EngineDied("gone"))
    events = await _events(answer)
    assert answer_in(events).text == OUTCOME["en", True]
    assert not any(isinstance(event, Failed) or (isinstance(event, Delta) and "99" in event.text) for event in events)
    assert (await record.messages(customer.id))[-1].text == OUTCOME["en", True]


async def test_a_refusal_is_told_to_the_model_and_promises_nothing(
    desk: Desk, chat: ScriptedChat, customer: Customer, database: Database
) -> None:
    confirm = await _asked_first(customer, chat, "refuse", "{}")
    chat.script = ("Your order has been cancelled.",)
    events = await _events(await desk.decide(VISITOR, customer.id, confirm.call_id, "running"))
    assert answer_in(events).text == OUTCOME["en", False]
    assert [row["status"] for row in await _rows(database)] == ["failed"]


async def test_a_result_is_data_whatever_it_spells(chat: ScriptedChat, customer: Customer) -> None:
    asking = customer.asking("any notes?")
    (await opened(chat)).call("hostile", "{}")
    second = await opened(chat, 2)
    tokenizer, messages = ByteTokenizer(), second.job.messages
    assert messages[-1].content == INJECTED and messages[-1].role == "tool"
    start = tokenizer.special_id("<|im_start|>")
    rendered = ChatTemplate(tokenizer).render(messages, None, second.job.tool_use.tools).token_ids
    assert rendered.count(start) == len(messages) + 1
    second.say("It arrives on 12 May.")
    second.end()
    assert answer_in(await asking).text == "It arrives on 12 May."


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("get_order", "{}", "order_id is missing"),
        ("cancel_order", '{"order_id": 5}', "do not fit"),
        ("cancel_order", '{"order_id": "K1", "force": true}', "do not fit"),
        ("cancel_order", json.dumps({"order_id": "K" * 3000}), "too long"),
        ("get_order", '{"order_id": ".."}', "cannot stand in an address"),
        ("no_such_tool", "{}", "unavailable"),
        ("my_orders", "{}", "not signed in"),
    ],
)
async def test_a_wrong_call_calls_nobody(
    chat: ScriptedChat, customer: Customer, shop: ShopServer, tool: str, arguments: str, told: str
) -> None:
    asking = customer.asking("where is K1?")
    (await opened(chat)).call(tool, arguments)
    second = await opened(chat, 2)
    assert told in json.loads(second.job.messages[-1].content)["error"] and shop.asked == []
    second.say("Sorry, please check the number.")
    second.end()
    assert answer_in(await asking).text == "Sorry, please check the number."
    assert "signed in" in SIGN_IN


async def test_who_is_signed_in_comes_from_the_site_alone(
    chat: ScriptedChat, customer: Customer, shop: ShopServer, known: dict[str, tuple[str, str]]
) -> None:
    known[VISITOR] = ("shop", "c/42")
    asking = customer.asking("I am c/1, show my orders")
    (await opened(chat)).call("my_orders", "{}")
    second = await opened(chat, 2)
    assert shop.asked == [("GET", "/of/c%2F42", "")]
    second.say("Here.")
    second.end()
    await asking


async def test_after_so_many_calls_the_model_must_answer(chat: ScriptedChat, customer: Customer, shop: ShopServer) -> None:
    asking = customer.asking("where is K1?")
    for number in range(1, MAX_CALLS + 1):
        stream = await opened(chat, number)
        assert stream.job.tool_use.choice == "auto"
        stream.call("get_order", ORDER)
    last = await opened(chat, MAX_CALLS + 1)
    assert last.job.tool_use.choice == "none" and len(shop.asked) == MAX_CALLS
    last.say("It arrives on 12 May.")
    last.end()
    assert answer_in(await asking).text == "It arrives on 12 May."


async def test_a_customer_who_stops_while_it_is_looked_up_hears_no_more(desk: Desk, chat: ScriptedChat, customer: Customer) -> None:
    asking = customer.asking("where is K1?")
    (await opened(chat)).call("get_order", ORDER)
    await desk.stop(VISITOR, customer.id)
    answer = answer_in(await asking)
    assert (answer.status, answer.text) == ("stopped", "") and len(chat.streams) == 1


async def test_a_model_that_knows_no_tools_is_shown_none(chat: ScriptedChat, customer: Customer) -> None:
    chat.knows_tools, chat.script = False, ("Hello.",)
    await customer.ask("hi")
    assert chat.streams[0].job.tool_use.tools == ()
