"""A round's page in a real browser: found and read with the keyboard, on a desk and on a phone."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from feedback import credentials
from feedback.accounts import Accounts
from feedback.database import Database
from tests.server.conftest import serving
from tests.server.routes.test_console import PASSWORD, make_app
from tests.server.routes.test_rounds import SPOILT, SWAPPED, measured
from tests.web.browser import visit
from tests.web.test_console import HOSTILE, readable, sign_in

pytestmark = pytest.mark.e2e


async def fill(database: Database, data_dir: Path) -> None:
    await Accounts(database).add("Li Wei", "editor", PASSWORD, must_change=False)
    long = replace(SPOILT, asked="为什么？" * 60, after=f"**Bold** [1] {HOSTILE} " + "w" * 300)
    for _ in range(2):
        await measured(database, data_dir, SPOILT, long, SWAPPED)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("rounds")
    database = Database.in_folder(folder / "data")
    patch = pytest.MonkeyPatch()
    patch.setitem(credentials.SCRYPT, "n", 16)
    # The browser's own event loop holds this thread.
    with ThreadPoolExecutor(1) as aside:
        aside.submit(asyncio.run, fill(database, folder / "data")).result()
    with serving(make_app(folder, database)) as running:
        yield running
    patch.undo()
    database.close()


def test_rounds_are_read_with_the_keyboard_on_a_desk_and_on_a_phone(browser: Browser, url: str) -> None:
    with visit(browser, f"{url}/console/rounds") as page:
        sign_in(page)
        readable(page)
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_url(lambda at: at.endswith("/rounds/round-1"))
        expect(page.locator(".compared strong")).to_have_text("Bold")
        assert page.locator(".compared img, .compared script").count() == 0
        readable(page)
        page.keyboard.press("j")
        first = page.locator("details.changed").first
        expect(first.locator("summary")).to_be_focused()
        page.keyboard.press("Enter")
        expect(first.locator(".compared")).to_be_hidden()
        page.set_viewport_size({"width": 390, "height": 844})
        page.emulate_media(color_scheme="dark")
        readable(page)
        page.keyboard.press("u")
        expect(page.locator("#round-1")).to_be_focused()
        readable(page)
