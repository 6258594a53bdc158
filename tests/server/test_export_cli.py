"""`kefu export` over a real database: calm when there is little, on the record when nothing is redacted."""

import asyncio
import json
from pathlib import Path

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from feedback.audit import Audit, Entry
from feedback.database import Database
from feedback.review import Reviews
from server.cli import cli
from tests.feedback.shopper import ASKED, DAYS, HOW_TO, Talk, worked_example
from tests.server.conftest import serving

PHONE = "13800138000"
runner = CliRunner()


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEFU_DATA_DIR", str(tmp_path / "data"))


def run(folder: Path, *arguments: str, status: int = 0) -> str:
    result = runner.invoke(cli, ["export", str(folder), *arguments])
    assert result.exit_code == status, result.output
    return result.output


def keep(tmp_path: Path, *talks: Talk) -> None:
    async def work() -> None:
        for talk in talks:
            await talk.keep(database)

    database = Database.in_folder(tmp_path / "data")
    asyncio.run(work())
    database.close()


def exported(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def audited(tmp_path: Path) -> list[Entry]:
    database = Database.in_folder(tmp_path / "data")
    try:
        return asyncio.run(Audit(database, tmp_path / "data" / "audit.head").page(None, 50))
    finally:
        database.close()


def approve(tmp_path: Path) -> None:
    """Two reviewers find the next pair good."""

    async def work() -> None:
        for rater in ("ann", "bob"):
            waiting = await reviews.next_for_review(rater)
            assert waiting is not None
            await reviews.judge(waiting.id, waiting.seen, rater, "good")

    database = Database.in_folder(tmp_path / "data")
    reviews = Reviews(database)
    asyncio.run(work())
    database.close()


def test_an_empty_database_is_told_calmly(tmp_path: Path) -> None:
    said = run(tmp_path / "out")
    assert "not enough data yet: 0 of 200 verified pairs for dpo" in said
    (snapshot,) = (tmp_path / "out").iterdir()
    assert json.loads((snapshot / "manifest.json").read_text(encoding="utf-8"))["counts"] == {}


def test_two_exports_of_one_state_are_the_same_bytes(tmp_path: Path) -> None:
    keep(tmp_path, worked_example(), worked_example("vis_b", "b", " 电话 " + PHONE))
    said = run(tmp_path / "one")
    assert "2 of 200 verified pairs" in said
    run(tmp_path / "two")
    files = exported(tmp_path / "one")
    assert files == exported(tmp_path / "two")
    assert PHONE.encode() not in b"".join(files.values())
    prompts = [json.loads(line)["prompt"] for name in files if "trl/dpo" in name for line in files[name].splitlines()]
    assert all("资料" in prompt[0]["content"] and "退款 [1]：" in prompt[0]["content"] for prompt in prompts)
    rendered = [json.loads(line) for name in files if "trl_rendered/dpo" in name for line in files[name].splitlines()]
    assert len(rendered) == 2 and all(row["prompt"].endswith("<think>\n\n</think>\n\n") for row in rendered)


def test_leaving_personal_data_in_takes_a_flag_and_is_kept_in_the_audit_log(tmp_path: Path) -> None:
    keep(tmp_path, worked_example("vis_b", "b", " 电话 " + PHONE))
    run(tmp_path / "out")
    assert [entry.action for entry in audited(tmp_path)] == ["export"]
    run(tmp_path / "open", "--without-redaction")
    assert [entry.action for entry in audited(tmp_path)] == ["export_without_redaction", "export"]
    assert PHONE.encode() in b"".join(exported(tmp_path / "open").values())


def test_a_running_server_answers_anew_once_and_reviewers_decide(tmp_path: Path) -> None:
    asked: list[dict[str, object]] = []
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, object]:
        return {"data": [{"id": "kefu-mini"}]}

    @app.post("/v1/chat/completions")
    def complete(body: dict[str, object]) -> dict[str, object]:
        asked.append(body)
        said = (("stop", "信用 3-5 个工作日到账 [1]。"), ("stop", "99 天"), ("length", "信用卡 3-5 个工作日到账 [1]。"), ("stop", None))
        return {"choices": [{"finish_reason": reason, "message": {"content": text}} for reason, text in said]}

    talk = Talk()
    talk.asks(ASKED)
    first = talk.answers(HOW_TO)
    talk.asks("我是说信用卡")
    second = talk.answers("信用卡 " + DAYS)
    talk.signal(first, "rephrase", -1)
    talk.signal(second, "gratitude", 1)
    keep(tmp_path, talk)
    assert "1 dpo: needs_regeneration" in run(tmp_path / "before")
    with serving(app) as url:
        assert "1 dpo: unsure" in run(tmp_path / "made", "--regenerate", url)
        approve(tmp_path)
        assert "1 of 200 verified pairs" in run(tmp_path / "again", "--regenerate", url)
    assert len(asked) == 1 and asked[0]["n"] == 4
    (row,) = [json.loads(content) for name, content in exported(tmp_path / "again").items() if "trl/dpo" in name]
    assert row["chosen"][0]["content"] == "信用 3-5 个工作日到账 [1]。"


def test_a_server_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    talk = Talk()
    talk.asks(ASKED)
    first = talk.answers(HOW_TO)
    talk.asks("我是说信用卡")
    talk.signal(first, "rephrase", -1)
    talk.signal(talk.answers("信用卡 " + DAYS), "gratitude", 1)
    keep(tmp_path, talk)
    assert "kefu: http://127.0.0.1:1 serves no model to ask" in run(tmp_path / "out", "--regenerate", "http://127.0.0.1:1", status=1)
    assert not (tmp_path / "out").exists()


def test_a_bad_expression_is_one_sentence(tmp_path: Path) -> None:
    assert "--order is no regular expression" in run(tmp_path, "--order", "(", status=2)
