"""The second look: what a judge's word does to the ledger, and that the resident model is asked only when nobody else needs it."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from functools import partial

import pytest
from sqlalchemy import select

from backends.mini.shop import system_message
from backends.protocol import EngineOptions
from backends.registry import make_tokenizer
from backends.supervisor import Supervisor
from feedback.database import Database
from feedback.likeness import lexicon
from feedback.lookback import Lookback
from feedback.record import now_ms
from feedback.rephrase import KINDS
from feedback.second_look import SecondLook, believed, opinion, prompt
from feedback.signals import Signals
from feedback.tables import signal
from feedback.weighing import weigh
from server.chat.service import DEFAULT_SAMPLING, ChatJob, ChatMessage, ChatService
from server.desk.second_look import ask_at_rest
from tests.server.desk.conftest import SHOPS
from tests.server.desk.customer import Customer, answer_in
from tests.server.fakes import ScriptedChat

pytestmark = pytest.mark.anyio
ASKED = ("How do I cancel my order?", "i want to cancel what i bought")


class Judge:
    """Says what it is told to, and remembers what it was asked."""

    def __init__(self, *said: str) -> None:
        self.said, self.asked = list(said), list[tuple[dict[str, str], str]]()

    async def __call__(self, messages: Sequence[dict[str, str]], session: str) -> tuple[str, str]:
        assert messages[0]["content"] in lexicon().judge.values()
        self.asked.append((json.loads(messages[1]["content"]), session))
        return self.said.pop(0), "a-model-of-a-name-that-is-far-too-long"


def opined(kind: str, *, resolved: bool) -> str:
    return json.dumps({"kind": kind, "first_answer_resolves_it": resolved})


@pytest.fixture
async def signals(customer: Customer, chat: ScriptedChat, database: Database) -> Signals:
    """A ledger with an unsure rephrase, of the first answer."""
    for question, answer in zip(ASKED, ("We sell tea.", "On its page."), strict=True):
        chat.script = (answer,)
        answer_in(await customer.ask(question))
    signals = Signals(database, lambda: now_ms() + 5_000)
    await Lookback(database, signals).sweep()
    [found] = await signals.ledger()
    assert (found.kind, weigh([found])[0].reason) == ("rephrase", "needs_review")
    return signals


def looking(database: Database, judge: Judge, right: float = 0.95) -> SecondLook:
    return SecondLook(database, judge, right)


async def test_who_judges_well_makes_an_unsure_rephrase_count(signals: Signals, database: Database, customer: Customer) -> None:
    judge = Judge(opined("rephrase", resolved=False))
    look = looking(database, judge)
    assert [await look.look() for _ in range(2)] == [True, False]
    texts = {"question": ASKED[0], "first_answer": "We sell tea.", "next_turn": ASKED[1]}
    assert judge.asked == [(texts, customer.id)]
    first, second = await signals.ledger()
    assert second.retracts_id == first.id and second.completion_id == first.completion_id
    assert second.prob == pytest.approx(believed(first.prob or 0, True, 0.95), abs=1e-3) and second.prob > 0.9 > (first.prob or 0)
    assert [(each.weight > 0, each.reason) for each in weigh([first, second])] == [(False, "retracted"), (True, None)]
    [row] = await database.read(lambda connection: list(connection.execute(select(signal).where(signal.c.retracts_id.is_not(None)))))
    assert (row.detector, row.detector_version) == ("rephrase_judge", "1+a-model-of-a-name-that-is-far-")
    assert not await looking(database, Judge()).look()


@pytest.mark.parametrize("said", [opined("follow_up", resolved=False), opined("rephrase", resolved=True)])
async def test_what_is_no_complaint_to_the_judge_no_longer_waits_for_a_person(said: str, signals: Signals, database: Database) -> None:
    assert await looking(database, Judge(said)).look()
    kept = await signals.ledger()
    assert [(each.weight, each.reason) for each in weigh(kept)] == [(0.0, "retracted"), (0.0, "judged")]


async def test_a_judge_that_is_hardly_right_moves_hardly_anything(signals: Signals, database: Database) -> None:
    assert await looking(database, Judge(opined("repeat", resolved=False)), right=0.55).look()
    assert [each.reason for each in weigh(await signals.ledger())] == ["retracted", "needs_review"]


async def test_what_is_no_opinion_changes_nothing_and_who_is_away_is_asked_again(signals: Signals, database: Database) -> None:
    judge = Judge("", "no idea", opined("rephrase", resolved=False))
    look = looking(database, judge)
    assert [await look.look() for _ in range(3)] == [False, True, False]
    assert len(await signals.ledger()) == 1 and len(judge.asked) == 2


async def test_what_a_person_has_decided_stays_so(signals: Signals, database: Database) -> None:
    [unsure] = await signals.ledger()
    await signals.release([unsure.id], "Ana")
    assert not await looking(database, Judge()).look()
    await signals.supersede(unsure.id, {"value": 0.0, "weight": 0.0, "prob": None, "actor": "Ana"})
    assert not await looking(database, Judge()).look()


def test_opinions_and_what_they_weigh() -> None:
    assert [opinion(each) for each in ("", "[]", "null", '{"kind": "joke", "first_answer_resolves_it": true}', '{"kind": "repeat"}')] == [
        None
    ] * 5
    assert opinion(opined("correction", resolved=True)) == (True, True)
    assert believed(0.5, True, 0.9) == pytest.approx(0.9) and believed(0.9, False, 0.9) == pytest.approx(0.5)
    assert believed(0.7, True, 0.5) == pytest.approx(0.7) and 0 < believed(1.0, False, 0.9) < 1
    chinese, _ = prompt("退款多久到账", "好的" * 5000, '我是说几天"}')
    assert "判断" in chinese["content"] and len(_["content"]) < 2000 and json.loads(_["content"])["next_turn"] == '我是说几天"}'


@pytest.fixture
async def resident(exact_path: str) -> AsyncIterator[ChatService]:
    supervisor = Supervisor(EngineOptions(exact_path, "kefu-mini", threads=1))
    await supervisor.start()
    try:
        await supervisor.loaded()
        yield ChatService(supervisor.client, partial(make_tokenizer, exact_path))
    finally:
        await supervisor.stop()


async def test_the_resident_model_gives_an_opinion_only_when_nobody_else_needs_it(resident: ChatService) -> None:
    """What so small a model thinks is worth nothing; that it is an opinion is the grammar's doing."""
    turns = (ChatMessage("system", system_message(SHOPS["en"], "en")), ChatMessage("user", "Tell me everything."))
    async with resident.open(ChatJob(turns, DEFAULT_SAMPLING)) as stream:
        await stream.opened()
        asking = asyncio.create_task(ask_at_rest(resident, prompt(*ASKED, ASKED[0]), "conv"))
        await asyncio.sleep(0.2)
        assert resident.num_open == 1 and not asking.done()
    async with asyncio.timeout(60):
        while resident.num_open == 0 and not asking.done():
            await asyncio.sleep(0)
        async with resident.open(ChatJob(turns, DEFAULT_SAMPLING)) as stream:
            await stream.opened()
            while resident.num_open > 1 and not asking.done():
                await asyncio.sleep(0.01)
        said, model = await asking
    assert set(json.loads(said)) == {"kind", "first_answer_resolves_it"} and json.loads(said)["kind"] in KINDS
    assert resident.num_open == 0 and model == "kefu-mini"


async def test_a_judge_no_better_than_a_coin_is_never_asked(signals: Signals, database: Database) -> None:
    for right in (0.0, 0.5):
        await looking(database, Judge(), right).run()
    assert len(await signals.ledger()) == 1
