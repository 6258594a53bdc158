"""`kefu erase` asks, erases, says what else there is to do, and keeps on record that it did."""

import asyncio
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from feedback.audit import Audit, Entry
from feedback.database import Database
from server.cli import cli
from tests.feedback.shopper import worked_example

runner = CliRunner()


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEFU_DATA_DIR", str(tmp_path / "data"))
    with closing(Database.in_folder(tmp_path / "data")) as database:
        asyncio.run(worked_example("vis_gone", "gone").keep(database))
    return tmp_path / "data"


def run(*arguments: str, status: int = 0, said: str = "") -> str:
    result = runner.invoke(cli, list(arguments), input=said)
    assert result.exit_code == status, result.output
    return result.output


def audited(data_dir: Path) -> list[Entry]:
    with closing(Database.in_folder(data_dir)) as database:
        return asyncio.run(Audit(database, data_dir / "audit.head").page(None, 50))


def test_a_customer_is_erased_once_and_an_export_with_them(data_dir: Path, tmp_path: Path) -> None:
    run("export")
    run("export", str(tmp_path / "elsewhere"))
    (name,) = [path.name for path in (data_dir / "export").iterdir()]
    assert "cannot be undone" in run("erase", "vis_gone", status=1, said="n\n")
    assert (data_dir / "export" / name).exists()
    told = run("erase", "vis_gone", said="y\n")
    assert "1 conversation" in told and "5 message" in told
    assert f"export {name} learnt from them" in told
    assert f"Delete yourself: {tmp_path / 'elsewhere' / name}" in told
    assert not (data_dir / "export" / name).exists()
    newest = audited(data_dir)[0]
    assert (newest.actor, newest.action, newest.detail["exports"]) == ("command line", "visitor_erased", 1)
    assert "vis_gone" not in str(newest)
    assert "Nothing was left" in run("erase", "vis_gone", "--yes")
    assert "none changed" in run("audit", "verify")


def test_a_stranger_is_one_sentence(data_dir: Path) -> None:
    assert run("erase", "vis_nobody", "--yes", status=1) == "kefu: there is no visitor vis_nobody.\n"


def test_an_export_that_cannot_be_deleted_is_one_sentence(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data_dir / "erased.visitors").mkdir()
    told = run("erase", "vis_gone", "--yes", status=1)
    assert told == "kefu: erased.visitors cannot be used: Is a directory.\n"
