"""The widget over HTTP: who may frame the chat, how the script is pinned, and what a wrong site gets."""

import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256, sha384

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from server.errors import install_handlers
from server.middleware import Door, Traffic
from server.routes.pages import pages_router
from server.routes.widget import widget_router
from server.settings import ServerSettings, SiteSettings

SITES = {
    "shop": SiteSettings(origins=("https://shop.example", "https://www.shop.example:8443"), title="<Shop>", language="zh"),
    "demo": SiteSettings(),
}


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()
    for router in (pages_router(), widget_router(SITES)):
        app.include_router(router)
    install_handlers(app)
    with TestClient(Door(app, ServerSettings(), Traffic(), lambda *seen: None), base_url="http://localhost") as client:
        yield client


def policy(client: TestClient, path: str) -> dict[str, str]:
    header = client.get(path).headers["content-security-policy"]
    assert "unsafe" not in header
    return dict(rule.strip().partition(" ")[::2] for rule in header.split(";"))


def test_only_the_sites_own_pages_may_frame_its_chat(client: TestClient) -> None:
    assert policy(client, "/embed?site=shop")["frame-ancestors"] == "https://shop.example https://www.shop.example:8443"
    assert policy(client, "/embed?site=demo")["frame-ancestors"] == "'self'"
    for path in ("/", "/demo"):
        assert policy(client, path)["frame-ancestors"] == "'none'"
    assert policy(client, "/demo")["frame-src"] == "'self'"
    framed = policy(client, "/embed?site=shop")
    assert {framed[each] for each in ("script-src", "style-src", "connect-src")} == {"'self'"}
    reply = client.get("/embed?site=shop", headers={"Origin": "https://shop.example"})
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in reply.headers and "set-cookie" not in reply.headers


def test_the_site_says_its_title_and_language_and_the_page_may_say_another(client: TestClient) -> None:
    page = client.get("/embed?site=shop", headers={"Accept-Language": "en"}).text
    assert '<html lang="zh-CN"' in page and "&lt;Shop&gt;" in page and "<Shop>" not in page
    assert '<html lang="en"' in client.get("/embed?site=shop&lang=en").text


@pytest.mark.parametrize("site", ["", "nowhere", "Shop", "shop%00", "../shop", "<script>"])
def test_an_unknown_site_is_told_what_to_do(client: TestClient, site: str) -> None:
    reply = client.get("/embed", params={"site": site})
    assert reply.status_code == 404
    assert "kefu.toml" in reply.text and "<script" not in reply.text
    assert client.get(f"/embed/{site}.css").status_code == 404


def test_the_script_is_pinned_by_what_it_is(client: TestClient) -> None:
    newest = client.get("/widget.js")
    assert (newest.headers["cache-control"], newest.headers["content-type"]) == ("no-cache", "text/javascript; charset=utf-8")
    pinned, integrity = re.findall(r'/widget/(\w+)\.js|integrity="([^"]+)"', client.get("/demo").text)
    script = client.get(f"/widget/{pinned[0]}.js")
    assert script.content == newest.content and sha256(script.content).hexdigest().startswith(pinned[0])
    assert "immutable" in script.headers["cache-control"]
    assert integrity[1] == "sha384-" + b64encode(sha384(script.content).digest()).decode()
    for reply in (newest, script, client.get("/embed/shop.css")):
        assert reply.headers["cross-origin-resource-policy"] == "cross-origin"
        assert reply.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in reply.headers
    for version in ("0" * 16, "widget", "..%2f..%2fapp", ""):
        assert client.get(f"/widget/{version}.js").status_code == 404


def test_the_script_carries_its_words_in_every_language(client: TestClient) -> None:
    script = client.get("/widget.js").text
    assert '"widget_open": "Open the chat"' in script and "打开客服对话" in script
    assert len(script.encode()) + len(client.get("/embed/shop.css").content) < 30_000


def test_without_the_demo_site_there_is_no_demo() -> None:
    app = FastAPI()
    app.include_router(widget_router({"shop": SITES["shop"]}))
    assert TestClient(app).get("/demo").status_code == 404
