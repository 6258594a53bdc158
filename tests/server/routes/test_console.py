"""The console lets in whom it should, changes nothing for a stranger's page, and shows what was said."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from sqlalchemy import select

from feedback.accounts import Accounts, Role
from feedback.audit import Audit
from feedback.conversations import Conversations
from feedback.database import Database
from feedback.insights import Insights
from feedback.record import Citation, Conversation, Message, Record, new_id, now_ms
from feedback.review import Reviews
from feedback.rounds import Rounds
from feedback.signals import Signals, Thumb
from feedback.tables import conversation
from server.console.console import COOKIE, CSRF_HEADER, Console
from server.console.nav import RANK, may
from server.errors import install_handlers
from server.middleware import Door, Traffic
from server.routes.console import console_router
from server.routes.insights import insights_router
from server.routes.pages import pages_router
from server.routes.review import review_router
from server.routes.rounds import rounds_router
from server.settings import Settings
from tests.feedback.conftest import Clock, made
from tests.server.conftest import calling

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"
HTML = {"accept": "text/html"}
HOUR_MS = 3_600_000


@pytest.fixture
def app(tmp_path: Path, database: Database) -> FastAPI:
    return make_app(tmp_path, database)


def make_app(tmp_path: Path, database: Database, **settings: object) -> FastAPI:
    """The console, its files and a page of the customers', behind the door."""
    chosen = Settings.model_validate({"data_dir": tmp_path / "data", **settings})
    console = Console(Accounts(database), Audit(database, chosen.data_dir / "audit.head"))
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.include_router(console_router(console, Conversations(database), chosen))
    app.include_router(insights_router(console, Insights(database)))
    app.include_router(review_router(console, Reviews(database)))
    app.include_router(rounds_router(console, Rounds(database), chosen.data_dir))
    app.include_router(pages_router())
    install_handlers(app, console.refusal)
    app.add_middleware(Door, settings=chosen.server, traffic=Traffic(), observe=lambda *seen: None, console=chosen.console)
    return app


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with calling(app) as client:
        yield client


@pytest.fixture
def accounts(database: Database) -> Accounts:
    """The same file as the application's."""
    return Accounts(database)


async def sign_in(http: httpx.AsyncClient, accounts: Accounts, role: Role = "agent", name: str = "wei") -> dict[str, str]:
    """The headers that a page of this new agent sends along; the client keeps the cookie."""
    await accounts.add(name, role, PASSWORD, must_change=False)
    reply = await http.post("/console/sign_in", json={"name": name, "password": PASSWORD})
    assert reply.status_code == 200, reply.text
    return await csrf(http)


async def csrf(http: httpx.AsyncClient) -> dict[str, str]:
    page = (await http.get("/console/password", headers=HTML)).text
    return {CSRF_HEADER: re.findall(r'name="csrf" content="(\w+)"', page)[0]}


def console_routes(app: FastAPI) -> list[APIRoute]:
    routes = [context.original_route for context in iter_route_contexts(app.routes)]
    return [route for route in routes if isinstance(route, APIRoute) and route.path.startswith("/console")]


async def test_without_an_agent_the_page_says_what_to_type(http: httpx.AsyncClient, accounts: Accounts, tmp_path: Path) -> None:
    page = await http.get("/console/sign_in", headers=HTML)
    assert f"kefu agent add NAME --role admin --data-dir {tmp_path / 'data'}" in page.text
    assert "<form class" not in page.text
    await accounts.add("wei", "admin", PASSWORD, must_change=False)
    page = await http.get("/console/sign_in", headers=HTML)
    assert "kefu agent add" not in page.text and 'name="password"' in page.text


