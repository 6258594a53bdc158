"""People answer customers.

Why: a conversation is the bot's or a person's, never both's, so its state is a column that one UPDATE compares and sets, and each change
is a row that stays. A rating is of a conversation, so a signal need not name an answer.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("conversation", sa.Column("state", sa.String(16), nullable=False, server_default="bot"))
    op.add_column("conversation", sa.Column("agent", sa.String(100)))
    op.add_column("conversation", sa.Column("state_at_ms", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("conversation", sa.Column("waiting_at_ms", sa.BigInteger))
    op.create_index("conversation_in_state", "conversation", ["state", "waiting_at_ms"])
    op.add_column("message", sa.Column("author", sa.String(100)))
    op.add_column("message", sa.Column("gold", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "handoff",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("conversation_id", sa.String(40), sa.ForeignKey("conversation.id"), nullable=False),
        sa.Column("from_state", sa.String(16), nullable=False),
        sa.Column("to_state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(16), nullable=False),
        sa.Column("actor", sa.String(100), nullable=False),
        sa.Column("contact", sa.JSON),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_handoff_conversation_id", "handoff", ["conversation_id"])
    op.create_table(
        "canned_answer",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("title", sa.String(80), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    _let_signals_name_no_answer()


def _let_signals_name_no_answer() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        op.alter_column("signal", "completion_id", nullable=True)
        return
    # SQLite cannot drop NOT NULL. What its manual gives for a change that leaves the rows as they are: https://sqlite.org/lang_altertable.html#otheralter
    made = connection.exec_driver_sql("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = 'signal'").scalar_one()
    strict = "completion_id VARCHAR(64) NOT NULL"
    if strict not in made:
        return
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema=ON")
    loose = made.replace(strict, "completion_id VARCHAR(64)")
    connection.exec_driver_sql("UPDATE sqlite_schema SET sql = ? WHERE type = 'table' AND name = 'signal'", (loose,))
    connection.exec_driver_sql(f"PRAGMA schema_version={version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema=OFF")
