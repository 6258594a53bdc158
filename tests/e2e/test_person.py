"""A customer asks for a person and gets one: both of their pages, the real server, the real model, the real disk."""

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from feedback.accounts import Accounts
from feedback.database import Database
from tests.e2e.house import kefu
from tests.e2e.test_chat_page import rows
from tests.web.browser import PHONE, ask, chromium, finished, visit

pytestmark = pytest.mark.e2e
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    database = Database.in_folder(tmp_path / "data")
    # Playwright runs an event loop in this thread.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, Accounts(database).add("Ann", "agent", PASSWORD, must_change=False)).result()
    database.close()
    return tmp_path / "data"


def sign_in(page: Page) -> None:
    page.fill("#name", "Ann")
    page.fill("#password", PASSWORD)
    page.keyboard.press("Enter")
    expect(page.locator("#nobody")).to_be_visible()


def test_from_the_wish_for_a_person_to_a_rating_and_back_after_a_reload(browser: Browser, data_dir: Path, model_path: str) -> None:
    with (
        kefu(data_dir, model_path) as server,
        visit(browser, server.url, **PHONE) as customer,
        visit(browser, f"{server.url}/console/inbox") as agent,
    ):
        sign_in(agent)
        finished(customer, "How long do I have to return something?")
        customer.locator(".answer [data-part=person]").tap()
        expect(customer.locator("#banner")).to_contain_text("Number 1 in line")
        assert customer.evaluate("document.documentElement.scrollWidth") == 390
        ask(customer, "My teapot arrived broken.")

        row = agent.locator("#rows a")
        expect(row).to_contain_text("My teapot arrived broken.")
        agent.keyboard.press("j")
        agent.keyboard.press("Enter")
        expect(agent.locator("#messages [data-role=assistant]")).to_have_count(1)
        agent.keyboard.press("t")
        expect(customer.locator("#role")).to_have_text("Ann, from our team")
        agent.locator("#text").fill("Suspicious address")
        agent.get_by_role("button", name="Keep as note").click()
        expect(agent.locator("[data-role=note]")).to_have_count(1)
        agent.locator("#text").press_sequentially("I am sending ")
        expect(customer.locator("#banner")).to_contain_text("Ann is typing")
        agent.locator("#text").press_sequentially("a new one.")
        agent.keyboard.press("Enter")
        expect(customer.locator(".person")).to_contain_text("I am sending a new one.")
        expect(agent.locator("#text")).to_have_value("")

        customer.reload()
        expect(customer.locator(".person")).to_contain_text("I am sending a new one.")
        expect(customer.locator(".question")).to_have_count(2)
        expect(customer.locator("#banner")).to_contain_text("You are talking to Ann")
        expect(customer.locator(".problem")).to_have_count(0)
        expect(customer.locator("body")).not_to_contain_text("Suspicious")

        agent.get_by_role("button", name="Resolve").click()
        customer.get_by_role("button", name="4 of 5").tap()
        customer.locator(".reasons textarea").fill("quick")
        customer.locator(".reasons [type=submit]").tap()
        expect(customer.locator(".reasons textarea")).to_be_hidden()
        expect(agent.locator("#nobody")).to_be_visible()
        kept = rows(data_dir, "select value, comment from signal where kind = 'csat' order by seq")
        assert kept == [(4.0, None), (4.0, "quick")]
        assert rows(data_dir, "select text, gold from message where role = 'agent'") == [("I am sending a new one.", 1)]

        customer.reload()
        expect(customer.locator(".person")).to_be_visible()
        expect(customer.locator(".reasons")).to_have_count(0)
        finished(customer, "How much is express shipping?")
        assert rows(data_dir, "select count(*) from signal where kind = 'reopen'") == [(1,)]
        expect(customer.locator("#role")).to_have_text(re.compile("bot", re.IGNORECASE))
