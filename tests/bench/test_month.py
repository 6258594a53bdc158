"""The simulated month: its customers really talk to the desk and are really heard, and its page stands on its own."""

import random
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from bench.month.customers import NUM_HOSTILE_NETWORKS, SYSTEM, cases, measured, read_script, visit
from bench.month.house import House
from bench.month.report import Outcome, Step, render, write_report
from feedback.evaluation import Compared, Metrics
from feedback.export import read_snapshot
from feedback.insights import DAY_MS, Insights
from feedback.record import now_ms
from feedback.signals import read_ledger, weighed
from feedback.training.verify import is_right
from server.desk.policy_file import DEMO, load_policy
from server.export_cli import make_gates
from server.settings import EngineSettings, Settings

NUMBERS = (3, 0, 19)  # by the seed, a plain customer, one who speaks slang, one who means ill
SCRIPT = read_script()


@pytest.mark.anyio
async def test_a_few_of_its_customers_are_recorded_as_real_ones_are(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, engine=EngineSettings(threads=1))
    began_ms = now_ms() - 30 * DAY_MS
    async with House(settings).living() as house:
        told = [await visit(house, SCRIPT, "test", number, began_ms + number * DAY_MS) for number in NUMBERS]
        assert [each.kind for each in told] == ["plain", "slang", "hostile"]
        ledger = await house.database.read(read_ledger)
        whose = {each.conversation_id: each.kind for each in told}
        assert {whose[each.conversation_id] for each in ledger} == set(whose.values())
        assert all(began_ms <= each.created_at_ms < began_ms + 20 * DAY_MS for each in ledger), "by the script's clock"
        assert {each.network for each in ledger if whose[each.conversation_id] == "hostile"} <= {
            f"net_ill{number}" for number in range(NUM_HOSTILE_NETWORKS)
        }
        thumbs = [
            each.weight
            for each in await house.database.read(weighed)
            if each.signal.kind == "thumb" and whose[each.signal.conversation_id] == "hostile"
        ]
        assert len(thumbs) == 12 and sum(weight > 0 for weight in thumbs) <= 4, "of a flood one vote on an answer counts"
        snapshot = await house.database.read(lambda connection: read_snapshot(connection, make_gates(load_policy(DEMO))))
        assert all(len(row.case.passages) == 10 for row in snapshot.rows) and snapshot.rows, "each row has the handbook that the answer saw"
        assert (await measured(house, SCRIPT, "test", 0, now_ms())).kind == "slang"
        weeks = (await Insights(house.database).overview(6, "week")).slices
    assert sum(each.contained.num for each in weeks) == len(told) + 1


def test_what_it_measures_is_asked_in_words_that_no_customer_uses() -> None:
    used = {words for intent in SCRIPT.intent for words in (*intent.plain, *intent.slang)}
    held = {words for intent in SCRIPT.intent for words in (*intent.held, *intent.slang_held)}
    assert not used & held
    for is_slang in (True, False):
        rows = cases(SCRIPT, "test", 40, is_slang=is_slang)
        assert len({str(row["prompt"]) for row in rows}) == 40
        assert all(is_right(str(row["answer"]), row, SYSTEM) for row in rows), "a right answer is right by the rules that judge"
    said = {SCRIPT.framed(random.Random(number), SCRIPT.intent[0].slang) for number in range(100)}
    assert len(said) > 60, "so that an export does not take them for copies"


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags, self.links = Counter[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "action")]


def test_the_page_is_whole_and_asks_for_nothing(tmp_path: Path) -> None:
    compared = Compared(60, (0.25, 0.16, 0.37), (0.75, 0.63, 0.84), (0.5, 0.36, 0.64), 1.1, (90.0, 95.0))
    told = [{"conversation_id": f"c{n}", "kind": ("plain", "slang")[n % 2], "was_right": n % 4 < 2, "is_met": True} for n in range(80)]
    outcome = msgspec.convert({"num": 80, "seed": "test", "told": told, "samples": {"before": told, "after": told}}, Outcome)
    outcome.steps = [Step("signals", True, "<script>alert(1)</script>", 1.0), Step("sample after", False, "slang 25% right", 2.0)]
    outcome.signals, outcome.rounds = {"thumb": (12, 3.5)}, {"round-1": Metrics("", {"slang": compared})}
    written = write_report(outcome, tmp_path).read_text(encoding="utf-8")
    stored = msgspec.json.decode((tmp_path / "loop.json").read_bytes(), type=Outcome)
    assert render(stored) == written
    page = _Page()
    page.feed(written)
    assert page.links == [] and not page.tags["script"] and not re.search(r"url\(|@import|https?://", written)
    assert page.tags["svg"] == 3 and 'class="not">no' in written and "75% (63% – 84%, n = 60)" in written
