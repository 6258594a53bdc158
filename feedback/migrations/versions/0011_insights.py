"""Insights: an index that holds what is measured of every answer.

Why: an answer's row is long (token ids, log probabilities, thoughts); an overview of a hundred thousand must not read them.
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    columns = ["created_at_ms", "message_id", "status", "shown", "adapter", "num_reasoning_tokens", "first_answer_ms", "id"]
    op.create_index("completion_measured", "completion", columns)
