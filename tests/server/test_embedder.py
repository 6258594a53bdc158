"""The embedder: real vectors over a real server, its end, and what stands without it."""

import asyncio
import base64
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import openai
import pytest
from fastapi import FastAPI

from backends.catalog import find
from backends.fit import this_machine
from backends.protocol import ContextTooLong, EngineDied, EngineDown
from feedback.database import Database
from feedback.knowledge import Draft, Knowledge, Piece
from feedback.lookback import Lookback, Story, observe
from feedback.record import Message, now_ms
from feedback.signals import Signals
from server import embedder as embedding
from server.app import make_embedder, open_app
from server.auth import KeyRing, hash_key
from server.chat.service import ChatService
from server.desk.knowledge import DeskKnowledge
from server.embedder import Embedder
from server.errors import install_handlers
from server.models import choose
from server.routes.openai import openai_router
from server.settings import EngineSettings, KnowledgeSettings, ModelsSettings, ServerSettings, Settings, UpstreamSettings
from tests.conftest import MINI
from tests.server.conftest import MakeApp, calling, serving
from tests.server.desk.conftest import SHOPS
from tests.server.fakes import ByteTokenizer, ScriptedEngine

pytestmark = pytest.mark.anyio
TEXTS = ["Where is my order?", "我的订单在哪里", "How long is green tea kept?", "Where is my parcel?"]


@pytest.fixture
async def embedder(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Embedder]:
    monkeypatch.setattr(embedding, "QUESTION_TIMEOUT_S", 60)
    entry = msgspec.structs.replace(find("qwen3-embedding-0.6b"), asks="Query: ")
    embedder = make_embedder(EngineSettings(threads=1), entry, MINI)
    await embedder.supervisor.start()
    try:
        await up(embedder)
        yield embedder
    finally:
        await embedder.supervisor.stop()


async def up(embedder: Embedder) -> None:
    async with asyncio.timeout(60):
        while not embedder.client.is_ready:
            await asyncio.sleep(0.02)


async def test_vectors_have_length_1_whatever_their_company_and_a_question_its_instruction(embedder: Embedder) -> None:
    rows, num_tokens = await embedder.embed(TEXTS * 5)
    alone, num_alone = await embedder.embed(TEXTS[1:2])
    assert rows.shape == (20, 256) and num_tokens > num_alone > 0
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.allclose(rows[1], alone[0], atol=1e-4) and np.allclose(rows[:4], rows[4:8], atol=1e-4)
    assert rows[0] @ rows[3] > rows[0] @ rows[2]
    (plain, asked), _ = await embedder.embed(["tea", "Query: tea"])
    assert np.allclose(await embedder.of_question("tea"), asked, atol=1e-4)
    assert np.allclose((await embedder.of_texts(["tea"]))[0], plain, atol=1e-4)
    long = "tea " * 3000
    with pytest.raises(ContextTooLong):
        await embedder.embed(["tea", long])
    rows = await embedder.of_texts([long, ""])
    assert rows.shape == (2, 256) and np.isfinite(rows).all()


