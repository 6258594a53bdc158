"""Whose a conversation is: every move there is, none that is not, and one winner when two want it."""

import asyncio
from itertools import product
from typing import get_args

import pytest
from sqlalchemy import Connection, select

from feedback.database import Database
from feedback.inbox import TRANSITIONS, CannedAnswer, Inbox, Move, Reason, StateChanged
from feedback.record import Conversation, Message, NotFound, Record, State, new_id
from feedback.signals import Csat, KeyReused, Signals, Thumb
from feedback.tables import signal
from tests.feedback.conftest import Clock, made

pytestmark = pytest.mark.anyio

STATES: tuple[State, ...] = get_args(State)
PATHS: dict[State, tuple[State, ...]] = {
    "bot": (),
    "waiting": ("waiting",),
    "human": ("human",),
    "resolved": ("human", "resolved"),
    "closed": ("human", "resolved", "closed"),
}


@pytest.fixture
def record(database: Database) -> Record:
    return Record(database)


@pytest.fixture
def inbox(database: Database, clock: Clock) -> Inbox:
    return Inbox(database, clock)


async def go(inbox: Inbox, conversation_id: str, to: State, agent: str = "Ann") -> None:
    for source, target in TRANSITIONS:
        if target == to and source != to:
            reason = sorted(TRANSITIONS[source, target])[0]
            try:
                return await inbox.move(conversation_id, Move(to, reason, agent, (source,), agent=agent if to == "human" else None))
            except StateChanged:
                continue
    raise AssertionError(to)


async def opened(record: Record, inbox: Inbox, state: State = "bot", visitor_id: str = "vis_a") -> str:
    conversation = Conversation(new_id("conv"), visitor_id, "en")
    await record.add_conversation(conversation)
    for each in PATHS[state]:
        await go(inbox, conversation.id, each)
    return conversation.id


@pytest.mark.parametrize("source", STATES)
async def test_what_the_table_does_not_list_cannot_be_done(record: Record, inbox: Inbox, source: State) -> None:
    for to, reason in product(STATES, get_args(Reason)):
        conversation_id = await opened(record, inbox, source)
        move = Move(to, reason, "system", STATES, agent="Ann")
        if reason in TRANSITIONS.get((source, to), ()):
            await inbox.move(conversation_id, move)
            last = (await inbox.story(conversation_id)).handoffs[-1]
            assert (last.from_state, last.to_state, last.reason, last.actor) == (source, to, reason, "system")
        else:
            with pytest.raises(StateChanged):
                await inbox.move(conversation_id, move)
            assert (await inbox.story(conversation_id)).conversation.state == source


def test_every_state_can_be_reached() -> None:
    reached: set[State] = {"bot"}
    for _ in STATES:
        reached |= {to for source, to in TRANSITIONS if source in reached}
    assert reached == set(STATES)


async def test_of_two_agents_one_gets_the_conversation(record: Record, inbox: Inbox, database: Database) -> None:
    for _ in range(5):
        conversation_id = await opened(record, inbox, "waiting")
        takes = [Move("human", "agent", name, ("bot", "waiting"), agent=name) for name in ("Ann", "Bo", "Cy")]
        ends = await asyncio.gather(*(inbox.move(conversation_id, take) for take in takes), return_exceptions=True)
        assert sorted(type(end).__name__ for end in ends) == ["NoneType", "StateChanged", "StateChanged"]
        story = await inbox.story(conversation_id)
        assert story.conversation.agent == takes[ends.index(None)].agent
        assert [event.to_state for event in story.handoffs] == ["waiting", "human"]


async def test_two_servers_over_one_database_agree_who_has_it(postgres_url: str, clock: Clock) -> None:
    servers = [Database(postgres_url), Database(postgres_url)]
    try:
        inboxes = [Inbox(server, clock) for server in servers]
        for _ in range(20):
            conversation_id = await opened(Record(servers[0]), inboxes[0], "waiting")
            takes = [Move("human", "agent", name, ("waiting",), agent=name) for name in ("Ann", "Bo")]
            moves = (inbox.move(conversation_id, take) for inbox, take in zip(inboxes, takes, strict=True))
            ends = await asyncio.gather(*moves, return_exceptions=True)
            assert sorted(type(end).__name__ for end in ends) == ["NoneType", "StateChanged"]
            assert len((await inboxes[1].story(conversation_id)).handoffs) == 2
    finally:
        for server in servers:
            server.close()


async def test_only_the_one_who_has_it_may_go_on_with_it(record: Record, inbox: Inbox) -> None:
    conversation_id = await opened(record, inbox, "human")
    with pytest.raises(StateChanged):
        await inbox.move(conversation_id, Move("resolved", "agent", "Bo", ("human",), held_by="Bo"))
    with pytest.raises(StateChanged):
        await inbox.say(conversation_id, Message(new_id("msg"), "agent", "Hi", "key", author="Bo"))
    await inbox.move(conversation_id, Move("human", "agent", "Ann", ("human",), agent="Bo", held_by="Ann"))
    await inbox.say(conversation_id, Message(new_id("msg"), "agent", "Hi", "key", author="Bo"))
    with pytest.raises(NotFound):
        await inbox.move("conv_none", Move("waiting", "request", "visitor", ("bot",)))


async def test_the_bot_is_mute_while_a_person_has_it(record: Record, inbox: Inbox) -> None:
    for state, is_kept in (("bot", True), ("waiting", False), ("human", False)):
        conversation_id = await opened(record, inbox, state)
        await record.add_message(conversation_id, Message(new_id("msg"), "assistant", "Hello!"), made())
        assert [each.text for each in await record.messages(conversation_id)] == (["Hello!"] if is_kept else [])


