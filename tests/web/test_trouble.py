"""What can go wrong between page and server, and what the page then says, keeps and offers."""

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.web.browser import ask, finished, last_answer, visit
from tests.web.scripted_desk import Desk, Scene

pytestmark = pytest.mark.e2e


def test_a_server_that_says_nothing_at_all_is_noticed(page: Page, desk: Desk) -> None:
    finished(page)
    page.route("**/messages", lambda route: None)
    page.clock.install()
    ask(page)
    expect(last_answer(page).locator(".state")).to_be_visible()
    page.clock.fast_forward(31_000)
    expect(page.locator(".problem")).to_contain_text("cannot be reached")


def test_a_text_that_did_arrive_is_not_in_the_box_after_a_reload(page: Page, desk: Desk) -> None:
    finished(page, "first")
    page.evaluate("sessionStorage.setItem('kefu.draft', 'first')")
    page.reload()
    expect(page.locator(".question")).to_have_count(1)
    expect(page.locator("#input")).to_have_value("")


def test_a_line_that_went_dead_is_noticed(page: Page, desk: Desk) -> None:
    desk.scene.waits = ((60, {"state": "thinking"}),)
    page.clock.install()
    ask(page)
    expect(last_answer(page).locator(".state")).to_contain_text("Thinking")
    page.clock.fast_forward(20_000)
    expect(page.locator(".problem")).to_have_count(0)
    page.clock.fast_forward(10_000)
    expect(page.locator(".problem")).to_contain_text("broke off")
    desk.stopped = True


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


def test_an_answer_that_begins_anew_leaves_nothing_of_its_beginning(page: Page, desk: Desk) -> None:
    desk.scene = Scene(first_try="Hello there. ", text="Within **30 days**.")
    ask(page)
    expect(last_answer(page).locator(".text")).to_contain_text("Hello there.")
    expect(last_answer(page).locator(".text")).to_have_text("Within 30 days.")
    expect(last_answer(page).locator(".actions")).to_be_visible()
    expect(page.locator("#announcer")).to_have_text("Within 30 days.")


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
