"""Starting servers: same settings for each, and the memory of a whole process tree."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.__main__ import listed, parse, plan_of
from bench.client import BenchError
from bench.peer import run_batched_bench, run_llama_bench, watch
from bench.servers import Settings, free_port, kefu_command, kefu_environment, llama_server_command, peak_memory_bytes, running

SETTINGS = Settings(Path("m.gguf"), places=5, num_kv_tokens=4096, threads=3, peer_args=("--mlock",))


def test_every_server_gets_the_same_settings() -> None:
    environment = kefu_environment(SETTINGS, Path("/tmp/x"))
    assert environment["KEFU_ENGINE__MAX_SEQUENCES"] == "5"
    assert environment["KEFU_ENGINE__NUM_KV_TOKENS"] == "4096"
    assert environment["KEFU_ENGINE__THREADS"] == "3"
    assert kefu_environment(replace(SETTINGS, guesses=False), Path("/tmp/x"))["KEFU_ENGINE__PROMPT_LOOKUP"] == "False"
    assert kefu_command(SETTINGS, 81)[-5:] == ["serve", "--model", "m.gguf", "--port", "81"]
    command = " ".join(llama_server_command(Path("bin"), SETTINGS, 82))
    for part in (
        "--model m.gguf",
        "--ctx-size 4096",
        "--parallel 5 --kv-unified",
        "--threads 3 --threads-batch 3",
        "--flash-attn auto",
        "--jinja",
        "--port 82",
    ):
        assert part in command


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_peak_memory_is_that_of_the_tree_and_keeps_what_was_freed() -> None:
    child = "b = bytearray(60_000_000); del b; print('ready', flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        peak = peak_memory_bytes(process.pid)
        process.communicate(b"\n")
    assert peak is not None and 60_000_000 < peak < 200_000_000
    assert peak_memory_bytes(process.pid) is None
    assert peak_memory_bytes(None) is None


def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.servers.LOGS", tmp_path)
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with pytest.raises(BenchError, match=r"status 1[\s\S]*no such model"), running("x", command, f"http://127.0.0.1:{free_port()}/", {}):
        pass


def test_a_failing_build_shows_its_last_lines_and_a_running_one_its_progress() -> None:
    shown: list[str] = []
    with pytest.raises(BenchError, match="no compiler"):
        watch([sys.executable, "-c", "print('[ 42%] object'); print('no compiler'); raise SystemExit(2)"], shown.append)
    assert "42%" in shown[0]


def test_a_running_server_gets_new_text_on_each_call_and_a_fresh_one_the_same() -> None:
    fresh = plan_of(parse(["--model", "m.gguf", "--streams", "1,16", "--workloads", "decode,burst"]))
    assert (fresh.seed, fresh.streams, [name for name, _ in fresh.steps()]) == ("0", (1, 16), ["decode 1", "decode 16", "burst"])
    assert plan_of(parse(["--url", "http://127.0.0.1:8000"])).seed != "0"
    assert parse(["--model", "m", "--body", '{"reasoning_effort": "none"}']).body == json.loads('{"reasoning_effort": "none"}')


@pytest.mark.parametrize("arguments", [[], ["--model", "m", "--workloads", "decod"], ["--url", "x", "--peer", "llama-server"]])
def test_a_wrong_command_line_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)


def test_lists_are_written_with_commas() -> None:
    assert listed("1, 4,,8") == ("1", "4", "8")


def program(path: Path, output: str) -> None:
    path.write_text(f"#!{sys.executable}\nprint({output!r})\n")
    path.chmod(0o755)


def test_the_engine_benches_become_rows(tmp_path: Path) -> None:
    program(tmp_path / "llama-bench", json.dumps([{"n_gen": 0, "avg_ts": 219.0}, {"n_gen": 128, "avg_ts": 25.9}]))
    program(tmp_path / "llama-batched-bench", "main: notes\n" + "\n".join(json.dumps({"pl": pl, "speed_tg": pl * 11.0}) for pl in (1, 8)))
    prefill, decode = run_llama_bench(tmp_path, SETTINGS, 1375, 128, 3)
    assert (prefill.workload, prefill.prefill_tokens_per_s, prefill.decode_tokens_per_s) == ("prefill", 219.0, None)
    assert (decode.workload, decode.decode_tokens_per_s) == ("decode", 25.9)
    batched = run_batched_bench(tmp_path, SETTINGS, (1, 8), 128, 3)
    assert [(row.streams, row.decode_tokens_per_s, row.repeats) for row in batched] == [(1, 11.0, 3), (8, 88.0, 3)]
