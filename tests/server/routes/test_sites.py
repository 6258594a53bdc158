"""Branches and sites over HTTP: what is asked again, and who comes from where."""

import time
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import select

from feedback.database import Database, RecordUnavailable
from feedback.signals import Signals
from feedback.tables import signal
from tests.server.desk.test_customers import signed
from tests.server.routes.conftest import Page, answer_in

pytestmark = pytest.mark.anyio


async def signals_in(database: Database) -> list[tuple[str, float]]:
    rows = await database.read(lambda connection: connection.execute(select(signal.c.kind, signal.c.value).order_by(signal.c.seq)).all())
    return [(row.kind, row.value) for row in rows]


async def test_asking_again_and_editing_are_answers_and_signals(page: Page, database: Database) -> None:
    first = answer_in(await page.ask("How long?"))
    question = (await page.get("/conversations/current")).json()["messages"][0]
    again = f"/conversations/{page.conversation_id}/messages/{first['message_id']}/regenerate"
    second = answer_in(await page.post(again, {}))
    assert second["message_id"] == answer_in(await page.post(again, {}))["message_id"] != first["message_id"]
    edit = {"text": "How long, exactly?", "client_message_id": str(uuid4()), "replaces": question["message_id"]}
    third = answer_in(await page.post(f"/conversations/{page.conversation_id}/messages", edit))
    messages = (await page.get("/conversations/current")).json()["messages"]
    assert [message["text"] for message in messages] == ["How long, exactly?", third["text"]]
    assert await signals_in(database) == [("regenerate", -1), ("edit", -1)]


async def test_a_full_disk_loses_a_signal_and_not_the_answer(page: Page, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    first = answer_in(await page.ask("How long?"))

    async def full(*_: object) -> None:
        raise RecordUnavailable("full")

    monkeypatch.setattr(Signals, "did", full)
    assert answer_in(await page.post(f"/conversations/{page.conversation_id}/messages/{first['message_id']}/regenerate", {}))
    assert await signals_in(database) == []


async def test_a_token_of_one_site_opens_nothing_on_another(http: httpx.AsyncClient) -> None:
    here, there = {"x-kefu-site": "shop"}, {"x-kefu-site": "other"}
    token = (await http.post("/visitors", json={}, headers=here)).json()["token"]
    known = {"authorization": f"Bearer {token}"}
    for wrong in (there, {}, {"x-kefu-site": "Shop"}):
        refused = await http.post("/conversations", json={"language": "en"}, headers={**wrong, **known})
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_token")
        renewed = await http.post("/visitors", json={}, headers={**wrong, **known})
        assert renewed.status_code in (201, 404)
    assert (await http.post("/conversations", json={"language": "en"}, headers={**here, **known})).status_code == 201
    assert (await http.post("/visitors", json={}, headers={"x-kefu-site": "nowhere"})).status_code == 404


async def test_a_customer_of_the_site_finds_their_conversation_again(http: httpx.AsyncClient) -> None:
    now, here = int(time.time()) + 1, {"x-kefu-site": "shop"}

    def vouched(**claims: object) -> dict[str, str]:
        return {"customer": signed(**{"iat": now, "exp": now + 60, **claims})}

    async def enter(sent: dict[str, str]) -> httpx.Response:
        return await http.post("/visitors", json=sent, headers=here)

    first = (await enter(vouched())).json()
    opened = await http.post("/conversations", json={"language": "en"}, headers={**here, "authorization": f"Bearer {first['token']}"})
    again = await enter(vouched())
    assert again.status_code == 201 and again.json()["visitor_id"] == first["visitor_id"]
    resumed = await http.get("/conversations/current", headers={**here, "authorization": f"Bearer {again.json()['token']}"})
    assert resumed.json()["conversation_id"] == opened.json()["conversation_id"]
    assert (await enter(vouched(sub="4712"))).json()["visitor_id"] != first["visitor_id"]
    used = vouched()
    assert [(await enter(used)).status_code for _ in range(2)] == [201, 401]
    for wrong in (vouched(aud="other"), vouched(exp=now - 10), vouched(header={"alg": "none"}), {"customer": "x"}):
        refused = await enter(wrong)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "customer_refused")
    assert (await http.post("/visitors", json=vouched(), headers={"x-kefu-site": "other"})).status_code == 401
    assert (await http.post("/visitors", json={"visitor_id": first["visitor_id"]}, headers=here)).status_code == 400
