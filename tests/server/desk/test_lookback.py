"""After each turn the desk looks back, in the background, and writes what the turn says about the answer before it."""

import asyncio
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Connection, Row, select

from feedback.database import Database
from feedback.inbox import Inbox, Move
from feedback.likeness import Meanings
from feedback.lookback import Lookback, Story, observe
from feedback.record import Message, NotFound, new_id, now_ms
from feedback.signals import DAY_MS, Observation, Signals, Thumb
from feedback.tables import signal
from feedback.weighing import weigh
from server.desk.desk import Desk
from tests.server.desk.customer import VISITOR, Customer, answer_in, opened
from tests.server.fakes import ScriptedChat

pytestmark = pytest.mark.anyio
Heard = tuple[str, str | None, float]


async def rows(database: Database) -> list[Heard]:
    def work(connection: Connection) -> list[Heard]:
        return [(row.kind, row.completion_id, row.value) for row in connection.execute(select(signal).order_by(signal.c.seq))]

    return await database.read(work)


@pytest.fixture
def signals(database: Database) -> Signals:
    return Signals(database, lambda: now_ms() + 5_000)


@pytest.fixture
def lookback(database: Database, signals: Signals) -> Lookback:
    return Lookback(database, signals)


async def said(customer: Customer, chat: ScriptedChat, question: str, script: str) -> str:
    chat.script = (script,)
    return str(answer_in(await customer.ask(question)).completion_id)


async def test_the_worked_example(customer: Customer, chat: ScriptedChat, lookback: Lookback, signals: Signals, database: Database) -> None:
    first = await said(customer, chat, "我的退款什么时候到账?", "您可以在订单页申请退款。")
    second = await said(customer, chat, "我是说我的退款几天能到账", "退款一般在三天内到账。")
    await said(customer, chat, "好的谢谢", "不客气。")
    assert await lookback.sweep() == 1
    assert await rows(database) == [("rephrase", first, -1), ("correction", first, -1), ("gratitude", second, 1)]
    rephrased = (await signals.ledger())[0]
    assert rephrased.question == "我的退款什么时候到账?"
    assert rephrased.prob is not None and rephrased.prob > 0.5
    assert (rephrased.actor, rephrased.visitor_id) == ("visitor", VISITOR)
    assert await lookback.sweep() == 0
    assert await lookback.sweep(customer.id) == 0


async def test_an_unsure_rephrase_waits_for_a_person(customer: Customer, chat: ScriptedChat, signals: Signals) -> None:
    answer = await said(customer, chat, "How long?", "Thirty days.")
    seen = [Observation("rephrase", answer, -1.0, "visitor", ("rephrase", "1"), prob=0.7)]
    assert [await signals.note(customer.id, VISITOR, seen) for _ in range(2)] == [1, 0]
    [unsure] = await signals.ledger()
    assert [(each.weight, each.reason) for each in weigh([unsure])] == [(0.0, "needs_review")]
    for _ in range(2):
        await signals.release([unsure.id], "Ana")
    assert weigh(await signals.ledger())[0].weight > 0
    with pytest.raises(NotFound):
        await signals.release(["sig_none"], "Ana")


async def test_a_signal_is_retracted_once_by_a_new_row(customer: Customer, chat: ScriptedChat, signals: Signals) -> None:
    answer = await said(customer, chat, "How long?", "Thirty days.")
    await signals.vote(VISITOR, Thumb(answer, 1, (), None, "key"))
    [vote] = await signals.ledger()
    for _ in range(2):
        await signals.supersede(vote.id, {"value": 0.0, "weight": 0.0, "actor": "system"})
    kept = await signals.ledger()
    assert kept[0] == vote and len(kept) == 2
    assert [each.weight for each in weigh(kept)] == [0.0, 0.0]


async def test_stop_a_wish_for_a_person_and_their_answer_judge_the_bots(
    desk: Desk, customer: Customer, chat: ScriptedChat, lookback: Lookback, database: Database
) -> None:
    asking = customer.asking("Tell me everything")
    stream = await opened(chat)
    stream.say("First, this. Then ")
    await asyncio.sleep(0.02)
    await desk.stop(VISITOR, customer.id)
    answer = str(answer_in(await asking).completion_id)
    inbox = Inbox(database)
    await inbox.move(customer.id, Move("waiting", "request", "visitor", ("bot",)))
    await lookback.sweep()
    await inbox.move(customer.id, Move("human", "agent", "Ana", ("waiting",), agent="Ana"))
    for text in ("Thirty days, from the day it arrives.", "Anything else?"):
        await inbox.say(customer.id, Message(new_id("msg"), "agent", text, new_id("key"), author="Ana", gold=True))
        await lookback.sweep()
    assert await rows(database) == [("stop", answer, -1), ("handoff_request", answer, -1), ("agent_correction", answer, -1)]


async def test_a_day_of_silence_is_a_weak_word_for_the_answer(
    customer: Customer, chat: ScriptedChat, signals: Signals, database: Database
) -> None:
    answer = await said(customer, chat, "How long?", "Thirty days.")
    later = Lookback(database, signals, lambda: now_ms() + DAY_MS + 1000)
    await Lookback(database, signals).sweep()
    assert await rows(database) == []
    assert [await later.sweep() for _ in range(2)] == [1, 0]
    assert await rows(database) == [("silence", answer, 1)]
    await said(customer, chat, "And what colours are there?", "Blue.")
    assert await later.sweep() == 1


async def test_another_visitors_question_is_no_rephrase(
    desk: Desk, customer: Customer, chat: ScriptedChat, lookback: Lookback, database: Database
) -> None:
    other = Customer(desk, await desk.open_conversation("vis_b", "en"))
    await said(customer, chat, "How long may I return a teapot?", "We sell tea.")
    chat.script = ("Thirty days.",)
    answer = await desk.ask("vis_b", other.id, "How long may I return a teapot?", "key")
    assert [event async for event in answer.events]
    assert await lookback.sweep() == 2
    assert await rows(database) == []


