"""The whole story in one sitting: a shop's page, its widget, the bot, a tool, a person, and back again. Real server, model and disk."""

from pathlib import Path

import pytest
from playwright.sync_api import Frame, Page, expect

from tests.e2e.house import kefu
from tests.e2e.test_chat_page import rows
from tests.e2e.test_person import data_dir, sign_in  # noqa: F401
from tests.web.browser import PHONE, chromium, visit
from tests.web.host_page import Host, Place, chat_of, finished, host_app, opened, shopping
from tests.web.scripted_desk import Desk, serving

pytestmark = pytest.mark.e2e

ASKED = {
    "en": ("How long do I have to return something?", "I mean, until when may I send it back?", "Where is my order K12345?"),
    "zh": ("几天内可以退货？", "我是问最晚什么时候能退？", "订单 K12345 到哪了？"),
}


@pytest.mark.parametrize(("language", "device"), [("en", {}), ("zh", {**PHONE, "color_scheme": "dark"})], ids=["desk-light", "phone-dark"])
def test_from_the_shops_page_to_a_rating(data_dir: Path, model_path: str, language: str, device: dict[str, object]) -> None:  # noqa: F811
    host = Host()
    with chromium() as browser, serving(host_app(host)) as shop:
        settings = {"KEFU_SITES__SHOP__ORIGINS": shop, "KEFU_SITES__SHOP__LANGUAGE": language}
        with kefu(data_dir, model_path, settings) as server, visit(browser, f"{server.url}/console/inbox") as agent:
            host.kefu = server.url
            sign_in(agent)
            with shopping(browser, Place(Desk(), host, server.url, shop, shop, ""), **device) as page:
                frame = opened(page)
                _talk(frame, language, data_dir)
                _reach_a_person(frame, agent, data_dir)
                page.reload()
                frame = chat_of(page)
                if device:  # a phone's screen is the shop's until the chat is opened
                    page.locator("kefu-chat button").click()
                _rate(frame, page)
    kinds = [kind for (kind,) in rows(data_dir, "select kind from signal where kind in ('thumb', 'csat') order by seq")]
    assert kinds == ["thumb", "csat"]
    assert rows(data_dir, "select text, gold from message where role = 'agent'") == [("It comes tomorrow.", 1)]
    assert rows(data_dir, "select count(distinct visitor_id), count(*) from conversation") == [(1, 1)]


def _talk(frame: Frame, language: str, data_dir: Path) -> None:  # noqa: F811
    first, again, order = ASKED[language]
    finished(frame, first)
    answer = frame.locator(".answer").last
    if answer.locator(".citation").count():
        answer.locator(".citation").first.click()
        expect(frame.locator("#passage")).to_be_visible()
        frame.locator("#passage [data-part=close]").click()
    frame.wait_for_timeout(1_600)  # a vote needs time to be meant
    answer.locator("[data-part=down]").click()
    expect(answer.locator("[data-part=down]")).to_have_attribute("aria-pressed", "true")
    finished(frame, again)
    finished(frame, order)
    calls = rows(data_dir, "select name, status from tool_call")
    assert set(calls) <= {("get_order", "done"), ("get_order", "failed")}, "a look-up changes nothing, and nothing else was asked for"


def _reach_a_person(frame: Frame, agent: Page, data_dir: Path) -> None:  # noqa: F811
    # Whoever was failed twice in a row has one on the way already.
    if rows(data_dir, "select state from conversation") == [("bot",)]:
        frame.locator("#want-person:visible, .answer [data-part=person]:visible").last.click()
    agent.locator("#rows a").click()
    expect(agent.locator("#messages [data-role=user]")).to_have_count(3)
    agent.keyboard.press("t")
    expect(frame.locator("#banner")).to_contain_text("Ann")
    agent.locator("#text").fill("It comes tomorrow.")
    agent.locator("#text").press("Enter")
    expect(frame.locator(".person")).to_contain_text("It comes tomorrow.")
    agent.get_by_role("button", name="Resolve").click()
    expect(frame.locator(".score")).to_have_count(5)


def _rate(frame: Frame, page: Page) -> None:
    expect(frame.locator(".person")).to_contain_text("It comes tomorrow.")
    expect(frame.locator(".question")).to_have_count(3)
    frame.locator(".score").last.click()
    expect(frame.locator(".score").last).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
