"""The verbs and where they live.
Only the groups of verbs may come in."""

from __future__ import annotations

from typing import Annotated

import typer

from foedus.cli import audit, data, federation, kept, personal, privacy, remote, simulate, site, studies, validate


def _version(asked: bool) -> None:
    if asked:
        from foedus.build import installed

        print(f"foedus {installed('foedus')}")
        raise typer.Exit


app = typer.Typer(
    name="foedus",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in (simulate, studies, kept, personal, federation, site, remote, privacy, data, audit, validate):
    group.add_to(app)


@app.callback()
def foedus(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train and validate AI models on data that never leaves its owners."""
