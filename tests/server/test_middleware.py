"""What does not get past the door, and what every response carries."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from server.middleware import MAX_DESK_BODY_BYTES, MAX_HEADERS, Traffic
from tests.server.conftest import MakeApp, calling, serving
from tests.server.fakes import ScriptedEngine, tokens

ASK = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
JSON = {"content-type": "application/json"}
pytestmark = pytest.mark.anyio


async def _chunks(num: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(num):
        yield b"x" * size


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "[::1]:8000", "[::1]", "LOCALHOST", "shop.example:443"])
async def test_known_hosts_get_in(make_app: MakeApp, host: str) -> None:
    async with calling(make_app(allowed_hosts=("shop.example",))) as client:
        assert (await client.get("/health/live", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::2]", "evil.example:8000", "shop.example.evil"]
)
async def test_other_hosts_do_not(make_app: MakeApp, host: str) -> None:
    async with calling(make_app(allowed_hosts=("shop.example",))) as client:
        reply = await client.get("/health/live", headers={"host": host})
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "host_not_allowed")
        twice = await client.get("/health/live", headers=[("host", "127.0.0.1"), ("host", "evil.example")])
        assert twice.status_code == 400


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/nothing", "/health/live"])
async def test_too_many_headers_are_refused_on_every_route(client: httpx.AsyncClient, path: str) -> None:
    many = {f"x-{i}": "y" for i in range(MAX_HEADERS)}
    for headers in (many, {"x": "y" * 17_000}):
        reply = await client.post(path, headers=headers)
        assert (reply.status_code, reply.headers["connection"], reply.json()["error"]["code"]) == (431, "close", "headers_too_large")


@pytest.mark.parametrize(("path", "limit"), [("/v1/chat/completions", 1_000_000), ("/desk/visitors", MAX_DESK_BODY_BYTES)])
async def test_a_body_over_the_cap_is_refused_unread(make_app: MakeApp, path: str, limit: int) -> None:
    async with calling(make_app(max_body_bytes=1_000_000)) as client:
        declared = await client.post(path, content=b"x" * (limit + 1), headers=JSON)
        assert (declared.status_code, declared.headers["connection"]) == (413, "close")
        within = await client.post(path, content=b"x" * limit, headers=JSON)
        assert within.status_code in (400, 404)


async def test_a_chunked_body_over_the_cap_is_refused(make_app: MakeApp) -> None:
    with serving(make_app(max_body_bytes=100_000)) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            reply = await client.post("/v1/chat/completions", content=_chunks(11, 10_000), headers=JSON)
            assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")
            assert (await client.post("/v1/chat/completions", content=_chunks(10, 10_000), headers=JSON)).status_code == 400


@pytest.mark.parametrize("drip", [b"", b" "])
async def test_a_body_that_does_not_come_is_not_waited_for(make_app: MakeApp, drip: bytes) -> None:
    with serving(make_app(body_timeout_s=0.5)) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
        began = time.monotonic()

        async def keep_dripping() -> None:
            while True:
                writer.write(drip)
                await asyncio.sleep(0.1)

        dripping = asyncio.create_task(keep_dripping())
        status = await reader.readline()
        dripping.cancel()
        assert b" 408 " in status
        assert 0.4 < time.monotonic() - began < 3
        writer.close()


async def test_every_response_carries_an_id_and_the_security_headers(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.script = tokens("</think>ok")
    replies = [await client.get("/health/live"), await client.get("/nothing"), await client.get("/x", headers={"host": "evil"})]
    replies.append(await client.post("/v1/chat/completions", json=ASK | {"stream": True}))
    for reply in replies:
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in reply.headers
    assert len({reply.headers["x-request-id"] for reply in replies}) == len(replies)


async def test_a_failure_of_ours_is_an_error_in_shape_with_its_id_in_the_log(
    client: httpx.AsyncClient, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.refusal = ZeroDivisionError("secret")  # type: ignore[assignment]
    reply = await client.post("/v1/chat/completions", json=ASK)
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in reply.text
    logged = [record.__dict__["fields"]["request_id"] for record in caplog.records if record.levelname == "ERROR"]
    assert logged == [reply.headers["x-request-id"]]


async def test_while_draining_only_health_answers(client: httpx.AsyncClient, traffic: Traffic) -> None:
    traffic.drain()
    assert (await client.get("/health/live")).status_code == 200
    ready = await client.get("/health/ready")
    assert (ready.status_code, ready.json()["reason"]) == (503, "shutting down")
    refused = await client.post("/v1/chat/completions", json=ASK)
    assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (503, "shutting_down", "10")


async def test_open_requests_are_counted_to_their_end(client: httpx.AsyncClient, engine: ScriptedEngine, traffic: Traffic) -> None:
    ask = asyncio.create_task(client.post("/v1/chat/completions", json=ASK | {"stream": True}))
    while not engine.open:
        await asyncio.sleep(0.001)
    assert traffic.num_open == 1
    engine.submitted[0].die()
    await ask
    assert traffic.num_open == 0


async def test_logs_name_routes_and_never_what_was_asked(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    await client.get("/v1/models/secret?token=secret")
    await client.post("/v1/chat/completions", content=json.dumps(ASK | {"temperature": "secret"}), headers=JSON)
    fields = [record.__dict__.get("fields", {}) for record in caplog.records if record.name == "kefu.http"]
    assert [(each["route"], each["status"]) for each in fields] == [("/v1/models/{name:path}", 404), ("/v1/chat/completions", 400)]
    assert "secret" not in json.dumps(fields)
