"""Verbs of sites' own models: export, of a simulation; the one of a real site is beside its other verbs.
The launcher comes in when the verb is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foedus.cli.given import HomeOption, JsonOption, RunArgument
from foedus.cli.kept import as_started, folder_of
from foedus.cli.show import out

OutOption = Annotated[Path | None, typer.Option("--out", help="The file, in place of RUN-SITE.safetensors.")]


def add_to(app: typer.Typer) -> None:
    app.command()(export)


def export(
    run: RunArgument,
    site: Annotated[str, typer.Argument(metavar="SITE", help="The site whose own model it is.")],
    file: OutOption = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Write the model that a site of a simulation has of its own, as safetensors."""
    from foedus import launch, runs

    folder = folder_of(run, home)
    assert folder is not None
    result = launch.with_own(runs.result(folder), as_started(folder)[1])
    path = result.save_personal(site, file or Path(f"{folder.name}-{site}.safetensors"))
    out({"run": folder.name, "site": site, "model": str(path)}, json, [f"the model of {site} is {path}"])
