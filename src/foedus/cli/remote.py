"""Verbs of a submitter: login, submit, runs at the server, watch, logs, stop, skip, pull, sites.
The connection comes in when a verb is called."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from foedus.cli.show import Progress, note, out
from foedus.cli.simulate import HomeOption, JsonOption, pairs, reported

RunArgument = Annotated[str, typer.Argument(help="A run's id or a unique prefix.")]


def add_to(app: typer.Typer) -> None:
    for verb in (login, submit, watch, logs, stop, skip, pull, sites):
        app.command()(verb)


def login(token: str, home: HomeOption = None, json: JsonOption = False) -> None:
    """Enrol as a submitter, with a token from the federation's owner."""
    from foedus.home import folder
    from foedus.remote import login as enrolled

    out({"submitter": enrolled(folder(home), token)}, json)


def submit(
    job: Annotated[Path, typer.Argument(help="A Python file that defines `job`.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the job.")] = None,
    seed: Annotated[int, typer.Option(help="Names all randomness of the run.")] = 0,
    rounds: Annotated[int | None, typer.Option(help="Rounds, in place of the Job's.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Stay until the run is over.")] = True,
    check: Annotated[bool, typer.Option("--check", help="Ask the sites whether they could; train nothing.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Run a job on the real federation; it goes on if this command ends."""
    from foedus.remote import connect

    remote = connect(home=home)
    if check:
        rows = remote.check(job, pairs(options or [], "KEY=VALUE"))
        out({"sites": rows}, json, table(rows))
        raise typer.Exit(0 if rows and all(row["ready"] for row in rows) else 4)
    run = remote.submit(job, pairs(options or [], "KEY=VALUE"), seed=seed, rounds=rounds)
    note(f"run {run.id}")
    if not wait:
        out({"run": run.id}, json)
        return
    with Progress(rounds) as told:
        out(reported(run.wait(told)), json)


def watch(run: RunArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """Follow a run until it is over."""
    from foedus.remote import connect

    found = connect(home=home).run(run)
    state: tuple[str, str] = ("", "")
    with Progress(None) as told:
        for kind, news in found.watch():
            if kind == "state":
                state = news
                note(f"{found.id}: {state[0]}{f' ({state[1]})' if state[1] else ''}")
            elif news[2] == "step":
                told({"round": news[3]["round"], **news[3]["metrics"]})
    out({"run": found.id, "state": state[0], "why": state[1]}, json)
    if state[0] != "finished":
        raise typer.Exit(5)


def logs(run: RunArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """Print a run's journal: who was asked, what arrived, what was decided."""
    from foedus.remote import connect

    rows = connect(home=home).run(run).rows()[0]
    out({"rows": rows}, json, [_line(*row) for row in rows])


def stop(run: RunArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """Stop a run; `foedus resume` goes on with it."""
    _steer(run, "stop", home, json)


def skip(
    run: RunArgument,
    site: Annotated[str, typer.Argument(help="The site to wait for no longer.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Wait no longer for a site in the open round."""
    _steer(run, "skip", home, json, site=site)


def pull(run: RunArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """Fetch a finished run's journal and models into this home."""
    from foedus.remote import connect

    out(reported(connect(home=home).run(run).pull()), json)


def sites(home: HomeOption = None, json: JsonOption = False) -> None:
    """List the federation's sites and who is reachable."""
    from foedus.remote import connect

    found = connect(home=home).sites()
    out({"sites": found}, json, [f"{s['site']:20} {s['state']}" for s in found])


def table(rows: list[dict[str, Any]]) -> list[str]:
    """One line a site, and under it why it could not."""
    names = ("site", "reachable", "dataset", "schema", "rows", "packages", "approval")
    cells = [[str(row.get(name) or "-") for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = [
        "  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in [names, *cells]
    ]
    return lines + [f"{row['site']}: {row['why']}" for row in rows if row["why"]]


def _steer(run: str, verb: str, home: Path | None, json: bool, **body: Any) -> None:
    from foedus.remote import connect

    found = connect(home=home).run(run)
    found.steer(verb, **body)
    out({"run": found.id, "done": verb, **body}, json)


def _line(seq: int, at: float, kind: str, body: dict[str, Any], chain: str) -> str:
    where = "".join(f" {k} {body[k]}" for k in ("round", "task", "site") if k in body and body[k] != "")
    more = "".join(f" {k}={body[k]}" for k in ("what", "why", "work", "weight", "reason") if body.get(k))
    return f"{time.strftime('%H:%M:%S', time.localtime(at))} {kind:10}{where}{more}"
