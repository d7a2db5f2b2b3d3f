"""Verbs of runs that are kept on this machine: resume, retrain, verify, report, runs.
The launcher comes in when a verb is called, the server's side only where a run is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foedus.cli.given import HomeOption, JsonOption, RunArgument, SiteOption, as_paths, data_of, plain_sites
from foedus.cli.show import columns, next_step, note, out, quiet, result_lines
from foedus.errors import FoedusError, NoRun

if TYPE_CHECKING:
    from foedus.job import Job
    from foedus.result import Result


def add_to(app: typer.Typer) -> None:
    for verb in (resume, retrain, verify, report, runs):
        app.command()(verb)


def resume(run: RunArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """Go on with a run that was killed, interrupted, paused or stopped, here or at the federation's server."""
    from foedus import launch
    from foedus import runs as kept

    folder = folder_of(run, home, elsewhere=True)
    if folder is None:
        _resume_there(run, home, json)
        return
    if kept.journal(folder).find("end"):
        note(f"run {folder.name} is finished already")
        tell(kept.result(folder), json)
        return
    with quiet():
        about, chosen, named = as_started(folder)
        next_step(f"`foedus resume {folder.name}` goes on where it stands")
        result = launch.run(
            chosen,
            named,
            backend=about["backend"],
            seed=about["seed"],
            folder=folder,
            workers=about["source"]["workers"],
            resources=about["source"].get("resources"),
            address=about["source"].get("address"),
            source=about["source"],
            show=True,
        )
    tell(result, json)


