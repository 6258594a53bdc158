"""Answers that another server gave.

Why: an upstream does not tell token ids, log probabilities, or what file its model is; NULL says so, where zeros and empty lists would lie.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COLUMNS: dict[str, sa.LargeBinary | sa.String | sa.Integer] = {
    **dict.fromkeys(("prompt_token_ids", "completion_token_ids", "logprobs"), sa.LargeBinary()),
    **dict.fromkeys(("model_sha256", "template_sha256"), sa.String(64)),
    "quantization": sa.String(40),
    **dict.fromkeys(("num_cached_tokens", "num_reasoning_tokens"), sa.Integer()),
}


def upgrade() -> None:
    # SQLite cannot drop NOT NULL, and the table cannot be made anew while others refer to its rows: each column is.
    for name, kind in COLUMNS.items():
        new = f"{name}_new"
        op.add_column("completion", sa.Column(new, kind))
        made = sa.table("completion", sa.column(name), sa.column(new))
        op.execute(made.update().values({new: made.c[name]}))
        op.drop_column("completion", name)
        op.execute(f"ALTER TABLE completion RENAME COLUMN {new} TO {name}")
