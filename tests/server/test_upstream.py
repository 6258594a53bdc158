"""Answers of another server: strangers' streams, their failures, and our own server as an upstream."""

import asyncio
import json
import socketserver
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import create_engine, text

from server.app import create_app, make_upstream
from server.settings import Settings, UpstreamSettings
from tests.server.conftest import serving
from tests.server.test_serve import _serve

ASK = {"model": "big", "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]}
SECRET = "sk-nobody-may-read-this"


def chunk(content: str | None = None, finish: str | None = None, **delta: str) -> str:
    if content is not None:
        delta["content"] = content
    return json.dumps({"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}, ensure_ascii=False)


USAGE = json.dumps({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}})
WHOLE = [chunk(role="assistant"), chunk(reasoning="hm "), chunk(reasoning="so"), chunk("Hé\u2028 "), chunk("😀", "stop"), USAGE, "[DONE]"]


@dataclass
class Stranger:
    """What the upstream is told to do, and what it saw. A float in the script is a pause in seconds; a missing [DONE] is a cut."""

    script: list[str | float] = field(default_factory=lambda: list(WHOLE))
    refusals: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    num_open: int = 0
    piece: int = 7

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        async def models() -> dict[str, object]:
            return {"data": [{"id": "small", "max_model_len": 7}, {"id": "big", "owned_by": "vllm", "max_model_len": 2048}]}

        @app.post("/v1/chat/completions")
        async def complete(request: Request) -> Response:
            self.bodies.append(await request.json())
            self.headers.append(dict(request.headers))
            if self.refusals:
                status, headers, message = self.refusals.pop(0)
                return JSONResponse({"error": {"message": message, "code": status}}, status, headers)
            return StreamingResponse(self._play(), media_type="text/event-stream")

        return app

    async def _play(self) -> AsyncIterator[bytes]:
        self.num_open += 1
        try:
            for item in self.script:
                if isinstance(item, float):
                    await asyncio.sleep(item)
                    continue
                frame = f": comment\n\ndata: {item}\r\n\r\n".encode()
                for start in range(0, len(frame), self.piece):
                    yield frame[start : start + self.piece]
        finally:
            self.num_open -= 1


@contextmanager
def relaying(url: str, folder: Path, **fields: object) -> Iterator[httpx.Client]:
    """kefu over an upstream, on a socket of its own."""
    settings = Settings(data_dir=folder, upstream=UpstreamSettings(base_url=url, **fields))  # type: ignore[arg-type]
    app = create_app(settings, make_upstream(settings.upstream), None)
    with serving(app.asgi) as here, httpx.Client(base_url=here, timeout=30, verify=False) as client:
        yield client


@pytest.fixture
def stranger() -> Stranger:
    return Stranger()


@pytest.fixture
def kefu(stranger: Stranger, data_folder: Path) -> Iterator[httpx.Client]:
    with serving(stranger.app()) as url, relaying(f"{url}/v1", data_folder, model="big", api_key=SECRET, timeout_s=2.5) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
        yield client


def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ask(kefu: httpx.Client, **more: object) -> httpx.Response:
    return kefu.post("/v1/chat/completions", json=ASK | more)


def streamed(reply: httpx.Response) -> list[Any]:
    return [json.loads(line[6:]) for line in reply.text.split("\n") if line.startswith("data: {")]


def told(kefu: httpx.Client, question: str = "Hello there?") -> list[tuple[str, dict[str, Any]]]:
    """What the page hears."""
    token = kefu.post("/desk/visitors", json={}).json()["token"]
    visitor = {"authorization": f"Bearer {token}"}
    conversation = kefu.post("/desk/conversations", json={"language": "en"}, headers=visitor).json()["conversation_id"]
    body = {"text": question, "client_message_id": "00000000-0000-4000-8000-000000000001"}
    reply = kefu.post(f"/desk/conversations/{conversation}/messages", json=body, headers=visitor)
    frames = [frame.split("\n") for frame in reply.text.removesuffix("\n\n").split("\n\n") if not frame.startswith(":")]
    return [(name[7:], json.loads(data[6:])) for name, data in frames]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "both", "tags"])
