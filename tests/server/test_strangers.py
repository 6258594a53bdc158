"""Other people's servers as upstreams, run as they come from the package index."""

import importlib.util
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from backends.mini.shop import load_shop, system_message
from tests.server.test_upstream import relaying, streamed, told, until

WEIGHTS = Path(__file__).parents[2] / "backends" / "mini" / "weights"


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@contextmanager
def stranger(*command: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", *command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        until(lambda: process.poll() is not None or _answers(url), 90)
        assert process.poll() is None
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/models").status_code == 200
    except httpx.TransportError:
        return False


def _converse(kefu: httpx.Client) -> list[tuple[str, object]]:
    """Whole and streamed answers agree, the thought stays apart, a hang-up is survived; returns what the desk then tells a customer."""
    until(lambda: kefu.get("/health/ready").status_code == 200)
    model = kefu.get("/v1/models").json()["data"][0]["id"]
    system, question = system_message(load_shop("en"), "en"), "How long do I have to return something?"
    turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    asked: dict[str, object] = {"model": model, "messages": turns, "temperature": 0, "max_tokens": 200}
    whole = kefu.post("/v1/chat/completions", json=asked).json()
    message = whole["choices"][0]["message"]
    assert "30 days" in message["content"] and message["reasoning_content"]
    assert "think>" not in message["content"] + message["reasoning_content"]
    assert whole["choices"][0]["finish_reason"] == "stop"
    chunks = streamed(kefu.post("/v1/chat/completions", json=asked | {"stream": True}))
    for name in ("content", "reasoning_content"):
        assert "".join(each["choices"][0]["delta"].get(name) or "" for each in chunks if each["choices"]) == message[name]
    with kefu.stream("POST", "/v1/chat/completions", json=asked | {"stream": True, "temperature": 2.0}) as reply:
        next(reply.iter_bytes())
    return told(kefu, question)


@needs("sse_starlette", "starlette_context")
def test_llama_cpp_server(tmp_path: Path) -> None:
    command = ("llama_cpp.server", "--model", str(WEIGHTS / "kefu-mini.gguf"), "--n_ctx", "4096", "--n_threads", "1")
    with stranger(*command) as url, relaying(url, tmp_path, opens_thought=True) as kefu:
        name, done = _converse(kefu)[-1]
        assert name == "done" and "30 days" in json.dumps(done)


@needs("mlx_lm")
def test_mlx_lm_server(tmp_path: Path) -> None:
    with stranger("mlx_lm.server", "--model", str(WEIGHTS / "mlx")) as url, relaying(url, tmp_path, model="default_model") as kefu:
        name, done = _converse(kefu)[-1]
        assert name == "done" and "30 days" in json.dumps(done)
