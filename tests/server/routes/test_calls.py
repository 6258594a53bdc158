"""What waits for a yes, over HTTP: the events, the page's history, and the route of the two buttons."""

import asyncio
from datetime import date

import httpx
import pytest
from fastapi import FastAPI

from feedback.calls import Calls
from feedback.database import Database
from server.desk.demo.orders import demo_orders
from server.desk.tools import KEPT, DeskTools
from server.desk.tools_file import DEMO_TOOLS, load_tools
from tests.server.desk.customer import opened
from tests.server.fakes import ScriptedChat
from tests.server.routes.conftest import Page, answer_in, parsed

pytestmark = pytest.mark.anyio


async def test_a_button_decides_once(app: FastAPI, http: httpx.AsyncClient, page: Page, chat: ScriptedChat, database: Database) -> None:
    mounts = {"all://orders.demo": httpx.ASGITransport(demo_orders(date(2030, 5, 12)))}
    app.state.desk.tools = DeskTools(load_tools(DEMO_TOOLS), Calls(database), lambda visitor_id: ("", ""), mounts)
    chat.script = None
    asking = asyncio.create_task(page.ask("cancel QK-40021, and where is K12345?"))
    (await opened(chat)).call("get_order", '{"order_id": "K12345"}')
    (await opened(chat, 2)).call("cancel_order", '{"order_id": "QK-40021"}')
    told = parsed((await asking).text)
    assert ("state", {"state": "looking_up"}) in told
    (confirm,) = [data for name, data in told if name == "confirm"]
    assert [name for name, _ in told][-2:] == ["confirm", "done"]
    assert (confirm["tool"], confirm["arguments"]) == ("cancel_order", [["The order's number", "QK-40021"]])
    current = (await http.get("/conversations/current", headers=page.headers)).json()
    assert current["confirm"] == confirm
    path = f"/conversations/{page.conversation_id}/calls/{confirm['call_id']}"
    other = await Page.load(http)
    assert (await http.post(path, json={"decision": "yes"}, headers=other.headers)).status_code == 404
    assert (await http.post(path, json={"decision": "yes"})).status_code == 401
    for wrong in ({}, {"decision": "maybe"}, {"decision": "yes", "order_id": "K12345"}):
        assert (await http.post(path, json=wrong, headers=page.headers)).status_code == 400
    assert answer_in(await http.post(path, json={"decision": "no"}, headers=page.headers))["text"] == KEPT["en"]
    again = await http.post(path, json={"decision": "yes"}, headers=page.headers)
    assert (again.status_code, again.json()["error"]["code"]) == (400, "confirm_gone")
    assert (await http.get("/conversations/current", headers=page.headers)).json()["confirm"] is None
