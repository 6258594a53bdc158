"""The editors' and admins' pages in a real browser: with the keyboard, on a desk and on a phone."""

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from feedback import credentials
from feedback.accounts import Accounts
from feedback.audit import Audit
from feedback.database import Database
from feedback.knowledge import Knowledge
from feedback.record import Message, new_id
from server.console.console import Console
from server.desk.knowledge import DeskKnowledge
from server.desk.policy_file import DEMO, load_policy
from server.routes.inbox import inbox_router
from server.routes.pages import pages_router
from server.settings import Settings
from tests.server.conftest import serving
from tests.server.desk.conftest import SHOPS
from tests.server.desk.test_handoff import House
from tests.server.fakes import ScriptedChat
from tests.server.routes.test_console import PASSWORD
from tests.server.routes.test_editors import make_app
from tests.web.browser import PHONE, visit
from tests.web.test_console import readable, sign_in

pytestmark = pytest.mark.e2e


async def fill(database: Database) -> House:
    """An admin, and a question that waits for one."""
    await Accounts(database).add("Li Wei", "admin", PASSWORD, must_change=False)
    house = await House(database, ScriptedChat(script=("It takes 90 days.",))).open()
    await house.move("human", "Li Wei")
    await house.record.add_message(house.id, Message(new_id("msg"), "user", "How long?", client_message_id=new_id("key")))
    return house


@pytest.fixture(scope="module")
def url(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("editors")
    database, settings = Database.in_folder(folder / "data"), Settings(data_dir=folder / "data")
    patch = pytest.MonkeyPatch()
    patch.setitem(credentials.SCRYPT, "n", 16)
    # The browser's own event loop holds this thread.
    house = ThreadPoolExecutor(1).submit(asyncio.run, fill(database)).result()
    desk = DeskKnowledge(Knowledge(database), dict(SHOPS), 20_000, load_policy(DEMO))
    app = make_app(database, settings, desk, ScriptedChat(script=("I cannot do that.",)))
    console = Console(Accounts(database), Audit(database, folder / "data" / "audit.head"))
    app.include_router(pages_router())
    app.include_router(inbox_router(console, house.handoffs, house.inbox, house.desk))
    with serving(app) as running:
        yield running
    patch.undo()
    database.close()


def fits(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]  # type: ignore[index]
    readable(page)


def test_an_article_from_a_file_to_its_end_with_the_keyboard(browser: Browser, url: str, tmp_path: Path) -> None:
    file = tmp_path / "faq.csv"
    file.write_text("question,answer\nHow much is express?,It costs $12.50.\n", encoding="utf-8")
    with visit(browser, f"{url}/console/knowledge") as page:
        sign_in(page)
        expect(page.locator(".empty")).to_contain_text("demo shop")
        page.set_input_files("#file", file)
        page.get_by_role("button", name="Import", exact=True).press("Enter")
        expect(page.locator(".row-text")).to_have_text("How much is express?")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.locator("#text").fill("It costs $13.")
        page.keyboard.press("Control+Enter")
        expect(page.locator(".sources p")).to_have_text("It costs $13.", use_inner_text=False)
        page.keyboard.press("u")
        page.fill("[name=ask]", "how much is express")
        page.keyboard.press("Enter")
        expect(page.locator(".sources summary")).to_have_text(re.compile("How much is express.*fits"))
        page.locator(".row").click()
        page.get_by_text("Delete this article…").press("Enter")
        page.get_by_role("button", name="Delete it").press("Enter")
        expect(page.locator(".empty")).to_be_visible()
        wrong = tmp_path / "faq.md"
        wrong.write_text("", encoding="utf-8")
        page.set_input_files("#file", wrong)
        page.get_by_role("button", name="Import", exact=True).press("Enter")
        expect(page.locator("#problem")).to_contain_text("faq.md holds no text")
        page.keyboard.press("n")
        expect(page.locator("#title")).to_be_focused()
        fits(page)


def test_a_policy_is_checked_tested_refused_and_saved(browser: Browser, url: str) -> None:
    with visit(browser, f"{url}/console/policy", **PHONE) as page:
        sign_in(page)
        page.fill("#answer", "Within 999 days.")
        page.get_by_role("button", name="Check").tap()
        expect(page.locator("[data-reply=violations]")).to_contain_text("“999 days” stands in no passage")
        expect(page.locator("[data-reply=system]")).to_contain_text("Quiet Kettle")
        page.fill("#answer", "Hello!")
        page.get_by_role("button", name="Check").tap()
        expect(page.locator("[data-reply=violations]")).to_have_text("Nothing is wrong with this answer.")
        fits(page)
        text = page.locator("#content").input_value()
        page.locator("#content").fill(text + "bogus = 1\n")
        page.locator(".solid").tap()
        expect(page.locator("#problem")).to_contain_text("handover.bogus: must be a table")
        page.locator("#content").fill(text + "# mine\n")
        page.locator(".solid").tap()
        expect(page.locator(".rows .good")).to_have_text("In force")
        page.get_by_role("button", name="Run the test set").tap()
        expect(page.locator("#lines tr").nth(1)).to_contain_text("I cannot do that.")
        expect(page.locator("#tally")).to_contain_text("passed; 62 in all")
        fits(page)


def test_somebody_is_let_in_and_shut_out(browser: Browser, url: str) -> None:
    with visit(browser, f"{url}/console/agents") as page:
        sign_in(page)
        page.fill("#name", "<b>Bo</b>")
        page.keyboard.press("Enter")
        expect(page.locator("[data-reply=password]")).to_have_text(re.compile(r"^\w{4}(-\w{4}){3}$"))
        page.get_by_role("link", name="Done").press("Enter")
        person = page.get_by_role("form", name="<b>Bo</b>")
        person.get_by_role("button", name="Disable").press("Enter")
        expect(person).to_contain_text("disabled")
        person.get_by_role("button", name="Let in again").press("Enter")
        expect(person).not_to_contain_text("disabled")
        fits(page)
        page.goto(f"{url}/console/sites")
        fits(page)


def test_a_draft_that_would_not_pass_is_shown_with_a_warning(browser: Browser, url: str) -> None:
    with visit(browser, f"{url}/console/inbox") as page:
        sign_in(page)
        page.locator("#rows a").click()
        page.get_by_role("button", name="Suggest an answer").press("Enter")
        expect(page.locator("#caution")).to_contain_text("“90 days”")
        expect(page.locator("#text")).to_have_value("It takes 90 days.")
        fits(page)
        page.keyboard.press("Enter")
        expect(page.locator("#caution")).to_be_hidden()
