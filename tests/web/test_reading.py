"""Reading an answer: citations, lines, scroll, language, keyboard, screen reader."""

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.web.browser import PHONE, ask, finished, last_answer, visit
from tests.web.scripted_desk import Desk, Scene

pytestmark = pytest.mark.e2e


def test_a_finished_answer_is_read_aloud_once_and_not_while_it_grows(page: Page, desk: Desk) -> None:
    desk.scene = Scene(text="Within **30 days** [1]. Then not.", pause_s=0.02)
    page.evaluate(
        "() => { window.heard = []; new MutationObserver(() => heard.push(announcer.textContent)).observe(announcer, {childList: true}); }"
    )
    finished(page)
    assert [each for each in page.evaluate("heard") if each] == ["Within 30 days. Then not."]
    assert page.locator("#announcer").get_attribute("aria-live") == "polite"


def test_a_citation_opens_its_passage_beside_the_conversation_and_gives_the_focus_back(page: Page) -> None:
    answer = finished(page)
    citation = answer.locator(".citation")
    expect(citation).to_have_accessible_name("Source 1: Returns")
    before = answer.bounding_box()
    citation.focus()
    page.keyboard.press("Enter")
    passage = page.locator("#passage")
    expect(passage).to_contain_text("Opened items cannot be returned.")
    expect(passage.locator("button")).to_be_focused()
    expect(citation).to_have_attribute("aria-expanded", "true")
    assert answer.bounding_box() == before
    assert passage.bounding_box()["x"] >= before["x"] + before["width"]  # type: ignore[index]
    page.keyboard.press("Escape")
    expect(passage).to_be_hidden()
    expect(citation).to_be_focused()


def test_on_a_phone_the_passage_is_a_sheet_that_holds_the_focus(browser: Browser, url: str, desk: Desk) -> None:
    with visit(browser, url, **PHONE) as page:
        page.locator(".chip").first.tap()
        answer = last_answer(page)
        expect(page.locator("#input")).not_to_be_focused()
        answer.locator(".citation:enabled").tap()
        page.wait_for_timeout(300)
        box = page.locator("#passage").bounding_box()
        assert box is not None
        assert (box["x"], box["width"], round(box["y"] + box["height"])) == (0, 390, 844)
        assert page.evaluate("document.querySelector('#passage').matches(':modal')")
        page.touchscreen.tap(195, 100)
        expect(page.locator("#passage")).to_be_hidden()


def test_a_number_that_cites_nothing_is_text(page: Page, desk: Desk) -> None:
    desk.scene.text = "As said [77], and here [1]."
    answer = finished(page)
    expect(answer.locator(".citation")).to_have_count(1)
    expect(answer.locator(".text")).to_contain_text("[77]")


def bottom_gap(page: Page) -> float:
    return page.evaluate("() => { const s = document.getElementById('scroller'); return s.scrollHeight - s.clientHeight - s.scrollTop }")


def test_the_scroll_follows_only_a_reader_at_the_bottom(browser: Browser, url: str, desk: Desk) -> None:
    desk.scene = Scene(text="Tea and kettles.\n\n" * 80, pause_s=0.01, piece=12)
    with visit(browser, url, viewport={"width": 800, "height": 500}) as page:
        ask(page)
        while page.evaluate("document.getElementById('scroller').scrollTop") < 150:
            page.wait_for_timeout(20)
        assert bottom_gap(page) < 40
        page.mouse.move(400, 200)
        page.mouse.wheel(0, -120)
        expect(page.locator("#jump")).to_be_visible()
        top = page.evaluate("document.getElementById('scroller').scrollTop")
        page.wait_for_timeout(400)
        assert page.evaluate("document.getElementById('scroller').scrollTop") == top
        page.click("#jump")
        expect(page.locator("#jump")).to_be_hidden()
        expect(last_answer(page).locator(".actions")).to_be_visible()
        assert bottom_gap(page) < 2


def test_nothing_jumps_while_an_answer_comes(browser: Browser, url: str, desk: Desk) -> None:
    desk.scene = Scene(text="Within **30 days** [1].\n\n- one\n- two\n\nAnd so on.", pause_s=0.02, waits=((0.3, {"state": "thinking"}),))
    with visit(browser, url) as page:
        page.wait_for_selector(".chip")
        finished(page, "first")
        page.evaluate(
            """() => { window.shifts = [];
              const keep = (list) => list.getEntries().forEach((entry) => shifts.push(entry.value));
              new PerformanceObserver(keep).observe({ type: "layout-shift" }); }"""
        )
        finished(page, "second")
        page.wait_for_timeout(100)
        assert sum(page.evaluate("shifts")) < 0.01


@pytest.mark.parametrize(
    ("width", "text"), [(1280, "tea kettle warm"), (1280, "茶壶很好。"), (390, "tea kettle warm"), (320, "kettle" * 9)]
)
def test_lines_are_short_and_nothing_is_wider_than_the_screen(browser: Browser, url: str, desk: Desk, width: int, text: str) -> None:
    desk.scene.text = " ".join([text] * 60) + "\n\n`" + "x" * 300 + "`"
    with visit(browser, url, viewport={"width": width, "height": 844}) as page:
        answer = finished(page, "y" * 500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("(() => { const s = document.getElementById('scroller'); return s.scrollWidth - s.clientWidth })()") == 0
        lengths = answer.locator(".text p").first.evaluate(
            """(node) => {
              const range = document.createRange(), lines = new Map();
              for (let at = 0; at < node.firstChild.length; at++) {
                range.setStart(node.firstChild, at); range.setEnd(node.firstChild, at + 1);
                const y = Math.round(range.getBoundingClientRect().bottom);
                lines.set(y, (lines.get(y) ?? 0) + 1);
              }
              return [...lines.values()];
            }"""
        )
        assert max(lengths) <= 69  # with the space at the end


def test_the_language_switch_keeps_conversation_and_draft(page: Page) -> None:
    finished(page)
    page.fill("#input", "not yet sent")
    page.click("text=中文")
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.locator("h1")).to_have_text("静壶茶舍")
    expect(page.locator(".question")).to_contain_text("Can I return it?")
    expect(page.locator("#input")).to_have_value("not yet sent")
    expect(page.locator("#input")).to_have_attribute("placeholder", "请输入您的问题")


def test_everything_can_be_done_with_the_keyboard(page: Page, desk: Desk) -> None:
    finished(page)
    reached = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.part || document.activeElement.id || document.activeElement.className"))
    assert {"skip", "start-over", "quiet", "scroller", "citation", "copy", "up", "down", "input", "send"} <= reached
    names = page.evaluate(
        "[...document.querySelectorAll('button, a, textarea, input, dialog')].filter((e) => e.checkVisibility())"
        ".map((e) => e.ariaLabel || e.textContent.trim() || e.labels?.[0]?.textContent)"
    )
    assert all(names)


def test_without_motion_nothing_moves(browser: Browser, url: str, desk: Desk) -> None:
    desk.scene.waits = ((5, {"state": "thinking"}),)
    with visit(browser, url, reduced_motion="reduce") as page:
        ask(page)
        page.wait_for_selector(".dots")
        assert page.evaluate("document.getAnimations().length") == 0
        page.keyboard.press("Escape")


def test_copy_takes_the_words_without_marks(browser: Browser, url: str, desk: Desk) -> None:
    desk.scene.text = "Within **30 days** [1].\n\n1. one\n2. two"
    with visit(browser, url, permissions=["clipboard-read", "clipboard-write"]) as page:
        finished(page).locator("[data-part=copy]").click()
        expect(page.locator(".note")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == "Within 30 days.\n\none\ntwo"
