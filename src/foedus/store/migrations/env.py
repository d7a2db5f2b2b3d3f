"""How Alembic runs here: on the connection that the opening store hands over, in its transaction.
Nothing else may come in; there is no alembic.ini."""

from __future__ import annotations

from alembic import context

from foedus.store.migrations import VERSIONS

context.configure(connection=context.config.attributes["connection"], version_table=VERSIONS)
context.run_migrations()
