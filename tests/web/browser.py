"""Chromium for tests of what people see."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

CANDIDATES = ("chromium", "chromium-browser", "google-chrome")
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
# Pages, a server, an engine and a browser share the machine with other tests: nothing here is a measurement.
PATIENCE_MS = 20_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def chromium_path() -> str | None:
    return os.environ.get("CHROMIUM") or next((path for name in CANDIDATES if (path := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser, or a skip that says what is missing."""
    path = chromium_path()
    if path is None:
        pytest.skip("no Chromium on this machine: install Debian's chromium, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE_MS)
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Watch:
    """What went wrong in a page without anybody asking: console errors, CSP violations, uncaught errors, foreign requests."""

    def __init__(self, context: BrowserContext, *own_urls: str) -> None:
        self.complaints: list[str] = []
        self.urls: list[str] = []
        self._hosts = {urlsplit(url).netloc for url in own_urls}
        context.on("console", lambda message: self._console(message.type, message.text))
        context.on("weberror", lambda error: self.complaints.append(f"uncaught: {error.error}"))
        context.on("request", lambda request: self._request(request.url))

    def _console(self, kind: str, text: str) -> None:
        # The browser itself logs every refused call; the page's own answer to it is what the tests look at.
        if kind in ("error", "warning") and "Failed to load resource" not in text:
            self.complaints.append(f"{kind}: {text}")

    def _request(self, url: str) -> None:
        self.urls.append(url)
        if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).netloc not in self._hosts:
            self.complaints.append(f"foreign request: {url}")


@contextmanager
def visit(browser: Browser, url: str, *others: str, expect_quiet: bool = True, **options: object) -> Iterator[Page]:
    """A fresh visitor's page; afterwards nothing may have gone wrong behind its back. Only it and `others` may be asked for anything."""
    context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1280, "height": 800}, **options})  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    watch = Watch(context, url, *others)
    page = context.new_page()
    page.goto(url)
    yield page
    context.close()
    if expect_quiet:
        assert watch.complaints == [], watch.complaints


def ask(page: Page, text: str = "Can I return it?") -> None:
    page.fill("#input", text)
    page.keyboard.press("Enter")


def last_answer(page: Page) -> Locator:
    return page.locator(".answer").last


def finished(page: Page, text: str = "Can I return it?") -> Locator:
    """Ask, and return the answer once it is there."""
    ask(page, text)
    expect(last_answer(page).locator(".actions")).to_be_visible(timeout=30_000)
    return last_answer(page)