async def test_every_page_sends_a_stranger_to_sign_in_and_back(http: httpx.AsyncClient, app: FastAPI, accounts: Accounts) -> None:
    for route in console_routes(app):
        if "public" not in route.tags and "GET" in route.methods:
            reply = await http.get(route.path, headers=HTML)
            assert (reply.status_code, reply.headers["location"].split("?")[0]) == (303, "/console/sign_in")
            assert (await http.get(route.path)).status_code == 401
    asked = (await http.get("/console/conversations?q=%E8%8C%B6&thumb=down", headers=HTML)).headers["location"]
    await accounts.add("wei", "agent", PASSWORD, must_change=False)
    back = re.findall(r'name="next" value="([^"]*)"', (await http.get(asked)).text)[0].replace("&amp;", "&")
    reply = await http.post("/console/sign_in", json={"name": "wei", "password": PASSWORD, "next": back})
    assert reply.json() == {"location": "/console/conversations?q=%E8%8C%B6&thumb=down"}


@pytest.mark.parametrize("wanted", ["https://evil.example/", "//evil.example", "/", "/consolex", "/console/sign_in", "javascript:alert(1)"])
async def test_after_signing_in_one_stays_in_the_console(http: httpx.AsyncClient, accounts: Accounts, wanted: str) -> None:
    await accounts.add("wei", "agent", PASSWORD, must_change=False)
    reply = await http.post("/console/sign_in", json={"name": "wei", "password": PASSWORD, "next": wanted})
    assert reply.json() == {"location": "/console/conversations"}


async def test_each_role_may_do_what_the_tag_of_the_route_says(http: httpx.AsyncClient, app: FastAPI, accounts: Accounts) -> None:
    for role in RANK:
        headers = {**await sign_in(http, accounts, role, f"a {role}"), "content-type": "application/json"}
        for route in console_routes(app):
            needed = next((tag for tag in route.tags if tag in RANK), None)
            if needed is None or "sign_out" in route.path or route.path.endswith("/events"):  # a stream that does not end
                continue
            for method in route.methods:
                reply = await http.request(method, route.path, headers=headers, content=b"{}")
                assert (reply.status_code == 403) == (not may(role, needed)), (role, method, route.path)  # type: ignore[arg-type]


async def test_what_another_site_can_send_changes_nothing(http: httpx.AsyncClient, app: FastAPI, accounts: Accounts) -> None:
    token = await sign_in(http, accounts, "admin")
    for route in console_routes(app):
        if "POST" not in route.methods or "public" in route.tags:
            continue
        assert (await http.post(route.path, json={})).status_code == 403
        assert (await http.post(route.path, json={}, headers={CSRF_HEADER: "0" * 64})).status_code == 403
        assert (await http.post(route.path, data={"a": "b"}, headers=token)).status_code == 415
        assert (await http.post(route.path, content="{}", headers={**token, "content-type": "text/plain"})).status_code == 415
    assert (await http.post("/console/sign_in", data={"name": "wei", "password": PASSWORD})).status_code == 415
    other = httpx.AsyncClient(transport=http._transport, base_url=http.base_url)
    foreign = await sign_in(other, accounts, "admin", "mei")
    assert (await http.post("/console/sign_out", json={}, headers=foreign)).status_code == 403
    assert (await http.get("/console/audit", headers=HTML)).status_code == 200
    await other.aclose()


