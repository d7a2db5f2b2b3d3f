"""What a site's owner is shown: the agent, the data, the rules, the runs, and the code that waits for a decision.
The site's folder comes in; nothing is changed."""

from __future__ import annotations

import glob
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foedus.errors import Denied, FoedusError
from foedus.privacy import presets
from foedus.site import bindings, policy
from foedus.site.place import Place
from foedus.site.runs import CODES, ENDED, OWN, RUNS
from foedus.site.shelf import PENDING, SENT
from foedus.site.trust import APPROVED, REFUSED, SHOWN
from foedus.wire.bundle import MANIFEST
from foedus.wire.ed25519 import fingerprint, public_text

Json = dict[str, Any]


def describe(place: Place) -> Json:
    """Everything about a site, as plain data."""
    store, federation, wish = place.store, place.federation(), place.wish()
    return {
        "site": place.name, "federation": federation.name, "urls": list(federation.urls), "folder": str(place.folder),
        "key": fingerprint(public_text(place.key())), "agent": place.agent(), **place.shown(), "policy": _policy(place),
        "state": _state(place, wish),
        "data": {b.name: {"path": b.path, "adapter": b.adapter} for b in bindings.every(store)},
        "runs": [_run(place, run, body) for run, body in store.items(RUNS)],
        "ended": [run for run, _ in store.items(ENDED)],
        "pending": [text for text, _ in store.items(PENDING)],
        "approved": [name for name, _ in store.items(APPROVED)], "refused": [name for name, _ in store.items(REFUSED)],
    }  # fmt: skip


def _state(place: Place, wish: Mapping[str, Any]) -> str:
    """Whether the site takes part: what its owner wants, unless the server let it in no more when it last asked."""
    if denied := place.store.get("about", "denied"):
        return f"is not let in any more: {denied['why']}"
    return "takes part" if wish["accepting"] else str(wish["why"])


def lines(found: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    agent = "no agent at work: foedus site start"
    if "since" in found:
        link, seconds = "connected" if found["connected"] else "the server is away", round(time.time() - found["since"])
        agent = f"agent {found['agent']}, {link} for {seconds} s"
    made = [f"site {found['site']} of {found['federation']}: {found['state']}; {agent}", f"key {found['key']}"]
    if error := found["policy"].get("error"):
        made.append(f"nothing is allowed until its policy is mended: {error}")
    made += [f"data {name}: {body['path']}" for name, body in found["data"].items()] or ["no data is bound"]
    for r in found["runs"]:
        made += [f"run {r['run']} of {r['submitter']}: {r['why'] or 'ready'}", f"  its code: {r['source']}"]
        made += [f"  its privacy: {line}" for line in r["says"]]
        made += [f"  its metrics: {', '.join(r['metrics'])}"] if r["metrics"] is not None else []
    made += [f"at work: {w['task']}, progress {w['progress']}" for w in found.get("working", ())]
    return made + ([f"{len(found['pending'])} updates wait to be settled"] if found["pending"] else [])


def sent(place: Place, run: str) -> list[Json]:
    """Every update that this site computed to be sent, of all runs or of those whose id begins with `run`, by time."""
    found = [body for text, body in place.store.items(SENT) if text.startswith(run)]
    known = [name for table in (RUNS, ENDED) for name, _ in place.store.items(table) if name.startswith(run)]
    if run and not found and not known:
        raise FoedusError(f"no run here begins with {run!r}: `foedus site sent` lists all that was sent")
    return sorted(found, key=lambda body: (body.get("at", 0), body["run"], body["round"], body["task"]))


def find_model(place: Place, run: str) -> Path:
    """The file of this site's own model of a run that is over, by its id or how that begins. Raises FoedusError."""
    models = place.folder / "models"
    found = [models / run] if run and (models / run).exists() else sorted(models.glob(f"{glob.escape(run)}*"))
    if not found and any(text.startswith(run) for text, _ in place.store.items(RUNS)):
        raise FoedusError(f"run {run} is at work here; this site's own model is there when it is finished")
    if len(found) != 1:
        known = ", ".join(sorted(p.name for p in models.glob("*"))) or "none"
        raise FoedusError(f"{len(found)} runs here begin with {run!r}; models are kept of {known}")
    if not (found[0] / OWN).exists():
        raise FoedusError(f"in run {found[0].name} this site has no model of its own; what is kept is in {found[0]}")
    return found[0] / OWN


def find_code(place: Place, text: str) -> Json:
    """The bundle of a run, or of a hash, or of how either begins: what approving it means. Raises FoedusError."""
    codes = dict(place.store.items(CODES))
    runs = {run: body["offer"]["bundle"][0] for run, body in place.store.items(RUNS)}
    found = {code for code, body in codes.items() if code.startswith(text) or body["run"].startswith(text)}
    found |= {code for run, code in runs.items() if run.startswith(text)}
    found |= {code for table in (APPROVED, REFUSED) for code, _ in place.store.items(table) if code.startswith(text)}
    if not text or len(found) != 1:
        listed = ", ".join(f"{body['run']} ({code[:SHOWN]})" for code, body in codes.items()) or "none"
        raise FoedusError(f"{len(found)} bundles here belong to {text!r}; code that came here: {listed}")
    (code,) = found
    source = _source(place, code)
    files = sorted(str(p.relative_to(source)) for p in source.rglob("*") if p.is_file() and p.name != MANIFEST)
    told = {key: codes.get(code, {}).get(key, "") for key in ("run", "name", "submitter")}
    return {"bundle": code, **told, "files": files, "source": str(source) if files else ""}


def _source(place: Place, bundle: str) -> Path:
    """Where the files of a bundle lie for the owner to read."""
    return place.folder / CODES / bundle


def code_lines(found: Mapping[str, Any], yes: bool) -> list[str]:
    """A decision for people."""
    about = f"{found['name'] or 'job'} of {found['submitter']}" if found["submitter"] else "code"
    made = [f"{'approved' if yes else 'refused'}: {about}, bundle {found['bundle']}"]
    return made + ([f"files: {', '.join(found['files'])}", f"read them in {found['source']}"] if found["files"] else [])


def _run(place: Place, run: str, body: Mapping[str, Any]) -> Json:
    shown, bundle = {name: body["offer"][name] for name in ("name", "datasets", "options")}, body["offer"]["bundle"][0]
    privacy = body["offer"].get("privacy", "none")
    return shown | {
        "privacy": privacy,
        "metrics": body["offer"].get("metrics"),
        "says": body.get("says") or [presets.told(privacy, presets.guards(privacy, "secagg"))],
        "run": run,
        "bundle": bundle,
        "source": str(_source(place, bundle)),
        "submitter": body["submitter"],
        "why": body["why"],
    }


def _policy(place: Place) -> Any:
    try:
        return dict(policy.describe(policy.load(place.folder / "policy.toml")))
    except Denied as error:
        return {"error": str(error)}
