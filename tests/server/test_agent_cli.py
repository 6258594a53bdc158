"""`kefu agent` and `kefu audit`, as typed."""

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from feedback import credentials
from server.cli import cli

Kefu = Callable[..., Result]


@pytest.fixture
def kefu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kefu:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(credentials.SCRYPT, "n", 16)
    monkeypatch.setenv("KEFU_DATA_DIR", str(tmp_path / "data"))
    return lambda *words, **given: CliRunner().invoke(cli, words, **given)


def stored(folder: Path, column: str) -> list[object]:
    with closing(sqlite3.connect(folder / "data" / "kefu.db")) as connection:
        return [value for (value,) in connection.execute(f"SELECT {column} FROM agent ORDER BY created_at_ms")]


def test_the_first_admin_gets_a_password_that_must_be_changed(kefu: Kefu, tmp_path: Path) -> None:
    assert "kefu agent add NAME --role admin" in kefu("agent", "list").output
    added = kefu("agent", "add", "Li Wei", "--role", "admin")
    password = re.findall(r"One-time password: (\S+)", added.output)[0]
    assert re.fullmatch(r"(\w{4}-){3}\w{4}", password)
    assert credentials.is_password(password, str(stored(tmp_path, "password_hash")[0]))
    assert stored(tmp_path, "must_change_password") == [1]
    assert kefu("agent", "list").output == "admin   Li Wei\n"


def test_a_password_may_be_typed_instead(kefu: Kefu, tmp_path: Path) -> None:
    added = kefu("agent", "add", "mei", "--role", "agent", "--prompt", input="a long enough one\na long enough one\n")
    assert added.exit_code == 0 and "a long enough" not in added.output
    assert stored(tmp_path, "must_change_password") == [0]
    assert credentials.is_password("a long enough one", str(stored(tmp_path, "password_hash")[0]))
    assert "12 to 200" in kefu("agent", "password", "mei", "--prompt", input="short\nshort\n").output


def test_roles_passwords_and_doors_change_and_are_logged(kefu: Kefu, tmp_path: Path) -> None:
    kefu("agent", "add", "mei", "--role", "agent")
    first = stored(tmp_path, "password_hash")
    assert kefu("agent", "role", "MEI", "editor").exit_code == 0
    assert kefu("agent", "list").output == "editor  mei\n"
    assert "--undo" in kefu("agent", "disable", "mei").output
    assert kefu("agent", "list").output == "editor  mei (disabled)\n"
    kefu("agent", "disable", "mei", "--undo")
    assert "One-time password:" in kefu("agent", "password", "mei").output
    assert stored(tmp_path, "password_hash") != first
    assert kefu("audit", "verify").output == "5 rows, none changed\n"
    with closing(sqlite3.connect(tmp_path / "data" / "kefu.db")) as connection:
        connection.execute('UPDATE audit SET detail = \'{"from": "agent", "to": "admin"}\' WHERE action = \'role_changed\'')
        connection.commit()
    broken = kefu("audit", "verify")
    assert (broken.exit_code, broken.stderr) == (1, "kefu: row 2 is not what was written.\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("agent", "role", "nobody", "admin"), "there is no agent 'nobody'"),
        (("agent", "add", "mei", "--role", "boss"), "boss"),
        (("agent", "add", "mei"), "--role"),
    ],
)
def test_a_mistake_is_told(kefu: Kefu, words: tuple[str, ...], said: str) -> None:
    result = kefu(*words)
    assert result.exit_code == 2 and said in result.stderr


def test_a_name_is_given_once(kefu: Kefu) -> None:
    kefu("agent", "add", "mei", "--role", "agent")
    again = kefu("agent", "add", "Mei", "--role", "admin")
    assert (again.exit_code, again.stderr) == (2, "kefu: there is an agent 'Mei' already.\n")
    assert kefu("agent", "list").output == "agent   mei\n"