async def test_the_cookie_is_for_this_site_and_these_pages_only(http: httpx.AsyncClient, accounts: Accounts) -> None:
    await accounts.add("wei", "agent", PASSWORD, must_change=False)
    body = {"name": "wei", "password": PASSWORD}
    cookie = (await http.post("/console/sign_in", json=body)).headers["set-cookie"]
    assert {"HttpOnly", "Path=/console", "SameSite=strict"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert "Secure" in (await http.post("/console/sign_in", json=body, headers={"x-forwarded-proto": "https"})).headers["set-cookie"]


async def test_a_session_is_new_at_each_sign_in_and_ends_with_sign_out(http: httpx.AsyncClient, accounts: Accounts) -> None:
    http.cookies.set(COOKIE, "chosen-by-an-attacker", path="/console")
    await sign_in(http, accounts)
    first = next(cookie.value for cookie in http.cookies.jar if cookie.value != "chosen-by-an-attacker")
    http.cookies.clear()
    http.cookies.set(COOKIE, str(first), path="/console")
    await http.post("/console/sign_in", json={"name": "wei", "password": PASSWORD})
    assert await accounts.signed_in(str(first)) is None
    http.cookies.delete(COOKIE, domain="")
    assert (await http.get("/console/conversations", headers=HTML)).status_code == 200
    (second,) = [cookie.value for cookie in http.cookies.jar]
    assert (await http.post("/console/sign_out", json={}, headers=await csrf(http))).json() == {"location": "/console/sign_in"}
    assert await accounts.signed_in(str(second)) is None
    assert (await http.get("/console/conversations", headers=HTML)).status_code == 303


async def test_who_was_given_a_password_chooses_one_before_anything_else(http: httpx.AsyncClient, accounts: Accounts) -> None:
    await accounts.add("wei", "admin", PASSWORD, must_change=True)
    await http.post("/console/sign_in", json={"name": "wei", "password": PASSWORD})
    sent_on = await http.get("/console/settings", headers=HTML)
    assert (sent_on.status_code, sent_on.headers["location"]) == (303, "/console/password")
    assert (await http.get("/console/settings")).json()["error"]["code"] == "password_is_temporary"
    token = await csrf(http)
    short = await http.post("/console/password", json={"password": "short"}, headers=token)
    assert (short.status_code, short.json()["error"]["code"]) == (400, "bad_password")
    assert (await http.post("/console/password", json={"password": "my very own one"}, headers=token)).status_code == 200
    assert (await http.get("/console/settings", headers=HTML)).status_code == 200
    wrong = await http.post("/console/password", json={"password": "yet another one", "current": PASSWORD}, headers=await csrf(http))
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "wrong_password")


async def test_guessing_is_slowed_down_by_address_and_by_name(http: httpx.AsyncClient, accounts: Accounts) -> None:
    await accounts.add("wei", "agent", PASSWORD, must_change=False)
    statuses = [(await http.post("/console/sign_in", json={"name": "WEI", "password": "guess"})).status_code for _ in range(11)]
    assert statuses == [401] * 10 + [429]
    assert (await http.post("/console/sign_in", json={"name": "wei", "password": PASSWORD})).status_code == 429
    statuses = [(await http.post("/console/sign_in", json={"name": f"n{i}", "password": "guess"})).status_code for i in range(11)]
    assert statuses[-1] == 429


async def test_what_happens_is_in_the_log_and_a_mistyped_password_is_not(
    http: httpx.AsyncClient, accounts: Accounts, database: Database, tmp_path: Path
) -> None:
    await http.post("/console/sign_in", json={"name": "my secret password", "password": "wei"})
    token = await sign_in(http, accounts, "admin")
    page = (await http.get("/console/audit", headers=HTML)).text
    assert "sign_in_failed" in page and "my secret" not in page
    await http.post("/console/sign_out", json={}, headers=token)
    audit = Audit(database, tmp_path / "data" / "audit.head")
    assert [entry.action for entry in await audit.page(None, 9)] == ["sign_out", "sign_in", "sign_in_failed"]
    assert await audit.verify() == 3


async def test_pages_carry_a_policy_and_are_kept_by_nobody(http: httpx.AsyncClient, accounts: Accounts) -> None:
    await sign_in(http, accounts, "admin")
    for path in ("/console/sign_in?next=x", "/console/conversations", "/console/settings", "/console/audit", "/console/nowhere"):
        page = await http.get(path, headers=HTML, follow_redirects=True)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert (page.headers["cache-control"], page.headers["x-content-type-options"]) == ("no-store", "nosniff")


async def test_what_is_not_there_is_a_page_with_a_way_on(http: httpx.AsyncClient, accounts: Accounts) -> None:
    await sign_in(http, accounts)
    for path, status in (
        ("/console/conversations/conv_nowhere", 404),
        ("/console/nowhere", 404),
        ("/console/settings", 403),
        ("/console/conversations?since=yesterday", 400),
        ("/console/conversations?before=1.a'--", 400),
        ("/console/conversations?q=%00", 400),
        ("/console/conversations/%00", 400),
    ):
        page = await http.get(path, headers={**HTML, "accept-language": "zh"})
        assert page.status_code == status, path
        assert 'lang="zh-CN"' in page.text and 'href="/console"' in page.text


