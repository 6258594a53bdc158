"""What a round in training asks of a server lasts as long as its trainer lives, and not a moment longer."""

import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from feedback.training.job import CLAIM, LOADED, Serving, asked_for, claim, trainer_here

# Claims a round and has a child that inherits it, as `train` does; says the child's id, then waits.
TRAINS = """
import subprocess, sys, time
from pathlib import Path
from feedback.training.job import claim
held = claim(Path(sys.argv[1]), sys.argv[2])
print(subprocess.Popen(["sleep", "60"], pass_fds=(held.fileno(),)).pid, flush=True)
time.sleep(60)
"""


def a_round(data_dir: Path, name: str = "round-1") -> Path:
    folder = data_dir / "rounds" / name
    folder.mkdir(parents=True)
    return folder


def trains(folder: Path, serving: Serving) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen([sys.executable, "-c", TRAINS, str(folder), serving], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_the_most_that_is_asked_for_counts(tmp_path: Path) -> None:
    assert asked_for(tmp_path) == "run"
    with claim(a_round(tmp_path), "run"):
        assert asked_for(tmp_path) == "run"
        with claim(a_round(tmp_path, "round-2"), "throttle"):
            assert asked_for(tmp_path) == "throttle"
            with claim(a_round(tmp_path, "round-3"), "pause"):
                assert asked_for(tmp_path) == "pause"
            assert asked_for(tmp_path) == "throttle"
    assert asked_for(tmp_path) == "run"


def test_what_the_dead_asked_for_counts_no_more(tmp_path: Path) -> None:
    process, child = trains(a_round(tmp_path), "pause")
    with process:
        assert asked_for(tmp_path) == "pause"
        process.kill()
        process.wait()
        assert asked_for(tmp_path) == "pause", "the trainer itself still holds the memory"
        subprocess.run(["kill", "-KILL", str(child)], check=True)
        # The kernel closes the files of a killed process: whoever waits for the claim gets it.
        with claim(tmp_path / "rounds" / "round-1", "run"):
            pass
    assert asked_for(tmp_path) == "run"
    assert (tmp_path / "rounds" / "round-1" / CLAIM).read_text() == "run"


def test_a_round_that_asks_for_the_memory_begins_when_every_server_let_go(tmp_path: Path) -> None:
    folder, has_begun = a_round(tmp_path), threading.Event()

    def begin() -> None:
        with claim(folder, "pause"):
            has_begun.set()

    with (tmp_path / LOADED).open("a") as one, (tmp_path / LOADED).open("a") as other:
        for server in (one, other):
            fcntl.flock(server, fcntl.LOCK_SH)
        thread = threading.Thread(target=begin)
        thread.start()
        fcntl.flock(one, fcntl.LOCK_UN)
        assert not has_begun.wait(0.2)
        fcntl.flock(other, fcntl.LOCK_UN)
        assert has_begun.wait(10)
        thread.join()


def test_a_mac_trains_with_trl_what_the_other_trainer_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert trainer_here("grpo") == trainer_here("dpo") == "mlx-lm-lora"
    assert trainer_here("reward") == trainer_here("kto") == trainer_here("grpo", "round-1") == "trl"
