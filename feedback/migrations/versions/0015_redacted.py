"""When feedback was redacted.

Why: the text of feedback is kept as it was written for a while only, in conversations that are kept longer, and is changed once.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("signal", "review", "handoff"):
        op.add_column(table, sa.Column("redacted_at_ms", sa.BigInteger))
