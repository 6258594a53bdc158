"""The doctor's findings: what is, what to do, and the exit status."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from backends.fit import GIB, Machine
from backends.protocol import EngineOptions
from server.doctor import EXIT_CODES, Finding, decode, examine, exit_status
from server.settings import EngineSettings, ModelsSettings, ServerSettings, Settings

MAC = Machine(48 * GIB, is_mac=True)


def _settings(tmp_path: Path, **engine: object) -> Settings:
    tmp_path.joinpath("data").mkdir(exist_ok=True)
    return Settings(
        server=ServerSettings(port=0),
        engine=EngineSettings.model_validate(engine),
        models=ModelsSettings(dir=tmp_path / "models"),
        data_dir=tmp_path / "data",
    )


def _program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def mac_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sysctl and pmset as a Mac in trouble would answer."""
    folder = tmp_path / "bin"
    folder.mkdir()
    answers = "machdep*) echo Apple M4 Pro;; vm.swap*) echo 'total = 4096.00M  used = 2500.50M  free = 1.0M';; iogpu*) echo 40000;;"
    _program(folder, "sysctl", f'case "$2" in {answers} esac')
    _program(folder, "pmset", "echo ' lowpowermode         1'")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_a_mac_in_trouble_hears_what_and_what_to_do(tmp_path: Path, mac_programs: Path) -> None:
    findings = list(examine(_settings(tmp_path), MAC))
    said = [finding.said for finding in findings]
    assert said[0] == "Apple M4 Pro, 48 GiB, 32.9 GB of it for a model"
    assert (
        "18.4 GB of weights + 256 KiB a token, 32.9 GB to spare" in said[1]
        and "conversations at once, 1 of 32,768 or 13 of 4,096" in said[1]
    )
    warned = {finding.said: finding.do for finding in findings if finding.level == "warn"}
    assert {"2.5 GB of swap in use", "low power mode is on", "iogpu.wired_limit_mb is 40000"} <= set(warned)
    assert all(warned.values())
    assert exit_status(findings) == 3
    _program(mac_programs, "pmset", "echo ' lowpowermode         0'")
    assert "low power mode is off" in [finding.said for finding in examine(_settings(tmp_path), MAC) if finding.level == "ok"]


def test_each_serious_finding_has_its_exit_status(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    assert exit_status([f for f in examine(settings, Machine(64 * GIB)) if f.topic != "software"]) == 0
    with socket.create_server(("127.0.0.1", 0)) as sock:
        taken = settings.model_copy(update={"server": ServerSettings(port=sock.getsockname()[1])})
        assert exit_status(list(examine(taken, Machine(64 * GIB)))) == EXIT_CODES["port"]
    future = settings.data_dir / "kefu.db"
    future.touch()
    os.utime(future, (4e9, 4e9))
    assert exit_status(list(examine(settings, Machine(64 * GIB)))) == EXIT_CODES["clock"]
    assert exit_status(list(examine(_settings(tmp_path, model="qwq-32b"), MAC))) == EXIT_CODES["memory"]
    assert exit_status([Finding("disk", "warn", ""), Finding("engine", "bad", "")]) == EXIT_CODES["engine"]


@pytest.mark.anyio
async def test_the_engine_reads_600_tokens_or_says_why_not(model_path: str, tmp_path: Path) -> None:
    options = EngineOptions(model_path, "kefu-mini", num_kv_tokens=2048)
    found = await decode(options)
    assert found.level == "ok" and "reads 600 tokens" in found.said
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\3\0\0\0")
    broken = await decode(replace(options, path=str(tmp_path / "broken.gguf")))
    assert (broken.topic, broken.level) == ("engine", "bad") and "broken.gguf" in broken.said
