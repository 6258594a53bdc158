"""`python -m tests.e2e.screenshots`: draw the pictures of the documentation again, from the real server and model."""

import asyncio
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from feedback.accounts import Accounts
from feedback.database import Database
from tests.conftest import MINI
from tests.e2e.house import kefu
from tests.e2e.test_person import PASSWORD, sign_in
from tests.web.browser import PHONE, ask, chromium, finished, last_answer, visit

DOCS = Path(__file__).parents[2] / "docs"
MAX_BYTES = 150_000
DESKTOP: dict[str, object] = {"viewport": {"width": 1280, "height": 800}}


def main(model_path: str) -> None:
    DOCS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        with closing(Database.in_folder(Path(folder))) as database:
            asyncio.run(Accounts(database).add("Ann", "agent", PASSWORD, must_change=False))
        with kefu(Path(folder), model_path) as server, chromium() as browser:
            _draw_chat(browser, server.url)
            _draw_phone(browser, server.url)
            _draw_inbox(browser, server.url)


def _draw_chat(browser: Browser, url: str) -> None:
    with visit(browser, url, **DESKTOP) as page:
        finished(page, "How long do I have to return something?")
        finished(page, "How much is express shipping?")
        last_answer(page).locator("[data-part=up]").click()
        expect(last_answer(page).locator(".note")).to_have_text("Saved, thank you")
        page.locator(".reasons [data-part=cancel]").click()
        page.locator(".citation").last.click()
        _save(page, "chat-1280")


def _draw_phone(browser: Browser, url: str) -> None:
    with visit(browser, url, **{**PHONE, "color_scheme": "dark", "locale": "zh-CN"}) as page:
        finished(page, "几天内可以退货？")
        finished(page, "快递多少钱？")
        _save(page, "chat-390")


def _draw_inbox(browser: Browser, url: str) -> None:
    with visit(browser, url) as customer, visit(browser, f"{url}/console/inbox", **DESKTOP) as agent:
        sign_in(agent)
        finished(customer, "How long do I have to return something?")
        customer.locator("#want-person:visible, .answer [data-part=person]:visible").last.click()
        expect(customer.locator("#banner")).to_contain_text("Number 1 in line")
        ask(customer, "My teapot arrived broken. What now?")
        expect(agent.locator("#rows a")).to_contain_text("What now?")
        agent.locator("#rows a").click()
        expect(agent.locator("#messages [data-role=assistant]")).to_have_count(1)
        agent.keyboard.press("t")
        expect(customer.locator("#role")).to_have_text("Ann, from our team")
        agent.locator("#text").fill("I am so sorry! A new one leaves today, and you keep the broken one.")
        _save(agent, "inbox-1280")


def _save(page: Page, name: str) -> None:
    page.wait_for_timeout(400)
    path = DOCS / f"{name}.png"
    page.screenshot(path=path)
    assert path.stat().st_size < MAX_BYTES, f"{path} is too large to commit"


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(MINI))
