"""The pages of the rounds: what was measured, what changed either way, and the commands that move a round; no model's word is markup."""

import html
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest

from feedback.accounts import Accounts
from feedback.database import Database
from feedback.evaluation import Change, Compared, Metrics, SaidNo, forget_changes, ranking, write_changes
from feedback.record import Conversation, Message, Record, new_id
from feedback.rounds import Rounds
from tests.feedback.conftest import made
from tests.server.conftest import calling
from tests.server.routes.test_console import HTML, make_app, sign_in

pytestmark = pytest.mark.anyio
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
VALID = Compared(120, (0.6, 0.51, 0.68), (0.7, 0.61, 0.77), (0.1, 0.02, 0.18), 1.1, (410, 425), (9, 4), (15, 3))
OTHER = Compared(50, (0.9, 0.79, 0.96), (0.84, 0.71, 0.92), (-0.06, -0.14, 0.02), 1.3, (400, 400))
SWAPPED = Change("How long may I return it?", "45 days [1].", "30 days [1].", "45 days [1].", is_better=True)
SPOILT = Change("Do you ship to Iceland?", "Yes, in 9 days [2].", "Yes, in 9 days [2].", "", is_better=False)


@pytest.fixture
async def http(tmp_path: Path, database: Database) -> AsyncIterator[httpx.AsyncClient]:
    async with calling(make_app(tmp_path, database)) as client:
        yield client


async def measured(database: Database, data_dir: Path, *changes: Change, label: str = "valid") -> str:
    """A candidate with numbers of two sets and these answers."""
    rounds = Rounds(database)
    begun = await rounds.begin({"method": "dpo", "rank": 16}, "b" * 64, "5" * 64)
    await rounds.trained(begun.id, f"{begun.id}@{'0' * 12}")
    await rounds.measured(
        begun.id, asdict(Metrics(begun.parent_id or "", {label: VALID, "elsewhere": OTHER}, SaidNo(60, (55, 45), (-0.3, -0.05), (0, 1))))
    )
    write_changes(data_dir, begun.id, {label: changes})
    return begun.id


async def page(http: httpx.AsyncClient, path: str, status: int = 200) -> str:
    reply = await http.get(f"/console/rounds{path}", headers=HTML)
    assert reply.status_code == status
    return " ".join(reply.text.split())


async def test_without_a_round_the_page_says_how_one_comes_about(http: httpx.AsyncClient, database: Database) -> None:
    await sign_in(http, Accounts(database), "editor")
    text = await page(http, "")
    assert all(line in text for line in ("kefu export", "kefu round start --data EXPORT", "kefu round evaluate round-1"))
    assert "还没有任何轮次" in await page(http, "?lang=zh")
    for missing in ("round-1", "..%2f..%2fkefu.db", "%00"):
        await page(http, f"/{missing}", 404)


async def test_only_editors_see_rounds(http: httpx.AsyncClient, database: Database, tmp_path: Path) -> None:
    name = await measured(database, tmp_path / "data")
    await sign_in(http, Accounts(database), "agent")
    await page(http, "", 403)
    await page(http, f"/{name}", 403)


async def test_a_round_tells_its_numbers_what_speaks_against_it_and_what_changed(
    http: httpx.AsyncClient, database: Database, tmp_path: Path
) -> None:
    name = await measured(database, tmp_path / "data", SPOILT, SWAPPED)
    await sign_in(http, Accounts(database), "editor")
    assert f'href="/console/rounds/{name}"' in await page(http, "")
    text = await page(http, f"/{name}")
    for told in ("60.0% (51 – 68)", "70.0% (61 – 77)", "+10.0 (+2 … +18)", "+15 −3", "judge: +9 −4", "× 1.10", "410 → 425", "n = 120"):
        assert told in text
    for against in (
        "elsewhere fell by 6.0 points",
        "in elsewhere answers are 1.30 times",
        "said no to 55 before and to 45 after",
        "must never be said before, and 1 after",
    ):
        assert against in text
    assert "kefu round promote round-1 --share 0.1" in text and "rollback" not in text
    assert "1 of 15 shown" in text and "1 of 3 shown" in text
    assert text.index("Got worse") < text.index(SPOILT.asked) < text.index("Got better") < text.index(SWAPPED.asked)
    assert "Right is: 45 days [1]." in text and "It did not come to an end." in text
    chinese = await page(http, f"/{name}?lang=zh")
    assert "elsewhere 下降了 6.0 个百分点" in chinese and "变差" in chinese


