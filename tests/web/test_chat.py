"""The chat page in a real browser, over a desk that plays scripted scenes."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.web.browser import visit
from tests.web.hostile import VECTORS
from tests.web.scripted_desk import Desk, Scene

pytestmark = pytest.mark.e2e

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
SLOW = Scene(text="Tea and kettles. " * 60, pause_s=0.02, piece=6)


def ask(page: Page, text: str = "Can I return it?") -> None:
    page.fill("#input", text)
    page.keyboard.press("Enter")


def last_answer(page: Page):  # type: ignore[no-untyped-def]
    return page.locator(".answer").last


def finished(page: Page, text: str = "Can I return it?"):  # type: ignore[no-untyped-def]
    ask(page, text)
    expect(last_answer(page).locator(".actions")).to_be_visible()
    return last_answer(page)


def test_it_greets_as_a_bot_and_suggests_questions(page: Page) -> None:
    expect(page.locator("h1")).to_have_text("Quiet Kettle")
    expect(page.locator(".welcome")).to_contain_text("a bot")
    assert 3 <= page.locator(".chip").count() <= 4
    page.locator(".chip").first.click()
    expect(page.locator(".question")).to_contain_text("How long do I have to return something?")
    expect(last_answer(page).locator("strong")).to_have_text("30 days")
    expect(page.locator(".suggestions")).to_be_hidden()


def test_looking_at_the_page_makes_nobody_a_visitor(page: Page, desk: Desk) -> None:
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
    assert desk.asked == []


def test_a_finished_answer_is_read_aloud_once_and_not_while_it_grows(page: Page, desk: Desk) -> None:
    desk.scene = Scene(text="Within **30 days** [1]. Then not.", pause_s=0.02)
    page.evaluate(
        "() => { window.heard = []; new MutationObserver(() => heard.push(announcer.textContent)).observe(announcer, {childList: true}); }"
    )
    finished(page)
    assert [each for each in page.evaluate("heard") if each] == ["Within 30 days. Then not."]
    assert page.locator("#announcer").get_attribute("aria-live") == "polite"


def test_waiting_is_honest(page: Page, desk: Desk) -> None:
    desk.scene.waits = ((0.6, {"state": "queued", "place": 3, "eta_s": 12}), (5, {"state": "thinking"}))
    ask(page)
    state = last_answer(page).locator(".state")
    expect(state).to_have_text("Number 3 in line, about 12 s")
    expect(state).to_have_text("")
    expect(state).to_have_text(re.compile(r"Thinking it through… [345] s"))
    page.keyboard.press("Escape")
    expect(state).to_be_hidden()


@pytest.mark.parametrize("by", ["button", "Escape"])
def test_stop_keeps_what_was_said(page: Page, desk: Desk, by: str) -> None:
    desk.scene = SLOW
    ask(page)
    expect(last_answer(page).locator(".text")).to_contain_text("Tea and kettles.")
    page.locator("[data-part=stop]").click() if by == "button" else page.keyboard.press("Escape")
    expect(last_answer(page).locator(".ending")).to_have_text("You stopped this answer.")
    expect(last_answer(page).locator(".text")).to_contain_text("Tea and kettles.")
    expect(page.locator("#input")).to_be_focused()
    expect(page.locator("[data-part=send]")).to_be_visible()


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
        answer = finished(page)
        answer.locator(".citation").tap()
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


def test_a_thumb_is_pressed_once_it_is_on_disk(page: Page, desk: Desk) -> None:
    desk.refusals["signals"] = [507, 0]
    answer = finished(page)
    down = answer.locator("[data-part=down]")
    down.click()
    expect(answer.locator(".note")).to_contain_text("Not saved.")
    expect(down).to_have_attribute("aria-pressed", "false")
    assert desk.signals == []
    with page.expect_request("**/desk/signals") as again:
        answer.locator(".note button").click()
    expect(down).to_have_attribute("aria-pressed", "true")
    expect(answer.locator(".note")).to_have_text("Saved, thank you")
    assert [each["value"] for each in desk.signals] == [-1]
    assert again.value.post_data_json["idempotency_key"] == desk.signals[0]["idempotency_key"]


def test_a_retried_thumb_keeps_its_key(page: Page, desk: Desk) -> None:
    desk.refusals["signals"] = [503, 503, 0]
    answer = finished(page)
    keys = []
    page.on("request", lambda request: keys.append(request.post_data_json["idempotency_key"]) if "signals" in request.url else None)
    answer.locator("[data-part=up]").click()
    for _ in range(2):
        answer.locator(".note button").click()
    expect(answer.locator("[data-part=up]")).to_have_attribute("aria-pressed", "true")
    assert len(keys) == 3 and len(set(keys)) == 1


def test_a_thumb_down_asks_why_and_another_mind_is_another_vote(page: Page, desk: Desk) -> None:
    answer = finished(page)
    answer.locator("[data-part=down]").click()
    form = page.locator(".reasons")
    expect(form).to_be_visible()
    for box in form.locator("input").all()[:5]:
        box.check(force=True)
    expect(form.locator("input").last).to_be_disabled()
    form.locator("input").first.uncheck(force=True)
    form.locator("textarea").fill("  it was open  ")
    form.locator("[type=submit]").click()
    expect(form).to_have_count(0)
    expect(answer.locator("[data-part=down]")).to_be_focused()
    reasons = desk.signals[-1]
    assert (reasons["value"], reasons["tags"], reasons["comment"]) == (
        -1,
        ["outdated", "unclear", "not_my_question", "too_long"],
        "it was open",
    )
    answer.locator("[data-part=up]").click()
    expect(answer.locator("[data-part=down]")).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".reasons textarea")).to_be_hidden()
    assert [each["value"] for each in desk.signals] == [-1, -1, 1]
    assert len({each["idempotency_key"] for each in desk.signals}) == 3


@pytest.mark.parametrize(("status", "words"), [(503, "not available"), (429, "very quick"), (500, "went wrong"), (400, "went wrong")])
def test_a_refused_question_says_why_and_is_asked_again_once(page: Page, desk: Desk, status: int, words: str) -> None:
    desk.refusals["messages"] = [status]
    ask(page, "hello")
    expect(last_answer(page).locator(".problem")).to_contain_text(words)
    expect(page.locator("#announcer")).to_contain_text(words)
    last_answer(page).locator(".problem button").click()
    expect(last_answer(page).locator(".actions")).to_be_visible()
    expect(page.locator(".question")).to_have_count(1)
    expect(page.locator(".problem")).to_have_count(0)
    assert len(desk.asked) == 1


@pytest.mark.parametrize("ending", ["cut", "error"])
def test_a_broken_answer_is_asked_for_under_the_same_id(page: Page, desk: Desk, ending: str) -> None:
    desk.scene = Scene(text="Half of", ending=ending)
    ask(page)
    expect(last_answer(page).locator(".problem")).to_contain_text("broke off")
    expect(last_answer(page).locator(".text")).to_contain_text("Half of")
    desk.scene = Scene(text="All of it.")
    last_answer(page).locator(".problem button").click()
    expect(last_answer(page).locator(".text")).to_have_text("All of it.")
    expect(page.locator(".question")).to_have_count(1)
    assert desk.asked[0] == desk.asked[1]


def test_the_rest_of_a_broken_answer_is_a_new_question(page: Page, desk: Desk) -> None:
    desk.scene = Scene(text="Half of", ending="interrupted")
    ask(page)
    expect(page.locator(".ending:visible")).to_have_text("This answer was cut off.")
    desk.scene = Scene(text="All of it.")
    page.locator(".problem button").click()
    expect(last_answer(page).locator(".text")).to_have_text("All of it.")
    assert desk.asked[0]["client_message_id"] != desk.asked[1]["client_message_id"]


def test_a_conversation_that_is_gone_is_started_over_with_the_text(page: Page, desk: Desk) -> None:
    finished(page)
    desk.refusals["messages"] = [404]
    ask(page, "and now?")
    page.locator(".problem button").click()
    expect(page.locator("#input")).to_have_value("and now?")
    expect(page.locator(".message")).to_have_count(0)
    assert desk.num_conversations == 2


def test_an_expired_token_is_renewed_behind_the_scene(page: Page, desk: Desk) -> None:
    finished(page)
    desk.refusals["messages"] = [401]
    finished(page, "again")
    assert desk.num_visitors == 2
    expect(page.locator(".problem")).to_have_count(0)


def test_a_token_that_stays_refused_is_said(page: Page, desk: Desk) -> None:
    desk.refusals["messages"] = [401, 401]
    ask(page)
    expect(page.locator(".problem")).to_contain_text("no longer here")


def test_a_reload_brings_conversation_thumb_and_draft_back(page: Page, desk: Desk) -> None:
    finished(page, "first")
    last_answer(page).locator("[data-part=up]").click()
    expect(last_answer(page).locator("[data-part=up]")).to_have_attribute("aria-pressed", "true")
    page.fill("#input", "half a thought")
    page.reload()
    expect(page.locator(".question")).to_contain_text("first")
    expect(last_answer(page).locator("[data-part=up]")).to_have_attribute("aria-pressed", "true")
    expect(last_answer(page).locator(".citation")).to_have_count(1)
    expect(page.locator("#input")).to_have_value("half a thought")
    finished(page, "second")
    assert desk.num_conversations == 1


def test_a_reload_in_the_middle_waits_for_the_answer(page: Page, desk: Desk) -> None:
    finished(page, "first")
    desk.store("user", "second")
    desk.answering = True
    page.reload()
    expect(last_answer(page).locator(".state")).to_be_visible()
    expect(page.locator("[data-part=stop]")).to_be_visible()
    desk.answer("Here it is.", "complete", "stop")
    desk.answering = False
    expect(last_answer(page).locator(".text")).to_have_text("Here it is.")
    expect(page.locator("[data-part=send]")).to_be_visible()
    expect(page.locator(".problem")).to_have_count(0)


def test_a_question_left_without_an_answer_can_be_asked_again(page: Page, desk: Desk) -> None:
    finished(page, "first")
    desk.store("user", "second")
    page.reload()
    page.locator(".problem button").click()
    expect(last_answer(page).locator(".actions")).to_be_visible()
    assert desk.asked[-1]["text"] == "second"


def test_a_text_that_never_arrived_is_back_in_the_box_after_a_reload(page: Page, desk: Desk) -> None:
    desk.refusals["messages"] = [503]
    ask(page, "precious words")
    expect(page.locator(".problem")).to_be_visible()
    page.reload()
    expect(page.locator("#input")).to_have_value("precious words")


def test_a_new_conversation_is_empty_and_stays_so(page: Page, desk: Desk) -> None:
    finished(page)
    page.click("#start-over")
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator(".suggestions")).to_be_visible()
    page.reload()
    page.wait_for_selector(".chip")
    expect(page.locator(".message")).to_have_count(0)
    assert desk.num_conversations == 2


def test_it_works_where_storage_is_forbidden(browser: Browser, url: str, desk: Desk) -> None:
    with visit(browser, "about:blank", expect_quiet=False) as page:
        for name in ("localStorage", "sessionStorage"):
            page.add_init_script(
                f"Object.defineProperty(window, '{name}', {{ get() {{ throw new DOMException('no', 'SecurityError'); }} }})"
            )
        page.goto(url)
        finished(page, "one")
        finished(page, "two")
        assert (desk.num_visitors, desk.num_conversations) == (1, 1)


def test_being_offline_is_said_and_loses_nothing(page: Page, desk: Desk) -> None:
    page.context.set_offline(True)
    expect(page.locator("#notice")).to_contain_text("You are offline")
    ask(page, "are you there?")
    expect(page.locator(".problem")).to_contain_text("You are offline")
    page.context.set_offline(False)
    expect(page.locator("#notice")).to_be_hidden()
    page.locator(".problem button").click()
    expect(last_answer(page).locator(".actions")).to_be_visible()
    assert [each["text"] for each in desk.asked] == ["are you there?"]


def test_a_text_over_the_limit_is_kept_and_not_sent(page: Page, desk: Desk) -> None:
    counter = page.locator("#counter")
    page.fill("#input", "x" * 3599)
    expect(counter).to_be_hidden()
    page.fill("#input", "😀" * 4001)
    expect(counter).to_contain_text("4,001 of 4,000")
    page.keyboard.press("Enter")
    assert desk.asked == []
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
    assert len(desk.asked) == 1
    page.keyboard.press("Escape")
    expect(page.locator("[data-part=send]")).to_be_visible()


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


def run_hostile(page: Page, desk: Desk, show: Callable[[str], None]) -> None:
    page.evaluate("() => { window.alert = () => { window.pwned = true } }")
    for start in range(0, len(VECTORS), 57):
        show("\n\n".join(VECTORS[start : start + 57]))
    assert not page.evaluate("window.pwned")
    foreign = "img, svg:not(.icon), iframe, object, embed, style, script, link, video, audio, form, input, base, meta"
    assert page.locator(".messages").locator(foreign).count() == 0


def test_hostile_answers_are_only_text(page: Page, desk: Desk) -> None:
    """Also: no request to anywhere else, and no violation of the content security policy (see `visit`)."""

    def show(text: str) -> None:
        desk.scene = Scene(text=text, piece=97)
        finished(page)

    run_hostile(page, desk, show)
    assert set(page.evaluate("[...document.querySelectorAll('.text a')].map((a) => a.origin)")) <= {page.url.rstrip("/")}


def test_hostile_questions_and_passages_are_only_text(page: Page, desk: Desk) -> None:
    def show(text: str) -> None:
        ask(page, text[:4000])
        expect(page.locator(".question").last).to_contain_text(text[:20].strip())
        expect(page.locator("[data-part=send]")).to_be_visible()

    run_hostile(page, desk, show)
    desk.messages[-1]["citations"] = [
        {"number": 1, "passage_id": "x", "title": "<img src=x onerror=alert(1)>", "text": "<script>alert(1)</script>"}
    ]
    page.reload()
    last_answer(page).locator(".citation").click()
    expect(page.locator("#passage h2")).to_have_text("<img src=x onerror=alert(1)>")
    expect(page.locator("#passage [data-part=text]")).to_have_text("<script>alert(1)</script>")