def test_an_answer_is_relayed_whatever_its_thought_is_called(kefu: httpx.Client, stranger: Stranger, name: str) -> None:
    if name == "tags":
        stranger.script[1:3] = [chunk("<thi"), chunk("nk>hm so</th"), chunk("ink>\n\n")]
    elif name != "reasoning":
        names = ("reasoning", "reasoning_content") if name == "both" else (name,)
        stranger.script[1:3] = [chunk(None, None, **dict.fromkeys(names, thought)) for thought in ("hm ", "so")]
    whole = ask(kefu).json()
    message = whole["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], message["reasoning"]) == ("Hé\u2028 😀", "hm so", "hm so")
    assert whole["usage"]["total_tokens"] == 14 and whole["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    assert whole["model"] == "big"
    chunks = streamed(ask(kefu, stream=True, stream_options={"include_usage": True}))
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in chunks if each["choices"]) == "Hé\u2028 😀"
    assert chunks[-1]["usage"] == whole["usage"]


def test_the_upstream_is_asked_in_words_that_it_knows(kefu: httpx.Client, stranger: Stranger) -> None:
    turns = [*ASK["messages"], {"role": "assistant", "content": "<think>old</think>\n\nyes"}, {"role": "user", "content": "more"}]
    assert (
        ask(kefu, messages=turns, reasoning_effort="xhigh", max_tokens=50, stop=["😀"]).json()["choices"][0]["message"]["content"]
        == "Hé\u2028 "
    )
    body, headers = stranger.bodies[0], stranger.headers[0]
    assert [turn["content"] for turn in body["messages"]] == ["Be kind.", "hi", "yes", "more"]
    assert {
        name: body[name] for name in ("model", "stream", "temperature", "top_p", "top_k", "min_p", "max_tokens", "reasoning_effort")
    } == {
        "model": "big",
        "stream": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 40,
        "min_p": 0.0,
        "max_tokens": 50,
        "reasoning_effort": "high",
    }
    assert "stop" not in body, "a stop string ends the answer, never the thought: only we can tell them apart"
    assert headers["authorization"] == f"Bearer {SECRET}"
    ask(kefu, reasoning_effort="none")
    ask(kefu, messages=[{"role": "user", "content": "another conversation"}])
    keys = [each["x-session-id"] for each in stranger.headers]
    assert keys[0] == keys[1] != keys[2] and body["prompt_cache_key"] == keys[0]
    assert stranger.bodies[1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert ask(kefu, logprobs=True).json()["error"]["code"] == "unsupported"
    assert kefu.get("/v1/models").json()["data"][0]["max_model_len"] == 2048


TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}}
SHAPE = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "title": "é"}, "strict": True}}


def part(index: int, arguments: str, **more: object) -> str:
    function = {"arguments": arguments} | ({"name": more.pop("name")} if "name" in more else {})
    calls = [{"index": index, "function": function, **more}]
    return json.dumps({"choices": [{"index": 0, "delta": {"content": None, "tool_calls": calls}, "finish_reason": None}]})


def test_tools_formats_and_choices_are_passed_on_and_calls_read_back(kefu: httpx.Client, stranger: Stranger) -> None:
    parts = [part(0, "", name="get", id="x1", type="function"), part(0, '{"a": '), part(1, "", name="get"), part(0, '"é"}')]
    stranger.script = [chunk(reasoning="hm"), chunk("One moment."), *parts, chunk(finish="tool_calls"), USAGE, "[DONE]"]
    made = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"a": "b"}'}}
    turns = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "c1", "content": "9"},
    ]
    named = {"type": "function", "function": {"name": "get"}}
    asked = {"messages": turns, "tools": [TOOL], "tool_choice": named, "parallel_tool_calls": True, "response_format": SHAPE, "seed": 7}
    choice = ask(kefu, **asked | {"tool_choice": "auto"}).json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "One moment.")
    assert [call["function"] for call in choice["message"]["tool_calls"]] == [
        {"name": "get", "arguments": '{"a": "é"}'},
        {"name": "get", "arguments": "{}"},
    ]
    body = stranger.bodies[-1]
    assert (body["tools"], body["tool_choice"], body["response_format"]) == ([TOOL], "auto", SHAPE)
    assert body["messages"][2:] == turns[2:]
    streamed_parts = [each["choices"][0]["delta"].get("tool_calls") for each in streamed(ask(kefu, **asked, stream=True))]
    assert sum(len(calls) for calls in streamed_parts if calls) == 2, "a named tool is called once"
    assert stranger.bodies[-1]["tool_choice"] == named
    ask(kefu, tools=[TOOL], parallel_tool_calls=False, response_format={"type": "json_object"})
    assert (stranger.bodies[-1]["parallel_tool_calls"], stranger.bodies[-1]["response_format"]) == (False, {"type": "json_object"})
    several = ask(kefu, n=3, seed=7).json()
    assert [each["index"] for each in several["choices"]] == [0, 1, 2] and several["usage"]["prompt_tokens"] == 9
    assert sorted(body["seed"] for body in stranger.bodies[-3:]) == [7, 8, 9]
    assert "tools" not in stranger.bodies[-1] and "response_format" not in stranger.bodies[-1]