async def test_a_round_that_was_not_measured_says_so(http: httpx.AsyncClient, database: Database) -> None:
    rounds = Rounds(database)
    await rounds.begin({}, "b" * 64, "5" * 64)
    await sign_in(http, Accounts(database), "editor")
    text = await page(http, "/round-1")
    assert "kefu round resume round-1" in text and "Answers that changed" not in text
    await rounds.trained("round-1", "key")
    assert "it was not evaluated" in await page(http, "/round-1")


async def test_a_reward_model_tells_how_it_ranks_and_is_offered_to_grpo_alone(http: httpx.AsyncClient, database: Database) -> None:
    rounds = Rounds(database)
    name = (await rounds.begin({"method": "reward"}, "b" * 64, "5" * 64)).id
    await rounds.trained(name, None)
    await rounds.measured(name, asdict(Metrics(ranked=ranking([(1.0, 5), (1.0, -5), (-1.0, -9)]), verified=(0.7123, 0.8))))
    await sign_in(http, Accounts(database), "editor")
    text = await page(http, f"/{name}")
    assert "in the right order: 66.7% (21 – 94) of 3" in text and "is the shorter one: 50.0% (9 – 91) of 2" in text
    assert "it judges answers and gives none" in text and "0.712 at the start, 0.800 at the end" in text
    assert f"--method grpo --reward-model {name}" in text and "kefu round promote" not in text
    assert "0.712" in await page(http, f"/{name}?lang=zh")


async def test_a_canary_is_told_with_its_red_lines_and_can_be_taken_back(
    http: httpx.AsyncClient, database: Database, tmp_path: Path
) -> None:
    rounds, record = Rounds(database), Record(database)
    first, second = [await measured(database, tmp_path / "data") for _ in range(2)]
    await rounds.promote(first, 1)
    await rounds.promote(second, 0.5)
    opened, asked = Conversation(new_id("conv"), new_id("vis"), "en"), Message("msg_1", "user", "Hi?", client_message_id="key")
    await record.add_conversation(opened)
    await record.add_message(opened.id, asked)
    await sign_in(http, Accounts(database), "editor")
    assert "Canary 50%" in (told := await page(http, "")) and "No red line is crossed" in told and "after round-1" in told
    adapter = (await rounds.get(second)).adapter
    attempts = [made(adapter=adapter, status="rejected", shown=False) for _ in range(19)]
    await record.add_message(opened.id, Message("msg_2", "assistant", "Hello.", reply_to_id="msg_1"), made(adapter=adapter), attempts)
    crossed = await page(http, f"/{second}")
    assert "19 of 20" in crossed and "15%" in crossed and "A red line is crossed" in crossed
    assert "kefu round rollback" in crossed and "promote round-2 --share 1" in crossed
    assert "violations: 19 of 20, elsewhere 0 of 0" in await page(http, "")
    assert "rollback" not in await page(http, f"/{first}"), "a rollback takes the canary, not what is live"
    await rounds.rollback("violations: 19 of 20", second)
    assert "violations: 19 of 20" in await page(http, "") and "With customers now" not in await page(http, f"/{second}")
    assert "kefu round rollback" in await page(http, f"/{first}")


async def test_what_was_erased_is_told_and_shown_no_more(http: httpx.AsyncClient, database: Database, tmp_path: Path) -> None:
    name = await measured(database, tmp_path / "data", SWAPPED)
    await sign_in(http, Accounts(database), "editor")
    forget_changes(tmp_path / "data")
    text = await page(http, f"/{name}")
    assert SWAPPED.asked not in text and "None are kept" in text
    await Rounds(database).erased("5" * 64)
    text = await page(http, f"/{name}")
    assert "Stale: rows erased" in text and "promote" not in text.replace("keeps it from being promoted", "")
    assert "Stale: rows erased" in await page(http, "")


async def test_what_customers_and_models_wrote_stays_text(http: httpx.AsyncClient, database: Database, tmp_path: Path) -> None:
    name = await measured(database, tmp_path / "data", Change(HOSTILE, HOSTILE, HOSTILE, HOSTILE, is_better=True), label=HOSTILE)
    await sign_in(http, Accounts(database), "editor")
    text = await page(http, f"/{name}")
    assert "<script>alert" not in text and "<img" not in text and " style=" not in text
    assert text.count(html.escape(HOSTILE, quote=False).split("&gt;")[0]) >= 6
