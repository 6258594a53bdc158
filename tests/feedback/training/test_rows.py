"""What a trainer is given, and what is refused."""

import json
from pathlib import Path

import pytest

from backends.mini.shop import Language, load_shop, system_message
from feedback.training.job import TrainingFailed
from feedback.training.rows import held_out, read_rows, snapshot_sha256, too_few
from feedback.training.verify import is_right
from tests.feedback.training.slang import held, messages, output, pairs, prompt, write_export, write_lines

OPENS = "<|im_start|>assistant\n<think>\n"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), pairs(1, 6, 6))


def test_a_model_that_thinks_gets_rendered_rows_and_another_gets_messages(export: Path) -> None:
    rendered, plain = read_rows(export, "dpo", OPENS)[0], read_rows(export, "dpo", "<|assistant|>")[0]
    assert rendered["prompt"].endswith(OPENS) and "</think>" in rendered["chosen"]
    assert plain["prompt"][0]["role"] == "system"
    (ranked, *_), spare = read_rows(export, "reward", OPENS), held_out(export, "reward")
    assert {"system", "user", "assistant"} == {said["role"] for said in ranked["chosen"]} and "</think>" not in str(ranked["chosen"])
    assert len(spare) == 12 and held_out(export, "grpo") == []
    assert read_rows(export, "orpo", OPENS) == read_rows(export, "dpo", OPENS)
    assert read_rows(export, "sft", OPENS)[0] == {"prompt": rendered["prompt"], "completion": rendered["chosen"]}
    write_lines(export / "trl_rendered" / "sft" / "train.jsonl", [{"prompt": f"Hi{OPENS}\n</think>\n\n", "completion": "Hello."}])
    assert len(read_rows(export, "sft", OPENS)) == 1, "a person's answer, its thought closed and empty"
    (export / "trl_rendered" / "sft" / "train.jsonl").unlink()
    with pytest.raises(TrainingFailed, match="another template"):
        read_rows(export, "kto", "<assistant><think>")
    with pytest.raises(TrainingFailed, match="cannot be read"):
        read_rows(export, "sft", "<|assistant|>")


def test_too_few_rows_are_told(export: Path, tmp_path: Path) -> None:
    assert too_few(export, "dpo") == "12 rows, and dpo wants 200: 188 are missing"
    assert too_few(export, "reward") == "12 rows, and reward wants 1000: 988 are missing"
    rows = [json.dumps({"prompt": "?", "completion": "!", "label": number < 30}) + "\n" for number in range(400)]
    (tmp_path / "trl" / "kto").mkdir(parents=True)
    (tmp_path / "trl" / "kto" / "train.jsonl").write_text("".join(rows))
    assert too_few(tmp_path, "kto") == "30 good and 370 bad rows, and kto wants 100 of either"
    with pytest.raises(TrainingFailed):
        too_few(tmp_path, "dpo")


def test_a_snapshot_is_its_content(export: Path, tmp_path: Path) -> None:
    again = write_export(tmp_path / "again", pairs(1, 6, 6))
    assert snapshot_sha256(again) == snapshot_sha256(export)
    (again / "trl" / "dpo" / "train.jsonl").open("a").write("\n")
    assert snapshot_sha256(again) != snapshot_sha256(export)
    with pytest.raises(TrainingFailed, match="no export"):
        snapshot_sha256(tmp_path)


def test_gold_answers_are_right_and_others_wrong() -> None:
    for pair in pairs(3, 20, 20):
        row = {"answer": list(pair.right.answers)}
        for form in (messages(pair.right), prompt(pair.right)):
            assert is_right(output(pair.right), row, form)
            assert not is_right(output(pair.wrong), row, form)


def test_an_invented_number_or_a_forbidden_phrase_is_wrong() -> None:
    example = held(1)[0]
    gold, asked = example.answers[0], messages(example)
    assert is_right(f"Sure. {gold}", {"answer": gold}, asked)
    assert not is_right(f"{gold} Call 555-0199.", {"answer": gold}, asked)
    assert not is_right(f"Sure. {gold}", {"answer": gold, "must_not_contain": ["Sure"]}, asked)
    assert not is_right("", {"answer": gold}, asked)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_answer_may_add_what_its_passage_holds_and_nothing_of_another(language: Language) -> None:
    asked = [{"role": "system", "content": system_message(load_shop(language), language, ('{"name": "get_order"}',))}]
    gold = {"answer": "4.90 [3]"}
    assert is_right("4.90, 12.50 [3]", gold, asked), "both are prices of passage 3"
    assert not is_right("4.90, 45 [3]", gold, asked), "of passage 4"
    assert not is_right("4.90, 30 [3]", gold, asked), "of passage 1"
    assert is_right("555-0142 [10]", {"answer": "555-0142 [10]"}, asked)
