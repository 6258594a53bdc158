"""Records in both kinds of database, and the things that go into them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from feedback.database import Database
from feedback.record import Completion, Conversation, Message, Record, new_id
from feedback.signals import Signals
from tests.feedback.postgres import PROGRAMS, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server."""
    if not PROGRAMS:
        pytest.skip("no PostgreSQL programs on this machine")
    with postgres_server() as url:
        yield url


@pytest.fixture
def postgres_url(postgres: str) -> str:
    """The URL of an empty database: the session's only one, emptied, because a new one copies seven megabytes."""
    engine = create_engine(postgres.replace("://", "+psycopg://"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'kefu'"
        connection.execute(text(others))
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    database = Database.open(url, tmp_path / "data" if url else request.getfixturevalue("data_folder"))
    yield database
    database.close()


class Clock:
    """Milliseconds that pass when a test says so."""

    def __init__(self) -> None:
        self.ms = 1_000_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def signals(database: Database, clock: Clock) -> Signals:
    return Signals(database, clock)


def made(**changed: object) -> Completion:
    """A plausible completion."""
    fields: dict[str, object] = {
        "id": new_id("cmpl"),
        "shown": True,
        "status": "complete",
        "finish_reason": "stop",
        "content": "Seven days [1].",
        "reasoning": "The passage says seven.",
        "prompt_token_ids": [1, 2, 151_645],
        "completion_token_ids": [7, 8],
        "logprobs": [-0.5, None],
        "sampling": {"temperature": 0.6},
        "seed": 2**31 - 1,
        "model": "kefu-mini",
        "model_sha256": "0" * 64,
        "quantization": "Q8_0",
        "engine": "llama.cpp",
        "engine_version": "0.3.36",
        "adapter": None,
        "template_sha256": "1" * 64,
        "policy_version": "2" * 64,
        "knowledge_version": "3" * 64,
        "num_cached_tokens": 2,
        "num_reasoning_tokens": 1,
        "forced_close": False,
        "ttft_ms": 12.5,
        "first_answer_ms": None,
        "total_ms": 99.0,
    }
    return Completion(**{**fields, **changed})  # type: ignore[arg-type]


async def answered(record: Record, visitor_id: str = "vis_a", at_ms: int = 1_000_000_000, **changed: object) -> str:
    """A conversation with one answered question; the id of its completion."""
    conversation = Conversation(new_id("conv"), visitor_id, "en")
    question = Message(new_id("msg"), "user", "How long?", client_message_id=new_id("key"))
    completion = made(**changed)
    answer = Message(new_id("msg"), "assistant", "Seven days.", reply_to_id=question.id, created_at_ms=at_ms)
    await record.add_conversation(conversation)
    await record.add_message(conversation.id, question)
    await record.add_message(conversation.id, answer, completion)
    return completion.id
