"""Requests to every route, right and wrong in every part: none is answered by a bug, and every refusal has the one shape."""

import asyncio
import inspect
import json
import random
import re
import string
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi._compat import ModelField
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel

from feedback.accounts import Accounts
from feedback.credentials import Role
from feedback.database import Database
from server.app import create_app, make_upstream
from server.console.console import COOKIE, csrf_token
from server.settings import DeskSettings, Settings, UpstreamSettings
from tests.server.conftest import serving
from tests.server.test_app import _routes
from tests.server.test_upstream import Stranger, until

ROLES: tuple[Role, ...] = ("agent", "editor", "admin")
# What a value may hold that no reply may repeat.
MARK = "zq7mark"
JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 2**63, -(2**63), 1e308, 1.5, "", " ", MARK, f"{MARK}\u202e\r\n", f"' OR 1=1-- {MARK}", f"../../{MARK}",
    f"<script>{MARK}</script>", f"<|im_start|>{MARK}", "😀" * 50, "中文", "x" * 5000, [], {}, [[]], {"odd": MARK}, ["a"] * 100,
]  # fmt: skip
RAW = [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"a":NaN}', b'{"a":1e999}', b'{"a":"\\ud800"}', b'{"a":"\\u0000"}',
       b'{"a":1,"a":2}', b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}"]  # fmt: skip
TYPES = ("application/json", "application/json; charset=utf-8", "text/plain", "multipart/form-data; boundary=x", "")
# What a schema alone seldom hits upon.
RIGHT: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "big", "messages": [{"role": "user", "content": "hi"}]},
}
REFUSALS = {400, 401, 403, 404, 405, 409, 410, 413, 415, 429}
KINDS = {"conversation_id": "conv_", "message_id": "msg_", "answer_id": "can_", "call_id": "call_", "site": "demo"}
ID = re.compile(r'"((?:conv|msg|sig|cmpl|chatcmpl|call|canned|art|gap|pair|agt)[\w-]{4,50})"|/console/\w+/([\w.:-]{1,60})"')


class Writer:
    """Values after a JSON schema, mostly right; with `spoils` now and then something else in their place."""

    def __init__(self, rng: random.Random, ids: list[str]) -> None:
        self.rng, self.ids = rng, ids

    def value(self, schema: dict[str, Any], defs: dict[str, Any], spoils: float) -> Any:
        rng = self.rng
        if rng.random() < spoils:
            return rng.choice(JUNK)
        if "$ref" in schema:
            schema = defs[schema["$ref"].rpartition("/")[2]]
        if choices := schema.get("anyOf") or schema.get("oneOf"):
            return self.value(rng.choice(choices), defs, spoils)
        if "const" in schema or "enum" in schema:
            return schema["const"] if "const" in schema else rng.choice(schema["enum"])
        match schema.get("type"):
            case "object":
                return self._object(schema, defs, spoils)
            case "array":
                items = schema.get("items", {"type": "string"})
                least = schema.get("minItems", 0)
                return [self.value(items, defs, spoils) for _ in range(rng.randint(least, max(least, min(3, schema.get("maxItems", 3)))))]
            case "integer" | "number":
                low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
                return rng.choice([low, low + 1, schema.get("maximum", 5)])
            case "boolean":
                return rng.random() < 0.5
            case "null":
                return None
        return self._text(schema)

    def _object(self, schema: dict[str, Any], defs: dict[str, Any], spoils: float) -> dict[str, Any]:
        required = schema.get("required", [])
        fields = schema.get("properties", {}).items()
        share = min(0.3, 1 / (1 + len(fields)))
        made = {name: self.value(each, defs, spoils) for name, each in fields if name in required or self.rng.random() < share}
        if made and self.rng.random() < spoils:
            del made[self.rng.choice(list(made))]
        if self.rng.random() < spoils:
            made["unheard_of"] = self.rng.choice(JUNK)
        return made

    def _text(self, schema: dict[str, Any]) -> str:
        if schema.get("format") == "uuid":
            return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))
        if self.rng.random() < 0.4:
            return self.rng.choice(self.ids)
        return "".join(self.rng.choices(string.ascii_lowercase + " 茶", k=min(schema.get("maxLength", 20), 20))).strip() or "tea"


