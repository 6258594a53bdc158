"""Asking for a person over HTTP: what a customer may send, and what the page gets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from feedback.database import Database
from feedback.inbox import Move
from feedback.record import Message, new_id
from feedback.signals import Signals
from server.desk.customers import Customers
from server.desk.visitors import Visitors
from server.errors import install_handlers
from server.routes.desk import DeskLimits, Welcome, desk_router
from server.routes.handoff import handoff_router
from server.settings import DeskSettings
from tests.server.conftest import serving
from tests.server.desk.conftest import SHOPS
from tests.server.desk.test_handoff import House
from tests.server.fakes import ScriptedChat

pytestmark = pytest.mark.anyio

FORM = {"email": "ann@example.com", "text": "Please write to me."}


@pytest.fixture
def house(database: Database) -> House:
    return House(database, ScriptedChat(script=("Thirty days [1].",)))


@pytest.fixture
def app(house: House, database: Database, tmp_path: Path) -> FastAPI:
    visitors, limits, signals = Visitors(tmp_path / "visitor.key"), DeskLimits(DeskSettings()), Signals(database)
    app = FastAPI()
    install_handlers(app)
    app.include_router(desk_router(house.desk, house.handoffs, signals, Welcome(visitors, Customers({}), {}), SHOPS, limits))
    app.include_router(handoff_router(house.handoffs, signals, visitors, limits))
    return app


class Customer:
    """One visitor and their conversation."""

    def __init__(self, http: httpx.AsyncClient, token: str, conversation_id: str) -> None:
        self.http, self.headers = http, {"authorization": f"Bearer {token}"}
        self.id, self.path = conversation_id, f"/desk/conversations/{conversation_id}"

    @classmethod
    async def come(cls, http: httpx.AsyncClient) -> "Customer":
        token = (await http.post("/desk/visitors", json={})).json()["token"]
        opened = await http.post("/desk/conversations", json={"language": "en"}, headers={"authorization": f"Bearer {token}"})
        return cls(http, token, opened.json()["conversation_id"])

    async def post(self, name: str, body: object) -> httpx.Response:
        return await self.http.post(f"{self.path}/{name}", json=body, headers=self.headers)

    @asynccontextmanager
    async def listening(self, after: str = "0") -> AsyncIterator[AsyncIterator[tuple[str, dict[str, object], str]]]:
        headers = {**self.headers, "last-event-id": after}
        async with self.http.stream("GET", f"{self.path}/events", headers=headers) as response:
            assert response.status_code == 200
            yield _events(response)


async def _events(response: httpx.Response) -> AsyncIterator[tuple[str, dict[str, object], str]]:
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        fields[name] = value
        if not line and "data" in fields:
            yield fields["event"], json.loads(fields["data"]), fields.get("id", "")
        if not line:
            fields = {}


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://desk") as client:
        yield client


@pytest.fixture
async def customer(http: httpx.AsyncClient) -> Customer:
    return await Customer.come(http)


async def test_a_person_is_asked_for_waited_for_and_given_up(customer: Customer) -> None:
    asked = await customer.post("person", {})
    assert (asked.status_code, asked.json()["state"], asked.json()["place"]) == (200, "waiting", 1)
    assert (await customer.post("person", {})).json() == asked.json()
    held = await customer.post("messages", {"text": "Anybody?", "client_message_id": str(uuid4())})
    assert 'event: held\ndata: {"state":"waiting"}' in held.text and "delta" not in held.text
    current = (await customer.http.get("/desk/conversations/current", headers=customer.headers)).json()
    assert (current["state"], current["seq"]) == ("waiting", 1)
    assert (await customer.post("bot", {})).json()["state"] == "bot"


async def test_what_is_somebody_elses_does_not_exist(customer: Customer, http: httpx.AsyncClient) -> None:
    stranger = await Customer.come(http)
    csat = {"value": 5, "idempotency_key": str(uuid4())}
    for name, body in (("person", {}), ("bot", {}), ("form", FORM), ("csat", csat)):
        foreign = await http.post(f"{customer.path}/{name}", json=body, headers=stranger.headers)
        missing = await http.post(f"/desk/conversations/conv_none/{name}", json=body, headers=stranger.headers)
        assert (foreign.status_code, foreign.content) == (404, missing.content)
        assert (await http.post(f"{customer.path}/{name}", json=body)).status_code == 401
    assert (await http.get(f"{customer.path}/events", headers=stranger.headers)).status_code == 404
    assert (await http.get(f"{customer.path}/events")).status_code == 401


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"email": "nobody"}, "email"),
        ({"email": "a@b"}, "email"),
        ({"email": "a@b.de\nBcc: all@b.de"}, "email"),
        ({"email": "<script>@b.de"}, "email"),
        ({"email": "a@" + "b" * 300 + ".de"}, "email"),
        ({"phone": "12345"}, "phone"),
        ({"phone": "call me"}, "phone"),
        ({"phone": "1" * 40}, "phone"),
        ({"name": "a\r\nb"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"text": " \n"}, "text"),
        ({"text": "x" * 4001}, "text"),
        ({"email": None}, None),
        ({"order": "1"}, "order"),
    ],
)
async def test_a_form_is_read_strictly(customer: Customer, house: House, changed: dict[str, object], param: str | None) -> None:
    refused = await customer.post("form", {**FORM, **changed})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert (await house.inbox.story(customer.id)).handoffs == []


@pytest.mark.parametrize("changed", [{}, {"phone": "+49 (30) 123-456"}, {"name": "李雷", "email": "li.lei+shop@mail.example.cn"}])
async def test_a_form_is_kept_with_its_handoff(customer: Customer, house: House, changed: dict[str, str]) -> None:
    left = await customer.post("form", {**FORM, **changed})
    assert (left.status_code, left.json()["has_form"]) == (201, True)
    [event] = (await house.inbox.story(customer.id)).handoffs
    assert (event.reason, event.contact) == ("hours", {**FORM, **changed})


async def test_a_rating_is_of_what_was_resolved(customer: Customer, house: House) -> None:
    house.id, key = customer.id, str(uuid4())
    assert (await customer.post("csat", {"value": 5, "idempotency_key": key})).status_code == 404
    await house.move("human")
    await house.move("resolved")
    for value in (0, 6, True, "5", 4.5):
        refused = await customer.post("csat", {"value": value, "idempotency_key": key})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "value")
    statuses = [(await customer.post("csat", {"value": 5, "comment": "nett", "idempotency_key": key})).status_code for _ in range(2)]
    assert statuses == [201, 200]
    assert (await customer.post("csat", {"value": 4, "idempotency_key": key})).status_code == 409
    assert (await house.view()).is_rated


@pytest.mark.parametrize("last", ["x", "-1", "²", "9" * 20])
async def test_a_place_that_is_none_is_refused(customer: Customer, last: str) -> None:
    headers = {**customer.headers, "last-event-id": last.encode()}
    refused = await customer.http.get(f"{customer.path}/events", headers=headers)  # type: ignore[arg-type]
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "last-event-id")


async def test_over_a_socket_the_customer_hears_the_agent_and_comes_back(app: FastAPI, house: House) -> None:
    with serving(app) as url:
        async with httpx.AsyncClient(base_url=url, timeout=10) as http:
            customer = await Customer.come(http)
            async with customer.listening() as events:
                assert (await anext(events))[1]["state"] == "bot"
                await customer.post("person", {})
                assert (await anext(events))[1]["place"] == 1
                # Another process over the same database rings no bell here.
                await house.inbox.move(customer.id, Move("human", "agent", "Ann", ("waiting",), agent="Ann"))
                assert (await anext(events))[1]["agent"] == "Ann"
                said = Message(new_id("msg"), "agent", "Hello!", "key", author="Ann", gold=True)
                kept = await house.inbox.say(customer.id, said)
                name, data, event_id = await anext(events)
            assert (name, data["seq"], event_id) == ("message", kept.seq, str(kept.seq))
            message = data["message"]
            assert isinstance(message, dict)
            assert (message["role"], message["author"], message["text"]) == ("agent", "Ann", "Hello!")
            await house.inbox.say(customer.id, Message(new_id("msg"), "agent", "Still there?", "key-2", author="Ann"))
            async with customer.listening(event_id) as events:
                name, data, _ = await anext(events)
                assert name == "message" and data["message"]["text"] == "Still there?"  # type: ignore[index]
                house.handoffs.end_streams()
                async with asyncio.timeout(5):
                    assert [name async for name, _, _ in events] in (["state"], [])
