"""Texts that want to be more than text, through the whole page."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.web.browser import ask, finished, last_answer
from tests.web.hostile import VECTORS
from tests.web.scripted_desk import Desk, Scene

pytestmark = pytest.mark.e2e


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
