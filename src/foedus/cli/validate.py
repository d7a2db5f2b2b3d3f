"""The verb `validate`: a fixed model against every site's held-out data and what was claimed beforehand.
The validation comes in when the verb is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foedus.cli.given import JsonOption, SiteOption, as_paths, counted_or_named, pairs
from foedus.cli.show import out, quiet

EXAMPLES = """Examples:

\b
  foedus validate job.py --model RUN                          intervals, at every site and together
  foedus validate job.py --model final.safetensors --metric auc --reference 0.82 --margin 0.03
  foedus validate job.py --model RUN --metric sensitivity --threshold 0.2 --reference 0.9
  foedus validate job.py --model RUN --by age=age:50,65 --by sex=3:0.5     subgroups by columns, by name or number
"""
BY = "Subgroups by a column, its name or number, and where to cut it, or its levels: age=0:50,65. Repeat it."
MODEL = "The model: a run here, or how its id begins, or a file."
REFERENCE = "What is to be reached: a reader's score, a published figure, the pooled model's."


def add_to(app: typer.Typer) -> None:
    app.command(epilog=EXAMPLES)(validate)


def validate(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A Python file that defines `job`.")],
    model: Annotated[str, typer.Option(metavar="RUN|FILE", help=MODEL)],
    options: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options of the job.")] = None,
    sites: Annotated[int | None, typer.Option(help="A number of sites, in place of --site.")] = None,
    site: SiteOption = None,
    metric: Annotated[str, typer.Option(help="auc, sensitivity, specificity, or one of examples: dice.")] = "auc",
    reference: Annotated[float | None, typer.Option(help=REFERENCE)] = None,
    margin: Annotated[float, typer.Option(help="How much below the reference would still do.")] = 0.05,
    threshold: Annotated[float, typer.Option(help="The probability from which a score is positive.")] = 0.5,
    by: Annotated[list[str] | None, typer.Option(metavar="NAME=COLUMN:CUTS", help=BY)] = None,
    part: Annotated[str, typer.Option(help="test or valid.")] = "test",
    least: Annotated[int, typer.Option(help="Groups of fewer examples at a site are not told of.")] = 10,
    seed: Annotated[int, typer.Option(help="Names the bootstrap's randomness.")] = 0,
    privacy: Annotated[str, typer.Option(help="none, or secagg: counts of all sites together alone.")] = "none",
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder for validation.json and .txt.")] = None,
    json: JsonOption = False,
) -> None:
    """Validate a fixed model at every site, with intervals, subgroups and a claim that was stated beforehand."""
    from foedus import jobfile, validation
    from foedus.errors import FoedusError

    given = counted_or_named(sites, site)
    claim = validation.Claim(metric, reference, margin, threshold)
    groups = {name: _groups(text) for name, text in pairs(by, "NAME=COLUMN:CUTS").items()}
    with quiet():
        loaded = jobfile.load(job, pairs(options, "KEY=VALUE"))
        held = as_paths(loaded.sites if given is None else given)
        how: Any = {"part": part, "least": least, "seed": seed, "privacy": privacy}
        found = validation.validate(loaded.job, model, held, claim, groups, **how)
        report = None if out_folder is None else str(found.save(out_folder))
    out(found.plain() | {"report": report}, json, [*found.text(), *([f"report: {report}"] if report else [])])
    if found.meets(found.line()) is False:
        raise FoedusError(f"the claim is not shown: {found.verdict}")


def _groups(text: str) -> Any:
    """Where numbers are named they are cuts, else levels."""
    from foedus.errors import JobError
    from foedus.validation import cut, levels

    column, _, told = text.rpartition(":")
    if not column:
        raise JobError(f"--by {text!r}: write NAME=COLUMN:CUTS or NAME=COLUMN:LEVELS, for example age=0:50,65")
    place, parts = int(column) if column.isdecimal() else column, told.split(",")
    try:
        cuts = [float(x) for x in parts]
    except ValueError:
        return levels(place, parts)
    return cut(place, cuts)
