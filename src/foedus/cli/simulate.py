"""Verbs of a run on this machine: run, resume, verify, report, runs.
The launcher comes in when a verb is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foedus.cli.show import Progress, note, out, quiet

if TYPE_CHECKING:
    from foedus.job import Job
    from foedus.result import Result

HomeOption = Annotated[Path | None, typer.Option("--home", help="FOEDUS_HOME for this command.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


def add_to(app: typer.Typer) -> None:
    for verb in (run, resume, verify, runs, report):
        app.command()(verb)


def run(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A Python file that defines `job`.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the job.")] = None,
    backend: Annotated[str, typer.Option(help="auto, local, processes or network.")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Processes of the backend `processes`.")] = None,
    sites: Annotated[int | None, typer.Option(help="A number of sites.")] = None,
    site: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="A site and its data; repeat it.")] = None,
    seed: Annotated[int, typer.Option(help="Names all randomness of the run.")] = 0,
    rounds: Annotated[int | None, typer.Option(help="Rounds, in place of the Job's.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Forbid backends whose bits only come close.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Simulate a job on this machine (or, with --backend network, in a real federation on loopback)."""
    from foedus import jobfile, launch
    from foedus import runs as kept

    given = _there(pairs(site or [], "--site NAME=PATH")) or sites
    with quiet():
        loaded = jobfile.load(job, pairs(options or [], "KEY=VALUE"))
        named = loaded.sites if given is None else given
        source = {
            "file": str(loaded.path),
            "options": loaded.options,
            "rounds": rounds,
            "sites": _plain(named),
            "workers": workers,
        }
        chosen = loaded.job if rounds is None else loaded.job.replace(rounds=rounds)
        folder = kept.new_folder(chosen.name or loaded.path.parent.name, home)
        note(f"run {folder.name} on backend {launch.resolve(backend, exact)}")
        with Progress(chosen.rounds) as told:
            result = launch.run(
                chosen,
                _paths(named),
                backend=backend,
                seed=seed,
                workers=workers,
                exact=exact,
                folder=folder,
                source=source,
                told=told,
            )
    out(reported(result), json)


def resume(
    run: Annotated[str, typer.Argument(help="An id, a unique prefix or a path.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Go on with a run that was killed, interrupted, paused or stopped, here or at the federation's server."""
    from foedus import launch
    from foedus.errors import FoedusError
    from foedus.home import find_run
    from foedus.home import folder as home_folder

    try:
        folder = find_run(run, home)
    except FoedusError:
        if not (home_folder(home) / "submitter").is_dir():
            raise
        _resumed_there(run, home, json)
        return
    with quiet():
        about, chosen, named = _as_started(folder)
        with Progress(chosen.rounds) as told:
            result = launch.run(
                chosen,
                named,
                backend=about["backend"],
                seed=about["seed"],
                folder=folder,
                workers=about["source"]["workers"],
                source=about["source"],
                told=told,
            )
    out(reported(result), json)


def verify(
    run: Annotated[str, typer.Argument(help="An id, a unique prefix or a path.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Check a run's journal, replay the run and compare the bits."""
    from foedus import launch
    from foedus.home import find_run

    folder = find_run(run, home)
    with quiet():
        _, chosen, named = _as_started(folder)
        found = launch.verify(folder, chosen, named)
    note("the replay has the same bits" if found["same"] else f"the replay differs: {found['why']}")
    out(found, json)
    if not found["same"]:
        raise typer.Exit(6)


def report(
    run: Annotated[str, typer.Argument(help="An id, a unique prefix or a path.")],
    file: Annotated[Path | None, typer.Option("--out", help="The file, in place of report.html in the folder.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Write a run's report, finished or not: one HTML page that needs no network."""
    from foedus.home import find_run
    from foedus.report import write

    folder = find_run(run, home)
    out({"run": folder.name, "report": str(write(folder, file))}, json)


def runs(home: HomeOption = None, json: JsonOption = False) -> None:
    """List the runs that are kept on this machine, and those at the federation's server."""
    from foedus import runs as kept
    from foedus.home import folder

    found = [{"where": "here", **line} for line in kept.listed(home)]
    if (folder(home) / "submitter").is_dir():
        found += _listed_there(home)
    out({"runs": found}, json, [f"{r['run']}  {r['state']:9} {r['rounds']:>4} rounds" for r in found])


def reported(result: Result) -> dict[str, Any]:
    """What is printed of a finished run, whose report is written beside it; a full disk makes the run no failure."""
    from foedus.errors import FoedusError

    try:
        return {**result.about(), "report": str(result.report())}
    except FoedusError as error:
        note(f"no report: {error}")
        return result.about()


def _resumed_there(run: str, home: Path | None, json: bool) -> None:
    from foedus.remote import connect

    with connect(home=home) as remote:
        found = remote.run(run)
        found.steer("resume")
        out({"run": found.id, "done": "resume"}, json)


def _listed_there(home: Path | None) -> list[dict[str, Any]]:
    """The server's runs; none, with a note, where it cannot be reached."""
    from foedus.errors import WireError
    from foedus.remote import connect

    try:
        with connect(home=home) as remote:
            return [{"where": "server", **line} for line in remote.runs()]
    except WireError as error:
        note(str(error))
        return []


def _as_started(folder: Path) -> tuple[Mapping[str, Any], Job, Any]:
    """The first row of a run, its Job, and the data of its sites."""
    from foedus import jobfile
    from foedus import runs as kept

    about = kept.about(folder)
    source = about["source"]
    if not source.get("file"):
        raise kept.not_from_a_file(folder)
    loaded = jobfile.load(source["file"], source["options"])
    chosen = loaded.job if source["rounds"] is None else loaded.job.replace(rounds=source["rounds"])
    return about, chosen, _paths(loaded.sites if source["sites"] is None else source["sites"])


def pairs(texts: list[str], form: str) -> dict[str, str]:
    """{"a": "1"} from ["a=1"]; a text of another form is an error that shows the right one."""
    for text in texts:
        if "=" not in text:
            raise typer.BadParameter(f"{text!r} is not of the form {form}")
    found = dict(text.split("=", 1) for text in texts)
    if len(found) < len(texts):
        raise typer.BadParameter(f"a name stands twice in {' '.join(texts)}: {form}, each once")
    return found


def _there(sites: dict[str, str]) -> dict[str, str] | None:
    """The sites, whose data are there; None if none is named."""
    for name, path in sites.items():
        if not Path(path).expanduser().exists():
            raise typer.BadParameter(f"site {name!r}: there is no {path}")
    return sites or None


def _plain(sites: Any) -> Any:
    if isinstance(sites, dict) and all(isinstance(v, (str, Path)) for v in sites.values()):
        return {name: str(Path(path).expanduser().resolve()) for name, path in sites.items()}
    return sites if isinstance(sites, int) else None


def _paths(sites: Any) -> Any:
    if isinstance(sites, dict):
        return {name: Path(v) if isinstance(v, str) else v for name, v in sites.items()}
    return sites
