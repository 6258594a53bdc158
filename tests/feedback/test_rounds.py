"""The registry: one live round, one canary, and the way back."""

from dataclasses import replace

import pytest

from feedback.database import Database
from feedback.inbox import Inbox, Move
from feedback.record import Conversation, Message, Record, new_id
from feedback.rounds import Arm, Rounds, red_line
from feedback.training.job import RoundRefused
from tests.feedback.conftest import made

pytestmark = pytest.mark.anyio
GOOD = Arm(conversations=200, answers=400, violations=4, errors=2, handoffs=10)


@pytest.fixture
def rounds(database: Database) -> Rounds:
    return Rounds(database)


async def a_candidate(rounds: Rounds) -> str:
    begun = await rounds.begin({"method": "dpo"}, "b" * 64, "5" * 64)
    await rounds.trained(begun.id, f"{begun.id}@{'0' * 12}")
    return begun.id


async def served(rounds: Rounds) -> tuple[str | None, str | None]:
    live, canary = await rounds.serving()
    return live.id if live else None, canary.id if canary else None


async def test_a_round_goes_from_training_over_the_canary_to_live_and_back(rounds: Rounds) -> None:
    first, second = await a_candidate(rounds), await a_candidate(rounds)
    await rounds.promote(first, 1)
    assert await served(rounds) == (first, None)
    await rounds.promote(second, 0.1)
    assert await served(rounds) == (first, second)
    await rounds.promote(second, 1)
    assert await served(rounds) == (second, None)
    assert [(each.id, each.state, each.parent_id) for each in await rounds.all()] == [(second, "live", first), (first, "retired", None)]
    assert await rounds.rollback("worse") == (second, first)
    assert await served(rounds) == (first, None)
    assert (await rounds.get(second)).reason == "worse"
    assert await rounds.rollback("worse too") == (first, "")
    assert await served(rounds) == (None, None)


async def test_a_canary_is_taken_back_before_what_is_live(rounds: Rounds) -> None:
    first, second = await a_candidate(rounds), await a_candidate(rounds)
    await rounds.promote(first, 1)
    await rounds.promote(second, 0.2)
    assert await rounds.rollback("red line", only=second) == (second, first)
    with pytest.raises(RoundRefused, match="any more"):
        await rounds.rollback("red line", only=second)
    assert await served(rounds) == (first, None), "a late alarm does not take back what is live"


async def test_what_cannot_serve_does_not(rounds: Rounds) -> None:
    untrained = (await rounds.begin({}, "b", "5")).id
    for refused in (untrained, "round-9"):
        with pytest.raises(RoundRefused):
            await rounds.promote(refused, 1)
    first, second = await a_candidate(rounds), await a_candidate(rounds)
    await rounds.promote(first, 0.1)
    with pytest.raises(RoundRefused, match="canary"):
        await rounds.promote(second, 1)
    await rounds.erased("5" * 64)
    assert await served(rounds) == (None, None)
    with pytest.raises(RoundRefused, match="stale_erased"):
        await rounds.promote(second, 1)
    assert (await rounds.get(untrained)).state == "training"


async def test_a_reward_model_is_never_served_and_takes_down_with_it_what_it_taught(rounds: Rounds) -> None:
    judge = await rounds.begin({"method": "reward"}, "b" * 64, "5" * 64)
    await rounds.trained(judge.id, None)
    for share in (0.1, 1):
        with pytest.raises(RoundRefused, match="answers nobody"):
            await rounds.promote(judge.id, share)
    taught, apart = [await rounds.begin({"method": "grpo", "reward_model": name}, "b" * 64, "6" * 64) for name in (judge.id, "")]
    await rounds.trained(taught.id, f"{taught.id}@{'0' * 12}")
    await rounds.promote(taught.id, 1)
    await rounds.erased("5" * 64)
    assert await served(rounds) == (None, None)
    assert [(await rounds.get(each.id)).state for each in (judge, taught, apart)] == ["stale_erased", "stale_erased", "training"]


async def test_the_arms_of_a_canary_are_counted_apart(rounds: Rounds, database: Database) -> None:
    record, inbox, name = Record(database), Inbox(database), await a_candidate(rounds)
    await rounds.promote(name, 0.5)
    _, canary = await rounds.serving()
    assert canary is not None
    for adapter, num_rejected in ((canary.adapter, 2), (None, 0), (f"other@{'1' * 12}", 1)):
        opened = Conversation(new_id("conv"), new_id("vis"), "en")
        await record.add_conversation(opened)
        asked = Message(new_id("msg"), "user", "Hello?", client_message_id=new_id("c"))
        await record.add_message(opened.id, asked)
        attempts = [made(adapter=adapter, status="rejected", shown=False) for _ in range(num_rejected)]
        told = Message(new_id("msg"), "assistant", "Hello.", reply_to_id=asked.id)
        await record.add_message(opened.id, told, made(adapter=adapter), attempts)
        if adapter == canary.adapter:
            await inbox.move(opened.id, Move("waiting", "request", "visitor", ("bot",)))
    assert await rounds.arms(canary) == (Arm(1, 3, 2, 0, 1), Arm(2, 3, 1, 0, 0))


def test_red_lines_are_crossed_for_certain_or_not_at_all() -> None:
    assert red_line(GOOD, GOOD) == ""
    assert red_line(Arm(1, 1, 1, 1, 1), GOOD) == "", "one bad answer proves nothing"
    assert red_line(replace(GOOD, violations=60), GOOD).startswith("violations: 60 of 400")
    assert red_line(replace(GOOD, handoffs=60), GOOD).startswith("handoffs: 60 of 200")
    worse = replace(GOOD, errors=200)
    assert red_line(worse, worse).startswith("errors"), "however badly the other side does"
