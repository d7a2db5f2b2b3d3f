"""What a run would send from this site, rehearsed on the owner's data by a worker in its walls; nothing leaves.
The site's folder comes in: nothing in it changes, and no ledger counts it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foedus.errors import Denied, FoedusError
from foedus.files import make_folder, write_atomic
from foedus.preview import shown
from foedus.site import bindings, policy, report
from foedus.site.orders import Activity, At, Blob, Offer, Order, Seal, kept_offer, number, spec_of
from foedus.site.place import Place, stated
from foedus.site.runs import CODES, LOADING, RUNS
from foedus.site.sealing import array
from foedus.site.tasks import Declined, done_of, let_out, of_enough
from foedus.site.trust import APPROVED, REFUSED, SHOWN, TRUSTED, Roll
from foedus.site.workerhost import ARCHIVE, WorkerHost
from foedus.wire import bundle
from foedus.wire.ed25519 import derived

Json = dict[str, Any]


def preview(place: Place, text: str, out: Path | None = None, rounds: int = 1) -> Json:
    """What the run (or bundle) that `text` begins would send in its first rounds, written into `out`.

    Code that its owner has not approved runs without a network, whatever the policy says. Raises FoedusError.
    """
    run, offer, source = found(place, text)
    rules = policy.load(place.folder / "policy.toml")
    if place.store.get(REFUSED, offer.bundle.digest):
        raise Denied(f"this code was refused here, and is not run: foedus site approve {offer.bundle.digest[:SHOWN]}")
    folder, roster = out or Path(f"preview-{run}-{place.name}"), sorted(Roll(place.store, place.federation()).publics())
    make_folder(folder)
    with tempfile.TemporaryDirectory(prefix="preview-", dir=place.folder) as scratch:
        host = WorkerHost(Path(scratch), offer.bundle, folder / "worker.log", loading(place, run, offer, rules))
        (Path(scratch) / ARCHIVE).write_bytes(source)
        try:
            activity = Activity(At(run, 0, 0, 0))
            told = host.ready(activity, LOADING)
            asked = {"do": "preview", "roster": roster, "rounds": rounds, "folder": scratch}
            answer = host.work(asked, activity, LOADING)
        finally:
            host.kill()
        if "previewed" not in answer:
            raise FoedusError(f"{answer.get('stage')}: {answer.get('raised')}")
        here = place, run, offer, rules, told.get("rows", {}), Path(scratch), folder
        rows = [_row(row, *here) for row in answer["previewed"]]
    about: Json = {"run": run, "site": place.name, "bundle": offer.bundle.digest, "roster": roster, "updates": rows}
    made = about | {"approved": approved(place, rules, offer), "privacy": told["privacy"], "why": str(answer["why"])}
    made["forbidden"] = rules.private(offer.privacy) or rules.examples(told.get("rows", {}).get("train", 0))
    write_atomic(folder / "preview.json", json.dumps(made, indent=1).encode())
    return made | {"folder": str(folder)}


def found(place: Place, text: str) -> tuple[str, Offer, bytes]:
    """The run, what its submitter signed, and the bundle's bytes, of a RUN or BUNDLE. Raises FoedusError."""
    code = report.find_code(place, text)
    named = {run: body["offer"] for run, body in place.store.items(RUNS) if run.startswith(text)}
    kept = place.store.get(CODES, code["bundle"]) or {}
    run, offer = next(iter(named.items())) if len(named) == 1 else (code["run"], kept.get("offer"))
    if offer is None or not code["source"]:
        raise FoedusError(f"the code of {text!r} is not here (any more): submit it again, or with --check")
    source = bundle.repacked(code["source"])
    if bundle.digest(source) != code["bundle"]:
        raise FoedusError(f"{code['source']} is not as it came: submit the job again, or with --check")
    return run, kept_offer(offer), source


def approved(place: Place, rules: policy.Policy, offer: Offer) -> bool:
    """Whether the owner lets this code in: its very bytes, or all that its submitter signs by the key known here."""
    if offer.bundle.digest in rules.approved or place.store.get(APPROVED, offer.bundle.digest):
        return True
    try:
        name = Roll(place.store, place.federation()).submitter(offer.public)
    except Denied:
        return False
    known = place.store.get(TRUSTED, name) or {"public": offer.public}
    return name in rules.trust and known["public"] == offer.public


def loading(place: Place, run: str, offer: Offer, rules: policy.Policy) -> Json:
    """What makes a worker ready, as for the run itself: the same data, seed and secret."""
    known = (place.store.get(RUNS, run) or {}).get("bound", ())
    bound = bindings.chosen(place.store, offer.datasets or known)
    names = [binding.name for binding in bound]
    if why := rules.dataset(names) or rules.agreed(names, offer.purpose):
        raise Denied(why)
    return {
        "entry": offer.entry, "options": offer.options, "seed": offer.seed, "site": place.name,
        "data": [list(binding) for binding in bound], "many": len(bound) > 1,
        "network": rules.network and approved(place, rules, offer), "limits": rules.limits, "error_texts": True,
        "privacy": offer.override_privacy, "excluded": rules.excluded(names), "secret": derived(place.key(), run),
        "run": run, "statement": stated(place, run),
    }  # fmt: skip


def _row(
    row: Mapping[str, Any],
    place: Place,
    run: str,
    offer: Offer,
    rules: policy.Policy,
    rows: Mapping[str, int],
    scratch: Path,
    out: Path,
) -> Json:
    """An update as its agent would send it, and if it would not, `refused` says why."""
    seal, done = row["seal"], done_of(row)
    roster = (place.name, *(f"other-{i}" for i in range(1, int(row["sites"]))))
    order = Order(
        At(run, int(row["round"]), int(row["task"]), 0), str(row["work"]), Blob("", 0), spec_of(row["returns"]), 0.0,
        offer.bundle.digest, offer.seed, None, {}, "",
        seal and Seal(roster, int(seal[0]), number(seal[1]), number(seal[2])),
    )  # fmt: skip
    done, _ = of_enough(order, done, rules, rows)
    path = out / f"{Path(str(row['name'])).name}.safetensors"
    shutil.copyfile(scratch / Path(str(row["name"])).name, path)
    metrics, at = {name: array(x) for name, x in done.metrics.items()}, (order.at.round, order.at.task, order.work)
    try:
        let_out(order, done, path, rules, place.name, offer.metrics)
    except Declined as error:
        return shown.row(*at, path, done.weight, metrics, done.stateful) | {"refused": str(error)}
    sealed = None
    if order.seal is not None:
        ring = order.seal.bound, order.seal.wmax, len(roster)
        sealed = shown.sealed(shown.read(path), done.weight, metrics, *ring, path)
    return shown.row(*at, path, done.weight, metrics, done.stateful, sealed) | {"refused": ""}
