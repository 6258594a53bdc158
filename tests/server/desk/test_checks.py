"""What is wrong with an answer, and what is not: a set of answers judged by hand, and properties that hold for any text."""

import itertools
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backends.mini.data import families
from backends.mini.shop import load_shop
from server.desk.checks import (
    Evidence,
    Rules,
    Violation,
    check,
    check_language,
    check_leak,
    check_length,
    check_loop,
    check_numbers,
    check_phrases,
)
from server.desk.phrases import compile_phrase
from server.desk.policy import Policy
from server.desk.policy_file import DEMO, load_policy
from server.desk.promises import promises
from server.desk.quantities import Quantity, read

ANSWERS = [json.loads(line) for line in (Path(__file__).parent / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
TERMS = load_policy(DEMO)
POLICIES = {language: Policy.of(load_shop(language), language, TERMS[language]) for language in ("en", "zh")}
NOTHING = Evidence(())


def judged(line: dict[str, object]) -> set[str]:
    policy = POLICIES[line["language"]]
    evidence = policy.evidence([str(line["asked"])], line.get("tools", ()))
    return {violation.kind for violation in check(str(line["answer"]), evidence, policy.rules, line["language"])}


def test_answers_judged_by_hand_are_judged_alike() -> None:
    right, false, missed = Counter[str](), Counter[str](), Counter[str]()
    for line in ANSWERS:
        found, wrong = judged(line), set(line["wrong"])
        right.update(found & wrong)
        false.update(found - wrong)
        missed.update(wrong - found)
    assert len(ANSWERS) >= 150 and sum(not line["wrong"] for line in ANSWERS) >= 75
    assert len(right) == 13 and min(right.values()) >= 2
    assert sum(false.values()) <= 1 and sum(missed.values()) <= 2, (false, missed)


def test_right_answers_about_hundreds_of_other_shops_pass() -> None:
    num_seen = num_stopped = 0
    for example in itertools.chain.from_iterable(itertools.islice(families(7, "held"), 25)):
        answer = example.answers[0]
        if example.behaviour == "json" or "<tool_call>" in answer:
            continue
        tools = [text for role, text in example.turns if role == "tool"]
        said = [text for role, text in example.turns if role != "tool"]
        evidence = Evidence(tuple(f"{each.title}: {each.text}" for each in example.shop.passages), (), tuple(tools), tuple(said))
        num_seen += 1
        num_stopped += bool(check(answer, evidence, Rules(secrets=(example.shop.persona,)), example.language))
    assert num_seen > 250
    assert num_stopped <= num_seen / 100


@pytest.mark.parametrize(
    "same",
    [
        ("30 days", "thirty days", "三十天", "30天", "３０ 天", "30-day", "30 日"),
        ("$4.90", "4.9 dollars", "4.90 美元", "US$4.9", "４．９美元"),
        ("$1,299", "1299 USD", "1,299.00 美元", "一千二百九十九美元"),
        ("18:30", "6:30 pm", "下午6点半", "晚上六点半", "18点30分"),
        ("24 months", "two years", "两年", "24个月", "2-year"),
        ("10%", "ten percent", "百分之十", "10 ％", "9折", "九折"),
        ("May 3", "3 May", "5月3日", "五月三号", "May 3rd"),
        ("2026-05-03", "3 May 2026", "2026年5月3日", "May 3, 2026"),
        ("5 working days", "five business days", "5个工作日", "五个工作日"),
        ("half an hour", "30 minutes", "半小时", "半个小时"),
        ("24 hours", "one day", "1 天"),
        ("555-0142", "555 0142", "5550142"),
        ("Saturday", "周六", "星期六"),
    ],
)
def test_one_thing_has_one_form(same: tuple[str, ...]) -> None:
    keys = [[quantity.key for quantity in read(text)] for text in same]
    assert len(keys[0]) == 1
    assert all(key == keys[0] for key in keys), dict(zip(same, keys, strict=True))


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("3-5 working days", [("workdays", 3), ("workdays", 5)]),
        ("$4.90 to $12.50", [("usd", Decimal("4.9")), ("usd", Decimal("12.5"))]),
        ("周一至周三", [("weekday", 0), ("weekday", 1), ("weekday", 2)]),
        ("Thirty days [1].", [("hours", 720)]),
        ("1. Open it.\n2. Close it.", []),
        ("One moment, one of our team, 便宜一点, 第一步", []),
        ("A-10293 and QK48213", [("code", "a10293"), ("code", "qk48213")]),
        ("code FREESHIP", [("code", "freeship")]),
        ("I may 3 times", [("number", 3)]),
    ],
)
def test_what_a_text_states(text: str, keys: list[tuple[object, ...]]) -> None:
    assert [quantity.key for quantity in read(text)] == keys


UNITS = ("days", "working days", "hours", "%", " 天", "个工作日", " 美元", " minutes", "")
STATED = st.builds(
    lambda number, unit: (f"{number}{unit}" if unit[:1] in " 个%" else f"{number} {unit}").strip(),
    st.integers(2, 99),
    st.sampled_from(UNITS),
)


@given(st.lists(STATED, min_size=1, max_size=5), st.text(alphabet="abc 退。,", max_size=10))
def test_whatever_stands_in_the_evidence_may_be_said(stated: list[str], around: str) -> None:
    evidence = Evidence(tuple(f"It is {each}." for each in stated))
    assert check_numbers(". ".join(f"{around} {each}" for each in stated), evidence) == []


