"""What the shop knows, and what each answer saw of it.

Why: an answer can only be judged, or trained on, beside the passages that it was given, in the words that they had then.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "article",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("language", sa.String(8), nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "passage",
        sa.Column("id", sa.String(60), primary_key=True),
        sa.Column("version", sa.String(64), primary_key=True),
        sa.Column("article_id", sa.String(40), sa.ForeignKey("article.id"), nullable=False, index=True),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("questions", sa.JSON, nullable=False),
        sa.Column("language", sa.String(8), nullable=False),
        sa.Column("current", sa.Boolean, nullable=False),
    )
    op.create_table(
        "retrieval",
        sa.Column("completion_id", sa.String(64), sa.ForeignKey("completion.id"), primary_key=True),
        sa.Column("rank", sa.Integer, primary_key=True),
        sa.Column("passage_id", sa.String(100), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("score", sa.Float, nullable=False),
    )