def test_an_upstreams_broken_call_is_text_and_one_in_its_words_a_call(kefu: httpx.Client, stranger: Stranger) -> None:
    stranger.script = [part(0, '{"a": ', name="get"), part(1, "{}", name="steal"), chunk(finish="tool_calls"), "[DONE]"]
    choice = ask(kefu, tools=[TOOL]).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ('get({"a": )steal({})', "stop")
    stranger.script = [chunk('<tool_call>{"name": "get"'), chunk("}</tool_call>"), chunk(finish="stop"), "[DONE]"]
    assert ask(kefu, tools=[TOOL]).json()["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == "{}"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "headers", "said", "ours", "code", "after"),
    [
        (401, {}, SECRET, 502, "upstream_failed", None),
        (403, {}, "", 502, "upstream_failed", None),
        (404, {}, "", 502, "upstream_failed", None),
        (429, {"retry-after": "17"}, "", 429, "queue_full", "17"),
        (503, {"retry-after": "3"}, "", 503, "engine_down", "3"),
        (504, {}, "", 504, "upstream_timeout", None),
        (500, {}, "", 502, "upstream_failed", None),
        (422, {}, "", 400, "upstream_refused", None),
        (400, {}, "This model's maximum context length is 7 tokens", 400, "context_length_exceeded", None),
    ],
)
def test_refusals_keep_their_meaning_and_lose_their_words(
    kefu: httpx.Client,
    stranger: Stranger,
    stream: bool,
    status: int,
    headers: dict[str, str],
    said: str,
    ours: int,
    code: str,
    after: str | None,
) -> None:
    stranger.refusals = [(status, headers, said)]
    reply = ask(kefu, stream=stream)
    assert (reply.status_code, reply.json()["error"]["code"], reply.headers.get("retry-after")) == (ours, code, after)
    assert not said or said not in reply.text
    assert len(stranger.bodies) == 1
    assert ask(kefu).status_code == 200, "and the next request works"


@pytest.mark.parametrize(
    ("script", "ours", "code"),
    [
        ([*WHOLE[:4]], 502, "upstream_failed"),
        ([*WHOLE[:4], '{"error": {"message": "CUDA", "code": 500}}', "[DONE]"], 502, "upstream_failed"),
        ([*WHOLE[:4], "{not json"], 502, "upstream_failed"),
        ([*WHOLE[:4], 30.0], 504, "upstream_timeout"),
        ([chunk(finish="stop"), "[DONE]"], 502, "empty_answer"),
    ],
    ids=["cut", "error", "garbage", "stall", "empty"],
)
def test_a_stream_that_breaks_is_an_error_and_no_success(
    kefu: httpx.Client, stranger: Stranger, script: list[str | float], ours: int, code: str
) -> None:
    stranger.script = script
    reply = ask(kefu)
    assert (reply.status_code, reply.json()["error"]["code"]) == (ours, code)
    reply = ask(kefu, stream=True)
    assert (reply.status_code, streamed(reply)[-1]["error"]["code"]) == (200, code)
    assert "[DONE]" not in reply.text
    until(lambda: stranger.num_open == 0)


def test_keep_alives_are_no_silence_and_odd_json_does_no_harm(kefu: httpx.Client, stranger: Stranger) -> None:
    odd = ['{"choices": null}', "[]", "7", '{"choices": [{"delta": {"content": 3}}]}', '{"choices": [{"delta": null}]}']
    stranger.script = [*odd, *[item for part in WHOLE for item in (part, 0.25)]]
    assert ask(kefu).json()["choices"][0]["message"]["content"] == "Hé\u2028 😀"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [[], WHOLE[:1], WHOLE[:4]], ids=["silent", "begun", "answering"])
def test_hanging_up_closes_the_upstream_connection(kefu: httpx.Client, stranger: Stranger, stream: bool, begun: list[str | float]) -> None:
    stranger.script = [*begun, *[item for _ in range(100) for item in (0.1, chunk(reasoning="hm"))]]
    with pytest.raises(httpx.ReadTimeout), kefu.stream("POST", "/v1/chat/completions", json=ASK | {"stream": stream}, timeout=0.3) as reply:
        time.sleep(0.3)
        raise httpx.ReadTimeout(str(reply.status_code))
    until(lambda: stranger.num_open == 0, 2)


