"""What a site's owner is shown: the agent, the data, the rules, the runs, and the code that waits for a decision.
The site's folder comes in; nothing is changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from foedus.errors import Denied, FoedusError
from foedus.site import bindings, policy
from foedus.site.place import Place
from foedus.site.runs import ENDED, RUNS, SOURCE
from foedus.site.shelf import PENDING
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
        "state": "takes part" if wish["accepting"] else str(wish["why"]),
        "data": {b.name: {"path": b.path, "adapter": b.adapter} for b in bindings.every(store)},
        "runs": [_run(run, body) for run, body in store.items(RUNS)], "ended": [run for run, _ in store.items(ENDED)],
        "pending": [text for text, _ in store.items(PENDING)],
        "approved": [name for name, _ in store.items(APPROVED)], "refused": [name for name, _ in store.items(REFUSED)],
    }  # fmt: skip


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
    made += [f"run {r['run']} of {r['submitter']}: {r['why'] or 'ready'}" for r in found["runs"]]
    made += [f"at work: {w['task']}, progress {w['progress']}" for w in found.get("working", ())]
    return made + ([f"{len(found['pending'])} updates wait to be settled"] if found["pending"] else [])


def find_code(place: Place, text: str) -> Json:
    """The bundle of a run, or of a hash, or of how either begins: what approving it means. Raises FoedusError."""
    runs = [_run(run, body) for run, body in place.store.items(RUNS)]
    found = {r["bundle"]: r for r in runs if r["run"].startswith(text) or r["bundle"].startswith(text)}
    known = {name for table in (APPROVED, REFUSED) for name, _ in place.store.items(table) if name.startswith(text)}
    if not found and len(known) == 1:
        return {"bundle": known.pop(), "name": "", "submitter": "", "files": [], "source": ""}
    if not text or len(found) != 1:
        listed = ", ".join(f"{r['run']} ({r['bundle'][:SHOWN]})" for r in runs) or "none"
        raise FoedusError(f"{len(found)} bundles here belong to {text!r}; runs at this site: {listed}")
    code = next(iter(found.values()))
    source = place.folder / "work" / code["run"] / SOURCE
    files = sorted(str(p.relative_to(source)) for p in source.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {k: code[k] for k in ("bundle", "name", "submitter", "run")} | {"files": files, "source": str(source)}


def code_lines(found: Mapping[str, Any], yes: bool) -> list[str]:
    """A decision for people."""
    about = f"{found['name'] or 'job'} of {found['submitter']}" if found["submitter"] else "code"
    made = [f"{'approved' if yes else 'refused'}: {about}, bundle {found['bundle']}"]
    return made + ([f"files: {', '.join(found['files'])}", f"read them in {found['source']}"] if found["files"] else [])


def _run(run: str, body: Mapping[str, Any]) -> Json:
    shown = {name: body["offer"][name] for name in ("name", "datasets", "options")}
    return shown | {
        "run": run,
        "bundle": body["offer"]["bundle"][0],
        "submitter": body["submitter"],
        "why": body["why"],
    }


def _policy(place: Place) -> Any:
    try:
        return dict(policy.describe(policy.load(place.folder / "policy.toml")))
    except Denied as error:
        return {"error": str(error)}
