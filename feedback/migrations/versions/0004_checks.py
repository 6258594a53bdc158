"""What the policy's checks found.

Why: an answer that failed a check is what a later training round should learn from as much as one that was shown, so every attempt is
kept with its violations. NULL says that an answer was made before there were checks.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("completion", sa.Column("violations", sa.JSON))