@given(st.lists(STATED, max_size=5), st.integers(100, 9999), st.sampled_from(UNITS))
def test_a_fresh_number_is_always_noticed(stated: list[str], fresh: int, unit: str) -> None:
    assume(not 1900 <= fresh <= 2100)
    evidence = Evidence(tuple(f"It is {each}." for each in stated))
    said = f"It is {fresh} {unit.strip()}".strip()
    hours = {quantity.key for text in evidence.stated for quantity in read(text)}
    assume(not {quantity.key for quantity in read(said)} & hours)
    [violation] = check_numbers(f"{said}, you know.", evidence)
    assert str(fresh) in f"{said}, you know."[slice(*violation.span)]


@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    for quantity in read(text):
        assert isinstance(quantity, Quantity) and 0 <= quantity.start < quantity.end <= len(text)
    for made in promises(text):
        assert 0 <= made.start <= made.end <= len(text)
    assert all(isinstance(violation, Violation) for violation in check(text, NOTHING, Rules(), "en"))


@pytest.mark.parametrize(
    ("answer", "is_granted"),
    [
        ("You can return it within 60 days.", True),
        ("No, it is not within 60 days.", False),
        ("It is 60 days since you bought it.", False),
        ("您可以在 60 天内退货。", True),
        ("60 天内不能退货。", False),
    ],
)
def test_what_only_the_customer_said_is_repeated_but_not_granted(answer: str, is_granted: bool) -> None:
    evidence = Evidence(("Within 30 days.",), said=("you promised 60 days", "你们说 60 天"))
    assert bool(check_numbers(answer, evidence)) == is_granted


def test_a_promise_rests_on_the_policy_and_a_deed_on_a_tool() -> None:
    said = "I'll refund you in full."
    assert [each.kind for each in check(said, Evidence(("We refund within 5 days.",)), Rules(), "en")] == ["promise"]
    assert check(said, Evidence((), promised=("I can refund you in full.",)), Rules(), "en") == []
    done = "I've cancelled your order."
    assert [each.kind for each in check(done, NOTHING, Rules(), "en")] == ["promise"]
    assert check(done, Evidence((), tools=('{"status": "cancelled"}',)), Rules(), "en") == []


def test_spans_point_at_what_is_wrong() -> None:
    answer = "It takes 4 days. Express is ＄15, or write to a@b.example."
    found = check_numbers(answer, Evidence(("4 days",)))
    assert [(each.kind, answer[slice(*each.span)]) for each in found] == [("price", "＄15"), ("email", "a@b.example")]


def test_names_may_be_in_any_language_and_sentences_not() -> None:
    evidence = Evidence(("We carry 大红袍 and Da Hong Pao from Wuyi Shan.",))
    assert check_language("Yes, we carry 大红袍.", evidence, "en") == []
    assert check_language("有 Da Hong Pao，产自 Wuyi Shan。", evidence, "zh") == []
    assert check_language("有的，请看 hello@shop.example 或 `order status`。", evidence, "zh") == []
    assert [each.kind for each in check_language("您好, please look at the page below", evidence, "zh")] == ["language"]
    assert [each.kind for each in check_language("Please 联系我们.", evidence, "en")] == ["language"]


def test_what_every_passage_says_is_no_secret() -> None:
    secret = "Be kind to everyone who writes to the shop of tea and kettles."
    rules = Rules(secrets=(secret,))
    assert check_leak(secret, NOTHING, rules)
    assert check_leak("Sure: be kind to everyone who writes to the shop!", NOTHING, rules)
    assert check_leak(secret, Evidence((secret,)), rules) == []
    assert check_leak("I am kind to everyone.", NOTHING, rules) == []


def test_phrases_and_length() -> None:
    rules = Rules(max_chars=30, never=(("we admit * fault", compile_phrase("we admit * fault")),))
    assert check_phrases("Well, We  admit that it was our FAULT.", rules)[0].kind == "must_not_say"
    assert check_phrases("We admitted it was faulty. No fault.", rules) == []
    assert check_length("x" * 30, rules) == []
    assert check_length("x" * 31, rules)[0].span == (30, 31)


@pytest.mark.parametrize("phrase", ["", "*", "a *", "a * b * c * d * e", "x" * 201])
def test_a_phrase_that_says_nothing_or_too_much_is_refused(phrase: str) -> None:
    with pytest.raises(ValueError, match="a phrase has"):
        compile_phrase(phrase)


@given(st.text(alphabet="a*( +[x)\\.?", min_size=1, max_size=20))
def test_nothing_but_a_star_is_special_in_a_phrase(phrase: str) -> None:
    assume("*" not in phrase and phrase.strip())
    assert compile_phrase(phrase).search(f" {' '.join(phrase.split())} ")


@pytest.mark.parametrize(
    "text",
    [
        "You get your refund within " + " " * 40,
        "refund " * 6,
        "退款到账" * 6,
        "It is here. " * 7,
        "At 18" + "," * 30,
        "We charge" + " $" * 40,
        "“, " * 12,
    ],
)
def test_a_loop_is_no_answer(text: str) -> None:
    assert [one.kind for one in check_loop(text)] == ["loop"]


@pytest.mark.parametrize(
    "text",
    [
        "Ha ha ha ha.",
        "A | B\n------------------|---\n1 | 2",
        "好的好的好的",
        "Wait........................",
        "No, no, no.",
        "$ $ $",
        "(a) (b) (c)",
    ],
)
def test_what_only_repeats_a_little_is_none(text: str) -> None:
    assert not check_loop(text)
