"""A customer's whole visit: the real page, the real server, the real model, the real disk."""

import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from backends.llamacpp.tokenizer import LlamaTokenizer
from backends.mini.shop import Language, Passage, load_shop
from tests.e2e.house import Kefu, kefu
from tests.web.browser import PHONE, ask, chromium, finished, last_answer, visit
from tests.web.hostile import PAYLOADS

pytestmark = pytest.mark.e2e

# Everything the server streams to the page, word for word.
LISTEN = """() => {
  const real = window.fetch;
  window.heard = "";
  window.fetch = async (...call) => {
    const response = await real(...call);
    if (!call[0].endsWith("/messages")) return response;
    const [mine, theirs] = response.body.tee();
    const reader = mine.pipeThrough(new TextDecoderStream()).getReader();
    (async () => { for (let part; !(part = await reader.read()).done; ) heard += part.value; })().catch(() => {});
    return new Response(theirs, response);
  };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(browser: Browser, data_dir: Path, model_path: str) -> Iterator[Kefu]:
    # One place in the engine: whoever comes second waits, and can be seen to wait.
    with kefu(data_dir, model_path, {"KEFU_ENGINE__MAX_SEQUENCES": "1"}) as running:
        yield running


@pytest.fixture
def url(server: Kefu) -> str:
    return server.url


@pytest.fixture
def occupied(url: str, model_path: str) -> Iterator[threading.Event]:
    """The engine's only place is taken by an answer that does not end, until the event is set."""
    never_end = {str(token_id): -100 for token_id in LlamaTokenizer(model_path).eos_token_ids}
    model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    # Hot enough never to go in circles, which would end it early.
    wild = {"temperature": 2, "top_p": 1, "top_k": 0}
    body = {"model": model, "prompt": "tea", "max_tokens": 4000, "stream": True, "logit_bias": never_end, **wild}
    begun, leave = threading.Event(), threading.Event()

    def occupy() -> None:
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as busy:
            for _ in busy.iter_lines():
                begun.set()
                if leave.is_set():
                    return

    occupant = threading.Thread(target=occupy)
    occupant.start()
    assert begun.wait(30)
    yield leave
    leave.set()
    occupant.join()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with visit(browser, url) as opened:
        opened.wait_for_selector(".chip")
        yield opened


def rows(data_dir: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"file:{data_dir / 'kefu.db'}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def cited(page: Page, language: Language) -> tuple[Locator, Passage]:
    """An answer with a citation, and the passage it cites. Whether it is the right one is the model's affair, and measured there."""
    shop = load_shop(language)
    for question in shop.suggestions:
        number = finished(page, question).locator(".citation")
        if number.count():
            return last_answer(page), shop.passages[int(number.first.inner_text()) - 1]
    raise AssertionError("the model cited nothing in four answers")


def test_from_the_question_to_a_thumb_on_disk_and_back_after_a_reload(page: Page, data_dir: Path) -> None:
    page.evaluate(LISTEN)
    answer, passage = cited(page, "en")
    said = answer.locator(".text").inner_text()
    thought = str(rows(data_dir, "select reasoning from completion order by created_at_ms desc limit 1")[0][0])
    assert page.evaluate("heard").count("event: delta") >= 1
    assert thought.strip() and thought.strip()[:20] not in page.evaluate("heard")

    answer.locator(".citation").first.click()
    expect(page.locator("#passage h2")).to_have_text(passage.title)
    expect(page.locator("#passage [data-part=text]")).to_have_text(passage.text)
    page.keyboard.press("Escape")

    answer.locator("[data-part=down]").click()
    page.locator(".tag", has_text="Unclear").click()
    page.locator(".reasons textarea").fill("say it shorter")
    page.locator(".reasons [type=submit]").click()
    expect(page.locator(".reasons")).to_have_count(0)
    value, tags, comment = rows(data_dir, "select value, tags, comment from signal where kind = 'thumb' order by seq desc limit 1")[0]
    assert (value, json.loads(str(tags)), comment) == (-1, ["unclear"], "say it shorter")

    page.reload()
    expect(last_answer(page).locator(".text")).to_have_text(said, use_inner_text=True)
    expect(last_answer(page).locator("[data-part=down]")).to_have_attribute("aria-pressed", "true")
    expect(last_answer(page).locator(".citation").first).to_have_accessible_name(re.compile(f"{passage.title}$"))
    asked_before = page.locator(".question").count()
    finished(page, "And how much is express shipping?")
    expect(page.locator(".question")).to_have_count(asked_before + 1)


def test_in_chinese_on_a_phone(browser: Browser, url: str) -> None:
    with visit(browser, url, **{**PHONE, "locale": "zh-CN"}) as page:
        expect(page.locator("h1")).to_have_text("静壶茶舍")
        answer, passage = cited(page, "zh")
        answer.locator(".citation").first.tap()
        expect(page.locator("#passage h2")).to_have_text(passage.title)
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_waiting_in_line_and_stopping(page: Page, occupied: threading.Event, data_dir: Path) -> None:
    ask(page, "Is there a warranty on kettles?")
    expect(last_answer(page).locator(".state")).to_contain_text("Number 1 in line")
    page.locator("[data-part=stop]").click()
    expect(last_answer(page).locator(".ending")).to_have_text("This answer was stopped.")
    assert rows(data_dir, "select count(*) from completion where status = 'stopped'") == [(1,)]
    occupied.set()
    finished(page, "How much is express shipping?")
    expect(last_answer(page).locator(".ending")).to_be_hidden()


def test_the_engine_dies_and_the_customer_tries_again(page: Page, server: Kefu, occupied: threading.Event) -> None:
    ask(page, "Is there a warranty on kettles?")
    expect(last_answer(page).locator(".state")).to_contain_text("Number 1 in line")
    server.kill_engine()
    expect(page.locator(".problem")).to_contain_text("broke off")
    while page.locator(".problem").count():
        page.locator(".problem button").click()
        expect(page.locator("[data-part=send]")).to_be_visible(timeout=30_000)
        page.wait_for_timeout(300)
    expect(last_answer(page).locator(".actions")).to_be_visible()
    expect(page.locator(".question")).to_have_count(1)


def test_what_a_customer_types_is_only_text(page: Page) -> None:
    page.evaluate("() => { window.alert = () => { window.pwned = true } }")
    for payload in PAYLOADS[:6]:
        finished(page, payload)
        expect(page.locator(".question p").last).to_have_text(payload)
    page.reload()
    expect(page.locator(".question")).to_have_count(6)
    assert page.locator(".messages").locator("script, img, iframe").count() == 0
    assert not page.evaluate("window.pwned")


def test_one_customer_does_not_see_another(browser: Browser, url: str) -> None:
    with visit(browser, url) as one, visit(browser, url) as other:
        finished(one, "My order number is 4711, where is it?")
        other.reload()
        other.wait_for_selector(".chip")
        expect(other.locator(".message")).to_have_count(0)
