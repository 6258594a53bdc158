"""One scripted desk and one Chromium per test module: a longer-lived Chromium would keep its event loop open in other rooms' tests."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.web.browser import chromium, visit
from tests.web.host_page import Place, places
from tests.web.scripted_desk import Desk, create_app, serving


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def the_desk() -> Iterator[tuple[Desk, str]]:
    desk = Desk()
    with serving(create_app(desk)) as url:
        yield desk, url


@pytest.fixture
def desk(the_desk: tuple[Desk, str]) -> Desk:
    the_desk[0].reset()
    return the_desk[0]


@pytest.fixture(scope="module")
def the_place() -> Iterator[Place]:
    with places() as place:
        yield place


@pytest.fixture
def place(the_place: Place) -> Place:
    the_place.desk.reset()
    the_place.host.head = the_place.host.script = ""
    return the_place


@pytest.fixture(scope="module")
def url(the_desk: tuple[Desk, str]) -> str:
    return the_desk[1]


@pytest.fixture
def page(browser: Browser, desk: Desk, url: str) -> Iterator[Page]:
    with visit(browser, url) as opened:
        opened.wait_for_selector(".chip")
        yield opened


@pytest.fixture(scope="module")
def workbench(browser: Browser, url: str) -> Iterator[Page]:
    """A page whose modules under js/ can be imported and called: `window.modules["helpers/sse.js"]`."""
    with visit(browser, url) as opened:
        opened.evaluate(
            """async () => {
              const root = document.querySelector("script[type=module]").src.replace("controllers/chat.js", "");
              window.modules = {};
              for (const name of ["helpers/sse.js", "helpers/markdown.js"]) window.modules[name] = await import(root + name);
            }"""
        )
        yield opened
