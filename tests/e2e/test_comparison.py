"""Two answers to one question: offered by a real server, compared on the real page, and the choice on a real disk."""

from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from backends.mini.shop import load_shop
from tests.e2e.house import kefu
from tests.e2e.test_chat_page import rows
from tests.web.browser import chromium, finished, last_answer, visit

pytestmark = pytest.mark.e2e

# Whether the model says the same twice is its own affair: here it may.
ANY = "import server.desk.second; server.desk.second.near_duplicates = lambda texts: []"
OFFERS = "select s.completion_id, s.other_id, s.side from signal s where s.kind = 'offer' order by s.seq"


def compared(page: Page) -> Locator:
    """An answer with another beside it. How well the model answers is measured elsewhere; of five answers one is right twice."""
    for question in [*load_shop("en").suggestions, "How do I pay?"]:
        finished(page, question)
        invitation = last_answer(page).locator(".invitation")
        try:
            expect(invitation).to_be_visible(timeout=5_000)
            return last_answer(page)
        except AssertionError:
            continue
    raise AssertionError("no second answer in five")


def test_two_answers_are_compared_and_the_chosen_one_stands(data_dir: Path, model_path: str) -> None:
    settings = {"KEFU_DESK__COMPARE_SHARE": "1"}
    with chromium() as browser, kefu(data_dir, model_path, settings, ANY) as server, visit(browser, server.url) as page:
        page.wait_for_selector(".chip")
        finished(page, "Hello!")
        page.locator("#consent input").check()
        answer = compared(page)
        first = answer.locator(":scope > .text")
        said = first.inner_text()
        expect(first).to_be_visible()  # not hidden, nor moved, by the second
        expect(page.locator("#announcer")).to_have_text("I have another answer to this.")
        answer.get_by_role("button", name="Compare the two").press("Enter")
        pair = answer.get_by_role("group", name="Which answer is better?")
        expect(pair.get_by_role("heading")).to_be_focused()
        expect(first).to_be_hidden()
        ((first_id, other_id, side),) = rows(data_dir, OFFERS)
        shown = [box.inner_text() for box in pair.locator(".side .text").all()]
        assert len(shown) == 2 and shown[side == "right"] == said

        page.wait_for_timeout(1_600)  # a choice needs time to be meant
        pair.get_by_role("button", name="Answer 2 is better").click()
        expect(answer.locator(".note")).to_have_text("Saved, thank you")
        expect(page.locator(".comparison")).to_have_count(0)
        chosen_id = other_id if side == "left" else first_id
        choice = rows(data_dir, "select completion_id, other_id, value, weight, side, dwell_ms >= 1500 from signal where kind = 'pairwise'")
        assert choice == [(first_id, other_id, -1 if side == "left" else 1, 1, side, 1)]
        text = rows(data_dir, f"select m.text from message m join completion c on c.message_id = m.id where c.id = '{chosen_id}'")[0][0]
        page.reload()
        last = last_answer(page).locator(".text")
        expect(last).to_contain_text(str(text).split(" [")[0])
        asked = page.locator(".question").count()
        expect(page.locator(".answer")).to_have_count(asked)

        # Whoever goes on has no comparison any more, and has said nothing. Two in a row are not offered.
        finished(page, "Hello!")
        compared(page)
        finished(page, "Thank you!")
        expect(page.locator(".comparison")).to_have_count(0)
        assert len(rows(data_dir, "select 1 from signal where kind = 'pairwise'")) == 1
        expect(page.locator(".question")).to_have_count(page.locator(".answer").count())


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"
