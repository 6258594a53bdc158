"""Attribution: a signal judges the answer it is about, and a row's prompt ends with the question of that answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedback.pairs import Case, Evidence, Gates, Passage, Row, Turn, leaned_on, make_rows, strength
from feedback.record import Citation
from feedback.regenerate import regenerate
from tests.feedback.shopper import ASKED, DAYS, HOW_TO, RESTATED, Talk, worked_example

GATES = Gates()


def rows(talk: Talk, kind: str, gates: Gates = GATES) -> list[Row]:
    return [row for row in make_rows(talk.chat(), gates) if row.kind == kind]


def test_the_worked_example() -> None:
    talk = worked_example()
    bad, good = sorted(rows(talk, "kto"), key=lambda row: len(row.case.turns))
    assert (bad.label, bad.answer, [turn.content for turn in bad.case.turns]) == (False, HOW_TO, [ASKED])
    assert (good.label, good.answer, good.case.question) == (True, DAYS, RESTATED)
    (pair,) = rows(talk, "dpo")
    assert (pair.rejected, pair.answer, pair.origin, pair.strength, pair.problem) == (HOW_TO, DAYS, "natural", 0.8, None)
    assert pair.case.turns == (Turn("user", ASKED),)
    (question,) = rows(talk, "grpo")
    assert question.answer == DAYS


@pytest.mark.parametrize("prob", [1.0, 0.6])
def test_an_answer_that_leans_on_a_later_turn_has_to_be_made_anew(prob: float) -> None:
    talk = Talk()
    talk.asks(ASKED)
    first = talk.answers(HOW_TO)
    talk.asks("我说的是信用卡付的款,3-5 天?")
    second = talk.answers("信用卡退款 3-5 个工作日到账 [1]。")
    talk.signal(first, "rephrase", -1, prob)
    talk.signal(second, "thumb", 1)
    (pair,) = rows(talk, "dpo")
    assert (pair.answer, pair.reference, pair.problem) == (None, second.text, "needs_regeneration")
    assert "信用" in leaned_on(second.text, pair.case, ["我说的是信用卡付的款"])


def test_regenerating_takes_the_candidate_that_passes_and_agrees() -> None:
    asked: list[tuple[Sequence[Turn], int]] = []

    async def complete(turns: Sequence[Turn], count: int) -> list[str]:
        asked.append((turns, count))
        return ["99 天到账 [1]。", HOW_TO, "3-5 个工作日到账 [1]。" * 9, "您好,退款会在 3-5 个工作日到账 [1]。", "I cannot say."]

    row = Row("dpo", worked_example().chat().case(worked_example().said[0]), None, None, rejected=HOW_TO, rejected_id="cmpl_1")
    row = replace(row, reference=DAYS, problem="needs_regeneration")

    def prompt(case: Case) -> list[Turn]:
        return [Turn("system", "s"), *case.turns]

    (done, untouched) = asyncio.run(regenerate([row, replace(row, problem="review")], complete, GATES, prompt))
    assert (done.answer, done.origin, done.problem) == ("您好,退款会在 3-5 个工作日到账 [1]。", "regenerated", "unsure")
    assert untouched.problem == "review" and len(asked) == 1
    assert asked[0] == ([Turn("system", "s"), Turn("user", ASKED)], 4)


def test_an_answer_asked_for_again_and_an_edited_question() -> None:
    talk = Talk()
    question = talk.asks(ASKED)
    first = talk.answers(HOW_TO)
    second = talk.answers(DAYS, to=question, replaces=first)
    talk.signal(first, "regenerate", -1)
    talk.signal(second, "thumb", 1)
    (pair,) = rows(talk, "dpo")
    assert (pair.answer, pair.rejected, pair.strength, len(pair.case.turns)) == (DAYS, HOW_TO, 0.3, 1)
    edited = talk.asks("退款几天到账?", replaces=question)
    talk.answers(DAYS, to=edited)
    assert talk.chat().case(edited).turns == (Turn("user", "退款几天到账?"),)
    assert talk.chat().case(question).turns == (Turn("user", ASKED),)


def test_a_thumb_down_alone_takes_no_answer_from_another_topic() -> None:
    talk = Talk()
    talk.asks(ASKED)
    first = talk.answers(HOW_TO)
    talk.asks("几点开门?")
    second = talk.answers("申请退款请到订单页 [1]。谢谢。")
    talk.signal(first, "thumb", -1)
    talk.signal(second, "thumb", 1)
    (pair,) = rows(talk, "dpo")
    assert (pair.answer, pair.problem) == (None, "nothing_accepted")


def test_a_persons_answer_is_gold() -> None:
    talk = Talk()
    talk.asks(ASKED)
    first = talk.answers(HOW_TO)
    talk.person("您的退款 7 月 8 日已经原路退回。")
    talk.signal(first, "agent_correction", -1)
    (gold,) = rows(talk, "sft")
    assert (gold.origin, gold.case.question, gold.problem) == ("agent", ASKED, None)
    assert gold.case.turns == (Turn("user", ASKED),)
    (pair,) = rows(talk, "dpo")
    assert (pair.origin, pair.strength, pair.answer) == ("agent", 1.0, "您的退款 7 月 8 日已经原路退回。")


def test_an_agent_who_was_called_answers_what_was_asked_before_and_a_greeting_answers_nothing() -> None:
    talk = Talk()
    talk.asks(ASKED)
    first = talk.answers(HOW_TO)
    talk.asks("转人工")
    talk.person("您好,我是小李。")
    talk.person("您的退款已经原路退回。")
    talk.signal(first, "agent_correction", -1)
    greeting, gold = rows(talk, "sft")
    assert (greeting.problem, gold.problem, gold.case.turns) == ("off_the_question", None, (Turn("user", ASKED),))
    (pair,) = rows(talk, "dpo")
    assert (pair.answer, pair.problem) == (gold.answer, None)
    called = Talk()
    called.asks("转人工")
    called.person("退款已经退回。")
    assert {row.problem for row in make_rows(called.chat(), GATES)} == {"off_the_question"}


@pytest.mark.parametrize("kind", ["thumb", "rephrase"])
def test_a_refusal_that_the_policy_asks_for_is_never_rejected(kind: str) -> None:
    talk = Talk(language="en")
    talk.asks("I wore the shoes once, please take them back")
    no = talk.answers("I am sorry, a worn item cannot be returned [2].")
    talk.signal(no, kind, -1)
    bad = [row for row in make_rows(talk.chat(), GATES) if row.rejected == no.text or row.label is False]
    assert bad and {row.problem for row in bad} == {"due_refusal"}
    made_up = Talk(language="en")
    made_up.asks("May I return unworn shoes?")
    wrong = made_up.answers("No, we cannot take anything after 2 days.")
    made_up.signal(wrong, kind, -1)
    assert {row.problem for row in make_rows(made_up.chat(), GATES) if row.kind == "kto"} == {None}


def test_liked_answers_that_fail_a_gate_teach_nothing() -> None:
    talk = Talk()
    talk.asks(ASKED)
    liked = talk.answers("明天 100% 到账,送您 50 元!")
    talk.signal(liked, "thumb", 1)
    assert {row.problem for row in make_rows(talk.chat(), GATES)} == {"gate:numbers"}
    english = Talk()
    english.asks(ASKED)
    english.signal(english.answers("It arrives soon, thank you very much."), "thumb", 1)
    assert {row.problem for row in make_rows(english.chat(), GATES)} == {"gate:language"}
    strict = Gates(violations=lambda answer, case: ["promise"], expected_action=lambda case: "handoff")
    assert {row.problem for row in make_rows(worked_example().chat(), strict) if row.label} == {"gate:action"}


def test_a_guess_waits_for_a_reviewer() -> None:
    talk = Talk()
    talk.asks(ASKED)
    talk.signal(talk.answers(HOW_TO), "rephrase", -1, prob=0.7)
    assert {row.problem for row in rows(talk, "kto")} == {"unsure"}


def test_strengths() -> None:
    def of(*signals: tuple[str, tuple[str, ...]]) -> float:
        return strength([Evidence("sig", kind, -1, 1, 1, tags) for kind, tags in signals])

    assert of(("agent_correction", ())) == 1
    assert of(("thumb", ("wrong",))) == of(("thumb", ()), ("rephrase", ())) == 0.8
    assert (of(("thumb", ())), of(("rephrase", ())), of(("edit", ())), of(("stop", ()))) == (0.6, 0.5, 0.3, 0.2)


KINDS = st.sampled_from(["thumb", "rephrase", "correction", "regenerate", "edit", "gratitude", "agent_correction"])
STEPS = st.lists(st.tuples(st.sampled_from(["ask", "answer", "again", "edit", "person"]), KINDS, st.booleans()), min_size=2, max_size=12)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_no_prompt_holds_what_was_said_after_its_question(steps: list[tuple[str, str, bool]]) -> None:
    talk = Talk()
    talk.asks("marker0")
    for step, kind, is_good in steps:
        text = f"marker{len(talk.said)}"
        answers = [each for each in talk.said if each.role == "assistant"]
        questions = [each for each in talk.said if each.role == "user"]
        if step == "ask":
            talk.asks(text)
        elif step == "edit":
            talk.asks(text, replaces=questions[-1])
        elif step == "person":
            talk.person(text)
        else:
            again = answers[-1] if step == "again" and answers else None
            answer = talk.answers(
                text, to=next(each for each in questions if each.id == again.reply_to_id) if again else None, replaces=again
            )
            talk.signal(answer, kind, 1 if is_good else -1)
    seqs = {each.text: each.seq for each in talk.said}
    for row in make_rows(talk.chat(), Gates(stands_alone=lambda answer, case, later: True)):
        asked = seqs[row.case.question]
        assert row.case.turns[-1].role == "user"
        assert all(seqs[turn.content] <= asked for turn in row.case.turns)
        assert all(seqs[text] > asked for text in (row.answer, row.rejected) if text)


def test_passages_stand_under_the_numbers_that_the_conversation_cites_them_by() -> None:
    """What an answer saw is known best first; a later answer's `[5]` says where the fifth one stood."""
    talk = Talk()
    first = talk.answers("Standard shipping.", to=talk.asks("What is the boomerang window?"))
    second = talk.answers("Thirty days [5].", to=talk.asks("How long may I return it?"))
    returns, shipping = Passage(1, "returns", "Returns", "30 days."), Passage(2, "shipping", "Shipping", "4 days.")
    talk.said[-1] = replace(second, citations=(Citation(5, "returns", "Returns", "30 days."),))
    chat = replace(talk.chat(), passages={str(first.completion_id): (returns, shipping)})
    assert [(each.number, each.id) for each in chat.case(talk.said[0]).passages] == [(1, "shipping"), (5, "returns")]
