"""The editors' and admins' pages: knowledge, policy, agents and sites, through the door and over a real database."""

import base64
import html
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from feedback.accounts import Accounts
from feedback.audit import Audit
from feedback.conversations import Conversations
from feedback.database import Database
from feedback.gaps import Gaps
from feedback.knowledge import Knowledge
from feedback.record import Conversation, Message, Record, new_id
from server.console.console import Console
from server.desk.knowledge import DeskKnowledge
from server.desk.policy_file import DEMO, load_policy
from server.desk.policy_store import PolicyStore
from server.errors import install_handlers
from server.middleware import Door, Traffic
from server.routes.console import console_router
from server.routes.knowledge import knowledge_router
from server.routes.policy import policy_router
from server.settings import Settings
from tests.server.conftest import calling
from tests.server.desk.conftest import SHOPS
from tests.server.fakes import ScriptedChat
from tests.server.routes.test_console import HTML, console_routes, sign_in
from tests.server.routes.test_console import test_each_role_may_do_what_the_tag_of_the_route_says as each_role_may_do_what_the_tag_says
from tests.server.routes.test_console import test_what_another_site_can_send_changes_nothing as what_another_site_can_send_changes_nothing

pytestmark = pytest.mark.anyio
HOSTILE = "<img src=x onerror=alert(1)>\"'</textarea><script>alert(1)</script>"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    sites = {"shop": {"origins": ["https://shop.example"], "title": 'The "Shop" <b>', "keys": {"k1": "s" * 32}}}
    return Settings.model_validate({"data_dir": tmp_path / "data", "sites": sites})


@pytest.fixture
def desk(database: Database) -> DeskKnowledge:
    return DeskKnowledge(Knowledge(database), dict(SHOPS), 20_000, load_policy(DEMO))


@pytest.fixture
def chat() -> ScriptedChat:
    return ScriptedChat(script=("I'm sorry, I cannot do that. ", "Shall I get a person from our team?"))


@pytest.fixture
def app(database: Database, settings: Settings, desk: DeskKnowledge, chat: ScriptedChat) -> FastAPI:
    return make_app(database, settings, desk, chat)


def make_app(database: Database, settings: Settings, desk: DeskKnowledge, chat: ScriptedChat) -> FastAPI:
    """The console without its inbox."""
    console = Console(Accounts(database), Audit(database, settings.data_dir / "audit.head"))
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.include_router(knowledge_router(console, Knowledge(database), Gaps(database), desk, settings.server.max_body_bytes))
    app.include_router(policy_router(console, settings, desk, chat))  # type: ignore[arg-type]
    app.include_router(console_router(console, Conversations(database), settings))
    install_handlers(app, console.refusal)
    app.add_middleware(Door, settings=settings.server, traffic=Traffic(), observe=lambda *seen: None, console=settings.console)
    return app


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with calling(app) as client:
        yield client


class Person:
    """Somebody signed in, at their browser."""

    def __init__(self, http: httpx.AsyncClient, headers: dict[str, str]) -> None:
        self.http, self.headers = http, headers

    async def see(self, path: str) -> str:
        reply = await self.http.get(f"/console/{path}", headers=HTML)
        assert reply.status_code == 200, reply.text
        return reply.text

    async def send(self, path: str, **fields: object) -> httpx.Response:
        return await self.http.post(f"/console/{path}", json=fields, headers=self.headers)


@pytest.fixture
async def editor(http: httpx.AsyncClient, database: Database) -> Person:
    return Person(http, await sign_in(http, Accounts(database), "editor", "mei"))


@pytest.fixture
async def admin(http: httpx.AsyncClient, database: Database) -> Person:
    return Person(http, await sign_in(http, Accounts(database), "admin", "wei"))


async def deeds(database: Database, tmp_path: Path) -> list[tuple[str, str]]:
    entries = await Audit(database, tmp_path / "data" / "audit.head").page(None, 50)
    return [(entry.actor, entry.action) for entry in entries if entry.action != "sign_in"]


