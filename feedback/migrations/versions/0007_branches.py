"""Branches: an answer asked for again, a question edited.

Why: the screen shows only the newest branch, and the record keeps all of them. What replaced what is what a customer did not like.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Plain SQL, the same in both databases: Alembic adds no column with a reference in SQLite.
    op.execute("ALTER TABLE message ADD COLUMN replaces_id VARCHAR(40) REFERENCES message (id)")