async def test_answers_that_ask_are_drawn_alike_and_say_so(
    desk: Desk, customer: Customer, chat: ScriptedChat, signals: Signals, lookback: Lookback
) -> None:
    desk.asks = signals.asks = lambda completion_id: True
    chat.script = ("Thirty days.",)
    answer = answer_in(await customer.ask("How long?"))
    assert answer.asks_thumb
    await signals.vote(VISITOR, Thumb(str(answer.completion_id), 1, (), None, "key"))
    await lookback.sweep()
    assert [each.kind for each in await signals.ledger()] == ["thumb", "ask"]


async def test_a_network_is_kept_as_its_hash_with_every_signal(
    customer: Customer, chat: ScriptedChat, signals: Signals, lookback: Lookback
) -> None:
    first = await said(customer, chat, "How do I cancel my order?", "We sell tea.")
    await said(customer, chat, "How do I cancel my order?", "On its page.")
    signals.seen(VISITOR, "abcdef0123456789")
    await signals.vote(VISITOR, Thumb(first, -1, (), None, "key"))
    await signals.did(VISITOR, first, "copy")
    await lookback.sweep()
    assert [(each.kind, each.network) for each in await signals.ledger()] == [
        (kind, "abcdef0123456789") for kind in ("thumb", "copy", "rephrase")
    ]


async def test_the_background_looks_at_what_a_crash_left_and_then_at_each_turn(
    desk: Desk, customer: Customer, chat: ScriptedChat, lookback: Lookback, database: Database
) -> None:
    first = await said(customer, chat, "How do I cancel my order?", "We sell tea.")
    second = await said(customer, chat, "How do I cancel my order?", "On its page.")
    background = asyncio.create_task(lookback.run())
    desk.on_kept = lookback.kept
    await _until(database, lambda found: found == [("rephrase", first, -1)])
    await said(customer, chat, "thank you", "You are welcome.")
    await _until(database, lambda found: found[1:] == [("gratitude", second, 1)])
    background.cancel()
    await asyncio.gather(background, return_exceptions=True)


async def test_who_goes_on_is_told_of_whichever_look_wrote_the_signals(customer: Customer, chat: ScriptedChat, lookback: Lookback) -> None:
    await said(customer, chat, "How do I cancel my order?", "We sell tea.")
    lookback.kept(customer.id)
    told: asyncio.Queue[str] = asyncio.Queue()
    lookback.on_looked = told.put_nowait
    assert await lookback.sweep() == 1, "the look at the start was quicker"
    background = asyncio.create_task(lookback.run())
    assert await asyncio.wait_for(told.get(), 60) == customer.id
    background.cancel()
    await asyncio.gather(background, return_exceptions=True)


class Understood:
    """Stands for an embedding model that knows what the real one would be asked for; the real one is in test_embedder."""

    name = "a-model-of-a-name-that-is-far-too-long"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.is_up = True

    async def of_questions(self, questions: Sequence[str]) -> NDArray[np.float32] | None:
        if not self.is_up:
            return None
        self.asked += questions
        alike = ["parcel" if "parcel" in each or "package" in each else each for each in questions]
        rows = np.array([np.random.default_rng(zlib.crc32(each.encode())).normal(size=64) for each in alike], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


async def test_turns_are_compared_by_meaning_and_the_ledger_says_by_which_model(
    customer: Customer, chat: ScriptedChat, signals: Signals, lookback: Lookback
) -> None:
    lookback.model = model = Understood()
    await said(customer, chat, "how long does the refund take?", "We sell tea.")
    await lookback.sweep()
    assert model.asked == []
    await said(customer, chat, "how long does the refund take?", "Three days.")
    await lookback.sweep()
    assert model.asked == [*Meanings.strangers(), "how long does the refund take?"]
    await said(customer, chat, "thanks", "You are welcome.")
    await lookback.sweep()
    assert model.asked[len(Meanings.strangers()) :] == ["how long does the refund take?", "thanks"]
    model.is_up = False
    await said(customer, chat, "do you ship abroad?", "We sell tea.")
    await said(customer, chat, "do you ship abroad?", "Yes.")
    await lookback.sweep()
    ledger = await rows_of(signals)
    assert [(each.kind, each.detector_version) for each in ledger] == [
        ("rephrase", "1+a-model-of-a-name-that-is-far-"),
        ("gratitude", "1+a-model-of-a-name-that-is-far-"),
        ("rephrase", "1"),
    ]


async def rows_of(signals: Signals) -> list[Row[tuple[object, ...]]]:
    return await signals._database.read(lambda connection: list(connection.execute(select(signal).order_by(signal.c.seq))))


async def _until(database: Database, holds: Callable[[list[Heard]], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds(await rows(database)):
            await asyncio.sleep(0.01)


def test_a_question_that_was_edited_is_not_also_rephrased() -> None:
    kept = [
        Message("m1", "user", "How do I cancel my order?"),
        Message("m2", "assistant", "We sell tea.", reply_to_id="m1", completion_id="c1"),
        Message("m3", "user", "How do I cancel my order?", replaces_id="m1"),
        Message("m4", "assistant", "On its page.", reply_to_id="m3", completion_id="c2"),
    ]
    plain = [kept[0], kept[1], replace(kept[2], replaces_id=None), kept[3]]
    stories = [Story("conv", VISITOR, 4, messages, []) for messages in (kept, plain)]
    assert [[each.kind for each in observe(story, now_ms(), lambda _: False)] for story in stories] == [[], ["rephrase"]]
