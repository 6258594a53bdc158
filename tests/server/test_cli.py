"""The command line says what is wrong in one sentence, soon."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backends.catalog import find
from backends.fit import GIB, Machine
from server.auth import KEY_PREFIX, hash_key
from server.cli import _console_url, _offered, cli
from server.settings import Settings, load_settings
from tests.backends.hub import serving
from tests.backends.lora import random_matrices, write_peft
from tests.conftest import MINI

runner = CliRunner()


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("KEFU_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KEFU_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("KEFU_MODELS__DIR", str(tmp_path / "models"))
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
        (["--port", "0", "--model", "qwq-32b"], "kefu pull qwq-32b", 1),
        (["--port", "0", "--model", "nonsense"], "there is no model 'nonsense'", 2),
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


@pytest.mark.parametrize(("draft", "said"), [("text.gguf", "text.gguf is not a GGUF file"), ("qwen2.5-0.5b", "kefu pull qwen2.5-0.5b")])
def test_a_draft_model_that_is_none_is_one_sentence(draft: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("text.gguf").write_text("hello")
    monkeypatch.setenv("KEFU_ENGINE__DRAFT_MODEL", draft)
    result = runner.invoke(cli, ["serve", "--port", "0"])
    assert (result.exit_code, said in result.output, result.output.strip().count("\n")) == (1, True, 0)


def _damaged(model: bytes, damage: str) -> bytes:
    """A model that makes llama.cpp abort: while it reads the vocabulary, or while it makes room for the weights."""
    if damage == "vocabulary":
        key = b"tokenizer.ggml.tokens"
        first = model.index(key) + len(key) + 4 + 4 + 8
        second = first + 8 + 1
        assert model[first : first + 8] == model[second : second + 8] == (1).to_bytes(8, "little")
        return model[:first] + model[second : second + 9] + model[second:]
    key = b"qwen2.block_count"
    value = model.index(key) + len(key) + 4
    return model[:value] + (100_000).to_bytes(4, "little") + model[value + 4 :]


@pytest.mark.parametrize("damage", ["vocabulary", "weights"])
def test_a_model_that_kills_its_reader_kills_only_the_engine(damage: str, tmp_path: Path) -> None:
    Path("hostile.gguf").write_bytes(_damaged(MINI.read_bytes(), damage))
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", "--port", "0", "--model", "hostile.gguf"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    sentence = ended.stderr.splitlines()[-1]
    assert sentence.startswith("kefu: the engine died (SIGABRT) while it loaded hostile.gguf"), ended.stderr
    assert "leave --model out" in sentence
    assert "Traceback" not in ended.stderr


def test_a_model_is_listed_pulled_verified_and_removed(monkeypatch: pytest.MonkeyPatch, model_path: str) -> None:
    entry, weights = find("qwq-32b"), Path(model_path).read_bytes()
    with serving({entry.gguf.files[0]: weights}) as hub:
        monkeypatch.setenv("KEFU_MODELS__URL", hub.url)
        pulled = runner.invoke(cli, ["pull", "qwq-32b", "--format", "gguf"])
    assert pulled.exit_code == 0, pulled.output
    assert "no hash of it was pinned: the first download is trusted and recorded" in pulled.output
    assert "gguf" in next(line for line in runner.invoke(cli, ["models"]).output.splitlines() if line.startswith("qwq-32b"))
    assert runner.invoke(cli, ["verify", "qwq-32b"]).exit_code == 0
    file = Path("models/qwq-32b-gguf") / entry.gguf.files[0]
    file.write_bytes(weights[:-1] + b"?")
    verified = runner.invoke(cli, ["verify", "qwq-32b"])
    assert verified.exit_code == 1 and "BAD qwq-32b-gguf/qwq-32b-q4_k_m.gguf" in verified.output
    assert runner.invoke(cli, ["rm", "qwq-32b"]).exit_code == 0
    assert not file.exists() and Path("models/qwq-32b-gguf.json").exists()
    assert runner.invoke(cli, ["rm", "qwq-32b", "--forget"]).exit_code == 0
    assert not Path("models/qwq-32b-gguf.json").exists()
    assert runner.invoke(cli, ["verify", "qwq-32b"]).exit_code == 1


def test_a_flipped_byte_on_the_way_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({find("qwen3-0.6b").gguf.files[0]: b"not the pinned one"}) as hub:
        monkeypatch.setenv("KEFU_MODELS__URL", hub.url)
        result = runner.invoke(cli, ["pull", "qwen3-0.6b", "--format", "gguf"])
    assert result.exit_code == 1 and "nothing was taken" in result.output


def test_a_first_run_on_a_mac_with_room_gets_qwq_when_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.cli.this_machine", lambda limit_gib: Machine(48 * GIB, is_mac=True))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked: list[str] = []
    for wanted in (False, True):
        monkeypatch.setattr("typer.confirm", lambda question, default, wanted=wanted: asked.append(question) or wanted)
        with serving({"model.safetensors": b"weights", "config.json": b"{}"}) as hub:
            monkeypatch.setenv("KEFU_MODELS__URL", hub.url)
            settings = _offered(load_settings())
        assert settings.engine.model == (Path("qwq-32b") if wanted else None)
    assert "18.4 GB of weights + 256 KiB a token, 32.9 GB to spare" in asked[0]
    assert Path("models/qwq-32b-mlx/model.safetensors").read_bytes() == b"weights"
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert _offered(load_settings()).engine.model is None and len(asked) == 2


def test_adapters_are_added_listed_and_removed(tmp_path: Path) -> None:
    assert runner.invoke(cli, ["adapter", "ls"]).output == "none\n"
    folder = write_peft(tmp_path / "peft", random_matrices(1))
    added = runner.invoke(cli, ["adapter", "add", "tone", str(folder)]).output
    assert added.startswith("kept as tone@")
    assert runner.invoke(cli, ["adapter", "ls"]).output.split() == added.split()[-1:]
    for arguments in (["add", "Tone!", str(folder)], ["add", "tone", str(tmp_path)], ["rm", "other"]):
        refused = runner.invoke(cli, ["adapter", *arguments])
        assert refused.exit_code == 2
        assert refused.output.startswith("kefu: ") and refused.output.strip().count("\n") == 0
    assert runner.invoke(cli, ["adapter", "rm", "tone"]).exit_code == 0
    assert runner.invoke(cli, ["adapter", "ls"]).output == "none\n"


def test_a_chosen_adapter_that_is_not_there_is_told_before_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEFU_ENGINE__ADAPTER", "tone")
    result = runner.invoke(cli, ["serve", "--port", "0"])
    assert result.exit_code == 2
    assert "no adapter 'tone'" in result.output


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "http://127.0.0.1:8000/console"),
        ({"console": {"port": 8001}}, "http://127.0.0.1:8001/console"),
        ({"server": {"host": "0.0.0.0"}, "console": {"port": 8001}}, "http://127.0.0.1:8001/console"),
        ({"server": {"host": "0.0.0.0"}}, "set console.port"),
    ],
)
def test_the_first_lines_say_where_the_console_is(settings: dict[str, object], said: str) -> None:
    assert said in _console_url(Settings.model_validate(settings), "http://127.0.0.1:8000")
