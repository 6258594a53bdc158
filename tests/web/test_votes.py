"""Thumbs: pressed once they are on disk, and why."""

import pytest
from playwright.sync_api import Page, expect

from tests.web.browser import finished
from tests.web.scripted_desk import Desk

pytestmark = pytest.mark.e2e


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


def test_pressing_twice_is_one_vote(page: Page, desk: Desk) -> None:
    answer = finished(page)
    answer.locator("[data-part=up]").dblclick(delay=300)
    expect(page.locator(".reasons")).to_have_count(1)
    assert len(desk.signals) == 1
