"""The console in a real browser, over the real router and database: with the keyboard alone, on a desk and on a phone."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from feedback import credentials
from feedback.accounts import Accounts
from feedback.database import Database
from feedback.record import Citation, Conversation, Message, Record, new_id, now_ms
from tests.feedback.conftest import made
from tests.server.conftest import serving
from tests.server.routes.test_console import PASSWORD, make_app
from tests.web.browser import PHONE, visit

pytestmark = pytest.mark.e2e
HOSTILE = '<img src="https://evil.example/x"><script>document.title = "owned"</script> ![x](https://evil.example/y)'

# Contrast and names of what is on the screen now, by the rules of WCAG 2.2 (1.4.3 and 4.1.2).
FAINT = """() => {
  const rgb = (colour) => { const c = document.createElement("canvas").getContext("2d"); c.fillStyle = colour; c.fillRect(0, 0, 1, 1);
    return [...c.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) { const c = rgb(getComputedStyle(node).backgroundColor); if (c[3] > 250) return c; }
    return rgb("white"); };
  const seen = [...document.querySelectorAll("body *")].filter((node) => node.checkVisibility() && !node.closest("svg, .unseen, dialog")
    && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
  return seen.filter((node) => { const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05) < 4.5; }).map((node) => node.outerHTML.slice(0, 120));
}"""
NAMELESS = """() => [...document.querySelectorAll("input:not([type=hidden]), select, button, a")].filter((node) => node.checkVisibility()
  && !node.closest("[aria-hidden=true]")
  && !(node.labels?.length || node.ariaLabel || node.textContent.trim())).map((node) => node.outerHTML)"""


@pytest.fixture(scope="module")
def url(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("console")
    database = Database.in_folder(folder / "data")
    patch = pytest.MonkeyPatch()
    patch.setitem(credentials.SCRYPT, "n", 16)
    # The browser's own event loop holds this thread.
    ThreadPoolExecutor(1).submit(asyncio.run, fill(database)).result()
    with serving(make_app(folder, database)) as running:
        yield running
    patch.undo()
    database.close()


async def fill(database: Database) -> None:
    accounts, record, at_ms = Accounts(database), Record(database), now_ms() - 3_600_000
    await accounts.add("Li Wei", "admin", PASSWORD, must_change=False)
    await accounts.add("Mei", "agent", PASSWORD, must_change=True)
    for number, asked in enumerate(["How long may I return a lamp?", "可以开发票吗？", HOSTILE, "Do you ship to Iceland?"]):
        opened = Conversation(new_id("conv"), new_id("vis"), "zh" if number == 1 else "en", created_at_ms=at_ms + number)
        question = Message(new_id("msg"), "user", asked, client_message_id=new_id("key"), created_at_ms=at_ms + number)
        answer = HOSTILE if asked == HOSTILE else "Within **45 days** [1]."
        sources = (Citation(1, "p1", "Returns", "Lamps can be returned within 45 days."),)
        await record.add_conversation(opened)
        await record.add_message(opened.id, question)
        await record.add_message(opened.id, Message(new_id("msg"), "assistant", answer, reply_to_id=question.id, citations=sources), made())


def sign_in(page: Page, name: str = "li wei", password: str = PASSWORD) -> None:
    """A loaded machine takes its time over the first page: the rest of a test waits as usual."""
    expect(page.locator("#name")).to_be_focused()
    page.keyboard.type(name)
    page.keyboard.press("Tab")
    page.keyboard.type(password)
    page.keyboard.press("Enter")
    if password == PASSWORD:
        page.wait_for_url(lambda url: "/sign_in" not in url, timeout=30_000)


def listed(page: Page, count: int) -> None:
    """So many rows are there, and the page's scripts have run."""
    expect(page.locator(".row")).to_have_count(count)
    page.wait_for_load_state()


