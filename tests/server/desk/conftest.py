"""A desk over a real record and a scripted chat."""

import pytest

from backends.mini.shop import Passage, Shop
from feedback.record import Record
from server.desk.desk import Desk
from server.desk.policy import Policy
from server.settings import DeskSettings
from tests.server.desk.customer import VISITOR, Customer
from tests.server.fakes import ScriptedChat

PASSAGES = (Passage("returns", "Returns", "Within 30 days."), Passage("delivery", "Delivery", "Three days."))
SHOPS = {
    "en": Shop("Tea House", "You are the assistant of Tea House.", "Hello!", ("Where is my order?",), PASSAGES),
    "zh": Shop("茶舍", "你是茶舍的客服。", "您好！", ("我的订单在哪?",), PASSAGES),
}


@pytest.fixture
def chat() -> ScriptedChat:
    return ScriptedChat()


@pytest.fixture
def desk(chat: ScriptedChat, record: Record) -> Desk:
    policies = {language: Policy.of(SHOPS[language], language) for language in ("en", "zh")}
    return Desk(chat, record, policies, DeskSettings(), wait_s=lambda place: 5 * place)


@pytest.fixture
async def customer(desk: Desk) -> Customer:
    return Customer(desk, await desk.open_conversation(VISITOR, "en"))
