"""Asking again, in the same words or in others; files; shortcuts."""

import pytest
from playwright.sync_api import Page, expect

from tests.web.browser import ask, finished, last_answer
from tests.web.scripted_desk import SLOW, Desk

pytestmark = pytest.mark.e2e

PASTE = """(kinds) => {
  const transfer = new DataTransfer();
  if (kinds.includes("file")) transfer.items.add(new File(["x"], "receipt.png", { type: "image/png" }));
  if (kinds.includes("text")) transfer.setData("text/plain", "a table");
  const [name, options] = kinds.includes("drop") ? ["drop", { dataTransfer: transfer }] : ["paste", { clipboardData: transfer }];
  const event = new (name === "drop" ? DragEvent : ClipboardEvent)(name, { ...options, bubbles: true, cancelable: true });
  return !document.getElementById("input").dispatchEvent(event);
}"""


def test_another_answer_takes_the_place_of_the_last_one(page: Page, desk: Desk) -> None:
    finished(page, "first")
    answer = finished(page, "second")
    expect(page.locator(".again:visible")).to_have_count(1)
    shown = str(desk.messages[-1]["message_id"])
    desk.scene.text = "Thirty days, to be exact."
    answer.locator("[data-part=again]").click()
    expect(last_answer(page).locator(".text")).to_have_text("Thirty days, to be exact.")
    expect(page.locator(".answer")).to_have_count(2)
    expect(page.locator("#announcer")).to_have_text("Thirty days, to be exact.")
    assert desk.regenerated == [shown]
    page.reload()
    expect(last_answer(page).locator(".text")).to_have_text("Thirty days, to be exact.")
    expect(page.locator(".question")).to_have_count(2)


def test_another_answer_that_fails_can_be_tried_again(page: Page, desk: Desk) -> None:
    answer = finished(page)
    desk.refusals["regenerate"] = [503]
    answer.locator("[data-part=again]").click()
    expect(page.locator(".problem")).to_contain_text("not available right now")
    page.locator(".problem button").click()
    expect(last_answer(page).locator(".actions")).to_be_visible()
    expect(page.locator(".question")).to_have_count(1)
    assert len(desk.regenerated) == 1


def test_an_edited_question_replaces_what_followed_it(page: Page, desk: Desk) -> None:
    for text in ("one", "two", "three"):
        finished(page, text)
    first = str(desk.messages[2]["message_id"])
    page.locator(".question").nth(1).hover()
    page.locator("[data-part=edit]").nth(1).click()
    expect(page.locator("#input")).to_have_value("two")
    expect(page.locator("#input")).to_be_focused()
    expect(page.locator("#editing")).to_contain_text("are replaced")
    finished(page, "two, please")
    expect(page.locator("#editing")).to_be_hidden()
    assert page.locator(".question p").all_inner_texts() == ["one", "two, please"]
    assert desk.asked[-1]["replaces"] == first
    finished(page, "and on")
    assert desk.asked[-1]["replaces"] is None
    page.reload()
    expect(page.locator(".question p")).to_have_text(["one", "two, please", "and on"])


def test_editing_can_be_left_as_it_was(page: Page, desk: Desk) -> None:
    finished(page, "one")
    for leave in (lambda: page.keyboard.press("Escape"), lambda: page.locator("#editing button").click()):
        page.locator("#input").press("ArrowUp")
        expect(page.locator("#input")).to_have_value("one")
        leave()
        expect(page.locator("#input")).to_have_value("")
        expect(page.locator("#editing")).to_be_hidden()
    expect(page.locator(".message")).to_have_count(2)


def test_while_an_answer_comes_nothing_is_edited(page: Page, desk: Desk) -> None:
    desk.scene = SLOW
    ask(page, "one")
    expect(last_answer(page).locator(".text")).to_contain_text("Tea")
    page.locator("#input").press("ArrowUp")
    expect(page.locator("#editing")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(page.locator("[data-part=send]")).to_be_visible()


@pytest.mark.parametrize(("kinds", "refused"), [(["file"], True), (["file", "drop"], True), (["file", "text"], False), (["text"], False)])
def test_files_are_refused_kindly(page: Page, kinds: list[str], refused: bool) -> None:
    assert page.evaluate(PASTE, kinds) is refused
    if refused:
        expect(page.locator("#notice")).to_have_text("Files cannot be sent here. Please describe in words what they show.")
        expect(page.locator("#announcer")).to_contain_text("Files cannot be sent here.")
        finished(page)
    expect(page.locator("#notice")).to_be_hidden()


def test_a_slash_goes_to_the_box(page: Page) -> None:
    page.locator("#scroller").focus()
    page.keyboard.press("/")
    expect(page.locator("#input")).to_be_focused()
    page.keyboard.press("/")
    expect(page.locator("#input")).to_have_value("/")


def test_copying_works_where_the_clipboard_is_forbidden(page: Page) -> None:
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not here')) }")
    page.evaluate("() => addEventListener('copy', (event) => setTimeout(() => { window.taken = event.defaultPrevented }))")
    finished(page).locator("[data-part=copy]").click()
    expect(page.locator(".note")).to_have_text("Copied")
    assert page.evaluate("taken")