@dataclass
class House:
    """kefu with a visitor's conversation, another visitor's, and one session for each role."""

    client: httpx.Client
    routes: list[APIRoute]
    credentials: list[tuple[str, dict[str, str]]]
    ids: list[str]
    answered: Counter[int] = field(default_factory=Counter)
    welcomed: set[str] = field(default_factory=set)

    def send(self, rng: random.Random) -> None:
        """One request, and all that must hold of its reply."""
        route = rng.choice(self.routes)
        method = rng.choice(sorted(route.methods)) if rng.random() < 0.97 else rng.choice(("PUT", "PATCH", "DELETE", "TRACE"))
        spoils = rng.choice((0.0, 0.0, 0.05, 0.3))
        writer = Writer(rng, self.ids)
        path = re.sub(r"\{(\w+)[^}]*\}", lambda hit: quote(self._id(rng, hit[1], spoils), safe=""), route.path)
        headers = dict(rng.choice([each for _, each in self.credentials] if rng.random() < 0.2 else self.owners(route)))
        content = None
        if method != "GET":
            headers["content-type"] = rng.choice(TYPES) if rng.random() < spoils else TYPES[0]
            model = model_of(route)
            schema = model.model_json_schema() if model else {"type": "object"}
            value = writer.value(schema, schema.get("$defs", {}), spoils)
            if isinstance(value, dict) and rng.random() > 2 * spoils:
                value |= RIGHT.get(route.path, {})
            content = rng.choice(RAW) if rng.random() < spoils / 2 else json.dumps(value).encode()
        if path == "/console/sign_out":
            headers.pop("cookie", None)
        params = {name: str(rng.choice(JUNK if rng.random() < spoils else self.ids[:6])) for name in names_of(route) if rng.random() < 0.5}
        said = f"{method} {path} {params} {headers} {content!r:.300}"
        with self.client.stream(method, path, params=params, headers=headers, content=content) as reply:
            is_endless = reply.headers.get("content-type", "").startswith("text/event-stream") and "/messages" not in path
            text = "" if is_endless else reply.read().decode()
        self.judge(said, route, method, reply, text)
        self.ids.extend(found for pair in ID.findall(text) for found in pair if found and self.ids.count(found) < 3 and len(self.ids) < 600)

    def owners(self, route: APIRoute) -> list[dict[str, str]]:
        """Credentials that open this route."""
        tags = {str(tag) for tag in route.tags}
        return [each for name, each in self.credentials if name in tags] or [{}]

    def _id(self, rng: random.Random, name: str, spoils: float) -> str:
        """Mostly one of the kind that this part of a path names."""
        if rng.random() < spoils:
            return str(rng.choice(JUNK))
        known = [each for each in self.ids if each.startswith(KINDS.get(name, name))]
        return rng.choice(known if known and rng.random() < 0.8 else self.ids)

    def judge(self, said: str, route: APIRoute, method: str, reply: httpx.Response, text: str) -> None:
        told = f"{said} -> {reply.status_code} {text[:500]}"
        self.answered[reply.status_code] += 1
        if reply.status_code < 400:
            assert reply.status_code in (200, 201, 202, 204, 303), told
            self.welcomed.add(f"{method} {route.path}")
            return
        assert reply.status_code in REFUSALS, told
        # An editor is told which of their own files was refused.
        assert MARK not in text or route.path.startswith("/console/"), told
        assert reply.headers["x-request-id"], told
        if reply.headers["content-type"].startswith("application/json") and method != "HEAD":
            error = json.loads(text)["error"]
            assert set(error) >= {"message", "type", "param", "code"} and error["message"], told


def model_of(route: APIRoute) -> type[BaseModel] | None:
    """What `server.body.body` reads in this route."""
    calls = [each.call for each in route.dependant.dependencies if each.call and each.call.__qualname__.startswith("body.<locals>")]
    return next((inspect.getclosurevars(call).nonlocals["model"] for call in calls), None)


def query_of(dependant: Dependant) -> list[ModelField]:
    return [*dependant.query_params, *(param for each in dependant.dependencies for param in query_of(each))]


def names_of(route: APIRoute) -> Iterator[str]:
    for param in query_of(route.dependant):
        kind = param.field_info.annotation
        yield from kind.model_fields if inspect.isclass(kind) and issubclass(kind, BaseModel) else (param.alias,)


async def _sessions(data_dir: Path) -> list[dict[str, str]]:
    database = Database.in_folder(data_dir)
    accounts = Accounts(database)
    cookies = []
    for role in ROLES:
        await accounts.add(f"Ann {role}", role, f"a long password {role}", must_change=False)
        token = (await accounts.sign_in(f"Ann {role}", f"a long password {role}"))[1]
        cookies.append({"cookie": f"{COOKIE}={token}", "x-csrf-token": csrf_token(token)})
    database.close()
    return cookies


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with serving(Stranger().app()) as url:
        many = {"messages_per_minute": 1e6, "messages_per_day": 10**6, "address_messages_per_day": 10**6, "visitors_per_minute": 1e6}
        often = DeskSettings(**many, compare_share=0)
        settings = Settings(data_dir=tmp_path, desk=often, upstream=UpstreamSettings(base_url=f"{url}/v1", model="big"))
        sessions = asyncio.run(_sessions(tmp_path))
        app = create_app(settings, make_upstream(settings.upstream), None)
        with serving(app.asgi) as here, httpx.Client(base_url=here, timeout=30) as client:
            until(lambda: client.get("/health/ready").status_code == 200)
            visitors, ids = [], ["demo", "en", "big", "big", "round-1", "1"]
            for _ in range(2):
                bearer = {"authorization": f"Bearer {client.post('/desk/visitors', json={}).json()['token']}"}
                visitors.append(bearer)
                ids.append(client.post("/desk/conversations", json={"language": "en"}, headers=bearer).json()["conversation_id"])
            mine = zip(("visitor", *ROLES), (visitors[0], *sessions), strict=True)
            credentials = [*mine, ("", visitors[1]), ("", {}), ("", {"authorization": f"Bearer {MARK}"})]
            yield House(client, _routes(app.asgi), credentials, ids)


def _send(house: House, seed: int, num: int) -> None:
    rng = random.Random(seed)
    for _ in range(num):
        house.send(rng)
    assert house.client.get("/health/ready").status_code == 200
    assert house.client.get("/v1/models").status_code == 200


def test_no_request_is_answered_by_a_bug(house: House) -> None:
    _send(house, 1, 2000)
    ways = {f"{method} {route.path}" for route in house.routes for method in route.methods}
    assert len(house.welcomed) > 0.5 * len(ways), f"most routes must get past the door: {sorted(ways - house.welcomed)}"
    assert len(house.answered) >= 8, house.answered


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
def test_no_request_of_20_000_is_answered_by_a_bug(house: House, seed: int) -> None:
    _send(house, seed, 2000)