async def test_the_language_that_was_chosen_stays(http: httpx.AsyncClient, accounts: Accounts) -> None:
    await sign_in(http, accounts)
    page = await http.get("/console/conversations?q=tea&lang=zh", headers=HTML)
    assert 'href="?q=tea&amp;lang=en"' in page.text
    assert 'lang="zh-CN"' in (await http.get("/console/conversations", headers=HTML)).text


async def test_the_settings_are_shown_without_their_secrets(tmp_path: Path, database: Database) -> None:
    secret = {"server": {"api_keys": ("ab" * 32,)}, "upstream": {"api_key": "sk-secret"}}
    app = make_app(tmp_path, database, **secret)
    async with calling(app) as http:
        await sign_in(http, Accounts(database), "admin")
        page = (await http.get("/console/settings", headers=HTML)).text
    assert "ab" * 32 not in page and "sk-secret" not in page
    assert page.count("•••") == 2 and "KEFU_ENGINE__MAX_WAITING" in page and "<td>64</td>" in page


@pytest.mark.parametrize(
    ("host", "console", "port", "status"),
    [
        ("127.0.0.1", {}, 8000, 200),
        ("0.0.0.0", {}, 8000, 404),
        ("127.0.0.1", {"port": 8001}, 8000, 404),
        ("127.0.0.1", {"port": 8001}, 8001, 200),
        ("0.0.0.0", {"port": 8001}, 8001, 200),
    ],
)
async def test_customers_doors_have_no_console(
    tmp_path: Path, database: Database, host: str, console: dict[str, int], port: int, status: int
) -> None:
    app = make_app(tmp_path, database, server={"host": host, "api_keys": ("a" * 64,)}, console=console)
    statuses = []

    async def arriving(scope, receive, send):  # type: ignore[no-untyped-def]
        await app({**scope, "server": ("127.0.0.1", port)}, receive, send)

    async with calling(arriving) as http:  # type: ignore[arg-type]
        statuses = [(await http.get(path, headers=HTML)).status_code for path in ("/console/sign_in", "/")]
    assert statuses == [status, 200]


async def said(record: Record, text: str, answer: str, language: str = "en", at_ms: int = HOUR_MS, cites: bool = False) -> tuple[str, str]:
    """A conversation of one question; its id and its completion's."""
    opened = Conversation(new_id("conv"), new_id("vis"), language, created_at_ms=at_ms)
    question = Message(new_id("msg"), "user", text, client_message_id=new_id("key"), created_at_ms=at_ms)
    sources = (Citation(1, "p1", "Returns", "Within 45 days."),) if cites else ()
    completion = made()
    reply = Message(new_id("msg"), "assistant", answer, reply_to_id=question.id, citations=sources, created_at_ms=at_ms)
    await record.add_conversation(opened)
    await record.add_message(opened.id, question)
    await record.add_message(opened.id, reply, completion)
    return opened.id, completion.id


async def ids(http: httpx.AsyncClient, query: str = "") -> list[str]:
    page = await http.get(f"/console/conversations{query}", headers=HTML)
    assert page.status_code == 200
    return re.findall(r'id="(conv_\w+)"', page.text)


