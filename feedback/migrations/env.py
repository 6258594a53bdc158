"""Run by Alembic: migrate on the connection, and inside the transaction, that feedback/database.py hands over."""

from alembic import context

from feedback.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
