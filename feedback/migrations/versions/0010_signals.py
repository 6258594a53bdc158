"""Signals that nobody pressed.

Why: what a customer writes next judges the answer before it. Such a signal has a probability and a place in a message; against few who
vote much it has a hash of their network. What was looked at is remembered, so that a crash loses no turn; quarantine ends by a name.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("signal", sa.Column("prob", sa.Float))
    op.add_column("signal", sa.Column("span", sa.String(24)))
    op.add_column("signal", sa.Column("source_message_id", sa.String(40)))
    op.add_column("signal", sa.Column("network", sa.String(16)))
    op.add_column("signal", sa.Column("propensity", sa.Float))
    op.create_table(
        "lookback",
        sa.Column("conversation_id", sa.String(40), sa.ForeignKey("conversation.id"), primary_key=True),
        sa.Column("mark", sa.Integer, nullable=False),
        sa.Column("is_settled", sa.Boolean, nullable=False),
    )
    op.create_table(
        "release",
        sa.Column("signal_id", sa.String(40), sa.ForeignKey("signal.id"), primary_key=True),
        sa.Column("reviewer", sa.String(100), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
