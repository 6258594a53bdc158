"""The review queue's page: one pair after another, judged blind, and no word of a customer in the audit log."""

import html
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from feedback.accounts import Accounts
from feedback.audit import Audit
from feedback.database import Database
from feedback.pairs import Gates, make_rows
from feedback.review import Reviews
from tests.feedback.shopper import ASKED, DAYS, HOW_TO, worked_example
from tests.server.conftest import calling
from tests.server.routes.test_console import HTML, PASSWORD, csrf, make_app, sign_in

pytestmark = pytest.mark.anyio
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'


@pytest.fixture
async def http(tmp_path: Path, database: Database) -> AsyncIterator[httpx.AsyncClient]:
    async with calling(make_app(tmp_path, database)) as client:
        yield client


async def fill(database: Database, *names: str, number: str = "") -> None:
    """One pair a name."""
    talks = [worked_example(f"vis_{name}", name, number) for name in names]
    for talk in talks:
        await talk.keep(database)
    await Reviews(database).offer([replace(row, problem=None) for talk in talks for row in make_rows(talk.chat(), Gates())])


async def page(http: httpx.AsyncClient) -> str:
    reply = await http.get("/console/review", headers=HTML)
    assert reply.status_code == 200
    return reply.text


def shown(text: str) -> dict[str, str]:
    """What the page sends back with a verdict."""
    return dict(re.findall(r'type="hidden" name="(\w+)" value="(\w+)"', text))


async def test_without_a_pair_the_page_says_how_one_comes_about(http: httpx.AsyncClient, database: Database) -> None:
    await sign_in(http, Accounts(database), "editor")
    text = await page(http)
    assert "kefu export" in text and "No pair waits for you" in text and 'name="verdict"' not in text
    assert "没有要您评判" in (await http.get("/console/review?lang=zh", headers=HTML)).text


async def test_two_raters_judge_the_same_pair_and_neither_sees_the_others_word(
    http: httpx.AsyncClient, database: Database, tmp_path: Path
) -> None:
    await fill(database, "a", "b")
    token = await sign_in(http, Accounts(database), "editor", "ann")
    first = await page(http)
    assert "2 left for you" in first and "n = 0: too few to say" in first
    assert all(words in first for words in (ASKED, HOW_TO, DAYS, "Rephrased", "Thanked", "3-5 working days"))
    sent = {**shown(first), "verdict": "bad", "reason": "an old answer"}
    assert (await http.post("/console/review", json=sent, headers=token)).json() == {"location": "/console/review"}
    again = await http.post("/console/review", json=sent, headers=token)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "already_rated")
    second = await page(http)
    assert "1 left for you" in second and shown(second)["pair_id"] != sent["pair_id"]
    await Accounts(database).add("bob", "editor", PASSWORD, must_change=False)
    await http.post("/console/sign_in", json={"name": "bob", "password": PASSWORD})
    blind = await page(http)
    # The pair that is half judged comes first, as if nobody had judged it.
    assert shown(blind) == shown(first) and "an old answer" not in blind and "2 left for you" in blind
    good = {**shown(blind), "verdict": "good"}
    assert (await http.post("/console/review", json=good, headers=await csrf(http))).status_code == 200
    assert "n = 1: too few to say" in await page(http)
    assert await Reviews(database).verdicts() == {sent["pair_id"]: ["bad", "good"]}
    deeds = [each for each in await Audit(database, tmp_path / "data" / "audit.head").page(None, 9) if each.action == "pair_judged"]
    assert [(each.actor, each.subject, each.detail) for each in deeds] == [(who, sent["pair_id"], {}) for who in ("bob", "ann")]


async def test_agreement_is_told_once_there_is_enough(http: httpx.AsyncClient, database: Database) -> None:
    await fill(database, *(f"n{number}" for number in range(20)))
    reviews = Reviews(database)
    for place in range(20):
        for rater in ("ann", "bob"):
            pair = await reviews.next_for_review(rater)
            assert pair is not None
            await reviews.judge(pair.id, pair.seen, rater, "good" if place < 10 or (place == 10 and rater == "ann") else "bad")
    await sign_in(http, Accounts(database), "editor")
    text = " ".join((await page(http)).split())
    assert "κ = 0.90</strong> (95% alike, n = 20)" in text


async def test_what_was_not_shown_cannot_be_judged(http: httpx.AsyncClient, database: Database) -> None:
    await fill(database, "a")
    token = await sign_in(http, Accounts(database), "editor")
    sent = {**shown(await page(http)), "verdict": "good"}
    for wrong, status in (
        ({"pair_id": "dpo_none"}, 404),
        ({"seen": "0" * 16}, 404),
        ({"verdict": "great"}, 400),
        ({"reason": "x" * 501}, 400),
        ({"rater": "bob"}, 400),
    ):
        assert (await http.post("/console/review", json={**sent, **wrong}, headers=token)).status_code == status, wrong
    assert await Reviews(database).verdicts() == {}


async def test_what_customers_and_models_wrote_stays_text(http: httpx.AsyncClient, database: Database) -> None:
    await fill(database, "a", number=HOSTILE)
    await sign_in(http, Accounts(database), "editor")
    text = await page(http)
    assert "<script>alert" not in text and "<img" not in text and " style=" not in text
    assert text.count(html.escape(HOSTILE, quote=False).split("&gt;")[0]) == 3
