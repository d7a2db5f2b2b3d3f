"""One file per schema revision, v0001 being the first.
Only Alembic operations may come in, never the tables of the present code."""
