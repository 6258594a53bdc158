"""Web sites of other origins with the widget on them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Response
from playwright.sync_api import Browser, Frame, Page, expect

from server.routes.widget import integrity_of, version_of
from server.settings import SiteSettings
from tests.web.browser import PATIENCE_MS, visit
from tests.web.scripted_desk import Desk, create_app, serving
from web import load_assets

SCRIPT = load_assets().files["widget.js"]
# Tests look into the closed shadow root; a page cannot.
OPEN_ROOTS = """const attach = Element.prototype.attachShadow;
Element.prototype.attachShadow = function () { return attach.call(this, {mode: 'open'}) }"""


@dataclass
class Host:
    """A shop's web site: `kefu` is where its widget comes from, `head` what its pages hold besides."""

    kefu: str = ""
    head: str = ""
    script: str = ""

    def page(self) -> Response:
        pinned = f'src="{self.kefu}/widget/{version_of(SCRIPT)}.js" integrity="{integrity_of(SCRIPT)}" crossorigin'
        script = f'<script {pinned} data-site="shop"></script>'
        phone = '<meta name="viewport" content="width=device-width, initial-scale=1">'
        html = f'<!doctype html><html lang="en">{phone}<title>Shop</title><body><h1>A shop</h1><a href="/next">Next</a>{script}{self.head}'
        policy = f"default-src 'self' {self.kefu}; object-src 'none'; require-trusted-types-for 'script'"
        return Response(html, media_type="text/html", headers={"Content-Security-Policy": policy})


def host_app(host: Host) -> FastAPI:
    app = FastAPI()

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)

    @app.get("/own.js")
    def own() -> Response:
        return Response(host.script, media_type="text/javascript")

    @app.get("/{path:path}")
    def page(path: str) -> Response:
        return host.page()

    return app


@dataclass
class Place:
    desk: Desk
    host: Host
    kefu: str
    shop: str  # another site
    sister: str  # the same site, another origin: as chat.shop.example and shop.example
    stranger: str


@contextmanager
def places() -> Iterator[Place]:
    """kefu, and two shops that load its widget: one of its site's, one of nobody's."""
    desk, host = Desk(), Host()
    with serving(host_app(host)) as sister, serving(host_app(host)) as stranger:
        shop = sister.replace("127.0.0.1", "localhost")
        sites = {"shop": SiteSettings(origins=(shop, sister), accent="#e0b000"), "demo": SiteSettings()}
        with serving(create_app(desk, sites)) as kefu:
            host.kefu = kefu
            yield Place(desk, host, kefu, shop, sister, stranger)


@contextmanager
def shopping(browser: Browser, place: Place, url: str = "", **options: object) -> Iterator[Page]:
    with visit(browser, "about:blank", url or place.shop, place.kefu, **options) as page:
        page.context.add_init_script(OPEN_ROOTS)
        page.goto(url or place.shop)
        yield page


def chat_of(page: Page) -> Frame:
    page.locator("kefu-chat iframe").wait_for(state="attached")
    handle = page.locator("kefu-chat iframe").element_handle()
    frame = handle.content_frame() if handle else None
    assert frame
    return frame


def opened(page: Page) -> Frame:
    """The chat once it is drawn and has the focus: what is typed while the focus still moves goes nowhere."""
    page.locator("kefu-chat button").click()
    frame = chat_of(page)
    frame.wait_for_selector(".chip")
    until(page, "document.querySelector('kefu-chat').shadowRoot.activeElement?.localName === 'iframe'")
    until(frame, "!matchMedia('(pointer: fine)').matches || document.activeElement.id === 'input'")
    return frame


def until(where: Page | Frame, holds: str) -> None:
    """Playwright's own wait evaluates a string in the page, which the page's policy forbids."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not where.evaluate(holds):
        assert time.monotonic() < deadline, holds
        where.wait_for_timeout(50)


def finished(frame: Frame, text: str = "Can I return it?") -> None:
    frame.fill("#input", text)
    expect(frame.locator("#input")).to_have_value(text)
    frame.press("#input", "Enter")
    expect(frame.locator(".question").last).to_contain_text(text)
    expect(frame.locator(".answer").last.locator(".actions")).to_be_visible(timeout=30_000)
