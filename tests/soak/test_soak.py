"""Nothing grows: mixed traffic for SOAK_MINUTES (30) on a real server; then it is as it was after the warm-up."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from backends.mini.shop import load_shop, system_message
from tests.conftest import MINI
from tests.e2e.house import Kefu, kefu
from tests.soak.traffic import Crowd

pytestmark = [pytest.mark.soak, pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")]

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
WARM_UP_SHARE = 0.25
# Allocators keep what they once needed; a leak of a few kilobytes a request passes this within the default half hour.
MAX_GROWTH_BYTES = {"web": 24 * 2**20, "engine": 24 * 2**20}
NUM_SEQUENCES = 6
NUM_KV_TOKENS = 4096
SETTINGS = {
    "KEFU_ENGINE__NUM_KV_TOKENS": str(NUM_KV_TOKENS),
    "KEFU_ENGINE__MAX_SEQUENCES": str(NUM_SEQUENCES),
    "KEFU_ENGINE__MAX_WAITING": "4",
    "KEFU_DESK__MESSAGES_PER_MINUTE": "100000",
    "KEFU_DESK__MESSAGES_PER_DAY": "10000000",
    "KEFU_DESK__ADDRESS_MESSAGES_PER_DAY": "10000000",
    "KEFU_DESK__VISITORS_PER_MINUTE": "100000",
    "KEFU_SERVER__BODY_TIMEOUT_S": "1",
    "KEFU_SERVER__HEAD_TIMEOUT_S": "1",
}
# On SIGUSR1 the web process writes down how many asyncio tasks it has.
COUNT_TASKS = """
import asyncio, gc, os, pathlib, signal
def count(*_):
    tasks = [each for each in gc.get_objects() if isinstance(each, asyncio.Task) and not each.done()]
    path = pathlib.Path(os.environ["SOAK_TASKS"])
    path.with_suffix(".new").write_text(str(len(tasks)))
    path.with_suffix(".new").rename(path)
signal.signal(signal.SIGUSR1, count)
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """An idle server, from outside. Memory in bytes."""

    memory: dict[str, int]
    num_descriptors: dict[str, int]
    num_tasks: int
    answers: tuple[str, ...]


class House:
    """The server under test."""

    def __init__(self, running: Kefu, tasks_file: Path) -> None:
        self.url = running.url
        self._pids = {"web": running.pid, "engine": running.engine_pid}
        self._tasks_file = tasks_file
        self._client = httpx.Client(base_url=running.url, timeout=60, headers={"connection": "close"})

    def metric(self, name: str) -> float:
        lines = self._client.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.split()[0] == name)

    def wait_idle(self) -> None:
        """Raises AssertionError when a sequence is still there after a minute without customers."""
        deadline = time.monotonic() + 60
        while self.metric("kefu_num_requests_running") + self.metric("kefu_num_requests_waiting"):
            assert time.monotonic() < deadline, "a sequence has leaked"
            time.sleep(0.2)
        time.sleep(3)  # longer than the timeouts of half heads and half bodies

    def sample(self) -> Sample:
        self.wait_idle()
        answers = tuple(self.answer(text) for text in ("How long do I have to return something?", "What does shipping cost?"))
        time.sleep(1)
        return Sample(
            {name: _resident_bytes(pid) for name, pid in self._pids.items()},
            {name: len(list(Path(f"/proc/{pid}/fd").iterdir())) for name, pid in self._pids.items()},
            self._num_tasks(),
            answers,
        )

    def answer(self, text: str) -> str:
        messages = [{"role": "system", "content": system_message(load_shop("en"), "en")}, {"role": "user", "content": text}]
        body = {"model": "kefu-mini", "messages": messages, "temperature": 0}
        return str(self._client.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]["message"]["content"])

    def continued(self, num_prompt_tokens: int, num_tokens: int) -> int:
        """How many tokens follow a prompt of so many, none of which is cached and none of which ends the text."""
        prompt = [300 + (7 * i + time.time_ns()) % 2000 for i in range(num_prompt_tokens)]
        never_end = {str(token_id): -100 for token_id in (3065, 3067)}
        body = {"model": "kefu-mini", "prompt": prompt, "max_tokens": num_tokens, "temperature": 2.0, "logit_bias": never_end}
        return int(self._client.post("/v1/completions", json=body).raise_for_status().json()["usage"]["completion_tokens"])

    def _num_tasks(self) -> int:
        self._tasks_file.unlink(missing_ok=True)
        os.kill(self._pids["web"], signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while not self._tasks_file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return int(self._tasks_file.read_text())


def _resident_bytes(pid: int) -> int:
    return 1024 * int(subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("soak")
    with kefu(folder / "data", str(MINI), SETTINGS | {"SOAK_TASKS": str(folder / "tasks")}, prelude=COUNT_TASKS) as running:
        yield House(running, folder / "tasks")


def test_nothing_grows_and_the_answers_stay_right(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    crowd = Crowd(house.url, seed=1)
    seconds = MINUTES * 60
    asyncio.run(crowd.busy(seconds * WARM_UP_SHARE))
    before = house.sample()
    asyncio.run(crowd.busy(seconds * (1 - WARM_UP_SHARE)))
    after = house.sample()
    with capsys.disabled():
        print(f"\n{dict(sorted(crowd.seen.items()))}\nbefore {before}\nafter  {after}")
    assert after.answers == before.answers
    assert "30" in after.answers[0]
    assert after.num_tasks == before.num_tasks
    assert after.num_descriptors == before.num_descriptors
    growth = {name: after.memory[name] - before.memory[name] for name in before.memory}
    assert {name: size for name, size in growth.items() if size > MAX_GROWTH_BYTES[name]} == {}
    assert house.metric("kefu_engine_restarts_total") == 0
    for way in ("left in prompt", "left in reasoning_content", "left in content", "stop 202", "vote 201", "half a body", "cancel 200"):
        assert crowd.seen[way] > 0, way


def test_afterwards_every_cell_and_every_place_is_there(house: House) -> None:
    """A prompt that needs nearly the whole cache gets it, and as many answers as there are places run at once."""
    assert house.metric("kefu_kv_tokens") == NUM_KV_TOKENS
    assert house.continued(NUM_KV_TOKENS - 32, 8) == 8
    with ThreadPoolExecutor(NUM_SEQUENCES) as pool:
        asked = [pool.submit(house.continued, 40, 400) for _ in range(NUM_SEQUENCES)]
        most = 0.0
        while not all(each.done() for each in asked):
            most = max(most, house.metric("kefu_num_requests_running"))
        assert min(each.result() for each in asked) > 64, "only the loop guard may end one before its 400 tokens"
    assert most == NUM_SEQUENCES
    house.wait_idle()
    assert 0 <= house.metric("kefu_kv_tokens_used") <= NUM_KV_TOKENS