def readable(page: Page) -> None:
    assert page.evaluate(FAINT) == []
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(
    "options", [{}, {**PHONE, "color_scheme": "dark"}, {"locale": "zh-CN", "color_scheme": "dark"}], ids=["1280", "390-dark", "zh-dark"]
)
def test_a_conversation_is_found_read_and_left_with_the_keyboard(browser: Browser, url: str, options: dict[str, object]) -> None:
    with visit(browser, f"{url}/console", **options) as page:
        readable(page)
        sign_in(page)
        listed(page, 4)
        readable(page)
        page.keyboard.press("/")
        page.keyboard.type("lamp return")
        page.keyboard.press("Enter")
        listed(page, 1)
        page.keyboard.press("j")
        expect(page.locator(".row").first).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator(".answer strong")).to_have_text("45 days")
        assert "q=lamp+return" in page.url
        page.locator("summary").last.press("Enter")
        expect(page.locator(".made dl")).to_be_visible()
        readable(page)
        page.locator(".citation").first.press("Enter")
        expect(page.locator(".sources p")).to_be_visible()
        page.keyboard.press("u")
        expect(page.locator(".row").first).to_be_focused()
        page.locator("[data-send='/console/sign_out']").press("Enter")
        expect(page.locator("#name")).to_be_visible()
        page.go_back()
        expect(page.locator("#name")).to_be_visible()


def test_moving_stops_at_the_ends_and_the_row_is_in_the_url(browser: Browser, url: str) -> None:
    with visit(browser, f"{url}/console") as page:
        sign_in(page)
        rows = page.locator(".row")
        listed(page, 4)
        for _ in range(6):
            page.keyboard.press("j")
        expect(rows.last).to_be_focused()
        page.keyboard.press("k")
        expect(rows.nth(2)).to_be_focused()
        assert page.url.endswith(f"#{rows.nth(2).get_attribute('id')}")
        page.reload()
        expect(rows.nth(2)).to_be_focused()
        page.keyboard.press("?")
        expect(page.locator("#keys")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#keys")).to_be_hidden()
        page.keyboard.press("/")
        page.keyboard.type("jk?u")
        expect(page.locator("[data-search]")).to_have_value("jk?u")


def test_a_wrong_password_is_said_beside_the_form_and_nothing_typed_is_lost(browser: Browser, url: str) -> None:
    with visit(browser, f"{url}/console/audit") as page:
        sign_in(page, password="wrong")
        expect(page.locator("form #problem")).to_have_text("Name and password do not fit together.")
        expect(page.locator("#name")).to_have_value("li wei")
        readable(page)
        page.fill("#password", PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url("**/console/audit")
        expect(page.locator("tbody tr").nth(1)).to_contain_text("sign_in_failed")
        readable(page)
        page.goto(f"{url}/console/settings")
        readable(page)


def test_who_was_given_a_password_is_led_to_choose_one(browser: Browser, url: str) -> None:
    with visit(browser, f"{url}/console/conversations") as page:
        sign_in(page, "Mei")
        page.wait_for_url("**/console/password")
        page.fill("#password", "mei's very own one")
        page.keyboard.press("Enter")
        listed(page, 4)
        expect(page.locator(".side-nav a")).to_have_count(2)
        page.goto(f"{url}/console/settings")
        expect(page.locator("h1")).to_have_text("This page needs another role")
        page.keyboard.press("u")
        listed(page, 4)


def test_what_customers_and_models_write_is_text(browser: Browser, url: str) -> None:
    with visit(browser, f"{url}/console/conversations?q=evil.example") as page:
        sign_in(page)
        expect(page.locator(".row-text")).to_contain_text("<script>")
        page.locator(".row").click()
        expect(page.locator(".answer .text")).to_contain_text("<img")
        assert page.locator(".story img, .story script").count() == 0
        assert "owned" not in page.title()


def test_a_link_from_another_site_leads_where_it_says(browser: Browser, url: str) -> None:
    with visit(browser, f"{url}/console", expect_quiet=False) as page:
        sign_in(page)
        listed(page, 4)
        page.goto(url.replace("127.0.0.1", "localhost"))
        page.evaluate(f"location.assign('{url}/console/conversations?language=zh')")
        page.wait_for_url("**/console/conversations?language=zh")
        listed(page, 1)


def test_without_anybody_the_page_teaches_the_first_step(browser: Browser, tmp_path: Path) -> None:
    database = Database.in_folder(tmp_path / "data")
    with serving(make_app(tmp_path, database)) as url, visit(browser, f"{url}/console") as page:
        expect(page.locator(".command")).to_contain_text("kefu agent add NAME --role admin")
        readable(page)
    database.close()
