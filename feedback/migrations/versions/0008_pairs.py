"""Pairs that a person looks at, and what each rater said.

Why: a detector's guess is no label. Every vote is kept, not only the majority's, so that agreement can be told.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pair",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("conversation_id", sa.String(40), sa.ForeignKey("conversation.id"), nullable=False, index=True),
        sa.Column("question_id", sa.String(40), sa.ForeignKey("message.id"), nullable=False),
        sa.Column("rejected_id", sa.String(64), sa.ForeignKey("completion.id"), nullable=False),
        sa.Column("chosen", sa.Text),
        sa.Column("chosen_ref", sa.String(64)),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("strength", sa.Float, nullable=False),
        sa.Column("problem", sa.String(64)),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "review",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("pair_id", sa.String(40), sa.ForeignKey("pair.id"), nullable=False),
        sa.Column("rater", sa.String(100), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("pair_id", "rater"),
    )
