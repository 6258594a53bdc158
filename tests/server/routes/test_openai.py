"""`/v1` over a scripted engine: shapes, refusals, and every way a stream can end."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from backends.protocol import EngineBusy, EngineDown, NoMemory
from backends.sequence import FinishReason
from server.auth import new_key
from server.errors import STATUS
from tests.server.conftest import MakeApp, calling, serving
from tests.server.fakes import ScriptedEngine, tokens

ASK = {"model": "fake", "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]}
SAID = "hm\n</think>\n\nHé 😀"
pytestmark = pytest.mark.anyio


def _events(text: str) -> list[Any]:
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def _joined(chunks: list[Any], name: str) -> str:
    return "".join(chunk["choices"][0]["delta"].get(name) or "" for chunk in chunks if chunk["choices"])


async def test_a_whole_answer(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.script = tokens(SAID)
    reply = (await client.post("/v1/chat/completions", json=ASK)).json()
    assert reply["id"].startswith("chatcmpl-")
    assert (reply["object"], reply["model"], type(reply["created"])) == ("chat.completion", "fake", int)
    choice = reply["choices"][0]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    assert choice["message"] == {"role": "assistant", "content": "Hé 😀", "refusal": None, "reasoning_content": "hm\n", "reasoning": "hm\n"}
    usage = reply["usage"]
    assert usage["prompt_tokens"] == len(engine.prompts[0])
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    assert (usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens_details"]["reasoning_tokens"]) == (3, 4)


@pytest.mark.parametrize("per_batch", [1, 4, 100])
async def test_a_stream_says_the_same_in_pieces(client: httpx.AsyncClient, engine: ScriptedEngine, per_batch: int) -> None:
    engine.script = tokens(SAID, per_batch=per_batch)
    whole = (await client.post("/v1/chat/completions", json=ASK)).json()
    reply = await client.post("/v1/chat/completions", json=ASK | {"stream": True, "stream_options": {"include_usage": True}})
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, done = _events(reply.text)
    assert done == "[DONE]"
    assert {(c["id"], c["created"], c["model"], c["object"]) for c in chunks} == {
        (chunks[0]["id"], chunks[0]["created"], "fake", "chat.completion.chunk")
    }
    message = whole["choices"][0]["message"]
    assert (_joined(chunks, "content"), _joined(chunks, "reasoning_content")) == (message["content"], message["reasoning_content"])
    assert _joined(chunks, "reasoning") == message["reasoning"]
    assert [i for i, c in enumerate(chunks) if c["choices"] and "role" in c["choices"][0]["delta"]] == [0]
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    assert all(c["usage"] is None for c in chunks[:-1])
    assert not any("think>" in c["choices"][0]["delta"].get("content", "") for c in chunks[:-1])


@pytest.mark.parametrize("options", [{}, {"stream_options": None}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}])
async def test_usage_is_streamed_only_when_asked_for(client: httpx.AsyncClient, engine: ScriptedEngine, options: dict[str, Any]) -> None:
    engine.script = tokens(SAID)
    chunks = _events((await client.post("/v1/chat/completions", json=ASK | {"stream": True} | options)).text)[:-1]
    assert all("usage" not in chunk for chunk in chunks)


async def test_logprobs_come_with_their_text(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.script = tokens(SAID, per_batch=2)
    whole = (await client.post("/v1/chat/completions", json=ASK | {"logprobs": True})).json()["choices"][0]
    chunks = _events((await client.post("/v1/chat/completions", json=ASK | {"logprobs": True, "stream": True})).text)[:-1]
    streamed = [entry for c in chunks if (found := c["choices"][0]["logprobs"]) for entry in found["content"]]
    assert streamed == whole["logprobs"]["content"]
    assert bytes(byte for entry in streamed for byte in entry["bytes"]).decode() == whole["message"]["content"]


async def test_a_text_completion_has_its_own_shape(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.script = tokens("a 😀", finish=FinishReason.LENGTH)
    ask = {"model": "fake", "prompt": "Once"}
    whole = (await client.post("/v1/completions", json=ask)).json()
    assert (whole["object"], whole["choices"]) == (
        "text_completion",
        [{"index": 0, "text": "a 😀", "finish_reason": "length", "logprobs": None}],
    )
    *chunks, done = _events((await client.post("/v1/completions", json=ask | {"stream": True})).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "a 😀"
    assert (done, chunks[-1]["choices"][0]["finish_reason"]) == ("[DONE]", "length")


async def test_after_an_answer_the_next_turn_is_warmed(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.script = tokens(SAID)
    for stream in (False, True):
        await client.post("/v1/chat/completions", json=ASK | {"stream": stream, "user": "ann"})
    await asyncio.sleep(0)
    assert len(engine.warmed) == 2
    assert {scope.private for _, scope in engine.warmed} == {engine.submitted[0].scope.private}  # type: ignore[union-attr]


async def test_the_cache_is_private_to_key_and_user(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.script = tokens(SAID)
    for extra in ({}, {"user": "ann"}, {"user": "bob"}, {"prompt_cache_key": "ann"}, {"safety_identifier": "ann"}):
        await client.post("/v1/chat/completions", json=ASK | extra)
    assert len({tokens.scope.private for tokens in engine.submitted if tokens.scope}) == 5


# -- refusals ----------------------------------------------------------------------------------------------------------


def _check_error(reply: httpx.Response, status: int, code: str | None, param: str | None = None) -> None:
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_come_before_the_first_byte(client: httpx.AsyncClient, engine: ScriptedEngine, stream: bool) -> None:
    async def ask(**fields: object) -> httpx.Response:
        return await client.post("/v1/chat/completions", json=ASK | {"stream": stream} | fields)

    _check_error(await ask(model="other"), 404, "model_not_found", "model")
    _check_error(await ask(temperature=3), 400, None, "temperature")
    _check_error(await ask(functions=[{}]), 400, "unsupported", "functions")
    _check_error(await ask(max_tokens=4096), 400, "context_length_exceeded", "max_tokens")
    engine.refusal = EngineBusy(7)
    reply = await ask()
    _check_error(reply, 503, "queue_full")
    assert (reply.headers["retry-after"], reply.headers["x-ratelimit-remaining-requests"]) == ("7", "0")
    engine.refusal = EngineDown("starting again", 10)
    _check_error(await ask(), 503, "engine_down")
    assert engine.open == []


async def test_paths_methods_and_types(client: httpx.AsyncClient) -> None:
    _check_error(await client.get("/v1/nothing"), 404, "not_found")
    reply = await client.get("/v1/chat/completions")
    _check_error(reply, 405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"
    for headers in ({"content-type": "text/plain"}, {"content-type": "multipart/form-data; boundary=x"}, {}):
        _check_error(await client.post("/v1/chat/completions", content=json.dumps(ASK), headers=headers), 415, "not_json")
    for content in ("", "{", "[]", "null", '"x"', '{"model":NaN}'):
        reply = await client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
        _check_error(reply, 400, None)


async def test_keys(make_app: MakeApp, engine: ScriptedEngine) -> None:
    key, key_hash = new_key()
    engine.script = tokens(SAID)
    async with calling(make_app(api_keys=(key_hash,))) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "' OR 1=1--"}, {"authorization": b"Bearer \xff\xfe"}):
            reply = await client.post("/v1/chat/completions", json=ASK, headers=headers)
            _check_error(reply, 401, "invalid_api_key")
            assert reply.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.post("/v1/chat/completions", json=ASK, headers={"authorization": f"Bearer {key}"})).status_code == 200


async def test_ignored_fields_are_named_or_in_strict_mode_refused(make_app: MakeApp, engine: ScriptedEngine) -> None:
    engine.script = tokens(SAID)
    odd = ASK | {"service_tier": "auto", "a\r\nb": 1}
    async with calling(make_app()) as client:
        reply = await client.post("/v1/chat/completions", json=odd)
        assert (reply.status_code, reply.headers["x-ignored-params"]) == (200, "a%0D%0Ab, service_tier")
    async with calling(make_app(strict=True)) as client:
        _check_error(await client.post("/v1/chat/completions", json=ASK | {"mystery": 1}), 400, "unknown_field", "mystery")
        assert (await client.post("/v1/chat/completions", json=ASK | {"service_tier": "auto"})).status_code == 200


async def test_one_key_has_so_many_requests_at_once(make_app: MakeApp, engine: ScriptedEngine) -> None:
    async with calling(make_app(max_in_flight=1)) as client:
        first = asyncio.create_task(client.post("/v1/chat/completions", json=ASK))
        while not engine.open:
            await asyncio.sleep(0.001)
        reply = await client.post("/v1/chat/completions", json=ASK)
        _check_error(reply, 429, "rate_limit_exceeded")
        assert reply.headers["retry-after"] == "1"
        for batch in tokens(SAID):
            engine.submitted[0].push(*batch)
        assert (await first).status_code == 200
        engine.script = tokens(SAID)
        assert (await client.post("/v1/chat/completions", json=ASK)).status_code == 200


async def test_models(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert (await client.get("/v1/models/fake")).json() == listed["data"][0]
    assert listed["data"][0]["max_model_len"] == engine.spec.context_length
    _check_error(await client.get("/v1/models/some/other"), 404, "model_not_found", "model")


def test_every_refusal_has_a_row_and_the_most_specific_one_wins() -> None:
    assert all(400 <= row.status < 600 for row in STATUS.values())
    assert STATUS[EngineBusy].status == 503


# -- how streams end ---------------------------------------------------------------------------------------------------


async def test_an_engine_that_dies_ends_the_stream_with_an_error_and_no_done(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    ask = asyncio.create_task(client.post("/v1/chat/completions", json=ASK | {"stream": True}))
    whole = asyncio.create_task(client.post("/v1/chat/completions", json=ASK))
    while len(engine.open) < 2:
        await asyncio.sleep(0.001)
    for opened in engine.submitted:
        for batch in tokens("hm</think>ok", finish=None):
            opened.push(*batch)
        opened.die()
    *chunks, last = _events((await ask).text)
    assert _joined(chunks, "content") == "ok"
    assert last["error"]["code"] == "engine_died"
    _check_error(await whole, 503, "engine_died")
    engine.script = tokens(SAID)
    assert (await client.post("/v1/chat/completions", json=ASK)).status_code == 200


async def test_a_request_that_memory_cannot_hold_is_a_503_that_says_when_to_come_back(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    async def refuse() -> None:
        while not engine.submitted:
            await asyncio.sleep(0.01)
        engine.submitted[0].die(NoMemory("no room"))

    reply, _ = await asyncio.gather(client.post("/v1/chat/completions", json=ASK), refuse())
    assert (reply.status_code, reply.json()["error"]["code"], reply.headers["retry-after"]) == (503, "out_of_memory", "10")


async def test_cancel_by_id_ends_the_stream_and_only_its_owner_can(make_app: MakeApp, engine: ScriptedEngine) -> None:
    (mine, mine_hash), (other, other_hash) = new_key(), new_key()
    with serving(make_app(api_keys=(mine_hash, other_hash))) as url:
        headers = {"authorization": f"Bearer {mine}"}
        async with httpx.AsyncClient(base_url=url, headers=headers) as client:
            async with client.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True}) as reply:
                lines = reply.aiter_lines()
                completion_id = json.loads((await anext(lines))[6:])["id"]
                path = f"/v1/chat/completions/{completion_id}/cancel"
                assert (await client.post(path, headers={"authorization": f"Bearer {other}"})).status_code == 404
                assert (await client.post(path)).status_code == 200
                rest = [line async for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert (await client.post(path)).status_code == 404
            assert engine.open == []


async def test_answer_now_closes_the_thought_of_an_open_completion(make_app: MakeApp, engine: ScriptedEngine) -> None:
    with serving(make_app()) as url:
        async with (
            httpx.AsyncClient(base_url=url) as client,
            client.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True}) as reply,
        ):
            lines = reply.aiter_lines()
            completion_id = json.loads((await anext(lines))[6:])["id"]
            path = f"/v1/chat/completions/{completion_id}/control"
            done = await client.post(path, json={"action": "answer_now"})
            assert (done.status_code, done.json()) == (200, {"id": completion_id, "action": "answer_now"})
            assert engine.submitted[0].num_closes == 1
            for body in ({"action": "sing"}, {}, {"action": "answer_now", "more": 1}):
                assert (await client.post(path, json=body)).status_code == 400
            assert (await client.post("/v1/chat/completions/other/control", json={"action": "answer_now"})).status_code == 404


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_ends_without_a_word_is_no_success(client: httpx.AsyncClient, engine: ScriptedEngine, stream: bool) -> None:
    engine.script = tokens("hm</think>\n\n")
    reply = await client.post("/v1/chat/completions", json=ASK | {"stream": stream})
    assert '"code":"empty_answer"' in reply.text
    assert "[DONE]" not in reply.text
    assert reply.status_code == (200 if stream else 502)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("said", ["", "hm", "hm</think>ok"], ids=["queued", "thinking", "answering"])
async def test_hanging_up_frees_the_engine_within_a_second(make_app: MakeApp, engine: ScriptedEngine, stream: bool, said: str) -> None:
    engine.script = tokens(said, finish=None) if said else []
    with serving(make_app()) as url:
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps(ASK | {"stream": stream}).encode()
        head = f"host: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\n" + head.encode() + body)
        while not engine.open:
            await asyncio.sleep(0.005)
        writer.close()
        began = time.monotonic()
        while engine.open:
            await asyncio.sleep(0.005)
            assert time.monotonic() - began < 1
        assert engine.submitted[0].num_aborts == 1


async def test_metrics_count_what_usage_told(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.script = tokens(SAID)
    usages = [(await client.post("/v1/chat/completions", json=ASK)).json()["usage"] for _ in range(3)]
    await client.post("/v1/chat/completions", json=ASK | {"temperature": 9})
    await client.get("/v1/" + "x" * 50)
    told = {line.split(" ")[0]: float(line.split(" ")[1]) for line in (await client.get("/metrics")).text.splitlines() if line[0] != "#"}
    assert told["kefu_prompt_tokens_total"] == sum(usage["prompt_tokens"] for usage in usages)
    assert told["kefu_completion_tokens_total"] == sum(usage["completion_tokens"] for usage in usages)
    assert told["kefu_reasoning_tokens_total"] == 3 * usages[0]["completion_tokens_details"]["reasoning_tokens"]
    assert told['kefu_requests_total{method="POST",route="/v1/chat/completions",status="200"}'] == 3
    assert told['kefu_requests_total{method="POST",route="/v1/chat/completions",status="400"}'] == 1
    assert told['kefu_requests_total{method="GET",route="unmatched",status="404"}'] == 1
