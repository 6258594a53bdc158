"""Rewards: each can fail, flattery never pays, and three trainers can call them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback import rewards
from feedback.rewards import Facts, action_of, advantages, combine, compute_score, kefu_reward, numbers_in, reward_func, staged

FACTS: Facts = {
    "answer": "A refund takes 3-5 working days [1].",
    "question": "When will my refund arrive?",
    "evidence": ["Refunds: A refund arrives within 3-5 working days. Call 400-820-8820."],
    "cited_doc_ids": ["refund.1", "hours.1"],
    "required_doc_ids": ["refund.1"],
    "must_not_contain": ["guarantee"],
    "expected_language": "en",
    "expected_action": "answer",
}
RIGHT = "Your refund takes 3-5 working days [1]."


@pytest.mark.parametrize(
    ("reward", "worse"),
    [
        (rewards.well_formed, "<think>hm</think> 3-5 days"),
        (rewards.well_formed, "It takes 3-5 working days after you ask " + "in 3-5 working days after you " * 6),
        (rewards.cites, "It takes 3-5 working days [2]."),
        (rewards.cites, "It takes 3-5 working days [9]."),
        (rewards.numbers_supported, "It takes 2 days."),
        (rewards.numbers_supported, "It takes fourteen days."),
        (rewards.keeps_policy, "We Ｇuarantee 3-5 working days [1]."),
        (rewards.speaks_language, "三到五个工作日到账。"),
        (rewards.acts_right, "Shall I pass this to a person from our team?"),
        (rewards.length_fits, RIGHT * 9),
        (rewards.length_fits, "5."),
        (rewards.leaks_nothing, "Call Anna on 13800138000."),
        (rewards.is_polite, "Calm down, it takes 3-5 days."),
        (rewards.agrees, "Hello."),
    ],
)
def test_each_reward_tells_right_from_wrong(reward: rewards.Reward, worse: str) -> None:
    assert reward(RIGHT, FACTS) == 1
    assert reward(worse, FACTS) < 1
    assert combine(worse, FACTS) < combine(RIGHT, FACTS)


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_flattery_never_pays(liked: float, disliked: float) -> None:
    """However much it is liked, an answer that fails a gate stays below one that passes, however little that is liked."""
    flattering = "You are so right! We guarantee it tomorrow, and 50 dollars on top."
    assert combine(flattering, {**FACTS, "user_signal": liked}) < combine(RIGHT, {**FACTS, "user_signal": disliked})


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_a_signal_only_orders_what_is_equally_right(first: float, second: float) -> None:
    worse = "Your refund takes some working days."
    assert combine(worse, {**FACTS, "user_signal": first}) < combine(RIGHT, {**FACTS, "user_signal": second})
    low, high = sorted((first, second))
    assert combine(RIGHT, {**FACTS, "user_signal": low}) <= combine(RIGHT, {**FACTS, "user_signal": high})
    assert combine(RIGHT, {**FACTS, "user_signal": -1}) < combine(RIGHT, {**FACTS, "user_signal": 1})


ANSWERS = [
    RIGHT,
    "Hello.",
    "Your refund takes some working days.",
    "It takes 2 days.",
    "Calm down, it takes 2 days.",
    RIGHT * 9,
    "3-5 days [2].",
    "",
]


@given(st.lists(st.tuples(st.sampled_from(ANSWERS), st.floats(-1e9, 1e9)), min_size=1), st.floats(-1, 1))
def test_what_a_reward_model_likes_never_outweighs_a_rule(judged: list[tuple[str, float]], signal: float) -> None:
    """The rules' order is kept, and an answer that fails one gains nothing; among equally right ones the better liked is no worse."""
    rules = [combine(answer, {**FACTS, "user_signal": signal}) for answer, _ in judged]
    both = staged(rules, [score for _, score in judged])
    assert all(0 <= reward <= 1 for reward in both)
    for (_, score), rule, reward in zip(judged, rules, both, strict=True):
        assert rewards.PASSED - rewards.GENERAL_SHARE <= reward <= rule if rule >= rewards.PASSED else reward == rule <= 0.4
        for (_, other), other_rule, other_reward in zip(judged, rules, both, strict=True):
            assert reward > other_reward or rule <= other_rule
            assert rule != other_rule or rule < rewards.PASSED or score < other or reward >= other_reward


def test_a_reward_model_orders_what_is_equally_right_on_any_scale_of_its_own() -> None:
    for shift in (-1e6, 0, 1e6):
        low, high, failed = staged([0.9, 0.9, 0.3], [shift, shift + 2, shift + 9])
        assert high - low > 0.005 and failed == 0.3


def test_saying_no_where_no_is_due_beats_saying_yes() -> None:
    facts = {
        "answer": "A worn item cannot be returned [1].",
        "evidence": ["Returns: A worn item cannot be returned."],
        "expected_action": "refuse",
    }
    assert combine("I'm sorry, a worn item cannot be returned [1].", {**facts, "user_signal": -1}) > combine(
        "Of course, send the worn item back [1].", {**facts, "user_signal": 1}
    )


def test_actions() -> None:
    assert action_of("您是想申请退款,还是查询到账时间?") == "clarify"
    assert action_of("要不要我帮您转人工客服?") == action_of("I can pass this to a person from our team.") == "handoff"
    assert action_of("很抱歉,不能退。") == action_of("We cannot do that.") == "refuse"
    assert action_of("3-5 个工作日到账。") == "answer"


def test_numbers_in_words_are_numbers() -> None:
    assert numbers_in("三个工作日,二十五元,两天 [4]") == {3, 25, 2}
    assert numbers_in("thirty days, 1,299.50 and ３０") == {30, 1299.5}


def test_advantages_sum_to_nothing_and_equal_rewards_teach_nothing() -> None:
    assert sum(advantages([0.1, 0.5, 0.9])) == pytest.approx(0)
    assert advantages([0.4, 0.4]) == [0, 0]


def test_the_three_trainers_shapes_agree() -> None:
    expected = combine(RIGHT, FACTS)
    columns = {name: [value, value] for name, value in FACTS.items()}
    said = [[{"role": "assistant", "content": RIGHT}], f"<think>\nhm\n</think>\n\n{RIGHT}"]
    assert kefu_reward(prompts=["p", "p"], completions=said, completion_ids=[[1], [2]], trainer_state=None, **columns) == [expected] * 2
    assert compute_score("kefu", RIGHT, str(FACTS["answer"]), dict(FACTS)) == expected
    assert reward_func(queries=[f"p{RIGHT}"], prompts=["p"], labels=[json.dumps(FACTS)]) == [expected]
    assert reward_func([f"p{RIGHT}"], ["p"], ["plain gold"])[0] <= 1
