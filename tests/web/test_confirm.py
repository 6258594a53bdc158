"""What waits for a yes: the values are on the page, and one press of one button decides."""

import pytest
from playwright.sync_api import Page, expect

from tests.web.browser import finished
from tests.web.scripted_desk import Desk, Scene

pytestmark = pytest.mark.e2e

CONFIRM: dict[str, object] = {"call_id": "call_1", "tool": "cancel_order", "arguments": [["The order's number", "<b>K1</b>"]]}


@pytest.mark.parametrize(("part", "decision"), [("yes", "yes"), ("no", "no")])
def test_a_button_decides_once_and_by_keyboard_too(page: Page, desk: Desk, part: str, decision: str) -> None:
    looking: tuple[tuple[float, dict[str, object]], ...] = ((0.3, {"state": "looking_up"}),)
    desk.scene = Scene(text="Shall I cancel order K1?", waits=looking, confirm=CONFIRM)
    finished(page)
    card = page.get_by_role("group", name="Please confirm")
    expect(card.locator("dt")).to_have_text("The order's number")
    expect(card.locator("dd")).to_have_text("<b>K1</b>")
    page.reload()
    button = card.locator(f"[data-part={part}]")
    words = button.inner_text()
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".question").last).to_contain_text(words)
    expect(page.locator(".answer").last).to_contain_text("Done.")
    expect(card).to_have_count(0)
    assert desk.decided == [("call_1", {"decision": decision})]


def test_a_question_back_is_answered_with_one_press(page: Page, desk: Desk) -> None:
    desk.scene = Scene(text="Do you mean the price, or <i>the time</i> it takes?")
    finished(page, "shipping?")
    replies = page.get_by_role("list", name="Quick replies").get_by_role("button")
    expect(replies).to_have_text(["The price", "<i>the time</i> it takes"])
    page.reload()
    desk.scene = Scene()
    replies.last.click()
    expect(page.locator(".question").last).to_contain_text("<i>the time</i> it takes")
    expect(page.locator(".answer").last).to_contain_text("30 days")
    expect(replies).to_have_count(0)