async def test_conversations_are_found_by_words_and_filters(http: httpx.AsyncClient, accounts: Accounts, record: Record) -> None:
    await sign_in(http, accounts)
    assert "No customer has written yet" in (await http.get("/console/conversations", headers=HTML)).text
    tea, _ = await said(record, "Is the Green tea 100% fresh?", "Yes [1].", at_ms=HOUR_MS, cites=True)
    pot, _ = await said(record, "How big is the pot?", "Two litres.", at_ms=40 * 24 * HOUR_MS)
    zh, _ = await said(record, "绿茶新鲜吗？", "很新鲜。", "zh", at_ms=80 * 24 * HOUR_MS)
    assert await ids(http) == [zh, pot, tea]
    by_words = {"green": [tea], "tea green": [tea], "100%25": [tea], "%25": [tea], "_": [], "litres": [pot], "新鲜": [zh]}
    for words, wanted in by_words.items():
        assert await ids(http, f"?q={words}") == wanted, words
    by_filters = {
        "language=zh": [zh],
        "cited=yes": [tea],
        "cited=no": [zh, pot],
        "thumb=up": [],
        "since=1970-02-01": [zh, pot],
        "since=1970-02-01&until=1970-03-01": [pot],
        "q=&language=&thumb=&cited=&since=&until=": [zh, pot, tea],
    }
    for query, wanted in by_filters.items():
        assert await ids(http, f"?{query}") == wanted, query
    assert "No conversation matches" in (await http.get("/console/conversations?q=zebra", headers=HTML)).text


async def test_the_last_press_of_a_thumb_is_what_is_found(
    http: httpx.AsyncClient, accounts: Accounts, record: Record, database: Database
) -> None:
    await sign_in(http, accounts)
    conversation_id, completion_id = await said(record, "How big?", "Two litres.")
    clock = Clock()
    clock.ms = 2 * HOUR_MS
    mine = select(conversation.c.visitor_id).where(conversation.c.id == conversation_id)
    owner = await database.read(lambda connection: connection.execute(mine).scalar_one())
    signals = Signals(database, clock)
    await signals.vote(owner, Thumb(completion_id, 1, (), None, new_id("key")))
    assert (await ids(http, "?thumb=up"), await ids(http, "?thumb=down")) == ([conversation_id], [])
    await signals.vote(owner, Thumb(completion_id, -1, ("wrong",), "<b>no</b>", new_id("key")))
    assert (await ids(http, "?thumb=up"), await ids(http, "?thumb=down")) == ([], [conversation_id])
    page = (await http.get(f"/console/conversations/{conversation_id}", headers=HTML)).text
    assert "&lt;b&gt;no&lt;/b&gt;" in page and ">Wrong<" in page and "Two litres." in page and "kefu-mini" in page


async def test_pages_of_fifty_leave_nobody_out(http: httpx.AsyncClient, accounts: Accounts, record: Record) -> None:
    await sign_in(http, accounts)
    # Several begin in the same millisecond: the page must not end between them.
    begun = [(await said(record, "Tea?", "Yes.", at_ms=HOUR_MS + number // 7))[0] for number in range(110)]
    seen: list[str] = []
    query = "?q=tea"
    while query and len(seen) < 200:
        page = (await http.get(f"/console/conversations{query}", headers=HTML)).text
        seen += re.findall(r'id="(conv_\w+)"', page)
        query = next(iter(re.findall(r'class="chip" href="(\?[^"]*)"', page)), "").replace("&amp;", "&")
    assert sorted(seen) == sorted(begun) and len(set(seen)) == 110


async def test_the_overview_teaches_while_there_is_little_to_say(http: httpx.AsyncClient, accounts: Accounts, record: Record) -> None:
    await sign_in(http, accounts, "editor")
    assert "Nothing to measure in this period" in (await http.get("/console/insights", headers=HTML)).text
    await said(record, "How big?", "Two litres.", at_ms=now_ms())
    for by, words in (("week", "No single week has 20 cases"), ("adapter", "No adapter has 20 cases")):
        page = (await http.get(f"/console/insights?by={by}&weeks=4", headers=HTML)).text
        assert "n = 1: too few to say" in page and words in page and "Nobody has voted yet" in page and "<path d=" in page
        assert 'data-shape="dot"' not in page and "style=" not in page
    assert (await http.get("/console/insights?by=moon", headers=HTML)).status_code == 400
    assert (await http.get("/console/insights?weeks=0", headers=HTML)).status_code == 400
