"""The review queue in a real browser: a pair a key, on a desk and on a phone."""

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from playwright.sync_api import Browser, expect

from feedback import credentials
from feedback.accounts import Accounts
from feedback.database import Database
from feedback.pairs import Gates, make_rows
from feedback.review import Reviews
from tests.feedback.shopper import worked_example
from tests.server.conftest import serving
from tests.server.routes.test_console import PASSWORD, make_app
from tests.web.browser import PHONE, visit
from tests.web.test_console import HOSTILE, readable, sign_in

pytestmark = pytest.mark.e2e


async def fill(database: Database) -> None:
    for name in ("Li Wei", "Mei"):
        await Accounts(database).add(name, "editor", PASSWORD, must_change=False)
    talks = [worked_example("vis_a", "a"), worked_example("vis_b", "b", f" {HOSTILE}"), worked_example("vis_c", "c", " C")]
    for talk in talks:
        await talk.keep(database)
    await Reviews(database).offer([replace(row, problem=None) for talk in talks for row in make_rows(talk.chat(), Gates())])


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("review")
    database = Database.in_folder(folder / "data")
    patch = pytest.MonkeyPatch()
    patch.setitem(credentials.SCRYPT, "n", 16)
    # The browser's own event loop holds this thread.
    with ThreadPoolExecutor(1) as aside:
        aside.submit(asyncio.run, fill(database)).result()
    with serving(make_app(folder, database)) as running:
        yield running
    patch.undo()
    database.close()


@pytest.mark.parametrize(
    ("name", "options"), [("Li Wei", {}), ("Mei", {**PHONE, "color_scheme": "dark", "locale": "zh-CN"})], ids=["1280", "390-dark-zh"]
)
def test_pairs_are_judged_with_the_keyboard(browser: Browser, url: str, name: str, options: dict[str, object]) -> None:
    with visit(browser, f"{url}/console/review", **options) as page:  # type: ignore[arg-type]
        sign_in(page, name)
        expect(page.locator(".compared")).to_be_visible()
        readable(page)
        for left, key in ((3, "1"), (2, "2"), (1, "3")):
            expect(page.locator(".facts")).to_have_text(re.compile(rf"^\D*{left}\D"))
            # Drawn by the last thing that the page's script does: it listens to keys by now.
            expect(page.locator(".compared .text > p")).to_have_count(2)
            page.keyboard.press("r")
            page.keyboard.type("1 2")
            # What is typed judges nothing, and neither does Enter.
            page.keyboard.press("Enter")
            expect(page.locator("#reason")).to_have_value("1 2")
            page.keyboard.press("Escape")
            page.keyboard.press(key)
        expect(page.locator(".empty code")).to_have_text("kefu export")
        assert page.title().endswith("kefu")
