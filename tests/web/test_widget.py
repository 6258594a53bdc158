"""The widget on a page of another origin: a customer's whole visit."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.web.browser import FLAGS, PATIENCE_MS, PHONE, Watch, chromium_path
from tests.web.host_page import OPEN_ROOTS, Place, chat_of, finished, opened, shopping
from tests.web.scripted_desk import SLOW

pytestmark = pytest.mark.e2e


@pytest.fixture
def page(browser: Browser, place: Place) -> Iterator[Page]:
    with shopping(browser, place) as shop:
        yield shop


def leave_and_come_back(page: Page, place: Place) -> None:
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    frame = opened(page)
    expect(frame.locator("#input")).to_be_focused()
    assert place.desk.admitted == []
    finished(frame)
    assert place.desk.admitted == [("shop", {})]
    for path in ("", "next"):
        page.goto(f"{page.url}{path}", wait_until="commit")
        frame = chat_of(page)
        expect(frame.locator(".answer .text")).to_contain_text("30 days")
        expect(page.locator("kefu-chat #panel")).to_be_visible()
        assert page.evaluate("document.activeElement === document.body")
    finished(frame, "And opened ones?")
    assert place.desk.num_conversations == 1
    token = frame.evaluate("localStorage.getItem('kefu.visitor.shop')")
    assert token.startswith("token-") and not any(token in url for url in urls)


def test_on_a_page_of_the_same_site_the_conversation_outlives_the_page(browser: Browser, place: Place) -> None:
    with shopping(browser, place, place.sister) as page:
        leave_and_come_back(page, place)


def test_on_another_sites_page_too_where_the_browser_partitions_storage(browser: Browser, place: Place, tmp_path: Path) -> None:
    # Every other context here is a private window, and Debian's Chromium is shipped to forbid third parties all storage.
    path, preferences = chromium_path(), tmp_path / "Default" / "Preferences"
    preferences.parent.mkdir()
    preferences.write_text('{"profile": {"cookie_controls_mode": 0, "block_third_party_cookies": false}}')
    with browser.browser_type.launch_persistent_context(tmp_path, executable_path=path, args=FLAGS, locale="en-US") as context:
        context.set_default_timeout(PATIENCE_MS)
        watch = Watch(context, place.shop, place.kefu)
        context.add_init_script(OPEN_ROOTS)
        page = context.new_page()
        page.goto(place.shop)
        leave_and_come_back(page, place)
        assert watch.complaints == []


def test_where_storage_is_forbidden_it_lasts_until_the_page_is_left(page: Page, place: Place) -> None:
    frame = opened(page)
    finished(frame)
    finished(frame, "And opened ones?")
    assert place.desk.num_conversations == 1
    page.reload()
    finished(chat_of(page))
    assert place.desk.num_conversations == 2


def test_escape_and_the_buttons_close_it_and_it_opens_ready_to_type(page: Page) -> None:
    button, panel = page.locator("kefu-chat button"), page.locator("kefu-chat #panel")
    expect(button).to_have_accessible_name("Open the chat")
    assert button.bounding_box()["width"] >= 44  # type: ignore[index]
    frame = opened(page)
    expect(button).to_have_attribute("aria-expanded", "true")
    _until_active(page, frame.locator("#input"))
    escape, cross = (lambda: frame.press("#input", "Escape")), (lambda: frame.click("#close"))
    for close in (escape, cross, button.click, lambda: button.press("Escape")):
        close()
        expect(panel).to_be_hidden()
        button.press("Enter")
        _until_active(page, frame.locator("#input"))
        button.focus()


def _until_active(page: Page, element: Locator) -> None:
    """Wait until it is where its document's focus is; a window without a screen may or may not have the system's."""
    for _ in range(250):
        if element.evaluate("(element) => element.getRootNode().activeElement === element"):
            return
        page.wait_for_timeout(20)
    raise AssertionError("the focus went elsewhere")


def test_an_answer_that_comes_while_it_is_closed_is_counted_and_said_once(page: Page, place: Place) -> None:
    frame = opened(page)
    place.desk.scene.pause_s = 0.05
    frame.fill("#input", "Can I return it?")
    frame.press("#input", "Enter")
    expect(frame.locator(".answer")).to_have_count(1)
    button = page.locator("kefu-chat button")
    button.click()
    expect(page.locator("kefu-chat #badge")).to_have_text("1")
    expect(button).to_have_accessible_name("Open the chat: 1 new")
    expect(page.locator("kefu-chat [role=status]")).to_have_text("Open the chat: 1 new")
    button.click()
    expect(page.locator("kefu-chat #badge")).to_be_hidden()
    finished(frame)
    expect(page.locator("kefu-chat #badge")).to_be_hidden()
    assert page.locator("kefu-chat [role=status]").inner_text() == ""


def test_on_a_phone_it_fills_the_screen_above_the_keyboard(browser: Browser, place: Place) -> None:
    with shopping(browser, place, **PHONE) as page:
        frame = opened(page)
        expect(page.locator("kefu-chat button")).to_be_hidden()
        for height in (844, 430):  # without and with a keyboard
            page.set_viewport_size({"width": 390, "height": height})
            expect(page.locator("kefu-chat #panel")).to_have_css("height", f"{height}px")
            box = page.locator("kefu-chat #panel").bounding_box()
            assert box == {"x": 0, "y": 0, "width": 390, "height": height}
            composer = frame.locator("#input").bounding_box()
            assert composer and composer["y"] + composer["height"] <= height
        assert frame.evaluate("document.documentElement.scrollWidth") == 390
        for target in frame.locator("button:visible").all():
            assert target.bounding_box()["height"] >= 36  # type: ignore[index]
        frame.locator("#close").tap()
        expect(page.locator("kefu-chat button")).to_be_visible()
        page.reload()
        expect(page.locator("kefu-chat button")).to_be_visible()
        expect(page.locator("kefu-chat #panel")).to_be_hidden()


def test_without_motion_nothing_moves(browser: Browser, place: Place) -> None:
    with shopping(browser, place, reduced_motion="reduce") as page:
        page.locator("kefu-chat button").click()
        assert page.evaluate("document.getAnimations().length + document.querySelector('kefu-chat').shadowRoot.getAnimations().length") == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_sites_colour_is_on_the_button_and_in_the_frame(browser: Browser, place: Place, theme: str) -> None:
    with shopping(browser, place, color_scheme=theme) as page:
        frame = opened(page)
        colour = page.locator("kefu-chat button").evaluate("(node) => getComputedStyle(node).backgroundColor")
        inside = frame.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--accent').trim()")
        assert re.findall(r"\d+", colour) == [str(int(inside[at : at + 2], 16)) for at in (1, 3, 5)]
        assert inside != "#1c6b57"


def test_it_speaks_the_pages_language(browser: Browser, place: Place) -> None:
    with shopping(browser, place) as page:
        page.evaluate("document.documentElement.lang = 'zh-TW'; document.body.append(document.querySelector('kefu-chat').cloneNode())")
        page.evaluate("document.querySelector('kefu-chat').remove()")
        expect(page.locator("kefu-chat button")).to_have_accessible_name("打开客服对话")
        page.locator("kefu-chat button").click()
        expect(chat_of(page).locator("html")).to_have_attribute("lang", "zh-CN")


def test_everything_in_it_has_a_name(page: Page) -> None:
    frame = opened(page)
    finished(frame)
    expect(page.locator("kefu-chat #panel")).to_have_attribute("role", "dialog")
    expect(page.locator("kefu-chat iframe")).to_have_attribute("title", "Customer support chat")
    for each in frame.locator("button:visible, a:visible, textarea:visible").all():
        expect(each).to_have_accessible_name(re.compile(r"\S"))
    ids = frame.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))
    assert frame.locator("main").count() == 1 and frame.locator("h1").count() == 1


def test_an_answer_can_be_copied_out_of_the_frame(page: Page) -> None:
    frame = opened(page)
    finished(frame)
    frame.locator("[data-part=copy]").click()
    expect(frame.locator(".note")).to_have_text("Copied")


def test_a_slow_answer_stops_with_escape_before_the_panel_closes(page: Page, place: Place) -> None:
    place.desk.scene = SLOW
    frame = opened(page)
    frame.fill("#input", "Tell me all")
    frame.press("#input", "Enter")
    expect(frame.locator(".answer .text")).to_contain_text("Tea")
    frame.press("#input", "Escape")
    expect(frame.locator(".ending")).to_have_text("This answer was stopped.")
    expect(page.locator("kefu-chat #panel")).to_be_visible()
