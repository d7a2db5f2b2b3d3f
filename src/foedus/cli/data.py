"""The verb `data describe`: what tables hold, and the schema that a Job may ask of them, before anything trains.
Analyses come in when the verb is called; files stay where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foedus.cli.given import JsonOption, SiteOption, data_of
from foedus.cli.show import next_step, note, out, quiet

TABLES = "Tables (.csv, .tsv, .parquet): one is this site's, of several each is a site's, named by its file."


def add_to(app: typer.Typer) -> None:
    verbs = typer.Typer(name="data", no_args_is_help=True, help="What data holds.", rich_markup_mode=None)
    verbs.command()(describe)
    app.add_typer(verbs)


def describe(
    files: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help=TABLES)] = None,
    site: SiteOption = None,
    column: Annotated[list[str] | None, typer.Option(help="A column; repeat it. By default all.")] = None,
    dataset: Annotated[str, typer.Option(help="The dataset's name in the schema.")] = "data",
    least: Annotated[int, typer.Option(help="Counts of fewer rows are not shown.")] = 5,
    schema: Annotated[Path | None, typer.Option(help="A file for the schema, in place of standard output.")] = None,
    html: Annotated[Path | None, typer.Option(help="A page: who is there, where sites differ, the schema.")] = None,
    json: JsonOption = False,
) -> None:
    """Propose a schema from what tables on this machine hold, with a table of who is in them.

    Nothing leaves this machine. For sites of a federation the same is a job: see `table_one`, `drift` and `schema` in
    docs/analytics.md.
    """
    from foedus import analytics

    named = dict(data_of(site) or {}) | {path.stem: str(path) for path in files or ()}
    if not named or len(named) < len(files or ()) + len(site or ()):
        raise typer.BadParameter("give tables whose names differ, as FILE or --site NAME=FILE")
    if missing := [path for path in named.values() if not Path(path).exists()]:
        raise typer.BadParameter(f"there is no {missing[0]}")
    next_step("mend what it names, and describe again")
    with quiet():
        columns = tuple(column or ())
        found = analytics.schema(columns, dataset=dataset, least=least, sites=named)
        people = analytics.table_one(columns, least=least, sites=named)
        apart = analytics.drift(columns, least=least, sites=named) if len(named) > 1 else None
        if schema is not None:
            schema.write_text(found.toml)
        if html is not None:
            people.html(html, *([apart] if apart else []), found)
    told = {"schema": found.toml, "lacking": found.lacking, "rows": people.n, "sites": sorted(named)}
    for name in found.lacking:
        note(f"column {name!r} is not at every site, and left out")
    for name in people.free_text:
        note(f"column {name!r} is free text, and in no table: its values may name people")
    if apart is not None and not json:
        for name, at in apart.pandas.index[apart.pandas["psi"] >= 0.25]:
            much = apart.pandas.psi[name, at]
            note(f"column {name!r} is distributed otherwise at {at} than elsewhere (psi {much:.2f})")
    shown = [f"# {people.n} rows at {', '.join(sorted(named))}; add units, and tighten what has to be", found.toml]
    lines = [people.pandas.to_string(), ""] + ([f"schema: {schema}"] if schema else shown)
    out(told, json, [*lines, f"page: {html}"] if html else lines)
