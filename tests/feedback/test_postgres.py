"""What only PostgreSQL can get wrong: several processes, and an upgrade that two of them begin at once."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from feedback.database import Database, RecordUnavailable
from feedback.record import Conversation, Message, Record, new_id
from feedback.tables import metadata

pytestmark = pytest.mark.anyio


async def test_two_servers_that_start_together_upgrade_once(postgres_url: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(Database, [postgres_url] * 2)
    try:
        differences = await first.read(lambda connection: compare_metadata(MigrationContext.configure(connection), metadata))
        assert differences == []
    finally:
        first.close()
        second.close()


async def test_two_servers_that_write_to_one_conversation_keep_every_message_in_order(postgres_url: str) -> None:
    databases = [Database(postgres_url), Database(postgres_url)]
    records = [Record(database) for database in databases]
    conversation = Conversation(new_id("conv"), "vis_a", "en")
    await asyncio.gather(*(record.add_conversation(conversation) for record in records))
    said = [Message(new_id("msg"), "user", f"{number}") for number in range(24)]
    await asyncio.gather(*(records[number % 2].add_message(conversation.id, message) for number, message in enumerate(said)))
    kept = await records[0].messages(conversation.id)
    for database in databases:
        database.close()
    assert sorted(int(message.text) for message in kept) == list(range(24))


async def test_a_nul_that_a_model_wrote_is_kept_as_a_mark(postgres_url: str) -> None:
    database = Database(postgres_url)
    record, conversation = Record(database), Conversation(new_id("conv"), "vis_a", "en")
    await record.add_conversation(conversation)
    await record.add_message(conversation.id, Message(new_id("msg"), "user", "a\0b"))
    assert [message.text for message in await record.messages(conversation.id)] == ["a\ufffdb"]
    database.close()


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(RecordUnavailable) as refused:
        Database("postgresql://kefu:hunter2@127.0.0.1:1/kefu")
    assert "hunter2" not in str(refused.value)
