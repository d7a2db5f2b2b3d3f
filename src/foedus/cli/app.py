"""The verbs and where they live.
Only the groups of verbs may come in."""

from __future__ import annotations

import typer

from foedus.cli import federation, remote, simulate, site

app = typer.Typer(
    name="foedus",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train and validate AI models on data that never leaves its owners.",
)
for group in (simulate, federation, site, remote):
    group.add_to(app)
