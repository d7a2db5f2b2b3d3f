"""Verbs before a run and after many: new, compare.
The launcher comes in when a verb is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foedus.cli.given import HomeOption, JsonOption, SiteOption, as_paths, data_of, pairs
from foedus.cli.show import next_step, note, out, quiet

EXAMPLES = """Examples:

\b
  foedus compare job.py                                       its `methods`, else its `job`, beside references
  foedus compare job.py --tune lr=0.01,0.1 --save study       options chosen on valid; the same again goes on
  foedus compare job.py --federation                          at real sites, where nothing is pooled
  foedus compare job.py --references alone --plot study.svg --latex table.tex
"""


def add_to(app: typer.Typer) -> None:
    app.command(epilog=EXAMPLES)(compare)
    app.command()(new)


def compare(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A Python file that defines `methods`, or `job`.")],
    seeds: Annotated[int, typer.Option(help="So many seeds, from 0.")] = 5,
    tune: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE,VALUE", help="Options to choose on valid; repeat it.")
    ] = None,
    references: Annotated[str | None, typer.Option(help="Of alone, pooled, unseen-site; by default all.")] = None,
    metric: Annotated[str | None, typer.Option(help="What is compared: by default the Job's best.")] = None,
    by: Annotated[str, typer.Option(help="Columns of the table.")] = "mean,difference,worst_site,bytes,seconds",
    save: Annotated[Path | None, typer.Option(help="The study's folder, by default one in the home.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A file for the plot: .svg, .png or .pdf.")] = None,
    latex: Annotated[Path | None, typer.Option(help="A file for the table in LaTeX.")] = None,
    backend: Annotated[str, typer.Option(help="auto, local, vectorized or processes.")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Processes of the backend `processes`.")] = None,
    site: SiteOption = None,
    federation: Annotated[bool, typer.Option("--federation", help="At the sites of the real federation.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Compare methods over seeds, with each site alone, all data in one place, and sites that were never seen."""
    from foedus.remote import connect
    from foedus.study import compare as compared
    from foedus.study.comparing import default_folder
    from foedus.study.study import check_columns

    check_columns(by.split(","))
    next_step("what is done is kept: the same command goes on")
    given = data_of(site)
    grid = {name: values.split(",") for name, values in pairs(tune, "KEY=VALUE,VALUE").items()}
    with quiet():
        study = compared(
            job,
            sites=connect(home=home) if federation else as_paths(given) if given else None,
            seeds=range(seeds),
            tune=grid,
            references=None if references is None else [name for name in references.split(",") if name],
            metric=metric,
            save=save or default_folder(job, home),
            backend=backend,
            workers=workers,
            say=lambda text: note(f"done: {text}"),
        )
        table = study.table(by.split(","))
        if plot is not None:
            study.plot(path=plot)
        if latex is not None:
            latex.write_text(study.to_latex(by.split(",")) + "\n")
    out(study.about(), json, [str(table), f"study: {study.folder}"])


def new(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that is not there yet.")],
    algorithm: Annotated[str, typer.Option(help="The method: fedavg, scaffold, ditto, …")] = "fedavg",
    learner: Annotated[str | None, typer.Option(help="torch or numpy; by default torch, if it is installed.")] = None,
    json: JsonOption = False,
) -> None:
    """Write a project that runs at once: a job with this algorithm, data for it, a test, a README."""
    from foedus.cli.project import write

    files = write(folder, algorithm, learner)
    said = [f"wrote {folder}: {', '.join(files)}", f"next: cd {folder} && foedus run job.py"]
    out({"folder": str(folder), "files": files}, json, said)
