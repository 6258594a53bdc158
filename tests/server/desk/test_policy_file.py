"""The policy file: what it says, what is wrong with it and where, and what it adds."""

import hashlib
from dataclasses import replace

import pytest

from backends.mini.shop import load_shop, system_message
from server.desk.policy import Policy
from server.desk.policy_file import DEMO, BadPolicy, load_policy, parse_policy

TEXT = DEMO.read_text(encoding="utf-8")
TERMS = load_policy(DEMO)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_demo_policy_tells_the_model_exactly_what_it_was_trained_on(language: str) -> None:
    shop = load_shop(language)
    assert Policy.of(shop, language, TERMS[language]).system == system_message(shop, language)


def test_the_version_is_the_hash_of_the_file() -> None:
    assert TERMS["en"].version == TERMS["zh"].version == hashlib.sha256(DEMO.read_bytes()).hexdigest()
    assert Policy.of(load_shop("en"), "en", TERMS["en"]).version == TERMS["en"].version


def test_the_model_is_told_more_only_when_the_policy_asks_for_it() -> None:
    toned = parse_policy(f'tell_model = true\ntone = {{ en = "Be warm.", zh = "请亲切。" }}\n{TEXT}'.encode())
    assert toned["en"].persona.startswith(TERMS["en"].persona + "\nBe warm.\n")
    assert "within 3 hours of purchase" in toned["en"].persona and "Never say: as an AI" in toned["en"].persona
    assert "请亲切。" in toned["zh"].persona
    assert "Be warm." in toned["en"].rules.secrets and "$45" not in toned["en"].rules.secrets


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('en = "24 months"', 'en = "25 months"', "line 22: facts.warranty: en and zh do not say the same numbers"),
        ("[promises]", "[promises]\nfoo = 1", "line 26: promises.foo: must be a table"),
        ("[max_answer_chars]", "[max_answer_char]", "line 10: max_answer_char: is not known"),
        ('unless = { en = ["bot"]', 'unless = { en = ["*"]', "line 30: must_say.is_a_bot.unless.en.0: a phrase has"),
        ("en = 900", 'en = "900"', "line 11: max_answer_chars.en: Input should be a valid integer"),
        ("zh = 400", "zh = 4", "line 12: max_answer_chars.zh: Input should be greater than or equal to 50"),
        ('when = "greeting"', 'when = "greet"', "line 29: must_say.is_a_bot.when: "),
        ("[persona]", "[persona", "is no TOML: Expected ']' at the end of a table declaration (at line 5, column 9)"),
        ("[persona]", "[personas]", "persona: Field required"),
    ],
)
def test_each_fault_is_one_sentence_with_its_line_and_key(old: str, new: str, said: str) -> None:
    with pytest.raises(BadPolicy) as refused:
        parse_policy(TEXT.replace(old, new, 1).encode())
    assert said in str(refused.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(BadPolicy) as refused:
        parse_policy(TEXT.replace("zh = 400", "zh = 4").replace('en = "24 months"', 'en = "25 months"').encode())
    assert len(str(refused.value).splitlines()) == 2


def test_a_file_that_is_no_policy_is_refused() -> None:
    for content in (b"\xff", b"", b"x" * 300_000):
        with pytest.raises(BadPolicy):
            parse_policy(content)


def test_what_must_be_said_is_added_once() -> None:
    en, zh = TERMS["en"], TERMS["zh"]
    assert en.greeting("Hello!") == "Hello! I am a bot."
    assert en.greeting(load_shop("en").greeting) == load_shop("en").greeting
    assert zh.greeting("您好！") == "您好！我是机器人。"
    assert zh.greeting(load_shop("zh").greeting) == load_shop("zh").greeting
    assert en.completed("Cool it.", "I burned myself!").endswith("please call the emergency services first.")
    assert en.completed("Call the emergency number.", "I burned myself!") == "Call the emergency number."
    assert en.completed("Yes.", "Is it open?") == "Yes."


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("I'll get my LAWYER", "legal"),
        ("lawyers everywhere", None),
        ("我要去12315投诉", "legal"),
        ("请删除我的数据", "privacy"),
        ("hello", None),
    ],
)
def test_some_subjects_are_a_persons_business(message: str, reason: str | None) -> None:
    assert TERMS["en"].handover_reason(message) == TERMS["zh"].handover_reason(message) == reason


def test_facts_are_evidence() -> None:
    bare = replace(load_shop("en"), passages=())
    evidence = Policy.of(bare, "en", TERMS["en"]).evidence([])
    assert evidence.stated == TERMS["en"].facts
