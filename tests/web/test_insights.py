"""The overview in a real browser: it fits, can be read, and its charts stay inside their cards."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from playwright.sync_api import Browser, expect

from feedback import credentials
from feedback.accounts import Accounts
from feedback.database import Database
from feedback.record import now_ms
from tests.feedback.eight_weeks import seed
from tests.server.conftest import serving
from tests.server.routes.test_console import PASSWORD, make_app
from tests.web.browser import PHONE, visit
from tests.web.test_console import readable, sign_in

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("insights")
    database = Database.in_folder(folder / "data")
    patch = pytest.MonkeyPatch()
    patch.setitem(credentials.SCRYPT, "n", 16)
    # The browser's own event loop holds this thread.
    with ThreadPoolExecutor(1) as aside:
        aside.submit(asyncio.run, seed(database, now_ms(), per_week=25)).result()
        aside.submit(asyncio.run, Accounts(database).add("Li Wei", "editor", PASSWORD, must_change=False)).result()
    with serving(make_app(folder, database)) as running:
        yield running
    patch.undo()
    database.close()


@pytest.mark.parametrize("options", [{}, {**PHONE, "color_scheme": "dark", "locale": "zh-CN"}], ids=["1280", "390-dark-zh"])
def test_the_charts_are_legible(browser: Browser, url: str, options: dict[str, object]) -> None:
    with visit(browser, f"{url}/console/insights?weeks=8", **options) as page:
        sign_in(page)
        assert page.locator(".plot [data-shape=line]").count() > 5
        readable(page)
        page.locator("summary").first.click()
        expect(page.locator(".card td").first).to_be_visible()
