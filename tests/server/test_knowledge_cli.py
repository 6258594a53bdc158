"""`kefu knowledge` over real files, a real server and a real database."""

from pathlib import Path

import pytest
from fastapi import FastAPI, Response
from typer.testing import CliRunner

from server.cli import cli
from tests.conftest import MINI
from tests.server.conftest import serving

runner = CliRunner()


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEFU_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "articles"
    (folder / "more").mkdir(parents=True)
    (folder / "faq.csv").write_text("question,answer\nHow long may I return it?,Thirty days.\n", encoding="utf-8")
    (folder / "more" / "tea.md").write_text("# 茶叶\n绿茶请放在冰箱里保存。\n", encoding="utf-8")
    (folder / "noise.md").write_bytes(b"\0\1\2")
    (folder / "ignored.exe").write_bytes(b"MZ")
    return folder


def run(*arguments: object, status: int = 0) -> str:
    result = runner.invoke(cli, ["knowledge", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.output


def test_a_folder_is_imported_listed_searched_and_removed(folder: Path) -> None:
    said = run("import", folder)
    assert "left out: noise.md is not text." in said and "2 new, 0 changed, 0 as before, 0 gone." in said
    assert "0 new, 0 changed, 2 as before, 0 gone." in run("import", folder)
    listed = run("list")
    assert "more/tea.md" in listed and "faq.csv" in listed and "2 articles." in listed
    assert "The first fits." in run("search", "how long for a return")
    assert "The first fits." in run("search", "绿茶怎么保存")
    assert "Nothing fits." in run("search", "translate this into Korean")
    article = next(line.split()[0] for line in listed.splitlines() if "faq.csv" in line)
    assert run("rm", article) == "Deleted.\n"
    assert "1 articles." in run("list")
    assert f"there is no article {article}" in run("rm", article, status=1)


def test_an_embedding_model_that_is_set_is_asked_and_a_broken_one_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("import", folder)
    by_words = run("search", "how long for a return")
    monkeypatch.setenv("KEFU_KNOWLEDGE__EMBEDDING_MODEL", str(MINI))
    by_meaning = run("search", "how long for a return")
    assert by_meaning != by_words and by_meaning.split()[1:6] == by_words.split()[1:6]
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + b"x" * 100)
    monkeypatch.setenv("KEFU_KNOWLEDGE__EMBEDDING_MODEL", str(broken))
    assert "broken.gguf" in run("search", "anything", status=1)
    monkeypatch.setenv("KEFU_KNOWLEDGE__EMBEDDING_MODEL", "qwen3-embedding-0.6b")
    monkeypatch.setenv("KEFU_MODELS__DIR", str(tmp_path))
    assert "kefu pull qwen3-embedding-0.6b" in run("search", "anything", status=1)


def test_nothing_known_says_what_to_do() -> None:
    assert "kefu knowledge import PATH" in run("list")
    assert "Nothing fits." in run("search", "anything")
    assert run("gaps") == ""


def test_what_cannot_be_imported_is_one_sentence(tmp_path: Path, folder: Path) -> None:
    assert "there is no" in run("import", tmp_path / "gone", status=1)
    assert "nothing was imported" in run("import", folder / "noise.md", status=1)
    (tmp_path / "empty").mkdir()
    assert "holds 0 files" in run("import", tmp_path / "empty", status=1)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "secret.md").write_text("# Secret\nNot for customers.", encoding="utf-8")
    (folder / "link.md").symlink_to(tmp_path / "secret.md")
    run("import", folder)
    assert "Secret" not in run("list")


def test_addresses_in_a_file_are_fetched(tmp_path: Path) -> None:
    site = FastAPI()

    @site.get("/gifts")
    def gifts() -> Response:
        return Response("<title>Gifts</title><p>We wrap every gift.", media_type="text/html")

    @site.get("/picture")
    def picture() -> Response:
        return Response(b"GIF", media_type="image/gif")

    with serving(site) as url:
        (tmp_path / "site.urls").write_text(f"# ours\n{url}/gifts\n{url}/picture\n{url}/gone\nfile:///etc/passwd\n", encoding="utf-8")
        said = run("import", tmp_path / "site.urls")
    assert "1 new" in said and said.count("left out:") == 3
    assert "file:///etc/passwd is no http address" in said
    assert "Gifts" in run("list")
