"""Asking, waiting, stopping: the chat page in a real browser, over a desk that plays scripted scenes."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.web.browser import ask, finished, last_answer
from tests.web.scripted_desk import SLOW, Desk

pytestmark = pytest.mark.e2e


def test_it_greets_as_a_bot_and_suggests_questions(page: Page) -> None:
    expect(page.locator("h1")).to_have_text("Quiet Kettle")
    expect(page.locator(".welcome")).to_contain_text("a bot")
    assert 3 <= page.locator("#welcome .chip").count() <= 4
    page.locator(".chip").first.click()
    expect(page.locator(".question")).to_contain_text("How long do I have to return something?")
    expect(last_answer(page).locator("strong")).to_have_text("30 days")
    expect(page.locator(".suggestions")).to_be_hidden()


def test_looking_at_the_page_makes_nobody_a_visitor(page: Page, desk: Desk) -> None:
    page.wait_for_load_state("networkidle")
    assert (desk.num_visitors, desk.num_conversations) == (0, 0)


def test_enter_sends_and_shift_enter_breaks_the_line(page: Page, desk: Desk) -> None:
    page.fill("#input", "one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(last_answer(page).locator(".actions")).to_be_visible()
    assert desk.asked[0]["text"] == "one\ntwo"
    expect(page.locator("#input")).to_have_value("")


def test_enter_that_picks_a_candidate_of_an_input_method_does_not_send(page: Page, desk: Desk) -> None:
    page.fill("#input", "ni hao")
    for options in ("isComposing: true", "keyCode: 229"):
        page.evaluate(f"input.dispatchEvent(new KeyboardEvent('keydown', {{key: 'Enter', bubbles: true, {options}}}))")
    page.keyboard.press("Shift+Enter")
    expect(page.locator("#input")).to_have_value("ni hao\n")
    assert page.locator(".question").count() == 0


def test_waiting_is_honest(page: Page, desk: Desk) -> None:
    desk.scene.waits = ((0.6, {"state": "queued", "place": 3, "eta_s": 12}), (5, {"state": "thinking"}))
    ask(page)
    state = last_answer(page).locator(".state")
    expect(state).to_have_text("Number 3 in line, about 12 s")
    expect(state).to_have_text("")
    expect(state).to_have_text(re.compile(r"Thinking it through… [345] s"))
    page.keyboard.press("Escape")
    expect(state).to_be_hidden()


def test_a_long_thought_can_be_cut_short(page: Page, desk: Desk) -> None:
    desk.scene.waits = ((12, {"state": "thinking", "can_answer_now": True}),)
    ask(page)
    button = last_answer(page).get_by_role("button", name="Answer now")
    expect(last_answer(page).locator(".state")).to_have_text(re.compile(r"Thinking it through"))
    expect(button).to_have_count(0)
    expect(button).to_be_visible()
    button.click()
    expect(button).to_have_count(0)
    expect(last_answer(page).locator(".text")).to_contain_text("30 days")


@pytest.mark.parametrize("by", ["button", "Escape"])
def test_stop_keeps_what_was_said(page: Page, desk: Desk, by: str) -> None:
    desk.scene = SLOW
    ask(page)
    expect(last_answer(page).locator(".text")).to_contain_text("Tea and kettles.")
    page.locator("[data-part=stop]").click() if by == "button" else page.keyboard.press("Escape")
    expect(last_answer(page).locator(".ending")).to_have_text("This answer was stopped.")
    expect(last_answer(page).locator(".text")).to_contain_text("Tea and kettles.")
    expect(page.locator("#input")).to_be_focused()
    expect(page.locator("[data-part=send]")).to_be_visible()


def test_a_new_conversation_is_empty_and_stays_so(page: Page, desk: Desk) -> None:
    finished(page)
    page.click("#start-over")
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator(".suggestions")).to_be_visible()
    page.reload()
    page.wait_for_selector(".chip")
    expect(page.locator(".message")).to_have_count(0)
    assert desk.num_conversations == 2


def test_a_text_over_the_limit_is_kept_and_not_sent(page: Page, desk: Desk) -> None:
    counter = page.locator("#counter")
    page.fill("#input", "x" * 3599)
    expect(counter).to_be_hidden()
    page.fill("#input", "😀" * 4001)
    expect(counter).to_contain_text("4,001 of 4,000")
    page.keyboard.press("Enter")
    assert page.locator(".question").count() == 0
    page.fill("#input", "😀" * 4000)
    page.keyboard.press("Enter")
    expect(last_answer(page).locator(".actions")).to_be_visible()
    assert len(desk.asked[0]["text"]) == 4000


def test_enter_while_an_answer_is_on_its_way_keeps_the_text(page: Page, desk: Desk) -> None:
    desk.scene = SLOW
    ask(page, "one")
    expect(last_answer(page).locator(".text")).to_contain_text("Tea")
    ask(page, "two")
    expect(page.locator("#input")).to_have_value("two")
    assert page.locator(".question").count() == 1
    page.keyboard.press("Escape")
    expect(page.locator("[data-part=send]")).to_be_visible()
