"""The engine as a process of its own: it answers, dies, comes back, and never outlives the web side."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from backends import supervisor as supervision
from backends.adapter import AdapterRegistry
from backends.protocol import AdapterRefused, ContextTooLong, EngineBusy, EngineDied, EngineDown, EngineOptions
from backends.sequence import CacheScope, SamplingParams
from backends.supervisor import Supervisor
from tests.backends.lora import random_matrices, write_peft

pytestmark = pytest.mark.anyio
ENDLESS = SamplingParams(temperature=1.0, max_tokens=100_000, seed=3)


@asynccontextmanager
async def _engine(path: str, data_dir: Path | None = None, **fields: int) -> AsyncIterator[Supervisor]:
    options = EngineOptions(path, "m", max_sequences=2, num_kv_tokens=2048, threads=1, data_dir=str(data_dir or ""))
    supervisor = Supervisor(options, **fields)
    await supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.stop()


async def _loaded(supervisor: Supervisor) -> None:
    async with asyncio.timeout(60):
        while not supervisor.client.is_ready:
            await asyncio.sleep(0.02)


async def _read(supervisor: Supervisor, max_tokens: int = 5) -> int:
    async with supervisor.client.submit([5, 6, 7], SamplingParams(temperature=1.0, max_tokens=max_tokens)) as stream:
        return sum([sum(event.token_id >= 0 for event in events) async for events in stream])


async def _gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        await asyncio.sleep(0.05)
    return False


async def test_it_refuses_until_loaded_then_answers_and_refuses_what_cannot_fit(model_path: str) -> None:
    async with _engine(model_path) as supervisor:
        with pytest.raises(EngineDown):
            supervisor.client.submit([5], ENDLESS)
        await _loaded(supervisor)
        assert 1 <= await _read(supervisor) <= 5
        assert await supervisor.client.check() == ""
        with pytest.raises(ContextTooLong):
            supervisor.client.submit([5] * 5000, ENDLESS)


async def test_a_killed_engine_fails_its_streams_honestly_and_comes_back(model_path: str) -> None:
    async with _engine(model_path) as supervisor:
        await _loaded(supervisor)
        pid = supervisor.engine_pid
        assert pid is not None
        stream = supervisor.client.submit([5, 6, 7], ENDLESS)
        await anext(stream)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineDied):
            async with asyncio.timeout(2):
                async for _ in stream:
                    pass
        assert not supervisor.client.is_ready
        await _loaded(supervisor)
        assert supervisor.engine_pid != pid
        assert await _read(supervisor) > 0


async def test_after_three_crashes_it_stays_down_and_says_why(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "RESTART_DELAY_S", 0.0)
    async with _engine(model_path) as supervisor:
        for _ in range(3):
            await _loaded(supervisor)
            pid = supervisor.engine_pid
            assert pid is not None
            os.kill(pid, signal.SIGABRT)
            async with asyncio.timeout(5):
                while supervisor.client.is_ready:
                    await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert supervisor.engine_pid is None
        assert "crashed 3 times" in supervisor.client.unready_reason
        with pytest.raises(EngineDown) as refusal:
            supervisor.client.submit([5], ENDLESS)
        assert refusal.value.retry_after_s is None


async def test_a_file_that_is_no_model_is_refused_with_its_name(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\xff" * 400)
    async with _engine(str(broken)) as supervisor:
        async with asyncio.timeout(30):
            while "broken.gguf" not in supervisor.client.unready_reason:
                await asyncio.sleep(0.05)
        assert supervisor.num_restarts == 0


async def test_abort_is_felt_within_a_second_and_the_queue_is_bounded(model_path: str) -> None:
    async with _engine(model_path, max_waiting=1) as supervisor:
        await _loaded(supervisor)
        client = supervisor.client
        streams = [client.submit([5, 6, i], ENDLESS) for i in range(3)]
        with pytest.raises(EngineBusy) as refusal:
            client.submit([5], ENDLESS)
        assert refusal.value.retry_after_s >= 1
        await anext(streams[0])
        assert streams[2].place == 1
        for stream in streams:
            stream.abort()
        await asyncio.sleep(1.0)
        assert client.stats is not None
        assert (client.stats.num_running, client.stats.num_waiting, client.num_running) == (0, 0, 0)


async def test_the_engine_leaves_with_the_web_side(model_path: str) -> None:
    supervisor = Supervisor(EngineOptions(model_path, "m", num_kv_tokens=1024, threads=1))
    await supervisor.start()
    await _loaded(supervisor)
    pid = supervisor.engine_pid
    assert pid is not None
    writer = supervisor.client._writer
    assert writer is not None
    supervisor._is_stopping = True
    writer.transport.abort()
    assert await _gone(pid, within_s=5)
    await supervisor.stop()


async def test_a_long_prefill_is_broken_off_when_its_request_goes(model_path: str) -> None:
    async with _engine(model_path) as supervisor:
        await _loaded(supervisor)
        stream = supervisor.client.submit([5 + i % 200 for i in range(2000)], ENDLESS)
        await anext(stream)
        stream.abort()
        other = supervisor.client.submit([5, 6, 7], SamplingParams(temperature=0.0, max_tokens=3))
        async with asyncio.timeout(5):
            events = [event async for events in other for event in events]
        assert events[-1].finish_reason is not None
        assert supervisor.client.stats is not None
        assert supervisor.num_restarts == 0


async def test_adapters_swap_and_unload_under_load_in_the_same_process(model_path: str, tmp_path: Path) -> None:
    registry = AdapterRegistry(tmp_path / "adapters")

    def add(seed: int) -> str:
        return registry.add("tone", write_peft(tmp_path / f"{seed}", random_matrices(seed)), Path(model_path))

    async with _engine(model_path, tmp_path) as supervisor:
        await _loaded(supervisor)
        pid, client = supervisor.engine_pid, supervisor.client
        endless = dict.fromkeys(client.spec.eos_token_ids, -100.0)
        load = client.submit([5, 6, 7], SamplingParams(temperature=1.0, max_tokens=1500, seed=3, logit_bias=endless))
        await anext(load)

        async def answer(key: str) -> list[tuple[int, float | None]]:
            stream = client.submit([9, 10, 11], SamplingParams(temperature=0.0, max_tokens=8), scope=CacheScope(adapter=key))
            return [(event.token_id, event.logprob) async for events in stream for event in events if event.token_id >= 0]

        def near(one: list[tuple[int, float | None]], other: list[tuple[int, float | None]]) -> bool:
            """The same but for rounding, which depends on what else is in the pass."""
            return [token_id for token_id, _ in one] == [token_id for token_id, _ in other] and np.allclose(
                [logprob or 0.0 for _, logprob in one], [logprob or 0.0 for _, logprob in other], atol=5e-3
            )

        first = add(1)
        said = await answer(first)
        second = add(2)
        swapped = client.submit([9, 10, 11], SamplingParams(temperature=0.0, max_tokens=8), scope=CacheScope(adapter=second))
        while not any(event.token_id >= 0 for event in await anext(swapped)):
            pass
        swapped.abort()
        assert near(await answer(first), said), "whoever asked for it before still gets it"
        assert not near(await answer(second), said)
        add(3)
        with pytest.raises(AdapterRefused, match="missing"):
            await answer(first)
        registry.remove("tone")
        assert not near(await answer(""), said)
        with pytest.raises(AdapterRefused):
            await answer(second)
        assert any(event.token_id >= 0 for event in await anext(load))
        load.abort()
        assert (supervisor.engine_pid, supervisor.num_restarts) == (pid, 0)
