"""The console's page of tools: what may be called, where, what asks first, and what came of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from feedback.accounts import Accounts
from feedback.audit import Audit
from feedback.calls import Call, Calls
from feedback.database import Database
from feedback.record import Conversation, Message, Record, new_id
from server.console.console import Console
from server.desk.tools import DeskTools
from server.desk.tools_file import DEMO_TOOLS, load_tools
from server.routes.tools import tools_router
from tests.server.conftest import calling
from tests.server.routes.test_console import HTML, make_app, sign_in

pytestmark = pytest.mark.anyio


@pytest.fixture
async def http(tmp_path: Path, database: Database) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(tmp_path, database)
    tools = DeskTools(load_tools(DEMO_TOOLS), Calls(database), lambda _: ("", ""), {})
    app.include_router(tools_router(Console(Accounts(database), Audit(database, tmp_path / "audit.head")), tools))
    async with calling(app) as client:
        yield client


async def test_editors_see_what_the_bot_may_call_and_what_came_of_it(http: httpx.AsyncClient, database: Database) -> None:
    await Record(database).add_conversation(Conversation("conv_a", "vis_a", "en"))
    calls = [Call(new_id("call"), "cancel_order", "{}", status=status) for status in ("done", "done", "declined")]
    await Record(database).add_message("conv_a", Message(new_id("msg"), "assistant", "Done."), calls=calls)
    await sign_in(http, Accounts(database), "editor")
    text = " ".join((await http.get("/console/tools", headers=HTML)).text.split())
    assert "GET http://orders.demo/orders/{order_id}" in text and "POST http://orders.demo/orders/{order_id}/cancel" in text
    assert text.count("asks first") >= 2 and "at once" in text
    assert "done 2 · failed 0 · declined 1" in text and text.count("done 0 · failed 0 · declined 0") >= 2
    assert "先问顾客" in (await http.get("/console/tools?lang=zh", headers=HTML)).text


async def test_agents_do_not(http: httpx.AsyncClient, database: Database) -> None:
    await sign_in(http, Accounts(database), "agent")
    assert (await http.get("/console/tools", headers=HTML)).status_code == 403