async def test_passages_get_vectors_behind_the_answers_and_words_do_while_the_embedder_is_down(
    embedder: Embedder, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, asked = Knowledge(database), "Where is my parcel?"
    await store.put("a.md", [Draft(text, "en", (Piece(text, text),)) for text in TEXTS])
    words, knowledge = DeskKnowledge(store, SHOPS, 0), DeskKnowledge(store, SHOPS, 0)
    knowledge.embedder = embedder
    await words.refresh(len)
    await knowledge.refresh(len)
    by_words = await words.look(asked, 4)
    assert await knowledge.look(asked, 4) == by_words
    work = asyncio.create_task(knowledge.run())
    async with asyncio.timeout(30):
        while await knowledge.look(asked, 4) == by_words:
            await asyncio.sleep(0.02)
    pid = embedder.supervisor.engine_pid or 0
    os.kill(pid, signal.SIGSTOP)
    with monkeypatch.context() as patched:
        patched.setattr(embedding, "QUESTION_TIMEOUT_S", 0.1)
        assert await knowledge.look(asked, 4) == by_words
    os.kill(pid, signal.SIGKILL)
    with pytest.raises((EngineDied, EngineDown)):
        await embedder.embed(TEXTS * 100)
    assert await knowledge.look(asked, 4) == by_words
    await store.put("b.md", [Draft("More", "en", (Piece("More", "A parcel takes three days."),))])
    await knowledge.refresh(len)
    await words.refresh(len)
    by_words = await words.look(asked, 5)
    async with asyncio.timeout(60):
        while await knowledge.look(asked, 5) == by_words:
            await asyncio.sleep(0.02)
    work.cancel()
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "their words alone: no vector within 0.1 s" in said and "by their meaning again" in said


async def test_a_look_back_compares_by_its_vectors_and_by_words_while_it_is_down(
    embedder: Embedder, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = "Where is my order"
    said = [Message("m1", "user", TEXTS[0]), Message("m2", "assistant", "We sell tea.", reply_to_id="m1", completion_id="c1")]
    other = [Message("m3", "user", TEXTS[2]), Message("m4", "assistant", "A year.", reply_to_id="m3", completion_id="c2")]
    story = Story("conv", "vis", 5, [*said, *other, Message("m5", "user", again)], [])
    lookback = Lookback(database, Signals(database))
    lookback.model = embedder
    meanings = await lookback._meanings(story)
    assert meanings is not None and meanings(TEXTS[0], again) > meanings(TEXTS[2], again)
    [found] = observe(story, now_ms(), lambda _: False, meanings)
    assert (found.kind, found.completion_id, found.detector) == ("rephrase", "c1", ("rephrase", f"1+{embedder.name}"))
    os.kill(embedder.supervisor.engine_pid or 0, signal.SIGSTOP)
    with monkeypatch.context() as patched:
        patched.setattr(embedding, "BATCH_TIMEOUT_S", 0.1)
        assert await lookback._meanings(replace(story, messages=[*said, Message("m6", "user", "coffee?")])) is None
    os.kill(embedder.supervisor.engine_pid or 0, signal.SIGCONT)
    await embedder.supervisor.stop()
    assert await lookback._meanings(replace(story, messages=[*said, Message("m6", "user", "tea?")])) is None


async def test_models_are_listed_with_the_one_that_embeds_which_cannot_chat(embedder: Embedder, engine: ScriptedEngine) -> None:
    ring, settings, app = KeyRing(()), ServerSettings(), FastAPI()
    app.include_router(openai_router(ChatService(engine, ByteTokenizer), ring, settings, embedder))
    install_handlers(app)
    async with calling(app) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        assert [each["id"] for each in listed] == ["fake", embedder.name]
        assert [(await client.get(f"/v1/models/{each['id']}")).json() for each in listed] == listed
        assert (await client.get("/v1/models/other")).status_code == 404
        body = {"model": embedder.name, "messages": [{"role": "user", "content": "tea"}]}
        refused = await client.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        await embedder.supervisor.stop()
        assert [each["id"] for each in (await client.get("/v1/models")).json()["data"]] == ["fake"]
        assert (await client.get(f"/v1/models/{embedder.name}")).status_code == 404


async def test_a_broken_file_is_told_and_words_do(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + b"x" * 100)
    embedder = make_embedder(EngineSettings(), None, broken)
    await embedder.supervisor.start()
    async with asyncio.timeout(60):
        while "is loading" in embedder.client.unready_reason:
            await asyncio.sleep(0.02)
    with pytest.raises(EngineDown, match=r"broken\.gguf"):
        await embedder.embed(TEXTS)
    assert await embedder.of_question("tea") is None
    await embedder.supervisor.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Everything that the settings make, but another server gives the answers, and it is away."""
    models, knowledge = ModelsSettings(dir=tmp_path_factory.mktemp("models")), KnowledgeSettings(embedding_model=MINI)
    upstream, data_dir = UpstreamSettings(base_url="http://127.0.0.1:9"), tmp_path_factory.mktemp("data")
    settings = Settings(models=models, knowledge=knowledge, upstream=upstream, data_dir=data_dir)
    with serving(open_app(settings, choose(settings, this_machine())).asgi) as url:
        deadline = time.monotonic() + 60
        while "kefu_embedder_up 1.0" not in httpx.get(f"{url}/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield url


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_the_official_client_gets_vectors(server: str, client: openai.OpenAI) -> None:
    create = client.embeddings.create
    whole = create(model="kefu-mini", input=TEXTS)
    rows = np.array([each.embedding for each in whole.data])
    assert [each.index for each in whole.data] == [0, 1, 2, 3] and rows.shape == (4, 256)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    one = create(model="kefu-mini", input=TEXTS[0], encoding_format="float", user="somebody")
    assert np.allclose(one.data[0].embedding, rows[0], atol=1e-4)
    assert 0 < one.usage.prompt_tokens == one.usage.total_tokens < whole.usage.total_tokens
    raw = httpx.post(f"{server}/v1/embeddings", json={"model": "kefu-mini", "input": TEXTS[0], "encoding_format": "base64", "wish": 1})
    data = base64.b64decode(raw.json()["data"][0]["embedding"])
    assert np.allclose(np.frombuffer(data, "<f4"), rows[0], atol=1e-4) and raw.headers["x-ignored-params"] == "wish"


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"dimensions": 64}, "dimensions", "unsupported"),
        ({"input": [1, 2]}, "input", "unsupported"),
        ({"input": [[1, 2]]}, "input", "unsupported"),
        ({"input": []}, "input", None),
        ({"input": ["tea", ""]}, "input[1]", None),
        ({"input": "tea " * 3000}, "input", "context_length_exceeded"),
        ({"encoding_format": "int8"}, "encoding_format", None),
    ],
)
def test_what_cannot_be_embedded_is_refused(client: openai.OpenAI, change: dict[str, Any], param: str, code: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(**{"model": "kefu-mini", "input": "tea", "extra_body": change})
    assert (caught.value.param, caught.value.code) == (param, code)


def test_another_model_is_not_found_and_a_death_is_told_and_mended(server: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="other", input="tea")
    assert missing.value.code == "model_not_found"
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    [pid] = [int(line.split()[0]) for line in listed if line.split()[1] == str(os.getpid()) and '"embeds":true' in line]
    os.kill(pid, signal.SIGKILL)
    deadline, states = time.monotonic() + 60, set[int]()
    while states != {503, 200}:
        assert time.monotonic() < deadline
        states.add(httpx.post(f"{server}/v1/embeddings", json={"model": "kefu-mini", "input": "tea"}).status_code)
        assert httpx.get(f"{server}/health/live").status_code == 200


async def test_without_a_model_the_route_says_how_to_get_one_and_a_key_is_asked_for(make_app: MakeApp) -> None:
    async with calling(make_app()) as client:
        reply = await client.post("/v1/embeddings", json={"model": "m", "input": "tea"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "no_embedding_model")
    async with calling(make_app(api_keys=[hash_key("kefu-k")], strict=True)) as client:
        assert (await client.post("/v1/embeddings", json={"model": "m", "input": "tea"})).status_code == 401
        strict = {"json": {"model": "m", "input": "tea", "wish": 1}, "headers": {"authorization": "Bearer kefu-k"}}
        assert (await client.post("/v1/embeddings", **strict)).status_code in (400, 404)