async def test_roles_and_strange_sites_are_held_off(http: httpx.AsyncClient, app: FastAPI, database: Database) -> None:
    assert len(console_routes(app)) > 20
    await what_another_site_can_send_changes_nothing(http, app, Accounts(database))
    http.cookies.clear()
    await each_role_may_do_what_the_tag_says(http, app, Accounts(database))


async def test_from_nothing_to_an_article_that_is_found_and_back(editor: Person, database: Database, tmp_path: Path) -> None:
    assert "demo shop" in await editor.see("knowledge")
    saved = await editor.send(
        "knowledge", title="Repairs", text="We repair every kettle for $15.\n\n## Parts\n\nLids too.", questions="mend it?"
    )
    place = saved.json()["location"].removeprefix("/console/")
    page = await editor.see(place)
    assert "We repair every kettle for $15.\n\n## Parts\n\nLids too.</textarea>" in page and "mend it?</textarea>" in page
    assert "Repairs" in await editor.see("knowledge?q=repa") and "Repairs" not in await editor.see("knowledge?q=zzz")
    found = await editor.see("knowledge?ask=do+you+repair+a+kettle")
    assert found.index("We repair every kettle") < found.index("Lids too.") and re.search(r"\d\.\d\d · Repairs", found)
    article_id = place.removeprefix("knowledge/")
    version = (await Knowledge(database).articles())[0].version
    stale = await editor.send("knowledge", title="Mending", text="We mend.", replaces=article_id, version="0" * 64)
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "outdated")
    moved = await editor.send("knowledge", title="Mending", text="We mend.", replaces=article_id, version=version)
    assert (await editor.http.get(f"/console/{place}", headers=HTML)).status_code == 404
    assert (await editor.send("knowledge", title="Mending", text="x", replaces=article_id)).status_code == 404
    assert (await editor.send(f"{moved.json()['location'].removeprefix('/console/')}/delete")).status_code == 200
    assert await Knowledge(database).articles() == []
    assert await deeds(database, tmp_path) == [("mei", "article_deleted"), ("mei", "article_saved"), ("mei", "article_saved")]


async def test_a_file_is_taken_or_refused_with_its_reason(editor: Person, database: Database) -> None:
    def sent(name: str, data: bytes) -> dict[str, str]:
        return {"name": name, "content": base64.b64encode(data).decode()}

    taken = await editor.send("knowledge/import", **sent("faq.csv", b"question,answer\nExpress?,It costs $12.50.\nWhen?,Now.\n"))
    assert taken.json() == {"location": "/console/knowledge?q=faq.csv"} and "Express?" in await editor.see("knowledge?q=faq.csv")
    assert len(await Knowledge(database).articles()) == 2
    for name, data, code in [
        ("a.exe", b"x", "import_refused"),
        ("a.md", b"", "import_refused"),
        ("a.pdf", b"%PDF-nonsense", "import_refused"),
        ("../a.md", b"# x", None),
        ("big.md", b"x" * 3_144_961, "body_too_large"),
    ]:
        refused = await editor.send("knowledge/import", **sent(name, data))
        assert (refused.status_code, refused.json()["error"]["code"]) == (413 if code == "body_too_large" else 400, code), name
    assert (await editor.send("knowledge/import", name="a.md", content=5)).status_code == 400
    assert (await editor.send("knowledge", title="A", text="B", extra=1)).status_code == 400
    assert (await editor.send("knowledge", title=" ", text="B")).status_code == 400
    assert len(await Knowledge(database).articles()) == 2


