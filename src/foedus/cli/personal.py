"""The verb export: a run's model with its card, or the own model of a simulated site (that of a real one is its own).
The launcher comes in when the verb is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foedus.cli.given import HomeOption, JsonOption, RunArgument
from foedus.cli.kept import as_started, folder_of
from foedus.cli.show import out

OutOption = Annotated[
    Path | None, typer.Option("--out", help="The folder, in place of RUN; with SITE the file, RUN-SITE.safetensors.")
]


def add_to(app: typer.Typer) -> None:
    app.command()(export)


def export(
    run: RunArgument,
    site: Annotated[str, typer.Argument(metavar="[SITE]", help="A site whose own model it is.")] = "",
    file: OutOption = None,
    best: Annotated[bool, typer.Option("--best", help="The best model, in place of the last one.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Write a run's model and its card into a folder, to hand it over; or the own model of a simulated site."""
    from foedus import launch, report, runs

    folder = folder_of(run, home)
    assert folder is not None
    if not site:
        card = report.hand_over(folder, file or Path(folder.name), best)
        out({"run": folder.name, "card": str(card), "model": str(card.with_name("model.safetensors"))}, json,
            [f"the model and its card are in {card.parent}"])  # fmt: skip
        return
    result = launch.with_own(runs.result(folder), as_started(folder)[1])
    path = result.save_personal(site, file or Path(f"{folder.name}-{site}.safetensors"))
    out({"run": folder.name, "site": site, "model": str(path)}, json, [f"the model of {site} is {path}"])