async def test_a_persons_answer_is_gold_once_and_a_note_stays_inside(record: Record, inbox: Inbox) -> None:
    conversation_id = await opened(record, inbox, "human")
    answer = Message(new_id("msg"), "agent", "Seven days.", "key", author="Ann", gold=True)
    first = await inbox.say(conversation_id, answer)
    assert await inbox.say(conversation_id, Message(new_id("msg"), "agent", "Seven days.", "key", author="Ann", gold=True)) == first
    with pytest.raises(KeyReused):
        await inbox.say(conversation_id, Message(new_id("msg"), "agent", "Eight days.", "key", author="Ann"))
    await inbox.say(conversation_id, Message(new_id("msg"), "note", "A regular.", "key-2", author="Bo"))
    assert [(each.role, each.gold, each.author) for each in await record.messages(conversation_id)] == [("agent", True, "Ann")]
    assert [each.role for each in (await inbox.story(conversation_id)).messages] == ["agent", "note"]
    status = await inbox.status(conversation_id)
    assert status and [each.text for each in status.agent_messages] == ["Seven days."]
    seen = await inbox.status(conversation_id, first.seq)
    assert seen and seen.agent_messages == ()


async def test_the_longest_wait_is_first_and_release_keeps_its_place(record: Record, inbox: Inbox, clock: Clock) -> None:
    ids = []
    for _ in range(3):
        clock.ms += 10
        ids.append(await opened(record, inbox, "waiting"))
    await record.add_message(ids[2], Message(new_id("msg"), "user", "x" * 500))
    await go(inbox, ids[0], "human")
    assert [(row.id, row.state) for row in await inbox.rows(("waiting", "human"))] == [
        (ids[1], "waiting"),
        (ids[2], "waiting"),
        (ids[0], "human"),
    ]
    clock.ms += 10
    await inbox.move(ids[0], Move("waiting", "agent", "Ann", ("human",), held_by="Ann"))
    assert [(await inbox.status(each)).place for each in ids] == [1, 2, 3]  # type: ignore[union-attr]
    row = (await inbox.rows(("waiting",)))[2]
    assert (row.seq, row.role, len(row.text), row.reason) == (1, "user", 160, "check")


async def test_two_failures_in_a_row_and_no_fewer(record: Record, inbox: Inbox, signals: Signals, clock: Clock) -> None:
    conversation_id = await opened(record, inbox)

    async def answer(shown: bool) -> str:
        clock.ms += 10_000
        completion = made(shown=shown)
        await record.add_message(conversation_id, Message(new_id("msg"), "assistant", "Hm.", created_at_ms=clock.ms), completion)
        clock.ms += 10_000
        return completion.id

    await answer(shown=False)
    assert not await inbox.is_failing(conversation_id)
    disliked = await answer(shown=True)
    assert not await inbox.is_failing(conversation_id)
    await signals.vote("vis_a", Thumb(disliked, -1, (), None, "key"))
    assert await inbox.is_failing(conversation_id)
    await inbox.move(conversation_id, Move("waiting", "failure", "system", ("bot",)))
    await inbox.move(conversation_id, Move("bot", "request", "visitor", ("waiting",)))
    assert not await inbox.is_failing(conversation_id)
    await answer(shown=True)
    await answer(shown=False)
    assert not await inbox.is_failing(conversation_id)


async def test_a_resolved_conversation_is_rated_and_a_changed_rating_retracts(
    record: Record, inbox: Inbox, signals: Signals, database: Database
) -> None:
    conversation_id = await opened(record, inbox, "human")
    with pytest.raises(NotFound):
        await signals.rate("vis_a", Csat(conversation_id, 4, None, "key"))
    await go(inbox, conversation_id, "resolved")
    with pytest.raises(NotFound):
        await signals.rate("vis_b", Csat(conversation_id, 4, None, "key"))
    first = await signals.rate("vis_a", Csat(conversation_id, 4, None, "key"))
    assert (await signals.rate("vis_a", Csat(conversation_id, 4, None, "key"))).is_new is False
    with pytest.raises(KeyReused):
        await signals.rate("vis_a", Csat(conversation_id, 5, None, "key"))
    await signals.rate("vis_a", Csat(conversation_id, 5, "kind", "key-2"))
    rated = await inbox.status(conversation_id)
    assert rated and rated.is_rated
    await inbox.move(conversation_id, Move("bot", "request", "visitor", ("resolved",)))

    def rows(connection: Connection) -> list[tuple[object, ...]]:
        return [
            tuple(row) for row in connection.execute(select(*signal.c["kind", "value", "comment", "retracts_id"]).order_by(signal.c.seq))
        ]

    kept = [("csat", 4.0, None, None), ("csat", 5.0, "kind", first.signal_id), ("reopen", 1.0, None, None)]
    assert await database.read(rows) == kept


async def test_what_was_resolved_long_ago_is_closed(record: Record, inbox: Inbox, clock: Clock) -> None:
    old, waiting = await opened(record, inbox, "resolved"), await opened(record, inbox, "waiting")
    clock.ms += 1000
    young = await opened(record, inbox, "resolved")
    assert await inbox.close_resolved(clock.ms) == 1
    assert [(await inbox.story(each)).conversation.state for each in (old, waiting, young)] == ["closed", "waiting", "resolved"]


async def test_canned_answers(inbox: Inbox) -> None:
    await inbox.put_canned(CannedAnswer("can_b", "Thanks", "Thank you!"))
    await inbox.put_canned(CannedAnswer("can_a", "Hello", "Hello!"))
    await inbox.put_canned(CannedAnswer("can_b", "Bye", "Goodbye!"))
    assert [each.title for each in await inbox.canned()] == ["Bye", "Hello"]
    await inbox.delete_canned("can_b")
    assert [each.id for each in await inbox.canned()] == ["can_a"]
