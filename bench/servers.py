"""The servers under load: how each is started, when it is ready, what memory it took, how it is ended."""

import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from gguf import GGUFReader

from bench.client import BenchError, Body

LOGS = Path(".cache/bench")
START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 30.0
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>")


@dataclass(frozen=True, slots=True)
class Target:
    """A running server. Every request carries `body`; those that must not end by themselves carry `endless` too.

    `budget` names the field that bounds the thinking tokens of a request.
    """

    name: str
    base_url: str
    model: str
    pid: int | None = None
    body: Body = field(default_factory=dict)
    endless: Body = field(default_factory=dict)
    budget: str = "thinking_budget"


@dataclass(frozen=True, slots=True)
class Settings:
    """The same for every server: model file, answers computed at once, KV room in tokens, CPU threads.

    `guesses` is for kefu: does it guess ahead? `peer_args` go to llama-server.
    """

    model: Path
    places: int = 8
    num_kv_tokens: int = 16384
    threads: int = os.cpu_count() or 1
    peer_args: tuple[str, ...] = ()
    guesses: bool = True


def kefu_command(settings: Settings, port: int) -> list[str]:
    start = "from server.cli import main; main()"
    return [sys.executable, "-c", start, "serve", "--model", str(settings.model), "--port", str(port)]


def kefu_environment(settings: Settings, data_dir: Path) -> dict[str, str]:
    return {
        "KEFU_DATA_DIR": str(data_dir),
        "KEFU_ENGINE__MAX_SEQUENCES": str(settings.places),
        "KEFU_ENGINE__NUM_KV_TOKENS": str(settings.num_kv_tokens),
        "KEFU_ENGINE__THREADS": str(settings.threads),
        "KEFU_ENGINE__PROMPT_LOOKUP": str(settings.guesses),
        # The bench is many visitors at one address.
        "KEFU_DESK__MESSAGES_PER_MINUTE": "10000",
        "KEFU_DESK__ADDRESS_MESSAGES_PER_DAY": "1000000",
        "KEFU_DESK__VISITORS_PER_MINUTE": "10000",
        "KEFU_DESK__MAX_IN_FLIGHT": "100",
    }


def llama_server_command(programs: Path, settings: Settings, port: int) -> list[str]:
    """llama-server at its best for this load: one KV pool for all slots, so that it is not cut into equal parts."""
    serve = [str(programs / "llama-server"), "--model", str(settings.model), "--host", "127.0.0.1", "--port", str(port)]
    room = ["--ctx-size", str(settings.num_kv_tokens), "--parallel", str(settings.places), "--kv-unified"]
    threads = ["--threads", str(settings.threads), "--threads-batch", str(settings.threads)]
    return [*serve, *room, *threads, "--flash-attn", "auto", "--jinja", "--no-webui", *settings.peer_args]


@contextmanager
def serve_kefu(settings: Settings, extra: Body) -> Iterator[Target]:
    """Our own server on a free port with an empty data folder."""
    port = free_port()
    with tempfile.TemporaryDirectory() as data_dir:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KEFU_")}
        environment |= kefu_environment(settings, Path(data_dir))
        with running("kefu", kefu_command(settings, port), f"http://127.0.0.1:{port}/health/ready", environment) as pid:
            yield attach("kefu", f"http://127.0.0.1:{port}", pid, extra, settings.model)


@contextmanager
def serve_llama(programs: Path, settings: Settings, extra: Body) -> Iterator[Target]:
    """llama.cpp's server on a free port."""
    port = free_port()
    command = llama_server_command(programs, settings, port)
    with running("llama-server", command, f"http://127.0.0.1:{port}/health", os.environ) as pid:
        yield attach("llama-server", f"http://127.0.0.1:{port}", pid, extra, settings.model)


def attach(name: str, base_url: str, pid: int | None, extra: Body, model: Path | None) -> Target:
    """A server that runs already. `model` is the file that it serves, when known: its end tokens can then be banned."""
    try:
        listing = httpx.get(base_url.rstrip("/") + "/v1/models", timeout=30).raise_for_status().json()
    except httpx.HTTPError as error:
        raise BenchError(f"no OpenAI API at {base_url}: {error}") from error
    served = listing["data"][0]["id"]
    if name == "llama-server":
        return Target(name, base_url, served, pid, extra, {"ignore_eos": True}, "reasoning_budget_tokens")
    banned = {str(token_id): -100 for token_id in end_token_ids(model)} if model else {}
    return Target(name, base_url, served, pid, extra, {"logit_bias": banned} if banned else {})


def end_token_ids(model: Path) -> list[int]:
    """The tokens that end an answer of this GGUF file."""
    fields = GGUFReader(model).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    ids = {int(fields[key].contents()) for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id") if key in fields}
    return sorted(ids | {tokens.index(text) for text in _ENDS if text in tokens})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(name: str, command: Sequence[str], ready_url: str, environment: Mapping[str, str]) -> Iterator[int]:
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    log.write_text(shlex.join(command) + "\n", encoding="utf-8")
    with log.open("ab") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            _wait_ready(process, ready_url, log)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_ready(process: subprocess.Popen[bytes], ready_url: str, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            tail = log.read_text(errors="replace").splitlines()[-12:]
            raise BenchError(f"the server left with status {process.returncode}; the end of {log}:\n" + "\n".join(tail))
        try:
            if httpx.get(ready_url, timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise BenchError(f"the server was not ready after {START_TIMEOUT_S:.0f} s; see {log}")


def peak_memory_bytes(pid: int | None) -> int | None:
    """The summed high-water marks of a process and its descendants; None where /proc does not tell."""
    proc = Path("/proc")
    if pid is None or not (proc / str(pid)).exists():
        return None
    return sum(_peak(proc / str(member)) for member in _tree(proc, pid))


def _tree(proc: Path, root: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            parents[int(entry.name)] = _status(entry).get("PPid", 0)
    tree = [root]
    while found := [pid for pid, parent in parents.items() if parent in tree and pid not in tree]:
        tree += found
    return tree


def _peak(process: Path) -> int:
    return _status(process).get("VmHWM", 0) * 1024


def _status(process: Path) -> dict[str, int]:
    """The numeric lines of /proc/<pid>/status (memory in kB); empty when the process has just left."""
    try:
        lines = (process / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name: int(value.split()[0]) for name, value in pairs if value.split() and value.split()[0].isdigit()}
