"""The verb `attack`: what attacks find in what leaves a site of a Job.
The audit comes in when the verb is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foedus.cli.given import JsonOption, SiteOption, as_paths, counted_or_named, pairs
from foedus.cli.show import note, out, quiet

EXAMPLES = """Examples:

\b
  foedus attack job.py                                        the first of the sites that job.py offers
  foedus attack job.py --site north=data/north --site south=data/south --target south
  foedus attack job.py --against none,clip=1.0,int8,secagg --out report
  foedus attack job.py --records 1 --rounds 1 --shadows 0 --canaries 0       the worst case, quickly
  foedus attack job.py --epsilon 2 --delta 1e-5               fails where an audited bound is above that
"""
AGAINST = "Defences, each in a run of its own: none, job, secagg, clip=1.0, int8, …, joined by + as clip=1+int8."
RECORDS = "The site trains on so many of its records only; 1 is the worst case."


def add_to(app: typer.Typer) -> None:
    app.command(epilog=EXAMPLES)(attack)


def attack(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A Python file that defines `job`.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options of the job.")] = None,
    sites: Annotated[int | None, typer.Option(help="A number of sites, in place of --site.")] = None,
    site: SiteOption = None,
    target: Annotated[str | None, typer.Option(metavar="NAME", help="The site that is attacked.")] = None,
    against: Annotated[str | None, typer.Option(help=AGAINST)] = None,
    seed: Annotated[int, typer.Option(help="Names all randomness of the audit.")] = 0,
    records: Annotated[int | None, typer.Option(help=RECORDS)] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds, in place of the Job's.")] = None,
    shadows: Annotated[int, typer.Option(help="Shadow models for membership; 0 leaves them out.")] = 4,
    canaries: Annotated[int, typer.Option(help="Canaries of the audit of epsilon; 0 leaves it out.")] = 64,
    neighbours: Annotated[str, typer.Option(help="What a canary is: record or site.")] = "record",
    epsilon: Annotated[float | None, typer.Option(help="The epsilon that is claimed.")] = None,
    delta: Annotated[float, typer.Option(help="The delta of that claim.")] = 1e-5,
    steps: Annotated[int, typer.Option(help="Steps of each search for inputs.")] = 600,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder for report.html and audit.json.")] = None,
    json: JsonOption = False,
) -> None:
    """Attack what leaves a site of a job, with and without each defence, and say what was found."""
    from foedus import audit, jobfile
    from foedus.errors import FoedusError

    given = counted_or_named(sites, site)
    with quiet():
        loaded = jobfile.load(job, pairs(options, "KEY=VALUE"))
        found = audit.attack(
            loaded.job,
            as_paths(loaded.sites if given is None else given),
            site=target,
            against=against,
            seed=seed,
            records=records,
            rounds=rounds,
            shadows=shadows,
            canaries=canaries,
            neighbours=neighbours,  # type: ignore[arg-type]
            epsilon=epsilon,
            delta=delta,
            steps=steps,
            say=note,
        )
        report = None if out_folder is None else found.save(out_folder)
    out(
        found.plain() | {"report": report},
        json,
        [*found.verdict.split("\n"), *([f"report: {report}"] if report else [])],
    )
    if found.refuted:
        raise FoedusError(
            f"the claimed ε of {', '.join(found.refuted)} is below what the audit shows: it does not hold"
        )
