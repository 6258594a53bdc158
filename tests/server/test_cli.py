"""The command line says what is wrong in one sentence, soon."""

import os
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.auth import KEY_PREFIX, hash_key
from server.cli import cli

runner = CliRunner()


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("KEFU_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KEFU_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr("server.cli.configure_logging", lambda level: None)


def test_help_names_the_commands_and_version_the_version() -> None:
    shown = runner.invoke(cli, ["--help"]).output
    assert "serve" in shown and "key" in shown
    assert "--port" in runner.invoke(cli, ["serve", "--help"], env={"COLUMNS": "200"}).output
    assert runner.invoke(cli, ["--version"]).output.startswith("kefu 0.")


def test_a_new_key_is_shown_with_its_hash() -> None:
    words = runner.invoke(cli, ["key", "new"]).output.split()
    key = next(word for word in words if word.startswith(KEY_PREFIX))
    assert f"KEFU_SERVER__API_KEYS={hash_key(key)}" in words


def test_a_port_in_use_is_told_with_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        result = runner.invoke(cli, ["serve", "--port", str(port)])
    assert result.exit_code == 2
    assert f"port {port} on 127.0.0.1 is in use by" in result.output
    assert "(process " in result.output


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (["--host", "0.0.0.0"], "needs an API key", 2),
        (["--port", "70000"], "server.port", 2),
        (["--port", "0", "--model", "missing.gguf"], "missing.gguf", 1),
        (["--port", "0", "--model", "text.gguf"], "is not a GGUF file", 1),
        (["--port", "0", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1", 2),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], said: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("text.gguf").write_text("hello")
    if "192.0.2.1" in arguments:
        monkeypatch.setenv("KEFU_SERVER__API_KEYS", "a" * 64)
    result = runner.invoke(cli, ["serve", *arguments])
    assert result.exit_code == status
    assert said in result.output
    assert "Traceback" not in result.output
    assert result.output.strip().count("\n") == 0
