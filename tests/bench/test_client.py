"""Reading a stream: what was said and when, wherever the network cuts it."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.client import BenchError, read_events, read_reply, record
from bench.servers import free_port
from tests.bench.fake_server import FakeServer, chunk, listening, sse, usage

STREAM = [
    chunk({"role": "assistant"}),
    chunk({"reasoning_content": "嗯"}),
    chunk({"content": "你好"}),
    chunk({"content": "。"}, "stop"),
    usage(prompt=10, cached=7, completion=4),
    "[DONE]",
]


def stamped(events: list[object]) -> list[tuple[float, bytes]]:
    return [(1.0 + number, sse(event)) for number, event in enumerate(events)]


def test_a_reply_tells_thinking_from_answering() -> None:
    reply = read_reply(0.5, stamped(STREAM))
    assert (reply.first_s, reply.first_answer_s, reply.end_s) == (2.0, 3.0, 6.0)
    assert reply.ttft_s == 1.5
    assert reply.content == "你好。"
    assert (reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens) == (10, 7, 4)
    assert reply.finish_reason == "stop"
    assert reply.decode_tokens_per_s == pytest.approx(3 / 4.0)


def test_a_role_alone_is_no_token() -> None:
    reply = read_reply(0.0, stamped([chunk({"role": "assistant"}, "length"), usage(10, 0, 1), "[DONE]"]))
    assert reply.ttft_s is None
    assert reply.decode_tokens_per_s is None


@given(st.lists(st.integers(min_value=1, max_value=40), min_size=1))
def test_chunk_edges_do_not_matter(sizes: list[int]) -> None:
    whole = b": keep-alive\n\n" + b"".join(sse(event) for event in STREAM)
    chunks, at = [], 0
    while at < len(whole):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append((float(len(chunks)), whole[at : at + size]))
        at += size
    events = list(read_events(chunks))
    assert [data for _, data in events] == [event if isinstance(event, str) else json.dumps(event) for event in STREAM]
    assert read_reply(0.0, chunks).content == "你好。"


def test_an_event_is_stamped_when_its_last_byte_arrives() -> None:
    data = sse("[DONE]")
    assert list(read_events([(1.0, data[:4]), (2.0, data[4:])])) == [(2.0, "[DONE]")]


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([chunk({"content": "a"}), usage(1, 0, 1)], r"without \[DONE\]"),
        ([chunk({"content": "a"}), "[DONE]"], "include_usage"),
        ([chunk({"content": "a"}), {"error": {"message": "the engine died"}}, "[DONE]"], "the engine died"),
    ],
)
def test_half_an_answer_is_never_measured(events: list[object], words: str) -> None:
    with pytest.raises(BenchError, match=words):
        read_reply(0.0, stamped(events))


@pytest.mark.anyio
async def test_a_request_is_sent_whole_and_its_answer_read_from_the_wire() -> None:
    server = FakeServer()
    async with listening(server) as url:
        recording = await record(url + "/", {"messages": [{"role": "user", "content": "你好 there"}], "max_tokens": 3})
    reply = recording.reply()
    assert server.seen[0]["messages"][0]["content"] == "你好 there"
    assert server.seen[0]["stream_options"] == {"include_usage": True}
    assert (reply.content, reply.completion_tokens) == ("word word ", 3)
    assert reply.ttft_s is not None and reply.ttft_s > 0


@pytest.mark.anyio
async def test_a_refusal_is_reported_with_its_body() -> None:
    async with listening(FakeServer(status=503, error="the queue is full")) as url:
        recording = await record(url, {})
    with pytest.raises(BenchError, match=r"503.*the queue is full"):
        recording.reply()


@pytest.mark.anyio
async def test_nobody_at_the_address_is_an_error() -> None:
    with pytest.raises(BenchError, match="did not finish"):
        await record(f"http://127.0.0.1:{free_port()}", {})


@pytest.mark.anyio
async def test_a_server_that_hangs_up_is_an_error() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as socket:
        recording = await record(f"http://127.0.0.1:{socket.sockets[0].getsockname()[1]}", {})
    with pytest.raises(BenchError, match="answered nothing"):
        recording.reply()
