"""The crowd in the desk, against a real one."""

import os

import pytest

from bench import desk
from bench.client import BenchError
from bench.servers import Settings, Target, free_port, serve_kefu
from tests.conftest import MINI


@pytest.mark.anyio
async def test_every_customer_of_the_crowd_is_answered(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("bench"))
    monkeypatch.setattr(desk, "NUM_CUSTOMERS", 6)
    with serve_kefu(Settings(MINI, threads=1), {}) as target:
        row = await desk.crowd(target, 0)
    assert (row.workload, row.streams, row.requests) == ("desk", 6, 18)
    assert row.ttft_s and row.first_answer_s and row.worst_answer_s
    assert 0 < row.ttft_s < row.wall_s and row.first_answer_s <= row.worst_answer_s < row.wall_s
    assert row.web_cpu_s is not None and 0 < row.web_cpu_s < row.wall_s * 2


def test_a_process_without_children_counts_its_own_seconds() -> None:
    spent = desk.cpu_s(os.getpid())
    assert spent is not None and spent > 0
    assert desk.cpu_s(None) is None


@pytest.mark.anyio
async def test_a_desk_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(BenchError, match="the desk at"):
        await desk.crowd(Target("nobody", f"http://127.0.0.1:{free_port()}", "none"), 0)