async def test_what_was_asked_in_vain_begins_an_article(editor: Person, database: Database) -> None:
    record, opened = Record(database), Conversation(new_id("conv"), new_id("vis"), "en")
    question = Message(new_id("msg"), "user", f"Do you repair {HOSTILE}?", client_message_id=new_id("key"))
    answer = "Yes, every kettle we sold: it costs $15 in most cases."
    await record.add_conversation(opened)
    await record.add_message(opened.id, question)
    await record.add_message(opened.id, Message(new_id("msg"), "agent", answer, client_message_id=new_id("key"), author="Ann", gold=True))
    page = await editor.see("knowledge/gaps")
    assert f"/console/knowledge/new?gap={question.id}" in page and "onerror=alert(1)>" not in page
    form = await editor.see(f"knowledge/new?gap={question.id}")
    assert f"{answer}</textarea>" in form and form.count("<script>alert") == 0 and form.count("&lt;script&gt;alert") >= 2
    assert 'name="title" value=""' in await editor.see("knowledge/new?gap=gone")


async def test_what_people_type_is_only_text(admin: Person) -> None:
    saved = await admin.send("knowledge", title=HOSTILE, text=f"Text {HOSTILE}", questions=HOSTILE)
    name = (await admin.send("agents", name=HOSTILE, role="agent", action="add")).json()["name"]
    assert name == HOSTILE
    for path in (
        "knowledge",
        "knowledge?ask=" + "text",
        f"knowledge?q={HOSTILE}",
        saved.json()["location"].removeprefix("/console/"),
        "agents",
        "sites",
    ):
        page = await admin.see(path)
        assert "onerror=alert(1)>" not in page and "<script>alert" not in page and "<b>" not in page, path


async def test_a_policy_is_changed_without_a_restart_and_comes_back_after_one(
    editor: Person, desk: DeskKnowledge, settings: Settings, database: Database, tmp_path: Path
) -> None:
    store, old = PolicyStore(settings), DEMO.read_text("utf-8")
    page = await editor.see("policy")
    assert desk.terms["en"].version[:12] in page and "[persona]" in page
    new = old.replace("Be polite, right and brief.", "Be polite, right and brief. Say <b>moo</b>.").replace(
        '{ en = ["bot"]', '{ en = ["robot"]'
    )
    stale = await editor.send("policy", content=new, edited="0" * 64)
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "outdated")

    async def saved(content: str) -> httpx.Response:
        return await editor.send("policy", content=content, edited=desk.terms["en"].version)

    wrong = await saved(new.replace("zh = 400", "zh = 4"))
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "bad_policy") and "line 12" in wrong.json()["error"]["message"]
    assert store.saved() == [] and desk.terms["en"].version == load_policy(DEMO)["en"].version
    assert (await saved(new)).status_code == 200
    assert "moo" in (await desk.preview("en", "Hello", desk.terms["en"])).system
    assert (await saved(new)).status_code == 200
    assert desk._shops["en"].greeting.count("I am a bot.") == 1
    assert load_policy(PolicyStore(settings).path)["en"].version == desk.terms["en"].version
    assert "&lt;b&gt;moo&lt;/b&gt;" in await editor.see("policy")
    assert (await saved(old)).status_code == 200 and len(store.saved()) == 2
    version = next(version for version, _ in store.saved() if version != desk.terms["en"].version)
    assert "moo" in await editor.see(f"policy?version={version}")
    assert (await editor.http.get(f"/console/policy?version={'0' * 64}", headers=HTML)).status_code == 404
    assert await deeds(database, tmp_path) == [("mei", "policy_saved")] * 3


