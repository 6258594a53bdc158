"""Tools that the model called.

Why: what a customer's yes set off must be found again, and an answer can only be judged beside the results that it had.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tool_call",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("conversation_id", sa.String(40), sa.ForeignKey("conversation.id"), nullable=False),
        sa.Column("message_id", sa.String(40), sa.ForeignKey("message.id"), nullable=False, index=True),
        sa.Column("completion_id", sa.String(64), sa.ForeignKey("completion.id")),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("arguments", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("result", sa.Text, nullable=False),
        sa.Column("duration_ms", sa.Float, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("tool_call_of_conversation", "tool_call", ["conversation_id", "status"])
