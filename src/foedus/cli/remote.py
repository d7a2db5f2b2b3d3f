"""Verbs of a submitter: login, submit, runs at the server, watch, logs, stop, skip, pull, sites.
The connection comes in when a verb is called."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from foedus.cli import leaving
from foedus.cli.given import (
    HomeOption,
    JsonOption,
    PrivacyOption,
    SiteOption,
    as_paths,
    data_of,
    pairs,
    token_of,
)
from foedus.cli.kept import tell
from foedus.cli.show import columns, next_step, note, out, quiet

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id at the server, or a unique prefix.")]
PAUSED = 5
DRY_RUN = "Show what a site would send, on the data of --site or of the job file's `sites`; nothing is sent."


def add_to(app: typer.Typer) -> None:
    for verb in (login, submit, watch, logs, stop, skip, pull, sites):
        app.command()(verb)


def login(
    token: Annotated[
        str,
        typer.Argument(
            help="What the federation's owner handed over; it is used up. `-` reads it from standard input."
        ),
    ],
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Enrol as a submitter, with a token from the federation's owner."""
    from foedus.home import folder
    from foedus.remote import login as enrolled

    name = enrolled(folder(home), token_of(token))
    key = folder(home) / "submitter"
    said = [f"logged in as {name!r}; the key is in {key}", "`foedus submit job.py --privacy secagg` runs a job there"]
    out({"submitter": name}, json, said)


