"""The widget on another origin's page, with the real server, the real model and the real disk behind it."""

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.e2e.house import kefu
from tests.server.desk.test_customers import NEW, signed
from tests.web.browser import chromium
from tests.web.host_page import Host, Place, chat_of, finished, host_app, opened, shopping
from tests.web.scripted_desk import Desk, serving

pytestmark = pytest.mark.e2e


def rows(data_dir: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"file:{data_dir / 'kefu.db'}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def test_a_visit_is_kept_whole_and_a_customer_is_known(tmp_path: Path, model_path: str) -> None:
    host = Host()
    with chromium() as browser, serving(host_app(host)) as shop:
        settings = {"KEFU_SITES__SHOP__ORIGINS": shop, "KEFU_SITES__SHOP__KEYS__K2": NEW}
        with kefu(tmp_path / "data", model_path, settings) as server:
            host.kefu = server.url
            place = Place(Desk(), host, server.url, shop, shop, "")
            with shopping(browser, place) as page:
                frame = opened(page)
                finished(frame, "How long do I have to return something?")
                said = frame.locator(".answer .text").inner_text()
                page.goto(shop, wait_until="commit")
                frame = chat_of(page)
                expect(frame.locator(".answer .text")).to_have_text(said, use_inner_text=True)
                frame.wait_for_timeout(1_500)  # a vote needs time to be meant
                frame.locator("[data-part=again]").click()
                expect(frame.locator(".answer .actions")).to_be_visible(timeout=20_000)
                expect(frame.locator(".answer")).to_have_count(1)
                frame.locator("#input").press("ArrowUp")
                finished(frame, "How much is express shipping?")
                expect(frame.locator(".question")).to_have_count(1)
            data = tmp_path / "data"
            assert rows(data, "select kind, value from signal where kind <> 'ask' order by seq") == [("regenerate", -1.0), ("edit", -1.0)]
            assert rows(data, "select count(*), count(replaces_id) from message") == [(5, 2)]
            now = int(time.time())
            token = signed(iat=now, exp=now + 60)
            host.head, host.script = (
                '<script src="/own.js"></script>',
                f"document.querySelector('kefu-chat').customer = () => {json.dumps(token)}",
            )
            with shopping(browser, place) as page:
                finished(opened(page), "Is there a warranty on kettles?")
            [(visitor_id,)] = rows(data, "select visitor_id from conversation order by created_at_ms desc limit 1")
            assert str(visitor_id).startswith("cus_")
