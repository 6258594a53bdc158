"""The tables: what was said, how it was made, how it was received. Times are milliseconds since 1970, UTC."""

from collections.abc import Sequence

import numpy as np
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)
from sqlalchemy.types import TypeDecorator


class TokenIds(TypeDecorator[list[int]]):
    """Token ids as little-endian uint32."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Sequence[int] | None, dialect: Dialect) -> bytes | None:
        return None if value is None else np.asarray(value, "<u4").tobytes()

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> list[int] | None:
        return None if value is None else np.frombuffer(value, "<u4").tolist()


class Logprobs(TypeDecorator[list[float | None]]):
    """Natural logs as little-endian float32; NaN where a token was inserted, not sampled."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Sequence[float | None] | None, dialect: Dialect) -> bytes | None:
        return None if value is None else np.asarray([np.nan if x is None else x for x in value], "<f4").tobytes()

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> list[float | None] | None:
        return None if value is None else [None if np.isnan(x) else float(x) for x in np.frombuffer(value, "<f4")]


class Words(TypeDecorator[str]):
    """Text. PostgreSQL holds no NUL, so a model's NUL is kept as U+FFFD."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.replace("\0", "\ufffd")


metadata = MetaData()

visitor = Table(
    "visitor",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("created_at_ms", BigInteger, nullable=False),
)

conversation = Table(
    "conversation",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("visitor_id", ForeignKey("visitor.id"), nullable=False),
    Column("language", String(8), nullable=False),
    Column("consent_train", Boolean, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("state", String(16), nullable=False, server_default="bot"),  # feedback/inbox.py: TRANSITIONS
    Column("agent", String(100)),  # who has it, while `human`, and who had it last
    Column("state_at_ms", BigInteger, nullable=False, server_default="0"),
    Column("waiting_at_ms", BigInteger),  # since when a person is waited for; released, it keeps its place
    Index("conversation_of_visitor", "visitor_id", "created_at_ms"),
    Index("conversation_in_state", "state", "waiting_at_ms"),
    Index("conversation_by_time", "created_at_ms", "id"),
)

message = Table(
    "message",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("conversation_id", ForeignKey("conversation.id"), nullable=False),
    Column("seq", Integer, nullable=False),  # 1, 2, ... within the conversation
    Column("role", String(16), nullable=False),  # user | assistant | agent | note
    Column("text", Words, nullable=False),  # what was on the screen
    Column("reply_to_id", ForeignKey("message.id"), index=True),
    Column("replaces_id", ForeignKey("message.id"), index=True),  # this one and what followed it left the screen
    Column("client_message_id", String(40)),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("author", String(100)),  # the agent's name
    Column("gold", Boolean, nullable=False, server_default=false()),  # a person's answer: what the model should have said
    UniqueConstraint("conversation_id", "seq"),
    UniqueConstraint("conversation_id", "client_message_id"),
)

MEASURED = ("status", "shown", "adapter", "num_reasoning_tokens", "first_answer_ms", "id")

# Of an answer that an upstream gave, the columns that may be NULL hold what it told.
completion = Table(
    "completion",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("message_id", ForeignKey("message.id"), nullable=False, index=True),
    Column("shown", Boolean, nullable=False),  # False: a fallback sentence stood in its place
    Column("status", String(16), nullable=False),  # feedback/record.py: Status, Unshown
    Column("finish_reason", String(16), nullable=False),
    Column("content", Words, nullable=False),  # as generated; message.text is as shown
    Column("reasoning", Words, nullable=False),
    Column("prompt_token_ids", TokenIds),
    Column("completion_token_ids", TokenIds),
    Column("logprobs", Logprobs),
    Column("sampling", JSON, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("model", String(200), nullable=False),
    Column("model_sha256", String(64)),
    Column("quantization", String(40)),
    Column("engine", String(40), nullable=False),
    Column("engine_version", String(40), nullable=False),
    Column("adapter", String(64)),
    Column("template_sha256", String(64)),
    Column("policy_version", String(64), nullable=False),
    Column("knowledge_version", String(64), nullable=False),
    Column("num_cached_tokens", Integer),
    Column("num_reasoning_tokens", Integer),
    Column("forced_close", Boolean, nullable=False),
    Column("ttft_ms", Float),
    Column("first_answer_ms", Float),
    Column("total_ms", Float, nullable=False),
    Column("violations", JSON(none_as_null=True)),  # NULL: made before there were checks
    Column("created_at_ms", BigInteger, nullable=False),
    # What an overview measures, so that it need not read the long columns.
    Index(
        "completion_measured", "created_at_ms", "message_id", "status", "shown", "adapter", "num_reasoning_tokens", "first_answer_ms", "id"
    ),
)

citation = Table(
    "citation",
    metadata,
    Column("completion_id", ForeignKey("completion.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("passage_id", String(100), nullable=False),
    Column("title", Words, nullable=False),
    Column("text", Words, nullable=False),
)

# What tools were asked in the making of a message; `arguments` and `result` as the model wrote and read them.
tool_call = Table(
    "tool_call",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("conversation_id", ForeignKey("conversation.id"), nullable=False),
    Column("message_id", ForeignKey("message.id"), nullable=False, index=True),
    Column("completion_id", ForeignKey("completion.id"), index=True),
    Column("name", String(64), nullable=False),
    Column("arguments", Words, nullable=False),
    Column("status", String(16), nullable=False),  # feedback/calls.py: CallStatus
    Column("result", Words, nullable=False),
    Column("duration_ms", Float, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Index("tool_call_of_conversation", "conversation_id", "status"),
)

# Append-only: nothing but retention updates or deletes a signal. A changed mind is a new row whose retracts_id names the old one.
signal = Table(
    "signal",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(40), nullable=False, unique=True),
    Column("conversation_id", ForeignKey("conversation.id"), nullable=False, index=True),
    Column("completion_id", ForeignKey("completion.id"), index=True),  # NULL: about the conversation as a whole
    Column("visitor_id", ForeignKey("visitor.id"), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("value", Float, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("comment", Words),
    Column("weight", Float, nullable=False),  # 0: kept, but counts for nothing
    Column("reason", String(32)),  # why the weight is 0
    Column("actor", String(16), nullable=False),
    Column("detector", String(64)),
    Column("detector_version", String(32)),
    Column("prob", Float),  # of a detector: that the signal is meant
    Column("source_message_id", String(40)),  # the message that says it, and where in it: "from:to" in characters
    Column("span", String(24)),
    Column("network", String(16)),  # a salted hash of the sender's /24 or /64
    Column("propensity", Float),  # the chance with which this answer's reader was asked for a thumb, or offered another; NULL: was not
    # Of an `offer` and a `pairwise` choice: the answer beside it, the side on which this one stood, how long both were looked at.
    Column("other_id", ForeignKey("completion.id"), index=True),
    Column("side", String(8)),  # left | right
    Column("dwell_ms", Integer),
    Column("idempotency_key", String(64), nullable=False),
    Column("retracts_id", ForeignKey("signal.id"), unique=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("redacted_at_ms", BigInteger),  # when retention took names and numbers out of the comment
    UniqueConstraint("visitor_id", "idempotency_key"),
    Index("signal_of_visitor", "visitor_id", "created_at_ms"),
)

# How far a conversation was looked back at: its last message's seq plus its number of handoffs; settled after a day of silence.
lookback = Table(
    "lookback",
    metadata,
    Column("conversation_id", ForeignKey("conversation.id"), primary_key=True),
    Column("mark", Integer, nullable=False),
    Column("is_settled", Boolean, nullable=False),
)

# Append-only: who let a signal out of quarantine.
release = Table(
    "release",
    metadata,
    Column("signal_id", ForeignKey("signal.id"), primary_key=True),
    Column("reviewer", String(100), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
)

# Append-only: every change of a conversation's state. `contact` is what an offline form held.
handoff = Table(
    "handoff",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("conversation_id", ForeignKey("conversation.id"), nullable=False, index=True),
    Column("from_state", String(16), nullable=False),
    Column("to_state", String(16), nullable=False),
    Column("reason", String(16), nullable=False),
    Column("actor", String(100), nullable=False),  # visitor, system, or an agent's name
    Column("contact", JSON(none_as_null=True)),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("redacted_at_ms", BigInteger),
)

canned_answer = Table(
    "canned_answer",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("title", String(80), nullable=False),
    Column("text", Words, nullable=False),
)

agent = Table(
    "agent",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("login", String(400), nullable=False, unique=True),  # the name as it is compared: case and width folded
    Column("name", String(100), nullable=False),
    Column("role", String(16), nullable=False),  # agent | editor | admin
    Column("password_hash", String(200), nullable=False),
    Column("must_change_password", Boolean, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("disabled_at_ms", BigInteger),
)

session = Table(
    "session",
    metadata,
    Column("token_sha256", String(64), primary_key=True),
    Column("agent_id", ForeignKey("agent.id"), nullable=False, index=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("seen_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
)

# Append-only: each row's hash covers the row and the hash before it. A hash follows once: the chain cannot fork.
audit = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),  # 1, 2, ... without a gap
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", String(100), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("detail", JSON, nullable=False),
    Column("prev_hash", String(64), nullable=False, unique=True),
    Column("hash", String(64), nullable=False),
)

article = Table(
    "article",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("title", Words, nullable=False),
    Column("language", String(8), nullable=False),
    Column("source", Words, nullable=False),
    Column("version", String(64), nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
)

# A passage that changes is a new row; the old one stays for the answers that saw it.
passage = Table(
    "passage",
    metadata,
    Column("id", String(60), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("article_id", ForeignKey("article.id"), nullable=False, index=True),
    Column("ordinal", Integer, nullable=False),
    Column("title", Words, nullable=False),
    Column("text", Words, nullable=False),
    Column("questions", JSON, nullable=False),
    Column("language", String(8), nullable=False),
    Column("current", Boolean, nullable=False),
)

# The passages in an answer's prompt, best first; `score` is what retrieval gave each.
retrieval = Table(
    "retrieval",
    metadata,
    Column("completion_id", ForeignKey("completion.id"), primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("passage_id", String(100), nullable=False),
    Column("version", String(64), nullable=False),
    Column("score", Float, nullable=False),
)

# What a person looks at before it trains; `problem` says what still stands against it. Written anew from the record at any time.
pair = Table(
    "pair",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("conversation_id", ForeignKey("conversation.id"), nullable=False, index=True),
    Column("question_id", ForeignKey("message.id"), nullable=False, index=True),  # the prompt is what was on the screen up to it
    Column("rejected_id", ForeignKey("completion.id"), nullable=False, index=True),
    Column("chosen", Words),  # NULL: has to be made
    Column("chosen_ref", String(64)),
    Column("origin", String(16), nullable=False),  # natural | regenerated | agent | pairwise
    Column("strength", Float, nullable=False),
    Column("problem", String(64)),
    Column("created_at_ms", BigInteger, nullable=False),
)

# Append-only: every rater's verdict on a pair.
review = Table(
    "review",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("pair_id", ForeignKey("pair.id"), nullable=False),
    Column("rater", String(100), nullable=False),
    Column("verdict", String(16), nullable=False),  # good | bad | unsure
    Column("reason", Words),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("redacted_at_ms", BigInteger),
    UniqueConstraint("pair_id", "rater"),
)

# One training run and the adapter that came of it. `parent_id` is what was live when it began, and once promoted, what was live then.
round_ = Table(
    "round",
    metadata,
    Column("id", String(40), primary_key=True),  # round-1, ...; also the adapter's name
    Column("number", Integer, nullable=False, unique=True),
    Column("parent_id", ForeignKey("round.id")),
    Column("state", String(16), nullable=False),  # feedback/rounds.py: State
    Column("reason", Words, nullable=False),  # why it came to this state
    Column("job", JSON, nullable=False),
    Column("base_sha256", String(64), nullable=False),
    Column("snapshot_sha256", String(64), nullable=False, index=True),  # of the rows it learnt from
    Column("adapter", String(64)),  # the registry's key
    Column("metrics", JSON, nullable=False),
    Column("share", Float, nullable=False),  # of conversations, while `canary`
    Column("created_at_ms", BigInteger, nullable=False),
    Column("state_at_ms", BigInteger, nullable=False),
)
