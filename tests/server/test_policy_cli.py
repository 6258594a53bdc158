"""`kefu policy`: what it says of a file, of a test set and of a model."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import cli
from server.desk.policy_file import DEMO, load_policy
from server.desk.policy_set import MUST_SAY_NO, Line, judge, read_lines
from tests.server.conftest import serving
from tests.web.scripted_desk import Desk, Scene, create_app

runner = CliRunner()


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEFU_DATA_DIR", str(tmp_path / "data"))


def a_set(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text(
        "".join(json.dumps({"id": "a", "language": "en", "ask": ["Hello!"], **line}) + "\n" for line in lines), encoding="utf-8"
    )
    return path


def test_check_tells_the_version_that_answers_are_kept_with() -> None:
    shown = runner.invoke(cli, ["policy", "check"])
    assert shown.exit_code == 0 and load_policy(DEMO)["en"].version in shown.output


def test_check_names_what_is_wrong_and_where(tmp_path: Path) -> None:
    wrong = tmp_path / "mine.toml"
    wrong.write_text(DEMO.read_text(encoding="utf-8").replace("zh = 400", "zh = 4"), encoding="utf-8")
    shown = runner.invoke(cli, ["policy", "check", str(wrong)])
    assert shown.exit_code == 1 and "mine.toml, line 12: max_answer_chars.zh" in shown.output
    assert runner.invoke(cli, ["policy", "check", "none.toml"]).exit_code == 1


def test_a_server_does_not_start_under_a_policy_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEFU_DESK__POLICY", "none.toml")
    monkeypatch.setattr("server.cli.configure_logging", lambda level: None)
    shown = runner.invoke(cli, ["serve", "--port", "0"])
    assert shown.exit_code == 1 and "none.toml cannot be read" in shown.output


def test_the_shipped_set_has_both_languages_and_its_lines_can_be_failed_and_passed() -> None:
    lines = read_lines(MUST_SAY_NO)
    assert len({line.id for line in lines}) == len(lines) >= 60
    assert {language: sum(line.language == language for line in lines) >= 30 for language in ("en", "zh")} == {"en": True, "zh": True}
    no = {"en": "I'm sorry, I cannot do that. Shall I get a person from our team?", "zh": "抱歉，这个我不能做。需要转人工吗？"}
    yes = {"en": "Sure, that is done.", "zh": "好的，办好了。"}
    assert [line.id for line in lines if judge(line, no[line.language])] == []
    assert [line.id for line in lines if not judge(line, yes[line.language])] == []


def test_a_phrase_behind_a_negation_is_not_said() -> None:
    line = Line(id="a", language="en", ask=["?"], never=["give you a discount", "给您打折"], must=["refuse", "45"])
    assert judge(line, "We cannot give you a discount.") == ()
    assert judge(line, "我没法给您打折。") == ()
    assert judge(line, "From 45 I can give you a discount.") == ("says 'give you a discount'",)
    assert judge(line, "Hello.") == ("does none of: refuse, 45",)


@pytest.mark.parametrize(("line", "said"), [({"ask": []}, "line 2: ask"), ({"never": ["*"]}, "line 2: a phrase"), ({"x": 1}, "line 2: x")])
def test_a_bad_line_of_a_set_is_named(tmp_path: Path, line: dict[str, object], said: str) -> None:
    shown = runner.invoke(cli, ["policy", "test", "--set", str(a_set(tmp_path / "set.jsonl", {}, line))])
    assert shown.exit_code == 1 and said in shown.output


def test_a_running_server_is_asked_like_a_customer(tmp_path: Path) -> None:
    desk = Desk(scene=Scene(text="I cannot do that."), refusals={"messages": [429]})
    lines = a_set(
        tmp_path / "set.jsonl", {"must": ["refuse"]}, {"id": "b", "ask": ["Hi", "Do!"], "never": ["do that"]}, {"id": "c", "must": ["x"]}
    )
    with serving(create_app(desk)) as url:
        shown = runner.invoke(cli, ["policy", "test", "--set", str(lines), "--url", url])
    assert shown.exit_code == 1 and "2 of 3 passed; 0 said" in shown.output
    assert [asked["text"] for asked in desk.asked] == ["Hello!", "Hi", "Do!", "Hello!"]
    assert desk.num_visitors == 3


def test_the_model_of_the_settings_is_started_for_the_test(tmp_path: Path) -> None:
    asked = {"ask": ["How long do I have to return something?"], "must": ["30 days"], "never": ["60 days"]}
    shown = runner.invoke(cli, ["policy", "test", "--set", str(a_set(tmp_path / "set.jsonl", asked))])
    assert shown.exit_code == 0, shown.output
    assert not (tmp_path / "data").exists()
