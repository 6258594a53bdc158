"""The page and its files over HTTP: language, headers, caching, and what is not there."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from server.errors import NotFound, error_object
from server.language import choose_language
from server.middleware import Door, Traffic
from server.routes.pages import pages_router
from server.settings import ServerSettings
from web import load_assets


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(pages_router())

    @app.exception_handler(NotFound)
    async def not_found(request: Request, error: NotFound) -> JSONResponse:
        return JSONResponse(error_object(error), 404)

    door = Door(app, ServerSettings(), Traffic(), lambda *seen: None)
    with TestClient(door, base_url="http://localhost") as client:
        yield client


@pytest.fixture
def root() -> str:
    return f"/static/{load_assets().version}"


@pytest.mark.parametrize(
    ("asked", "accepted", "language"),
    [
        (None, "", "en"),
        (None, "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        (None, "fr-FR, zh-TW;q=0.3, en;q=0.2", "zh"),
        (None, "en;q=0.5,zh;q=0.9", "zh"),
        (None, "zh;q=0, en;q=0.1", "en"),
        (None, "zh;q=0", "en"),
        (None, "zh;q=nan,en;q=1e999, zh;q=²", "en"),
        (None, "ZH", "zh"),
        (None, "," * 100_000, "en"),
        ("zh", "en", "zh"),
        ("en", "zh", "en"),
        ("fr", "zh", "zh"),
        ("../zh", "en", "en"),
    ],
)
def test_the_language_is_the_one_asked_for_or_else_the_browsers(asked: str | None, accepted: str, language: str) -> None:
    assert choose_language(asked, accepted) == language


def test_the_page_says_its_language(client: TestClient) -> None:
    page = client.get("/", headers={"Accept-Language": "zh-CN"})
    assert 'lang="zh-CN"' in page.text
    assert page.headers["vary"] == "Accept-Language"
    assert 'lang="en"' in client.get("/?lang=en", headers={"Accept-Language": "zh-CN"}).text


def test_the_page_lets_nothing_in_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    policy = dict(part.strip().partition(" ")[::2] for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert {policy[each] for each in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "camera=()" in page.headers["permissions-policy"]


def test_an_unchanged_page_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/")
    again = client.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/?lang=zh").headers["etag"] != first.headers["etag"]


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("js/controllers/chat.js", "text/javascript; charset=utf-8"),
        ("css/tokens.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ],
)
def test_files_have_their_type_and_stay_for_good(client: TestClient, root: str, name: str, media_type: str) -> None:
    file = client.get(f"{root}/{name}")
    assert file.status_code == 200
    assert file.headers["content-type"] == media_type
    assert file.headers["x-content-type-options"] == "nosniff"
    assert "immutable" in file.headers["cache-control"]
    assert client.get(f"{root}/{name}", headers={"If-None-Match": file.headers["etag"]}).status_code == 304


def test_every_file_the_page_names_is_there(client: TestClient) -> None:
    page = client.get("/").text
    named = [part.split('"')[0] for part in page.split('="') if part.startswith("/static/")]
    assert len(named) >= 8
    for path in named:
        assert client.get(path).status_code == 200, path


@pytest.mark.parametrize(
    "path",
    [
        "{root}/../../../pyproject.toml",
        "{root}/..%2f..%2f__init__.py",
        "{root}/%2e%2e/%2e%2e/__init__.py",
        "{root}/..\\..\\__init__.py",
        "{root}//etc/passwd",
        "{root}/%2fetc%2fpasswd",
        "{root}/css/tokens.css%00.js",
        "{root}/css/",
        "{root}/css/./tokens.css%2f",
        "{root}/",
        "{root}/CSS/tokens.css",
        "{root}/js/" + "a/" * 2000,
        "/static/0000000000000000/css/tokens.css",
        "/static/../web/__init__.py",
    ],
)
def test_path_tricks_find_nothing(client: TestClient, root: str, path: str) -> None:
    reply = client.get(path.replace("{root}", root))
    assert reply.status_code == 404
    assert "pyproject" not in reply.text and "root:" not in reply.text


@pytest.mark.parametrize(("num_ranges", "status"), [(1, 200), (1_500, 200), (10_000, 431)])
def test_a_range_is_never_counted_through(client: TestClient, root: str, num_ranges: int, status: int) -> None:
    whole = client.get(f"{root}/css/page.css").content
    reply = client.get(f"{root}/css/page.css", headers={"Range": "bytes=" + ",".join(["0-1"] * num_ranges)})
    assert reply.status_code == status
    assert reply.content == whole or status == 431


def test_only_reading_is_possible(client: TestClient, root: str) -> None:
    for method in ("post", "put", "delete", "patch"):
        assert getattr(client, method)("/").status_code == 405
        assert getattr(client, method)(f"{root}/css/page.css").status_code == 405
