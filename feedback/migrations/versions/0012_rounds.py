"""Rounds of training.

Why: an adapter is only as good as the rows it learnt from and the comparison that let it out, so all three stand in one row, with what
it took the place of.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "round",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("number", sa.Integer, nullable=False, unique=True),
        sa.Column("parent_id", sa.ForeignKey("round.id")),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("job", sa.JSON, nullable=False),
        sa.Column("base_sha256", sa.String(64), nullable=False),
        sa.Column("snapshot_sha256", sa.String(64), nullable=False, index=True),
        sa.Column("adapter", sa.String(64)),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("share", sa.Float, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("state_at_ms", sa.BigInteger, nullable=False),
    )
