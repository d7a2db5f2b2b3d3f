"""Verbs of a site: join, start, status, pause, return, leave, data, approve, refuse.
The site's folder and agent come in when a verb is called."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foedus.cli import leaving
from foedus.cli.given import HomeOption, JsonOption, pairs, token_of
from foedus.cli.show import columns, note, out
from foedus.errors import FoedusError
from foedus.files import write_atomic

if TYPE_CHECKING:
    from foedus.site.place import Place

NameOption = Annotated[str | None, typer.Option("--name", help="The site, where this home has several.")]
CodeArgument = Annotated[str, typer.Argument(metavar="RUN|BUNDLE", help="A run or a bundle's hash, or how it begins.")]
DataOption = Annotated[list[str] | None, typer.Option("--data", metavar="NAME=PATH", help="A dataset; repeat it.")]
_ADAPTER = "A *.py of this site with def adapt(path, name); repeat it."
AdapterOption = Annotated[list[str] | None, typer.Option("--adapter", metavar="NAME=FILE", help=_ADAPTER)]
LEAVING = 15.0


def add_to(app: typer.Typer) -> None:
    verbs = typer.Typer(name="site", no_args_is_help=True, help="Take part in a federation with this machine's data.")
    for verb in (join, start, status, preview, sent, privacy, pause, leave, approve, refuse):
        verbs.command()(verb)
    verbs.command(name="return")(return_)
    verbs.command()(export)
    data = typer.Typer(name="data", no_args_is_help=True, help="Which local data stands behind a dataset's name.")
    data.command(name="add")(data_add)
    data.command(name="list")(data_list)
    data.command(name="remove")(data_remove)
    verbs.add_typer(data)
    app.add_typer(verbs)


def join(
    token: Annotated[
        str,
        typer.Argument(
            help="What the federation's owner handed over; it is used up. `-` reads it from standard input."
        ),
    ],
    data: DataOption = None,
    trust: Annotated[list[str] | None, typer.Option("--trust", metavar="NAME", help="A submitter; repeat it.")] = None,
    adapter: AdapterOption = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Begin to work at once.")] = True,
    home: HomeOption = None,
    name: NameOption = None,
    json: JsonOption = False,
) -> None:
    """Make this site's key, enrol it in the federation, and start its agent in the foreground."""
    from foedus.site import service
    from foedus.site.joining import enrol_site
    from foedus.wire.ed25519 import fingerprint, public_text

    place = enrol_site(token_of(token), _bindings(data, adapter), trust or (), home, name)
    federation, key = place.federation(), fingerprint(public_text(place.key()))
    note(f"site {place.name} has joined {federation.name}; its key never leaves {place.folder}")
    found = {"site": place.name, "federation": federation.name, "key": key, "folder": str(place.folder)}
    out(found, json, [f"key {key}", *([] if start else ["next: `foedus site start`"])])
    sys.stdout.flush()
    if start:
        service.start(place)


def start(home: HomeOption = None, name: NameOption = None, json: JsonOption = False) -> None:
    """Start this site's agent in the foreground; Ctrl-C stops it, and nothing is lost."""
    from foedus.site import service

    place = _place(home, name)
    out({"site": place.name, "folder": str(place.folder)}, json, [])
    sys.stdout.flush()
    service.start(place)


def status(home: HomeOption = None, name: NameOption = None, json: JsonOption = False) -> None:
    """Show what this site's agent does, its data, its rules, and what waits for approval."""
    from foedus.site.report import describe, lines

    found = describe(_place(home, name))
    out(found, json, lines(found))


def sent(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="A run's id, or how it begins; all runs without.")] = "",
    home: HomeOption = None,
    name: NameOption = None,
    json: JsonOption = False,
) -> None:
    """Show what left this site: every update, with its bytes, weight, metrics, and what became of it."""
    from foedus.site import report

    place = _place(home, name)
    found = report.sent(place, run)
    out({"site": place.name, "sent": found}, json, _sent_lines(found))


def privacy(home: HomeOption = None, name: NameOption = None, json: JsonOption = False) -> None:
    """Show what all jobs together have spent of each dataset's privacy, by whom, and what is left.

    Every row of the ledger is verified: who changed one, or put back an older file, is found out.
    """
    from foedus.site import account

    found = account.describe(_place(home, name))
    out(found, json, account.lines(found))


def preview(
    code: CodeArgument,
    rounds: Annotated[int, typer.Option(help="So many rounds; later ones as if all sites were like this one.")] = 1,
    folder: Annotated[Path | None, typer.Option("--out", help="For the bytes, in place of preview-RUN-SITE.")] = None,
    home: HomeOption = None,
    name: NameOption = None,
    json: JsonOption = False,
) -> None:
    """Show exactly what a run would send from this site, on its own data; nothing leaves.

    Its code runs as the run itself would, in a process without key; without a network until it is approved.
    """
    from foedus.site import preview as previews

    place = _place(home, name)
    found = previews.preview(place, code, folder, rounds)
    if not found["approved"]:
        note("this code is not approved here: it ran on your data because you asked, without a network")
    if found["forbidden"]:
        note(f"as your policy stands it would not train here: {found['forbidden']}")
    for line in found["privacy"]["said"]:
        note(f"privacy: {line}")
    out(found, json, leaving.lines(found))


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run that is over: its id, or how it begins.")],
    file: Annotated[Path | None, typer.Option("--out", help="The file, in place of RUN-SITE.safetensors.")] = None,
    home: HomeOption = None,
    name: NameOption = None,
    json: JsonOption = False,
) -> None:
    """Write this site's own model of a run, as safetensors; it was never anywhere else."""
    from foedus.site import report

    place = _place(home, name)
    model = report.find_model(place, run)
    path = file or Path(f"{model.parent.name}-{place.name}.safetensors")
    write_atomic(path, model.read_bytes())
    said = [f"the model of {place.name} is {path}"]
    out({"run": model.parent.name, "site": place.name, "model": str(path)}, json, said)


