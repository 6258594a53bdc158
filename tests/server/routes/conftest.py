"""The desk's routes over a scripted chat and a real record, and the page that calls them."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from feedback import credentials
from feedback.database import Database
from feedback.inbox import Inbox
from feedback.record import Record, now_ms
from feedback.signals import Signals
from server.desk.customers import Customers
from server.desk.desk import Desk
from server.desk.handoff import Handoffs
from server.desk.policy import Policy
from server.desk.visitors import Visitors
from server.errors import install_handlers
from server.routes.consent import consent_router
from server.routes.desk import DeskLimits, Welcome, desk_router
from server.settings import DeskSettings
from tests.server.desk.conftest import SHOPS
from tests.server.desk.test_customers import SITES
from tests.server.fakes import ScriptedChat

Sse = list[tuple[str, dict[str, object]]]


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords are hashed as always, in a thousandth of the time."""
    monkeypatch.setitem(credentials.SCRYPT, "n", 16)
    monkeypatch.setattr(credentials, "NOBODYS_HASH", credentials.NOBODYS_HASH.replace("16384", "16"))


@pytest.fixture
def chat() -> ScriptedChat:
    return ScriptedChat(script=("Thirty", " days [1]."))


class Clock:
    s = 0.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settings() -> DeskSettings:
    return DeskSettings()


@pytest.fixture
def app(tmp_path: Path, database: Database, chat: ScriptedChat, clock: Clock, settings: DeskSettings) -> FastAPI:
    policies = {language: Policy.of(SHOPS[language], language) for language in ("en", "zh")}
    desk = Desk(chat, Record(database), policies, settings, wait_s=lambda place: place)
    signals = Signals(database, lambda: now_ms() + 5_000)  # every answer has been read
    app = FastAPI()
    app.state.desk = desk
    install_handlers(app)
    welcome = Welcome(Visitors(tmp_path / "visitor.key"), Customers(SITES), SITES)
    handoffs = Handoffs(desk, Inbox(database), settings, on_waiting=lambda conversation_id, reason: None)
    app.include_router(consent_router(Record(database), welcome.visitors))
    app.include_router(desk_router(desk, handoffs, signals, welcome, SHOPS, DeskLimits(settings, clock)))
    return app


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://desk/desk") as client:
        yield client


class Page:
    """One visitor's browser."""

    def __init__(self, http: httpx.AsyncClient, token: str) -> None:
        self.http = http
        self.headers = {"authorization": f"Bearer {token}"}
        self.conversation_id = ""

    @classmethod
    async def load(cls, http: httpx.AsyncClient) -> "Page":
        page = cls(http, (await http.post("/visitors", json={})).json()["token"])
        page.conversation_id = (await page.post("/conversations", {"language": "en"})).json()["conversation_id"]
        return page

    async def post(self, path: str, body: object) -> httpx.Response:
        return await self.http.post(path, json=body, headers=self.headers)

    async def get(self, path: str) -> httpx.Response:
        return await self.http.get(path, headers=self.headers)

    async def ask(self, text: str, key: str = "") -> httpx.Response:
        body = {"text": text, "client_message_id": key or str(uuid4())}
        return await self.post(f"/conversations/{self.conversation_id}/messages", body)

    async def vote(self, completion_id: object, value: object = -1, **changed: object) -> httpx.Response:
        vote = {"completion_id": completion_id, "kind": "thumb", "value": value, "idempotency_key": str(uuid4())}
        return await self.post("/signals", {**vote, **changed})


@pytest.fixture
async def page(http: httpx.AsyncClient) -> Page:
    return await Page.load(http)


def parsed(body: str) -> Sse:
    frames = [frame.split("\n") for frame in body.removesuffix("\n\n").split("\n\n") if not frame.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]


def answer_in(response: httpx.Response) -> dict[str, object]:
    name, data = parsed(response.text)[-1]
    assert name == "done"
    message = data["message"]
    assert isinstance(message, dict)
    return message
