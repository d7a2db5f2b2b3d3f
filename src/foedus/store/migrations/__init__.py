"""The schema of the server's store, revision by revision (Alembic), brought up to date whenever a store is opened.
A connection inside a transaction comes in; a revision that has been released is never changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from foedus.errors import StoreError

VERSIONS = "foedus_version"  # the table with the revision, not Alembic's default: other programs use that
LOCK = 0x666F6564


def upgrade(connection: sa.Connection, where: str) -> None:
    """Brings the tables to the newest revision; StoreError if they are of a newer foedus or of another program."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
    config = Config()
    config.set_main_option("script_location", "foedus.store:migrations")
    config.attributes["connection"] = connection
    present = MigrationContext.configure(connection, opts={"version_table": VERSIONS}).get_current_revision()
    known = [revision.revision for revision in ScriptDirectory.from_config(config).walk_revisions()]
    if present is None and sa.inspect(connection).get_table_names():
        raise StoreError(f"store {where}: other tables are here; give foedus a database or file of its own")
    if present is not None and present not in known:
        raise StoreError(
            f"store {where}: schema {present} is newer than {known[0]}, which foedus reads here; upgrade foedus"
        )
    if present != known[0]:
        command.upgrade(config, "head")
