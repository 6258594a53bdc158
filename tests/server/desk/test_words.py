"""Asking for a person in words: what is one, what is none, and what an offer and a yes make."""

import json

import pytest

from backends.mini.shop import SHOP_FOLDER
from server.desk.words import wants_person, yes_or_no

ASKS = [
    "I want to talk to a human",
    "can I speak with someone from your team?",
    "Let me talk to a real person!",
    "get me your manager",
    "please connect me to an agent",
    "human please",
    "Agent",
    "I don't want to chat with a robot. I need a person.",
    "put me through to a member of staff",
    "转人工",
    "请转接人工客服",
    "怎么转人工",
    "我想跟真人聊",
    "人工客服！",
    "帮我找个真人",
]
ASKS_NOT = [
    "are you human?",
    "Are you a real person or a bot",
    "I don't need to talk to a person, just the price",
    "you need a person to sign for the parcel?",
    "is a person's name on the gift card",
    "my friend talked to an agent yesterday",
    "which colleague mends things at your place",
    "你是真人吗",
    "是人工客服吗",
    "维修人工费怎么收",
    "不用转人工，我就问价格",
    "人工客服几点上班",
    "转账可以吗",
    "yes",
    "好的",
    "Can I return it within 30 days?",
    "a" * 4000,
]
OFFERS = [
    "I'm sorry, I don't have that information. Shall I get a person to help you?",
    "I don't have that, I'm afraid. Shall I connect you with a person?",
    "抱歉，我这里没有这方面的资料。需要为您转人工吗？",
    "很抱歉，这个我查不到。要不要帮您转人工客服？",
]


@pytest.mark.parametrize("text", ASKS)
def test_it_is_asked_for(text: str) -> None:
    assert wants_person(text, "")


@pytest.mark.parametrize("text", ASKS_NOT)
def test_it_is_not_asked_for(text: str) -> None:
    assert not wants_person(text, "Three days [1].")


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("yes", ["yes", "Yes please!", "ok, thanks", "sure", "好的", "好，请转吧", "要", "麻烦您了。", "是的，谢谢"])
def test_a_yes_to_an_offer_is_one(offer: str, yes: str) -> None:
    assert wants_person(yes, offer)
    assert not wants_person(yes, "It takes three days [1]. Is there a warranty? Yes.")


@pytest.mark.parametrize("text", ["no thanks", "yes, but how much is it?", "no", "不用了", "好的，那多少钱", "what would they do?"])
def test_anything_else_after_an_offer_is_none(text: str) -> None:
    assert not wants_person(text, OFFERS[0])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_nothing_the_shop_suggests_is_one(language: str) -> None:
    for text in json.loads((SHOP_FOLDER / f"{language}.json").read_text(encoding="utf-8"))["suggestions"]:
        assert not wants_person(text, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((yes, True) for yes in ("Yes!", "ok, do that", "confirm", "确认", "好的，谢谢")),
        *((no, False) for no in ("No, thanks.", "don’t", "不用了，谢谢", "算了")),
        *((other, None) for other in ("yes, but not now", "no problem?", "不行", "不好意思，几天到？", "")),
    ],
)
def test_only_a_plain_yes_or_no_decides(text: str, said: bool | None) -> None:
    assert yes_or_no(text) is said