async def test_a_file_in_the_settings_that_changes_later_is_in_force(settings: Settings, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_bytes(DEMO.read_bytes())
    store = PolicyStore(settings.model_copy(update={"desk": settings.desk.model_copy(update={"policy": mine})}))
    assert store.path == mine
    store.save(DEMO.read_text("utf-8") + "\r\n# saved\r\n")
    assert store.path != mine and store.path.read_text("utf-8").endswith("\n# saved\n")
    mine.write_bytes(DEMO.read_bytes() + b"\n# edited\n")
    assert store.path == mine


async def test_an_answer_is_checked_and_the_prompt_shown_under_the_text_on_the_page(editor: Person) -> None:
    content = DEMO.read_text("utf-8").replace("Be polite, right and brief.", "Be a cat.")
    answer = "Returns take 999 days. Then you should sue us. It is all fine."
    told = (await editor.send("policy/check", content=content, question="How long?", answer=answer)).json()
    assert "Be a cat." in told["system"] and "[1]" in told["system"]
    assert [(each["kind"], each["text"].strip()) for each in told["violations"]] == [
        ("number", "999 days"),
        ("must_not_say", "you should sue"),
    ]
    fine = (await editor.send("policy/check", content=content, question="多久？", answer="您好，请稍等。", language="zh")).json()
    assert fine["violations"] == [] and "静壶茶舍" in fine["system"]
    assert (await editor.send("policy/check", content="[persona]")).json()["error"]["code"] == "bad_policy"


async def test_the_test_set_is_put_to_the_model_line_by_line(editor: Person, chat: ScriptedChat) -> None:
    content = DEMO.read_text("utf-8").replace("Be polite, right and brief.", "Be a cat.")
    first = (await editor.send("policy/test", content=content, test=0)).json()
    assert first["faults"] == [] and first["answer"].startswith("I'm sorry") and first["total"] >= 60
    assert "Be a cat." in chat.streams[-1].job.messages[0].content and chat.streams[-1].is_closed
    chat.script = ("Sure, we will refund you.",)
    failed = (await editor.send("policy/test", content=content, test=0)).json()
    assert failed["faults"]


async def test_an_admin_lets_people_in_and_out(admin: Person, http: httpx.AsyncClient, database: Database, tmp_path: Path) -> None:
    added = (await admin.send("agents", name="Bo", role="agent", action="add")).json()
    assert "Bo" in await admin.see("agents")
    async with httpx.AsyncClient(transport=http._transport, base_url=http.base_url) as other:
        enter = lambda password: other.post("/console/sign_in", json={"name": "bo", "password": password})  # noqa: E731
        assert (await enter(added["password"])).status_code == 200
        assert (await admin.send("agents", name="bo", role="editor", action="role")).json() == {"location": "/console/agents"}
        assert (await Accounts(database).find("bo")).role == "editor"
        again = (await admin.send("agents", name="Bo", role="agent", action="password")).json()["password"]
        assert (await enter(added["password"])).status_code == 401 and (await enter(again)).status_code == 200
        assert (await admin.send("agents", name="Bo", role="agent", action="disable")).status_code == 200
        assert (await enter(again)).status_code == 401
        assert (await admin.send("agents", name="Bo", role="agent", action="enable")).status_code == 200
        assert (await enter(again)).status_code == 200
    for fields, code in [
        ({"name": " WEI", "role": "agent", "action": "role"}, "own_account"),
        ({"name": "Bo", "role": "agent", "action": "add"}, "bad_account"),
        ({"name": "nobody", "role": "agent", "action": "disable"}, "bad_account"),
        ({"name": "Bo", "role": "king", "action": "role"}, None),
    ]:
        refused = await admin.send("agents", **fields)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)
        assert "nobody" not in refused.text
    done = [action for actor, action in await deeds(database, tmp_path) if actor == "wei"]
    assert done == ["agent_enabled", "agent_disabled", "password_reset", "role_changed", "agent_added"]


async def test_sites_are_shown_with_the_code_to_copy_and_without_their_keys(admin: Person) -> None:
    page = html.unescape(await admin.see("sites"))
    assert '<script src="http://127.0.0.1/widget.js" data-site="shop" defer></script>' in page
    assert "https://shop.example" in page and "k1" in page and "s" * 32 not in page
    shown = re.findall(r"<code>(\[sites\.shop\].*?)</code>", page, re.DOTALL)[0]
    assert json.loads(re.findall(r"^title = (.*)$", shown, re.MULTILINE)[0]) == 'The "Shop" <b>'