def submit(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A Python file that defines `job`.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options of the job.")] = None,
    seed: Annotated[int, typer.Option(help="Names all randomness of the run.")] = 0,
    rounds: Annotated[int | None, typer.Option(help="Rounds, in place of the Job's.")] = None,
    privacy: PrivacyOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Stay until the run is over.")] = True,
    check: Annotated[bool, typer.Option("--check", help="Ask the sites whether they could; train nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY_RUN)] = False,
    site: SiteOption = None,
    folder: Annotated[Path | None, typer.Option("--out", help="With --dry-run: for the bytes; else dry-run.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Run a job on the real federation; it goes on if this command ends.

    How private updates are has to be said, in the Job or by --privacy: none, secagg or hospital.
    """
    from foedus.remote import connect

    if dry_run:
        _dry_run(
            job, pairs(options, "KEY=VALUE"), seed, rounds, privacy, data_of(site), folder or Path("dry-run"), json
        )
        return
    if site or folder:
        raise typer.BadParameter("--site and --out are of --dry-run: at real sites the data is theirs")
    remote = connect(home=home)
    if check:
        rows = remote.check(job, pairs(options, "KEY=VALUE"), privacy=privacy, say=note)
        out({"sites": rows}, json, table(rows))
        raise typer.Exit(0 if rows and all(row["ready"] for row in rows) else 4)
    run = remote.submit(job, pairs(options, "KEY=VALUE"), seed=seed, rounds=rounds, privacy=privacy, say=note)
    note(f"run {run.id} is at the server, and goes on if this command ends: `foedus watch {run.id}`")
    if not wait:
        out({"run": run.id}, json, [])
        return
    next_step(watching(run.id))
    tell(run.wait(say=note, progress=True), json)


def _dry_run(
    job: Path,
    options: dict[str, str],
    seed: int,
    rounds: int | None,
    privacy: str | None,
    given: Any,
    folder: Path,
    json: bool,
) -> None:
    """What one site of the data that is here would send; nothing is asked of a server."""
    from foedus import jobfile, launch, preview
    from foedus.remote import stated

    with quiet():
        loaded = jobfile.load(job, options)
        chosen = stated(loaded.job, rounds, privacy, note)
        sites = launch.bind(as_paths(loaded.sites if given is None else given))
        found = preview.dry_run(chosen, sites, folder, seed)
    note(f"of the data that is here, as site {found['site']!r}: at a real site values differ, the rest does not")
    out(found, json, leaving.lines(found))


def watch(run: RunArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """Follow a run until it is over."""
    from foedus.remote import connect
    from foedus.report import live

    found = connect(home=home).run(run)
    next_step(watching(found.id))
    state: tuple[str, str] = ("", "")
    with live.shown(True) as seen:
        for kind, news in found.watch():
            if kind == "state":
                state = news
                note(f"run {found.id}: {state[0]}{f', {state[1]}' if state[1] else ''}")
            elif seen:
                seen.hear(news[2], news[3])
    finished = state[0] == "finished"
    said = [
        f"`foedus pull {found.id}` fetches its models" if finished else f"`foedus resume {found.id}` goes on with it"
    ]
    out({"run": found.id, "state": state[0], "why": state[1]}, json, said)
    if not finished:
        raise typer.Exit(1 if state[0] == "failed" else PAUSED)


def logs(run: RunArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """Print a run's journal: who was asked, what arrived, what was decided."""
    rows = _rows(run, home)
    out({"rows": rows}, json, [_line(*row) for row in rows])


def _rows(run: str, home: Path | None) -> list[list[Any]]:
    """The journal of a run that is kept here, or else at the server."""
    from foedus import runs as kept
    from foedus.cli.kept import folder_of

    here = folder_of(run, home, elsewhere=True)
    if here is not None:
        return [list(row) for row in kept.rows(here)]
    from foedus.remote import connect

    return connect(home=home).run(run).rows()[0]


def stop(run: RunArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """Stop a run; `foedus resume` goes on with it."""
    _steer(run, "stop", home, json, "is stopped: `foedus resume {run}` goes on with it")


def skip(
    run: RunArgument,
    site: Annotated[str, typer.Argument(help="The site to wait for no longer.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Wait no longer for a site in the open round."""
    _steer(run, "skip", home, json, f"waits for {site} no longer in this round; the next one asks it again", site=site)


def pull(run: RunArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """Fetch a finished run's journal and models into this home."""
    from foedus.remote import connect

    tell(connect(home=home).run(run).pull(), json)


def sites(home: HomeOption = None, json: JsonOption = False) -> None:
    """List the federation's sites and who is reachable."""
    from foedus.remote import connect

    found = connect(home=home).sites()
    rows = [[s["site"], s["state"], "never" if s["seconds"] is None else f"{s['seconds']:.0f} s ago"] for s in found]
    nobody = ["no site has joined yet: `foedus federation invite NAME` prints a token for one"]
    out({"sites": found}, json, columns(["site", "state", "heard"], rows) if rows else nobody)


def watching(run: str) -> str:
    """What to do when a command that follows a run ends before the run does."""
    return f"run {run} goes on at the server: `foedus watch {run}` follows it, `foedus stop {run}` stops it"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """One line a site, and under it why it could not."""
    names = ("site", "reachable", "dataset", "schema", "rows", "packages", "approval")
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    ready = sum(row["ready"] for row in rows)
    lines = [*columns(names, cells), f"{ready} of {len(rows)} sites could take part"]
    return lines + [f"{row['site']}: {row['why']}" for row in rows if row["why"]]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return str(value or "-")


def _steer(run: str, verb: str, home: Path | None, json: bool, said: str, **body: Any) -> None:
    from foedus.remote import connect

    found = connect(home=home).run(run)
    found.steer(verb, **body)
    out({"run": found.id, "done": verb, **body}, json, [f"run {found.id} {said.format(run=found.id)}"])


def _line(seq: int, at: float, kind: str, body: dict[str, Any], chain: str) -> str:
    where = "".join(f" {k} {body[k]}" for k in ("round", "task", "site") if k in body and body[k] != "")
    shown = {**body, "weight": f"{float.fromhex(body['weight']):g}"} if body.get("weight") else body
    more = "".join(f" {k}={shown[k]}" for k in ("what", "why", "work", "weight", "reason") if shown.get(k))
    return f"{time.strftime('%H:%M:%S', time.localtime(at))} {kind:10}{where}{more}"
