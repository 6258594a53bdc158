"""A second answer: made when the first is there, offered when it is right and really another, gone when the conversation goes on."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, select

from backends.llamacpp.tokenizer import LlamaTokenizer
from backends.mini.shop import load_shop
from backends.protocol import EngineOptions
from backends.supervisor import Supervisor
from feedback.database import Database
from feedback.offers import Offers
from feedback.record import Message, NotFound, Record
from feedback.signals import Signals
from feedback.similar import near_duplicates
from feedback.tables import completion, signal
from server.chat.service import ChatService
from server.desk.desk import Desk
from server.desk.policy import Policy
from server.desk.policy_file import DEMO, load_policy
from server.desk.second import Seconds, is_whole
from server.desk.turn import Accepted, Event, Offered
from server.settings import DeskSettings
from tests.server.desk.customer import VISITOR, Customer, answer_in, opened
from tests.server.fakes import ScriptedChat, ScriptedStream

pytestmark = pytest.mark.anyio

FIRST, OTHER = "You have thirty days [1].", "Anything that is unopened goes back to us within 30 days [1]."


@pytest.fixture
def desk(desk: Desk, database: Database) -> Desk:
    """Every answer is drawn."""
    desk.seconds = Seconds(Offers(database, Signals(database)), 0.25, lambda completion_id: True)
    return desk


@pytest.fixture
async def agreed(desk: Desk, customer: Customer, record: Record) -> Customer:
    await record.set_consent(customer.id, VISITOR, consent_train=True)
    return customer


async def asked(customer: Customer, chat: ScriptedChat, text: str = FIRST) -> Message:
    asking = customer.asking(f"How long? {len(chat.streams)}")
    stream = await opened(chat, len(chat.streams) + 1)
    stream.say(text)
    stream.end()
    async with asyncio.timeout(5):
        return answer_in(await asking)


async def wanting(desk: Desk, customer: Customer, first: Message) -> "asyncio.Task[list[Event]]":
    answer = await desk.second(VISITOR, customer.id, first.id)

    async def listen() -> list[Event]:
        return [event async for event in answer.events]

    return asyncio.create_task(listen())


async def stored(database: Database) -> list[tuple[str, bool]]:
    def work(connection: Connection) -> list[tuple[str, bool]]:
        rows = connection.execute(select(completion.c.status, completion.c.shown).order_by(completion.c.created_at_ms, completion.c.status))
        return [(row.status, row.shown) for row in rows]

    return await database.read(work)


async def test_a_second_answer_of_the_same_prompt_is_offered_and_stays_out_of_sight(
    desk: Desk, chat: ScriptedChat, agreed: Customer, record: Record, database: Database
) -> None:
    first = await asked(agreed, chat)
    assert first.has_second
    listening = await wanting(desk, agreed, first)
    stream = await opened(chat, 2)
    one, other = chat.streams[0].job, stream.job
    assert (one.messages, one.scope_private, one.tool_use) == (other.messages, other.scope_private, other.tool_use)
    assert one.sampling.seed != other.sampling.seed and one.completion_id != other.completion_id
    stream.think("a secret thought")
    stream.say(OTHER)
    stream.end()
    accepted, offered = await listening
    assert accepted == Accepted(first.id) and isinstance(offered, Offered)
    second = offered.message
    assert (second.text, second.replaces_id, second.reply_to_id) == (OTHER, first.id, first.reply_to_id)
    assert [citation.number for citation in second.citations] == [1] and offered.side in ("left", "right")
    assert [each.text for each in await record.messages(agreed.id)][1:] == [FIRST]
    assert sorted(await stored(database)) == [("complete", True), ("offered", False)]

    def noted(connection: Connection) -> list[tuple[object, ...]]:
        columns = signal.c["kind", "completion_id", "other_id", "side", "propensity"]
        return [tuple(row) for row in connection.execute(select(*columns))]

    assert await database.read(noted) == [("offer", first.completion_id, second.completion_id, offered.side, 0.25)]
    with pytest.raises(NotFound):  # once
        await desk.second(VISITOR, agreed.id, first.id)
    # The next turn reads the answer that stands, and is offered nothing: never twice in a row.
    after = await asked(agreed, chat, "Delivery takes three days [2].")
    assert [turn.content for turn in chat.streams[-1].job.messages][2] == FIRST
    with pytest.raises(NotFound):
        await desk.second(VISITOR, agreed.id, after.id)


def call(stream: ScriptedStream) -> None:
    stream.call("lookup_order", '{"order_id": "K12345"}')


def say(text: str, reason: str = "stop") -> Callable[[ScriptedStream], None]:
    def script(stream: ScriptedStream) -> None:
        stream.say(text)
        stream.end(reason)  # type: ignore[arg-type]

    return script


NOT_OFFERED = [
    say("You have 60 days [1]."),  # fails its checks, and is not asked for again
    say(FIRST),
    say("You have THIRTY  days. [1]"),
    say(""),
    say("Hello!"),
    say("Which order do you mean [1]?"),
    say("That cannot be sent back [1]."),
    say("I will connect you with a person from our team [1]."),
    say(OTHER, "length"),
    call,
    lambda stream: stream.die(),
]


@pytest.mark.parametrize("script", NOT_OFFERED)
async def test_what_is_wrong_or_the_same_or_no_answer_is_not_offered(
    desk: Desk, chat: ScriptedChat, agreed: Customer, database: Database, script: Callable[[ScriptedStream], None]
) -> None:
    listening = await wanting(desk, agreed, await asked(agreed, chat))
    script(await opened(chat, 2))
    assert [type(event) for event in await listening] == [Accepted]
    assert len(chat.streams) == 2 and await stored(database) == [("complete", True)]
    await asked(agreed, chat, "Delivery takes three days [2].")


async def test_going_on_ends_the_second_answer_at_once(
    desk: Desk, chat: ScriptedChat, agreed: Customer, database: Database, record: Record
) -> None:
    async def nothing(listening: "asyncio.Task[list[Event]]", stream: ScriptedStream) -> None:
        async with asyncio.timeout(5):
            assert [type(event) for event in await listening] == [Accepted] and stream.is_closed

    listening = await wanting(desk, agreed, await asked(agreed, chat))
    second = await opened(chat, 2)
    second.say("Anything that is ")
    after = await asked(agreed, chat, "Delivery takes three days [2].")
    await nothing(listening, second)
    # Nor does it come when its page hangs up, a person takes over, or the customer takes their word back.
    answer = await desk.second(VISITOR, agreed.id, after.id)
    answer.hang_up()
    assert [type(event) async for event in answer.events] == [Accepted]
    listening = await wanting(desk, agreed, await asked(agreed, chat, "We ship to the islands too [2]."))
    async with desk.silence(agreed.id):
        await nothing(listening, await opened(chat, 6))
    listening = await wanting(desk, agreed, await asked(agreed, chat, "You have as long as you like for a kettle [1]."))
    await record.set_consent(agreed.id, VISITOR, consent_train=False)
    say(OTHER)(await opened(chat, 8))
    await nothing(listening, chat.streams[7])
    assert {status for status, _ in await stored(database)} == {"complete"}


async def test_one_that_would_ask_for_a_thumb_is_not_offered(desk: Desk, chat: ScriptedChat, agreed: Customer) -> None:
    first = await asked(agreed, chat)
    assert desk.seconds
    desk.seconds.asks = lambda completion_id: completion_id == chat.streams[1].completion_id
    listening = await wanting(desk, agreed, first)
    say(OTHER)(await opened(chat, 2))
    assert [type(event) for event in await listening] == [Accepted]


async def test_whoever_waits_for_a_first_answer_comes_first(desk: Desk, chat: ScriptedChat, agreed: Customer) -> None:
    first = await asked(agreed, chat)
    chat.place = 3
    listening = await wanting(desk, agreed, first)
    assert [type(event) for event in await listening] == [Accepted] and chat.streams[-1].is_closed


async def test_only_a_whole_answer_to_who_agreed_is_drawn(desk: Desk, chat: ScriptedChat, customer: Customer, record: Record) -> None:
    silent = await asked(customer, chat)
    assert not silent.has_second
    await record.set_consent(customer.id, VISITOR, consent_train=True)
    for text in ("Hello!", "Which order [1]?", "That cannot be sent back [1].", "I will connect you with a person [1]."):
        assert not (await asked(customer, chat, text)).has_second
    asking = customer.asking("one that is corrected")
    say("You have 60 days.")(await opened(chat, 6))
    say(OTHER)(await opened(chat, 7))
    assert not answer_in(await asking).has_second
    first = await asked(customer, chat)
    for visitor_id, conversation_id, message_id in (
        ("vis_b", customer.id, first.id),
        (VISITOR, "conv_none", first.id),
        (VISITOR, customer.id, silent.id),
        (VISITOR, customer.id, "' OR 1=1--"),
    ):
        with pytest.raises(NotFound):
            await desk.second(visitor_id, conversation_id, message_id)
    desk.seconds = None
    with pytest.raises(NotFound):
        await desk.second(VISITOR, customer.id, first.id)


async def test_with_the_built_in_model(model_path: str, tmp_path: Path, database: Database) -> None:
    """What it says twice is its own affair; what is offered is right, another, and stored with all that made it."""
    supervisor = Supervisor(EngineOptions(path=model_path, name="test", max_sequences=4, data_dir=str(tmp_path)))
    tokenizer, record = LlamaTokenizer(model_path), Record(database)
    policies = {language: Policy.of(load_shop(language), language, terms) for language, terms in load_policy(DEMO).items()}
    desk = Desk(ChatService(supervisor.client, lambda: tokenizer), record, policies, DeskSettings(), supervisor.client.wait_s)
    desk.seconds = Seconds(Offers(database, Signals(database)), 1.0, lambda completion_id: True)
    await supervisor.start()
    try:
        async with asyncio.timeout(60):
            while not supervisor.client.is_ready:
                await asyncio.sleep(0.05)
        for question in load_shop("en").suggestions[:2]:
            customer = Customer(desk, await desk.open_conversation(VISITOR, "en"))
            await record.set_consent(customer.id, VISITOR, consent_train=True)
            first = answer_in(await customer.ask(question))
            assert first.has_second == is_whole(first)
            if not first.has_second:
                continue
            events = await (await wanting(desk, customer, first))
            assert [type(event) for event in events] in ([Accepted], [Accepted, Offered])
            for event in events[1:]:
                assert isinstance(event, Offered) and is_whole(event.message) and not near_duplicates([first.text, event.message.text])
            assert [each.id for each in await record.messages(customer.id)][1:] == [first.id]
    finally:
        await desk.close()
        await supervisor.stop()

    def pairs(connection: Connection) -> list[tuple[object, ...]]:
        one, other = completion.alias(), completion.alias()
        columns = (one.c.prompt_token_ids, other.c.prompt_token_ids, one.c.seed != other.c.seed, other.c.violations)
        joined = signal.join(one, one.c.id == signal.c.completion_id).join(other, other.c.id == signal.c.other_id)
        return [tuple(row) for row in connection.execute(select(*columns).select_from(joined).where(signal.c.kind == "offer"))]

    for prompt, same, is_other_seed, violations in await database.read(pairs):
        assert prompt == same and is_other_seed and violations == []
