"""The customer's yes to training: off until they say so, kept, and taken back in the same place."""

import pytest
from playwright.sync_api import Page, expect

from tests.web.browser import finished
from tests.web.scripted_desk import Desk

pytestmark = pytest.mark.e2e


def test_the_switch_is_off_comes_with_a_conversation_and_is_the_same_after_a_reload(page: Page, desk: Desk) -> None:
    switch = page.get_by_role("switch", name="May this conversation help to improve the answers?")
    expect(switch).to_be_hidden()
    finished(page)
    expect(switch).not_to_be_checked()
    switch.focus()
    with page.expect_response("**/consent"):
        page.keyboard.press("Space")
    expect(switch).to_be_checked()
    page.reload()
    expect(switch).to_be_checked()
    with page.expect_response("**/consent"):
        switch.uncheck()
    assert desk.said_of_training == [("conv_1", True), ("conv_1", False)]
    page.click("#start-over")
    finished(page)
    expect(switch).not_to_be_checked()


def test_what_was_not_kept_is_not_shown_as_kept(page: Page, desk: Desk) -> None:
    desk.refusals["consent"] = [503, 0]
    finished(page)
    switch = page.get_by_role("switch")
    switch.click()
    expect(page.locator("#notice")).to_be_visible()
    expect(switch).not_to_be_checked()
    with page.expect_response("**/consent"):
        switch.check()
    expect(switch).to_be_checked()
    assert desk.said_of_training == [("conv_1", True)]
