"""The composed application."""

import asyncio
import hashlib
from contextlib import closing
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from sqlalchemy import select

from backends.supervisor import Supervisor
from feedback.database import Database
from feedback.record import Conversation, Record, now_ms
from feedback.tables import conversation
from server.app import create_app, engine_options, make_upstream
from server.settings import EngineSettings, Settings, UpstreamSettings
from tests.server.conftest import calling
from tests.server.fakes import ByteTokenizer

ACCESS = {"public", "visitor", "key", "agent", "editor", "admin"}


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    settings = Settings(data_dir=tmp_path)
    return create_app(settings, Supervisor(engine_options(settings.engine)), ByteTokenizer).asgi


def _routes(app: FastAPI) -> list[APIRoute]:
    contexts = iter_route_contexts(app.routes)
    return [context.original_route for context in contexts if isinstance(context.original_route, APIRoute)]


def test_every_route_has_exactly_one_access_tag(app: FastAPI) -> None:
    tagged = {f"{sorted(route.methods)} {route.path}": ACCESS & {str(tag) for tag in route.tags} for route in _routes(app)}
    assert len(tagged) >= 12
    assert {name: tags for name, tags in tagged.items() if len(tags) != 1} == {}


@pytest.mark.anyio
async def test_routes_with_a_key_or_a_visitor_refuse_strangers(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, server={"api_keys": ("a" * 64,)})  # type: ignore[arg-type]
    app = create_app(settings, Supervisor(engine_options(settings.engine)), ByteTokenizer).asgi
    async with calling(app) as client:
        for route in _routes(app):
            path = route.path.replace(":path", "").replace("{", "").replace("}", "")
            for method in route.methods:
                reply = await client.request(method, path, json={})
                assert (reply.status_code == 401) == ("public" not in route.tags), (method, path)


@pytest.mark.anyio
async def test_before_the_model_is_loaded_it_lives_and_is_not_ready(app: FastAPI) -> None:
    async with calling(app) as client:
        assert (await client.get("/health/live")).status_code == 200
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "the model is loading")
        refused = await client.get("/v1/models")
        assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (503, "engine_down", "5")


def test_the_engine_is_told_what_was_set() -> None:
    options = engine_options(EngineSettings(model=Path("a/b.gguf"), threads=3, num_kv_tokens=9, kv_type="q8_0"))
    assert (options.path, options.name, options.threads, options.num_kv_tokens, options.kv_type) == ("a/b.gguf", "b", 3, 9, "q8_0")
    assert engine_options(EngineSettings()).name == "kefu-mini"


@pytest.mark.anyio
async def test_what_is_over_and_who_was_erased_is_gone_soon_after_the_start(tmp_path: Path) -> None:
    with closing(Database.in_folder(tmp_path)) as database:
        for visitor_id, at_ms in (("vis_old", 1), ("vis_back", now_ms()), ("vis_new", now_ms())):
            await Record(database).add_conversation(Conversation(f"conv_{visitor_id}", visitor_id, "en", created_at_ms=at_ms))
    erased = hashlib.sha256(b"vis_back").hexdigest()
    (tmp_path / "erased.visitors").write_text(f"{now_ms() + 1000} {erased}\n")
    settings = Settings(data_dir=tmp_path, upstream=UpstreamSettings(base_url="http://127.0.0.1:9/v1"))
    app = create_app(settings, make_upstream(settings.upstream), None).asgi
    with closing(Database.in_folder(tmp_path)) as database:
        async with app.router.lifespan_context(app), asyncio.timeout(20):
            while len(left := await database.read(lambda connection: connection.execute(select(conversation.c.id)).scalars().all())) > 1:
                await asyncio.sleep(0.01)
    assert left == ["conv_vis_new"]