def retrain(
    run: RunArgument,
    without: Annotated[list[str], typer.Option("--without", metavar="SITE", help="A site to leave out; repeat it.")],
    site: SiteOption = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Train again as if a site had never joined, from the last checkpoint before it did; the old run stays.

    A run that is at the federation's server is trained again there, by the same sites but that one.
    """
    folder, given = folder_of(run, home, elsewhere=True), data_of(site)
    if folder is None or (_fetched(folder) and given is None):
        _retrain_there(run if folder is None else folder.name, without, home, json)
    else:
        _retrain_here(folder, without, as_paths(given), home, json)


def _retrain_here(folder: Path, without: list[str], given: Any, home: Path | None, json: bool) -> None:
    from foedus import launch
    from foedus import retrain as again
    from foedus import runs as kept

    with quiet():
        about, chosen, named = as_started(folder)
        old, seed = kept.journal(folder), about["seed"]
        before = again.before(old, folder, without)
        decided = again.rosters(old, chosen.plan(seed), without, before.round)
        new = kept.new_folder(chosen.name or "again", home)
        away = sorted({*without, *about["source"].get("without", ())})
        sites = plain_sites(given) if given else about["source"]["sites"]
        note(f"run {new.name}: run {folder.name} from round {before.round + 1} on, without {', '.join(without)}")
        next_step(f"`foedus resume {new.name}` goes on where it stands")
        result = launch.run(
            chosen,
            launch.apart_from(without, given or named),
            backend="local" if about["backend"] == "network" else about["backend"],
            seed=seed,
            folder=new,
            workers=about["source"]["workers"],
            resources=about["source"].get("resources"),
            address=about["source"].get("address"),
            source={**about["source"], "sites": sites, "without": away},
            show=True,
            after=before._replace(rows=[*before.rows, *decided]),
        )
    tell(result, json)


def _retrain_there(run: str, without: list[str], home: Path | None, json: bool) -> None:
    from foedus.remote import connect

    with connect(home=home) as remote:
        new = remote.run(run).retrain(without)
        said = f"run {new.id} trains again without {', '.join(without)}: `foedus watch {new.id}` follows it"
        out({"run": new.id, "without": without}, json, [said])


def verify(run: RunArgument, site: SiteOption = None, home: HomeOption = None, json: JsonOption = False) -> None:
    """Check a run's journal, replay the run and compare the bits.

    For a run of a real federation, name where a copy of each site's data is: --site NAME=PATH, repeated. Without, its
    journal and the model that it names are checked, and nothing is replayed.
    """
    from foedus import launch

    given, folder = data_of(site), folder_of(run, home)
    assert folder is not None
    _check_known(folder, given or {})
    with quiet():
        _, chosen, named = as_started(folder)
        found = launch.verify(folder, chosen, as_paths(given) if given else named)
    for line in _verified(found):
        note(line)
    out(found, json, [])
    if found["same"] is False or (given and found["needs"]):  # where data were given, a replay was asked for
        raise typer.Exit(1 if found["needs"] else 6)


def _check_known(folder: Path, given: Mapping[str, Any]) -> None:
    """Raises FoedusError for data of a site that never was in the run."""
    from foedus import runs as kept

    old = kept.journal(folder)
    known = {site for row in old.all("roster") for site in old.roster(row["round"])} if given else set()
    if odd := sorted(given.keys() - known):
        raise FoedusError(f"run {folder.name} has no site {odd[0]!r}: its sites are {', '.join(sorted(known)[:20])}")


def _verified(found: Mapping[str, Any]) -> list[str]:
    if found["needs"]:
        again = " ".join(f"--site {name}=PATH" for name in found["needs"])
        return [f"run {found['run']}: the journal is whole, and it names the model that is here; nothing was replayed.",
                f"To replay the run, give the data of every site: foedus verify {found['run']} {again}"]  # fmt: skip
    if found["same"]:
        return [f"run {found['run']}: the journal is whole, and the replay has the same bits: {found['digest']}"]
    return [f"run {found['run']}: the replay differs: {found['why']}",
            f"digest of the run    {found['digest']}", f"digest of the replay {found['replayed']}"]  # fmt: skip


def report(
    run: RunArgument,
    file: Annotated[Path | None, typer.Option("--out", help="The file, in place of report.html in the folder.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Write a run's report, finished or not: one HTML page that needs no network."""
    from foedus.report import write

    folder = folder_of(run, home)
    assert folder is not None
    path = str(write(folder, file))
    out({"run": folder.name, "report": path}, json, [f"the report of run {folder.name} is {path}"])


def runs(home: HomeOption = None, json: JsonOption = False) -> None:
    """List the runs that are kept on this machine, and those at the federation's server."""
    from foedus import runs as kept

    found = [{"where": "here", **line} for line in kept.listed(home)]
    there = {line["run"]: line for line in _listed_there(home)} if _logged_in(home) else {}
    for line in found:
        if there.pop(line["run"], None):
            line["where"] = "here, server"
    found += there.values()
    rows = [[r["run"], r["where"], r["state"], str(r["rounds"]), _short(r["why"])] for r in found]
    head = ["run", "where", "state", "rounds", ""]
    out({"runs": found}, json, columns(head, rows) if found else ["no runs yet: `foedus run job.py` makes one"])


def tell(result: Result, json: bool) -> None:
    """Prints what a finished run ended with: for people beside the progress, on standard error."""
    found = reported(result)
    out(found, json, [])
    for line in [] if json else result_lines(found):
        note(line)
    if not json:
        _answered(result)


def _answered(result: Result) -> None:
    """Prints the table of a validation or an analysis; where pandas is not installed, how it is read elsewhere."""
    from foedus import analytics, validation
    from foedus.errors import Missing

    if validation.is_validation(result.params):
        out({}, False, validation.read(result).text())
    if not analytics.is_answer(result.params):
        return
    try:
        out({}, False, [repr(analytics.read(result))])
    except Missing:
        note(f"the answer: foedus.analytics.read({str(result.folder)!r}), where pandas and scipy are installed")


def reported(result: Result) -> dict[str, Any]:
    """What is printed of a finished run, whose report is written beside it; a full disk makes the run no failure.

    `bounds`: metric -> its largest error, where it is taken from bins; `intervals`: metric -> [low, high], 95 %.
    """
    from foedus import runs as kept
    from foedus.absent import absences
    from foedus.report import story

    newest = story.pooled(story.read(kept.rows(result.folder)))
    found = result.about() | {
        "bounds": {name: m.bound for name, m in newest.items() if m.bound is not None},
        "intervals": {name: list(m.interval) for name, m in newest.items() if m.interval is not None},
        "absences": absences(kept.journal(result.folder)),
    }
    try:
        return found | {"report": str(result.report())}
    except FoedusError as error:
        note(f"no report: {error}")
        return found


def folder_of(run: str, home: Path | None, elsewhere: bool = False) -> Path | None:
    """The run's folder on this machine; None, if that may be, where the run can only be at the server."""
    from foedus.home import find_run

    try:
        return find_run(run, home)
    except NoRun as error:
        if not _logged_in(home):
            raise
        if elsewhere:
            return None
        raise NoRun(f"{error}; if it is at the server, `foedus pull {run}` fetches it") from None


def _logged_in(home: Path | None) -> bool:
    from foedus.home import folder

    return (folder(home) / "submitter" / "identity.json").exists()


def _resume_there(run: str, home: Path | None, json: bool) -> None:
    from foedus.remote import connect

    with connect(home=home) as remote:
        found = remote.run(run)
        if found.status()["state"] == "finished":
            done = f"run {found.id} is finished already: `foedus pull {found.id}` fetches its models"
        else:
            found.steer("resume")
            done = f"run {found.id} goes on at the server: `foedus watch {found.id}` follows it"
        out({"run": found.id, "done": "resume", "state": found.status()["state"]}, json, [done])


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


def as_started(folder: Path) -> tuple[Mapping[str, Any], Job, Any]:
    """The first row of a run, its Job, and the data of its sites (None: they are at the sites of a federation)."""
    from foedus import jobfile, launch
    from foedus import runs as kept

    about = kept.about(folder)
    source = about["source"]
    if not source.get("file"):
        raise kept.not_from_a_file(folder)
    loaded = jobfile.load(folder / source["file"], source["options"])
    chosen = loaded.job.given(rounds=source["rounds"], privacy=source.get("privacy"))
    fetched = _fetched(folder)  # from the server: what the job file offers is not what was used
    sites = as_paths(loaded.sites if source["sites"] is None and not fetched else source["sites"])
    without = source.get("without")
    return about, chosen, launch.apart_from(without, sites) if without and sites is not None else sites


def _fetched(folder: Path) -> bool:
    """Whether the run came from a federation's server, with its job file."""
    from foedus import runs as kept

    file = kept.about(folder)["source"].get("file")
    return bool(file) and not Path(file).is_absolute()


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."