def pause(home: HomeOption = None, name: NameOption = None, json: JsonOption = False) -> None:
    """Take no part for a while; `foedus site return` ends it."""
    _wish(home, name, json, "paused", accepting=False, why="paused by its owner")


def return_(home: HomeOption = None, name: NameOption = None, json: JsonOption = False) -> None:
    """Take part again, after a pause or after leaving."""
    _wish(home, name, json, "takes part again", accepting=True, why="", stop=False)


def leave(home: HomeOption = None, name: NameOption = None, json: JsonOption = False) -> None:
    """Leave the federation: the server is told, the agent stops, data and key stay here."""
    place = _place(home, name)
    running = place.agent() is not None
    _wish(home, name, json, "left", accepting=False, why="left", stop=True)
    until = time.monotonic() + LEAVING
    while running and place.agent() is not None:
        if time.monotonic() > until:
            raise FoedusError(f"site {place.name!r}: its agent, process {place.agent()}, does not stop; end it by hand")
        time.sleep(0.1)


def approve(code: CodeArgument, home: HomeOption = None, name: NameOption = None, json: JsonOption = False) -> None:
    """Let a bundle of code run at this site's data."""
    _decide(code, home, name, json, yes=True)


def refuse(code: CodeArgument, home: HomeOption = None, name: NameOption = None, json: JsonOption = False) -> None:
    """Keep a bundle of code away from this site's data, whoever signed it."""
    _decide(code, home, name, json, yes=False)


def data_add(
    data: Annotated[list[str], typer.Argument(metavar="NAME=PATH...", help="A dataset's name and where its data is.")],
    adapter: AdapterOption = None,
    home: HomeOption = None,
    name: NameOption = None,
    json: JsonOption = False,
) -> None:
    """Bind local data to a dataset's name; the data stays where it is."""
    from foedus.site import bindings

    place = _place(home, name)
    for binding in _bindings(data, adapter):
        bindings.add(place.store, binding)
    place.change()
    _show_data(place, json)


def data_list(home: HomeOption = None, name: NameOption = None, json: JsonOption = False) -> None:
    """List the datasets that are bound here."""
    _show_data(_place(home, name), json)


def data_remove(
    datasets: Annotated[list[str], typer.Argument(metavar="NAME...", help="Datasets to unbind; their data stays.")],
    home: HomeOption = None,
    name: NameOption = None,
    json: JsonOption = False,
) -> None:
    """Unbind datasets; their data stays where it is."""
    from foedus.site import bindings

    place = _place(home, name)
    for dataset in datasets:
        bindings.remove(place.store, dataset)
    place.change()
    _show_data(place, json)


def _place(home: Path | None, name: str | None) -> Place:
    from foedus.site.place import find

    return find(home, name)


def _wish(home: Path | None, name: str | None, json: bool, said: str, **wishes: Any) -> None:
    from foedus.site import service

    place = _place(home, name)
    told = service.say(place, **wishes)
    note(f"site {place.name} {said}" + ("" if told else "; the server is away and will be told at the next start"))
    out({"site": place.name, "state": said, "told": told}, json, [])


def _decide(code: str, home: Path | None, name: str | None, json: bool, yes: bool) -> None:
    from foedus.site import report, trust

    place = _place(home, name)
    found = report.find_code(place, code)
    (trust.approve if yes else trust.refuse)(place.store, found["bundle"])
    place.change()
    out({**found, "decision": "approved" if yes else "refused"}, json, report.code_lines(found, yes))


def _bindings(data: list[str] | None, adapter: list[str] | None) -> list[Any]:
    from foedus.site.bindings import Binding

    paths, adapters = pairs(data, "NAME=PATH"), pairs(adapter, "NAME=FILE")
    if odd := adapters.keys() - paths.keys():
        raise FoedusError(f"--adapter {min(odd)}=…: give --data {min(odd)}=PATH with it")
    return [Binding(name, path, adapters.get(name, "")) for name, path in paths.items()]


def _sent_lines(found: list[dict[str, Any]]) -> list[str]:
    """A line for each update, and how much it was in all."""
    head = ("when", "run", "round", "work", "bytes", "weight", "metrics", "status")
    rows = [
        [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(b.get("at", 0))), b["run"], str(b["round"] + 1), b["work"],
         f"{b['bytes']:,}", f"{b['weight']:g}", ", ".join(b["metrics"]) or "-", b["status"]]
        for b in found
    ]  # fmt: skip
    numbers = sum(b.get("numbers", 0) for b in found)
    total = f"{len(found)} updates, {sum(b['bytes'] for b in found):,} bytes and {numbers:,} numbers of metrics in all"
    return [*columns(head, rows), total] if rows else ["no update was computed to leave this site"]


def _show_data(place: Place, json: bool) -> None:
    from foedus.site import bindings

    found = bindings.every(place.store)
    lines = [f"{b.name}: {b.path}{f' through {b.adapter}' if b.adapter else ''}" for b in found] or ["no data is bound"]
    out({"site": place.name, "data": {b.name: {"path": b.path, "adapter": b.adapter} for b in found}}, json, lines)
