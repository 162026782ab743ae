"""Run by Alembic; the connection, inside a transaction, comes from edda_engine.storage.migrate."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"], version_table=context.config.attributes["version_table"]
)
with context.begin_transaction():
    context.run_migrations()
