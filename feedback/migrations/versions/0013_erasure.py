"""Indexes for erasing.

Why: a row is deleted only after a look for rows that point at it, which without an index reads their whole table for each.
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_message_replaces_id", "message", ["replaces_id"])
    op.create_index("ix_pair_question_id", "pair", ["question_id"])
    op.create_index("ix_pair_rejected_id", "pair", ["rejected_id"])
    op.create_index("ix_tool_call_completion_id", "tool_call", ["completion_id"])