def test_the_desk_answers_and_the_record_says_what_it_does_not_know(kefu: httpx.Client, stranger: Stranger, data_folder: Path) -> None:
    events = told(kefu)
    name, done = events[-1]
    assert (name, done["message"]["text"]) == ("done", "Hé\u2028 😀")
    assert not any("hm " in json.dumps(event) for _, event in events)
    with create_engine(f"sqlite:///{data_folder}/kefu.db").connect() as connection:
        row = connection.execute(text("SELECT * FROM completion")).mappings().one()
    unknown = (
        "prompt_token_ids",
        "completion_token_ids",
        "logprobs",
        "model_sha256",
        "template_sha256",
        "quantization",
        "num_reasoning_tokens",
    )
    assert {row[column] for column in unknown} == {None}
    assert (row["model"], row["engine"], row["engine_version"], row["reasoning"]) == ("big", "upstream", "vllm", "hm so")
    assert row["num_cached_tokens"] == 4 and row["ttft_ms"] <= row["first_answer_ms"] <= row["total_ms"]
    assert row["seed"] == stranger.bodies[-1]["seed"]
    for refusal, code in ((429, "queue_full"), (401, "upstream_failed")):
        stranger.refusals = [(refusal, {}, "")]
        assert told(kefu)[-1][1]["error"]["code"] == code
    metrics = kefu.get("/metrics").text
    assert "kefu_time_to_first_answer_token_seconds_count 1.0" in metrics and "kefu_prompt_tokens_total 9.0" in metrics


def test_an_upstream_that_comes_later_and_one_that_goes(tmp_path: Path, stranger: Stranger, caplog: pytest.LogCaptureFixture) -> None:
    with serving(stranger.app()) as url:
        pass
    with relaying(f"{url}/v1", tmp_path, model="big", api_key=SECRET) as kefu:
        assert (ask(kefu).status_code, kefu.get("/health/ready").status_code) == (503, 503)
        app = stranger.app()
        port = int(url.rpartition(":")[2])
        with _serving_at(app, port):
            until(lambda: ask(kefu).status_code == 200)
            assert kefu.get("/health/ready").status_code == 200
        gone = ask(kefu)
        assert (gone.status_code, gone.json()["error"]["code"], gone.headers["retry-after"]) == (503, "engine_down", "5")
        assert kefu.get("/health/ready").json()["reason"] == "the upstream does not answer"
    assert SECRET not in caplog.text


@pytest.mark.parametrize("num_lost", [2, 3])
def test_a_connection_that_is_lost_before_its_first_byte_is_tried_again_and_not_for_ever(tmp_path: Path, num_lost: int) -> None:
    asked: list[bytes] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            head = self.request.recv(65536)
            if head.startswith(b"POST"):
                asked.append(head)
            if head.startswith(b"GET"):
                self.request.sendall(b'HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{"data":[{"id":"big"}]}')
            elif len(asked) > num_lost:
                frames = "".join(f"data: {item}\n\n" for item in WHOLE if isinstance(item, str))
                self.request.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + frames.encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        with relaying(f"http://127.0.0.1:{server.server_address[1]}/v1", tmp_path, model="big") as kefu:
            until(lambda: kefu.get("/health/ready").status_code == 200)
            reply = ask(kefu)
        server.shutdown()
    assert (reply.status_code, len(asked)) == ((200, 3) if num_lost == 2 else (502, 3))


@contextmanager
def _serving_at(app: FastAPI, port: int) -> Iterator[str]:
    from tests.web.scripted_desk import serving as serving_at

    with serving_at(app, port) as url:
        yield url


def test_a_model_that_begins_inside_a_thought_keeps_it_from_the_customer(stranger: Stranger, tmp_path: Path) -> None:
    stranger.script = [chunk("hm so</thi"), chunk("nk>\n\nYes."), chunk(finish="stop"), "[DONE]"]
    with serving(stranger.app()) as url, relaying(f"{url}/v1", tmp_path, opens_thought=True) as kefu:
        until(lambda: kefu.get("/health/ready").status_code == 200)
        whole = ask(kefu, model="small").json()
    assert (whole["choices"][0]["message"]["content"], whole["choices"][0]["message"]["reasoning"]) == ("Yes.", "hm so")
    assert whole["usage"] is None, "nobody counted"


def test_another_kefu_is_an_upstream(model_path: str, tmp_path: Path) -> None:
    with _serve(model_path, tmp_path / "there") as there, relaying(f"{there.url}/v1", tmp_path / "here") as kefu:
        until(lambda: kefu.get("/health/ready").status_code == 200)
        asked = ASK | {"model": there.model, "seed": 5, "max_tokens": 120, "thinking_budget": 20}
        direct = httpx.post(f"{there.url}/v1/chat/completions", json=asked, timeout=60).json()
        relayed = kefu.post("/v1/chat/completions", json=asked).json()
        for name in ("content", "reasoning_content"):
            assert relayed["choices"][0]["message"][name] == direct["choices"][0]["message"][name]
        assert relayed["usage"]["completion_tokens"] == direct["usage"]["completion_tokens"]
        answer = told(kefu, "How long do I have to return something?")[-1][1]["message"]
        assert "30 days" in answer["text"]
