"""The agents' API: who may, what a team does in a conversation, and that two of them never do it at once."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from feedback.accounts import Accounts
from feedback.audit import Audit
from feedback.conversations import Conversations
from feedback.database import Database
from feedback.record import Message, new_id
from server.console.console import CSRF_HEADER, Console
from server.errors import install_handlers
from server.routes.console import console_router
from server.routes.inbox import inbox_router
from server.settings import Settings
from tests.server.desk.test_handoff import VISITOR, House
from tests.server.fakes import ScriptedChat

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"


@pytest.fixture
async def house(database: Database) -> House:
    return await House(database, ScriptedChat(script=("Thirty days [1].",))).open()


@pytest.fixture
def app(house: House, database: Database, tmp_path: Path) -> FastAPI:
    console = Console(Accounts(database), Audit(database, tmp_path / "audit.head"))
    app = FastAPI()
    app.include_router(inbox_router(console, house.handoffs, house.inbox, house.desk))
    app.include_router(console_router(console, Conversations(database), Settings(data_dir=tmp_path)))
    install_handlers(app, console.refusal)
    return app


class Colleague:
    """An agent at their browser."""

    def __init__(self, http: httpx.AsyncClient, conversation_id: str) -> None:
        self.http, self.id, self.headers = http, conversation_id, {}

    async def sign_in(self, database: Database, name: str) -> "Colleague":
        await Accounts(database).add(name, "agent", PASSWORD, must_change=False)
        assert (await self.http.post("/console/sign_in", json={"name": name, "password": PASSWORD})).status_code == 200
        page = (await self.http.get("/console/password", headers={"accept": "text/html"})).text
        self.headers = {CSRF_HEADER: re.findall(r'name="csrf" content="(\w+)"', page)[0]}
        return self

    async def post(self, name: str, body: object) -> httpx.Response:
        return await self.http.post(f"/console/api/{name}".replace("{id}", self.id), json=body, headers=self.headers)

    async def get(self, name: str) -> httpx.Response:
        return await self.http.get(f"/console/api/{name}".replace("{id}", self.id))

    async def move(self, action: str, **names: str) -> int:
        return (await self.post("inbox/{id}/move", {"action": action, **names})).status_code

    async def say(self, text: str, kind: str = "agent", key: str = "") -> httpx.Response:
        return await self.post("inbox/{id}/messages", {"kind": kind, "text": text, "client_message_id": key or str(uuid4())})


@pytest.fixture
async def team(app: FastAPI, house: House, database: Database) -> AsyncIterator[list[Colleague]]:
    clients = [httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") for _ in range(2)]
    yield [await Colleague(client, house.id).sign_in(database, name) for client, name in zip(clients, ("Ann", "Bo"), strict=True)]
    for client in clients:
        await client.aclose()


CALLS = [
    ("GET", "inbox", None),
    ("GET", "inbox/events", None),
    ("GET", "inbox/{id}", None),
    ("POST", "inbox/{id}/move", {"action": "take"}),
    ("POST", "inbox/{id}/messages", {"kind": "agent", "text": "hi", "client_message_id": str(uuid4())}),
    ("POST", "inbox/{id}/typing", {}),
    ("POST", "inbox/{id}/suggest", {}),
    ("GET", "canned", None),
    ("POST", "canned", {"title": "a", "text": "b"}),
    ("POST", "canned/can_a", {"title": "a", "text": "b"}),
    ("DELETE", "canned/can_a", None),
]


async def test_a_draft_that_a_customer_would_not_be_told_says_why(house: House, team: list[Colleague]) -> None:
    house.chat.script = ("It takes 90 days. ", "I promise a refund.")
    await team[0].move("take")
    await house.ask("How long?")
    draft = (await team[0].post("inbox/{id}/suggest", {})).text
    assert "90 days" in draft and "I promise" in draft
    [done] = re.findall(r"event: done\ndata: (.*)", draft)
    assert {each["kind"] for each in json.loads(done)["violations"]} == {"number", "promise"}


async def test_nobody_gets_in_without_a_session_or_with_another_sites_call(app: FastAPI, house: House, team: list[Colleague]) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as stranger:
        for method, path, body in CALLS:
            path = f"/console/api/{path}".replace("{id}", house.id)
            assert (await stranger.request(method, path, json=body)).status_code == 401, path
            if method != "GET":
                assert (await team[0].http.request(method, path, json=body or {})).status_code == 403, path
                plain = {**team[0].headers, "content-type": "text/plain"}
                assert (await team[0].http.request(method, path, content=json.dumps(body or {}), headers=plain)).status_code == 415, path
    assert await house.state() == "bot"


async def test_from_waiting_to_resolved(house: House, team: list[Colleague]) -> None:
    ann, bo = team
    await house.ask("How long?")
    await house.handoffs.request(VISITOR, house.id)
    [row] = (await bo.get("inbox")).json()
    assert (row["id"], row["state"], row["reason"], row["text"]) == (house.id, "waiting", "request", "Thirty days [1].")
    assert sorted(await asyncio.gather(ann.move("take"), bo.move("take"))) == [200, 409]
    winner, loser = (ann, bo) if (await house.view()).agent == "Ann" else (bo, ann)
    key = str(uuid4())
    first, again = await winner.say("Hello!", key=key), await winner.say("Hello!", key=key)
    assert (first.status_code, first.json()) == (201, again.json())
    assert (await winner.say("Other", key=key)).status_code == 409
    assert (await loser.say("Me too")).status_code == 409
    assert (await loser.say("Looks tricky", "note")).status_code == 201
    assert await loser.move("resolve") == 409
    story = (await loser.get("inbox/{id}")).json()
    assert [message["role"] for message in story["messages"]] == ["user", "assistant", "agent", "note"]
    assert [event["reason"] for event in story["handoffs"]] == ["request", "agent"]
    stored = (await house.inbox.story(house.id)).messages
    assert [message.gold for message in stored] == [False, False, True, False]
    assert await winner.move("release") == 200 and await loser.move("take") == 200
    assert await loser.move("return") == 200 and await house.state() == "bot"
    assert await loser.move("take") == 200 and await loser.move("resolve") == 200
    assert (await ann.get("inbox")).json() == []
    assert [row["id"] for row in (await ann.get("inbox?state=resolved")).json()] == [house.id]


async def test_a_conversation_is_given_to_a_colleague(house: House, team: list[Colleague]) -> None:
    ann, bo = team
    await ann.move("take")
    assert await bo.move("assign", agent="Nobody", instead_of="Ann") == 400
    assert await bo.move("assign", agent="Bo", instead_of="Cy") == 409
    assert await bo.move("assign") == 400
    assert await ann.move("assign", agent="Bo", instead_of="Ann") == 200
    assert (await house.view()).agent == "Bo"


async def test_typing_and_a_suggested_answer(house: House, team: list[Colleague]) -> None:
    ann, _ = team
    assert (await ann.post("inbox/{id}/suggest", {})).status_code == 400
    await ann.move("take")
    await house.ask("How long?")
    assert (await ann.post("inbox/{id}/typing", {})).status_code == 202
    assert (await house.view()).is_typing
    assert (await ann.post("inbox/conv_none/typing", {})).status_code == 404
    draft = await ann.post("inbox/{id}/suggest", {})
    assert "".join(json.loads(data)["text"] for data in re.findall(r"event: delta\ndata: (.*)", draft.text)) == "Thirty days [1]."
    assert draft.text.endswith('event: done\ndata: {"violations":[]}\n\n')
    assert (await ann.post("inbox/conv_none/suggest", {})).status_code == 404


async def test_canned_answers_are_kept_changed_and_forgotten(team: list[Colleague]) -> None:
    ann, bo = team
    made = (await ann.post("canned", {"title": "Hello", "text": "Hello, how can I help?"})).json()
    assert (await bo.post(f"canned/{made['id']}", {"title": "Hi", "text": "Hi!"})).status_code == 200
    assert (await ann.get("canned")).json() == [{"id": made["id"], "title": "Hi", "text": "Hi!"}]
    assert (await ann.post("canned", {"title": "a\nb", "text": "c"})).status_code == 400
    headers = {**ann.headers, "content-type": "application/json"}
    assert (await ann.http.delete(f"/console/api/canned/{made['id']}", headers=headers)).status_code == 200
    assert (await ann.get("canned")).json() == []


async def test_a_note_reaches_neither_the_customer_nor_the_model(house: House, team: list[Colleague]) -> None:
    await team[0].move("take")
    await team[0].say("secret remark", "note")
    await house.inbox.say(house.id, Message(new_id("msg"), "agent", "Hello", "key", author="Ann"))
    assert [message.text for message in (await house.desk.current(VISITOR)).messages] == ["Hello"]
    _, seen = await house.handoffs._look(house.id)
    assert [message.text for message in seen] == ["Hello"]
    await team[0].move("return")
    await house.ask("How long?")
    assert "secret" not in str(house.chat.streams[-1].job.messages)
