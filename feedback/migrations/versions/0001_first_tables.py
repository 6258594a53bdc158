"""The first tables.

Why: a customer's conversation, each answer with all that a later training round needs to know about its making, and each
thumb must be on disk before they are acknowledged. Text and provenance are apart (message, completion) because an answer may
be generated more than once and shown once; signals are append-only, so that a changed mind leaves its history.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_conversations()
    _create_completions()
    _create_signals()


def downgrade() -> None:
    for table in ("signal", "citation", "completion", "message", "conversation", "visitor"):
        op.drop_table(table)


def _create_conversations() -> None:
    op.create_table(
        "visitor",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "conversation",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("visitor_id", sa.String(40), sa.ForeignKey("visitor.id"), nullable=False),
        sa.Column("language", sa.String(8), nullable=False),
        sa.Column("consent_train", sa.Boolean, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("conversation_of_visitor", "conversation", ["visitor_id", "created_at_ms"])
    op.create_table(
        "message",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("conversation_id", sa.String(40), sa.ForeignKey("conversation.id"), nullable=False),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("reply_to_id", sa.String(40), sa.ForeignKey("message.id")),
        sa.Column("client_message_id", sa.String(40)),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("conversation_id", "seq"),
        sa.UniqueConstraint("conversation_id", "client_message_id"),
    )
    op.create_index("ix_message_reply_to_id", "message", ["reply_to_id"])


def _create_completions() -> None:
    op.create_table(
        "completion",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("message_id", sa.String(40), sa.ForeignKey("message.id"), nullable=False),
        sa.Column("shown", sa.Boolean, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("finish_reason", sa.String(16), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("reasoning", sa.Text, nullable=False),
        sa.Column("prompt_token_ids", sa.LargeBinary, nullable=False),
        sa.Column("completion_token_ids", sa.LargeBinary, nullable=False),
        sa.Column("logprobs", sa.LargeBinary, nullable=False),
        sa.Column("sampling", sa.JSON, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("model_sha256", sa.String(64), nullable=False),
        sa.Column("quantization", sa.String(40), nullable=False),
        sa.Column("engine", sa.String(40), nullable=False),
        sa.Column("engine_version", sa.String(40), nullable=False),
        sa.Column("adapter", sa.String(64)),
        sa.Column("template_sha256", sa.String(64), nullable=False),
        sa.Column("policy_version", sa.String(64), nullable=False),
        sa.Column("knowledge_version", sa.String(64), nullable=False),
        sa.Column("num_cached_tokens", sa.Integer, nullable=False),
        sa.Column("num_reasoning_tokens", sa.Integer, nullable=False),
        sa.Column("forced_close", sa.Boolean, nullable=False),
        sa.Column("ttft_ms", sa.Float),
        sa.Column("first_answer_ms", sa.Float),
        sa.Column("total_ms", sa.Float, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_completion_message_id", "completion", ["message_id"])
    op.create_table(
        "citation",
        sa.Column("completion_id", sa.String(64), sa.ForeignKey("completion.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("passage_id", sa.String(100), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )


def _create_signals() -> None:
    op.create_table(
        "signal",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(40), nullable=False, unique=True),
        sa.Column("conversation_id", sa.String(40), sa.ForeignKey("conversation.id"), nullable=False),
        sa.Column("completion_id", sa.String(64), sa.ForeignKey("completion.id"), nullable=False),
        sa.Column("visitor_id", sa.String(40), sa.ForeignKey("visitor.id"), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("value", sa.Float, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("comment", sa.Text),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("reason", sa.String(32)),
        sa.Column("actor", sa.String(16), nullable=False),
        sa.Column("detector", sa.String(64)),
        sa.Column("detector_version", sa.String(32)),
        sa.Column("idempotency_key", sa.String(64), nullable=False),
        sa.Column("retracts_id", sa.String(40), sa.ForeignKey("signal.id"), unique=True),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("visitor_id", "idempotency_key"),
    )
    op.create_index("ix_signal_conversation_id", "signal", ["conversation_id"])
    op.create_index("ix_signal_completion_id", "signal", ["completion_id"])
    op.create_index("signal_of_visitor", "signal", ["visitor_id", "created_at_ms"])
