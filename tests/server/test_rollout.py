"""Who talks to which adapter, while rounds come and go."""

import asyncio
import fcntl
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.adapter import AdapterRegistry
from backends.client import TokenStream
from backends.protocol import EngineDown, EngineOptions
from backends.sequence import FinishReason, SamplingParams
from backends.supervisor import Supervisor
from feedback.audit import Audit
from feedback.database import Database
from feedback.record import Conversation, Message, Record, new_id
from feedback.rounds import Rounds
from feedback.training.job import LOADED, claim
from server.errors import error_headers, error_object
from server.rollout import follow, watch_training
from tests.feedback.conftest import made
from tests.server.fakes import ScriptedChat

pytestmark = pytest.mark.anyio


@pytest.fixture
def chat(tmp_path: Path) -> ScriptedChat:
    """With the files of two rounds."""
    chat = ScriptedChat()
    chat.adapters = AdapterRegistry(tmp_path / "adapters")
    for name in ("round-1", "round-2"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
        (tmp_path / "adapters" / name / f"{'0' * 12}.gguf").touch()
    return chat


async def two_rounds(rounds: Rounds) -> None:
    for number in (1, 2):
        await rounds.begin({"method": "dpo"}, "b", "5")
        await rounds.trained(f"round-{number}", f"round-{number}@{'0' * 12}")
    await rounds.promote("round-1", 1)
    await rounds.promote("round-2", 0.25)


async def test_a_share_of_the_conversations_talks_to_the_canary_and_stays_with_it(
    chat: ScriptedChat, database: Database, tmp_path: Path
) -> None:
    rounds, audit = Rounds(database), Audit(database, tmp_path / "head")
    await follow(chat, rounds, audit, "")
    assert chat.adapters.serving_keys == ("",) and chat.adapters.key_for("anyone") == ""
    await two_rounds(rounds)
    await follow(chat, rounds, audit, "")
    ids = [new_id("conv") for _ in range(2000)]
    first = {each: chat.adapters.key_for(each).partition("@")[0] for each in ids}
    assert set(first.values()) == {"round-1", "round-2"} == {key.partition("@")[0] for key in chat.adapters.serving_keys}
    assert 400 < Counter(first.values())["round-2"] < 600
    await rounds.promote("round-2", 0.5)
    await follow(chat, rounds, audit, "")
    still = [each for each in ids if first[each] == "round-2"]
    assert {chat.adapters.key_for(each).partition("@")[0] for each in still} == {"round-2"}, "a larger share keeps whom it had"
    await rounds.rollback("by hand")
    await rounds.rollback("by hand")
    await follow(chat, rounds, audit, "round-1")
    assert chat.adapters.key_for("anyone").startswith("round-1"), "the adapter in the settings, when no round is live"


async def until(held: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not held():
            await asyncio.sleep(0.05)


async def test_a_round_in_training_throttles_or_pauses_the_server_which_goes_on_by_itself(
    chat: ScriptedChat, model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rollout.LOOK_EVERY_S", 0.05)
    folder = tmp_path / "rounds" / "round-1"
    folder.mkdir(parents=True)
    supervisor = Supervisor(EngineOptions(model_path, "m", max_sequences=2, num_kv_tokens=2048, threads=1))
    client = supervisor.client
    await supervisor.start()
    watch = asyncio.create_task(watch_training(chat, supervisor, tmp_path))
    try:
        await until(lambda: client.is_ready)
        with claim(folder, "throttle"):
            await until(lambda: chat.is_throttled)
        await until(lambda: not chat.is_throttled)
        told = asyncio.create_task(read(client.submit([5, 6, 7], SamplingParams(temperature=1.0, max_tokens=60))))
        with await asyncio.to_thread(claim, folder, "pause"):
            assert supervisor.engine_pid is None, "its memory is free before the training begins"
            assert await told is not None, "who was being answered heard the end"
            with pytest.raises(EngineDown) as refused:
                client.submit([5], SamplingParams(max_tokens=1))
            assert error_headers(refused.value)["retry-after"] == "60"
            assert error_object(refused.value)["error"]["code"] == "engine_paused"  # type: ignore[index]
            assert "training" in client.unready_reason
        await until(lambda: client.is_ready)
        assert await read(client.submit([5, 6, 7], SamplingParams(max_tokens=5))) is not None
    finally:
        watch.cancel()
        await supervisor.stop()


async def test_a_server_that_starts_while_a_round_has_the_memory_waits_for_its_end(
    chat: ScriptedChat, model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rollout.LOOK_EVERY_S", 0.05)
    (tmp_path / "rounds" / "round-1").mkdir(parents=True)
    supervisor = Supervisor(EngineOptions(model_path, "m", max_sequences=2, num_kv_tokens=2048, threads=1))
    with claim(tmp_path / "rounds" / "round-1", "pause"):
        await supervisor.start()
        watch = asyncio.create_task(watch_training(chat, supervisor, tmp_path))
        await until(lambda: supervisor.client.is_paused and supervisor.engine_pid is None and _is_free(tmp_path / LOADED))
    try:
        await until(lambda: supervisor.client.is_ready)
    finally:
        watch.cancel()
        await supervisor.stop()


def _is_free(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


async def read(stream: TokenStream) -> FinishReason | None:
    async with stream:
        return [event.finish_reason async for events in stream for event in events][-1]


async def test_a_canary_over_a_red_line_is_taken_back_by_itself(chat: ScriptedChat, database: Database, tmp_path: Path) -> None:
    rounds, audit, record = Rounds(database), Audit(database, tmp_path / "head"), Record(database)
    await two_rounds(rounds)
    opened = Conversation(new_id("conv"), new_id("vis"), "en")
    await record.add_conversation(opened)
    for _ in range(12):
        asked = Message(new_id("msg"), "user", "A refund, please", client_message_id=new_id("c"))
        await record.add_message(opened.id, asked)
        bad = made(adapter=f"round-2@{'0' * 12}", status="rejected", shown=False)
        offer = Message(new_id("msg"), "assistant", "A person?", reply_to_id=asked.id)
        await record.add_message(opened.id, offer, None, [bad])
    await follow(chat, rounds, audit, "")
    assert chat.adapters.key_for("anyone").startswith("round-1") and not chat.adapters.canary
    assert (await rounds.get("round-2")).reason.startswith("violations: 12 of 12")
    assert [(entry.actor, entry.action, entry.subject) for entry in await audit.page(None, 9)] == [
        ("system", "round_rolled_back", "round-2")
    ]
