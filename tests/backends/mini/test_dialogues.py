"""What the generated dialogues promise: the same from the same seed, right by construction, and nothing held out in training."""

import itertools
import json
import re

import pytest

from backends.mini.corpus import Split, expand, phrasings, slots, split_of, tables
from backends.mini.data import families
from backends.mini.dialogues import Example, demo_entries
from backends.mini.score import is_formed, is_right
from backends.mini.shop import Language, load_shop

LANGUAGES: tuple[Language, ...] = ("en", "zh")


def examples(split: Split, shops: int = 150, seed: int = 5) -> list[Example]:
    return [example for family in itertools.islice(families(seed, split), shops) for example in family]


def test_same_seed_writes_the_same_dialogues() -> None:
    assert examples("train", 40) == examples("train", 40)
    assert examples("train", 40) != examples("train", 40, seed=6)


@pytest.mark.parametrize("split", ["train", "held"])
def test_facts_of_every_right_answer_stand_in_the_cited_passage(split: Split) -> None:
    for example in examples(split):
        if example.cited:
            passage = example.shop.passages[example.cited - 1]
            for fact in example.facts:
                assert fact in passage.title + passage.text
                assert all(fact in answer for answer in example.answers)
            assert all(f"[{example.cited}]" in answer for answer in example.answers)


@pytest.mark.parametrize("split", ["train", "held"])
def test_the_scorer_accepts_every_right_answer_and_rejects_another_passage(split: Split) -> None:
    for example in examples(split):
        assert all(is_right(example, answer) for answer in example.answers)
        if example.cited:
            wrong = example.answers[0].replace(f"[{example.cited}]", f"[{example.cited % len(example.shop.passages) + 1}]")
            assert len(example.shop.passages) == 1 or not is_right(example, wrong)


def test_the_scorer_asks_for_one_closed_thought_an_answer_and_an_end() -> None:
    assert is_formed(True, "thought\n</think>\n\nanswer", has_ended=True)
    assert not is_formed(True, "thought\n</think>\n\nanswer", has_ended=False)
    assert not is_formed(True, "thought\n</think>\n\n", has_ended=True)
    assert not is_formed(True, "a</think>b</think>c", has_ended=True)


def test_made_shops_and_their_values_are_never_on_both_sides() -> None:
    for split in ("train", "held"):
        for example in examples(split):
            if example.kind == "made":
                assert split_of(example.shop.name) == split


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_questions_are_never_asked_in_training(language: Language) -> None:
    facts = [fact for topic in tables(language)["topics"].values() for fact in topic["facts"].values()]
    for fact in facts:
        assert all(slots(fact["answer"][0]) == slots(answer) for answer in fact["answer"])
        train, held = (phrasings(fact["ask"], split) for split in ("train", "held"))
        assert len(held) >= 1 and not set(train) & set(held) and {*train, *held} == set(fact["ask"])
    plain = {question for fact in facts for question in phrasings(fact["ask"], "held") if not re.search(r"[(){}]", question)}
    asked = "\n".join(content for example in examples("train") for role, content in example.turns if role == "user").splitlines()
    assert plain and not plain & set(asked)


def tool_calls(text: str) -> list[dict[str, object]]:
    return [json.loads(call) for call in re.findall(r"<tool_call>\n(.*)\n</tool_call>", text)]


@pytest.mark.parametrize("split", ["train", "held"])
def test_a_call_names_an_offered_tool_and_takes_its_arguments_from_the_dialogue(split: Split) -> None:
    called = [(example, call) for example in examples(split) for call in tool_calls(example.answers[0])]
    assert len(called) > 20
    for example, call in called:
        offered = {tool["name"]: tool["parameters"] for tool in map(json.loads, example.tools)}
        assert set(call["arguments"]) == set(offered[call["name"]]["required"])
        said = " ".join(content for _, content in example.turns)
        assert all(value in said for value in call["arguments"].values())


def test_nothing_is_changed_before_the_customer_has_agreed() -> None:
    for example in examples("train"):
        for call in tool_calls(example.answers[0]):
            if not re.search("get|find|status|lookup", call["name"]):
                question, reply = example.turns[-2:]
                assert question[0] == "assistant" and question[1].rstrip("?？ .。").endswith(("yes or no", "是或否"))
                assert reply[1] in tables(example.language)["actions"]["yes"]


def test_json_answers_fit_the_schema_they_were_given() -> None:
    answered = [example for example in examples("held") if example.behaviour == "json"]
    assert answered
    for example in answered:
        schema = json.loads(re.search(r"\{.*\}", example.turns[-1][1])[0])
        assert list(json.loads(example.answers[0])) == schema["required"] == list(schema["properties"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_demo_shop_is_what_its_templates_say(language: Language) -> None:
    entries = demo_entries(language)
    assert [entry.passage.id for entry in entries] == [passage.id for passage in load_shop("en").passages]
    assert all(len(entry.passage.text.split()) <= 40 for entry in entries)


def test_a_choice_settles_to_one_of_its_sides() -> None:
    import random

    assert {expand(random.Random(seed), "a (b|c|) d") for seed in range(30)} == {"a b d", "a c d", "a d"}
