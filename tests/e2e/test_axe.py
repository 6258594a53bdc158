"""What axe-core has to say of every kind of page: on a desk and on a phone, by day and by night. No rule of WCAG 2 A and AA is broken."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from feedback.accounts import Accounts
from feedback.database import Database
from feedback.importers import by_hand
from feedback.knowledge import Knowledge
from feedback.pairs import Gates, make_rows
from feedback.record import Citation, Conversation, Message, Record, new_id, now_ms
from feedback.review import Reviews
from tests.conftest import MINI
from tests.e2e.house import Kefu, kefu
from tests.feedback.conftest import made
from tests.feedback.shopper import worked_example
from tests.server.routes.test_rounds import SPOILT, SWAPPED, measured
from tests.web.browser import chromium

pytestmark = pytest.mark.e2e
PASSWORD = "correct horse battery"
SIZES = ({"width": 1280, "height": 800}, {"width": 390, "height": 844})
RUN = """() => axe.run({ runOnly: ["wcag2a", "wcag2aa"], resultTypes: ["violations"] })
  .then(({ violations }) => violations.flatMap(({ id, nodes }) => nodes.map(({ html }) => `${id}: ${html.slice(0, 150)}`)))"""
TEAM = (
    "inbox",
    "conversations",
    "knowledge?ask=how+long",
    "tools",
    "insights",
    "insights?by=adapter",
    "rounds",
    "rounds/round-1",
    "review",
)


async def fill(database: Database, data_dir: Path) -> None:
    """Something on every page."""
    await measured(database, data_dir, SPOILT, SWAPPED)
    record, opened = Record(database), Conversation(new_id("conv"), new_id("vis"), "en")
    question = Message(new_id("msg"), "user", "How long may I return it?", client_message_id=new_id("key"))
    cited = (Citation(1, "p1", "Returns", "Within 30 days."),)
    await Accounts(database).add("Ann", "admin", PASSWORD, must_change=False)
    await record.add_conversation(opened)
    await record.add_message(opened.id, question)
    await record.add_message(
        opened.id, Message(new_id("msg"), "assistant", "30 days [1].", reply_to_id=question.id, citations=cited), made()
    )
    talk = worked_example()
    await talk.keep(database, at_ms=now_ms())
    await Reviews(database).offer(list(make_rows(talk.chat(), Gates())))
    await Knowledge(database).save(by_hand("Returns", "Within 30 days.", ["how long"]))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("axe")
    database = Database.in_folder(folder)
    with ThreadPoolExecutor(1) as thread:  # Playwright runs an event loop in this one
        thread.submit(asyncio.run, fill(database, folder)).result()
    database.close()
    return folder


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[Kefu]:
    with kefu(data_dir, str(MINI)) as running:
        yield running


def broken(page: Page) -> list[str]:
    """Rules that the page breaks, and where."""
    found = []
    page.evaluate(Axe().axe_script)
    for size in SIZES:
        page.set_viewport_size(size)  # type: ignore[arg-type]
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
            found += [f"{page.url}, {size['width']}, {scheme}: {each}" for each in page.evaluate(RUN)]
    return found


def test_no_page_breaks_a_rule(browser: Browser, server: Kefu) -> None:
    # The pages' own policy forbids the script that looks at them.
    context = browser.new_context(bypass_csp=True, locale="en-US")
    page = context.new_page()
    page.set_content("<html lang=en><title>t</title><main><img src=x></main></html>")
    assert "image-alt" in " ".join(broken(page))
    page.goto(server.url)
    page.wait_for_selector(".chip")
    found = broken(page)
    page.goto(f"{server.url}/demo")
    found += broken(page)
    page.goto(f"{server.url}/console/conversations")
    found += broken(page)
    page.fill("#name", "Ann")
    page.fill("#password", PASSWORD)
    page.keyboard.press("Enter")
    expect(page.locator(".row")).to_have_count(2)
    for path in TEAM:
        reply = page.goto(f"{server.url}/console/{path}")
        assert reply and reply.ok
        expect(page.locator("h1")).to_be_visible()
        found += broken(page)
    expect(page.locator(".compared")).to_be_visible()
    page.goto(f"{server.url}/console/policy")
    page.fill("#answer", "Within 999 days.")
    page.locator("[formaction]").click()
    expect(page.locator("[data-reply=violations]")).to_contain_text("999 days")
    found += broken(page)
    context.close()
    assert found == []
