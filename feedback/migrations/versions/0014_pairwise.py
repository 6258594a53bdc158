"""Pairwise choice: two answers to one question, offered side by side.

Why: a choice is about two completions, and where each stood and how long both were looked at says how much to trust it.
"""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Plain SQL, the same in both databases: Alembic adds no column with a reference in SQLite.
    op.execute("ALTER TABLE signal ADD COLUMN other_id VARCHAR(64) REFERENCES completion (id)")
    op.execute("ALTER TABLE signal ADD COLUMN side VARCHAR(8)")
    op.execute("ALTER TABLE signal ADD COLUMN dwell_ms INTEGER")
    op.create_index("ix_signal_other_id", "signal", ["other_id"])
