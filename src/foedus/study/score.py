"""Score: what one finished run is worth, read from its journal.
Journals and metrics come in; nothing here starts a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foedus import runs
from foedus.absent import never
from foedus.core import EVALUATE
from foedus.errors import JobError
from foedus.journal import Journal
from foedus.metrics import Metric

Values = Mapping[str, float | None]


class Score(NamedTuple):
    """One method under one seed. Metrics have their own names: those of `test` and `sites` were measured on test parts.

    `round` is the one whose model is meant (from 0); `valid` is what it was chosen by. `own`: these are each site's own
    model's. `curve` has the valid metrics by round. `bytes` travelled for training, in `seconds` with evaluation.
    """

    method: str
    reference: bool
    seed: int
    options: Mapping[str, Any]
    round: int
    own: bool
    valid: Values
    test: Values
    sites: Mapping[str, Values]
    valid_sites: Mapping[str, Values]
    curve: Sequence[tuple[int, Values]]
    bytes: int
    seconds: float
    run: str
    left_out: Mapping[str, str] = {}  # sites of which nothing ever counted -> why


def sign(metric: Metric) -> int:
    """What makes larger better."""
    return -1 if metric.better == "min" else 1


def read(
    folder: Path,
    metrics: Mapping[str, Metric],
    by: str | None,
    apart: bool = False,
    own: bool = True,
    without: str | None = None,
) -> dict[str, Any]:
    """A finished run's part of a Score: the round with the best `by` on valid, the last one if it is None.

    `apart`: each site has chosen its own round. `own`: of each site's own model, if there is one. `without`: a site
    whose valid part is not looked at for that. Raises JobError where nothing was measured.
    """
    journal = runs.journal(folder)
    steps = _steps(journal)
    own = own and any(name.startswith("personal_") for step in steps for name in step["metrics"])
    whose = "personal_" if own else ""
    curve = [(step["round"], _named(step["metrics"], whose, metrics)) for step in steps]
    seen = curve if without is None else [(step["round"], _others(step, without, whose, metrics)) for step in steps]
    chosen = _best(seen, by, metrics)
    at = dict.fromkeys(_sites(steps), chosen)
    if apart and by is not None:
        at = {s: _best([(n["round"], _named(_of(n, s), whose, metrics)) for n in steps], by, metrics) for s in at}
    step = {step["round"]: step for step in steps}
    return {
        "round": chosen,
        "own": own,
        "valid": dict(curve)[chosen],
        "test": {} if apart else _named(step[chosen]["metrics"], f"{whose}test_", metrics),
        "sites": _full({s: _named(_of(step[r], s), f"{whose}test_", metrics) for s, r in at.items()}),
        "valid_sites": _full({s: _named(_of(step[r], s), whose, metrics) for s, r in at.items()}),
        "curve": curve,
        "bytes": travelled(journal),
        "seconds": sum(float(step["seconds"]) for step in journal.all("step")),
        "run": folder.name,
        "left_out": never(journal),
    }


def _steps(journal: Journal) -> list[Mapping[str, Any]]:
    """The rounds that were evaluated, in order. A run that a rule stopped between has its last model's at the end."""
    found = {}
    for row in sorted(journal.all("step"), key=lambda row: int(row["round"])):
        number = min(row["metrics"].get("round", row["round"]), row["round"])
        if row["per_site"] and any(not name.startswith("train_") for v in row["per_site"].values() for name in v):
            found[number] = {**row, "round": number}
    if not found:
        raise JobError("a study needs metrics: let the Job's evaluate be 1 or more, and give it a learner")
    return list(found.values())


def _best(curve: Sequence[tuple[int, Values]], by: str | None, metrics: Mapping[str, Metric]) -> int:
    """The first round with the best value, as the Job's own choice is; the last one where there is none."""
    known = [(r, v) for r, values in curve if by is not None and (v := values.get(by)) is not None]
    if not known or by is None:
        return curve[-1][0]
    return max(known, key=lambda found: (sign(metrics[by]) * found[1], -found[0]))[0]


def _named(values: Mapping[str, Any], prefix: str, metrics: Mapping[str, Metric]) -> dict[str, float | None]:
    return {name: values[prefix + name] for name in metrics if prefix + name in values}


def _others(step: Mapping[str, Any], without: str, prefix: str, metrics: Mapping[str, Metric]) -> Values:
    """The means over all sites but one."""
    each = [_named(values, prefix, metrics) for site, values in step["per_site"].items() if site != without]
    found = {name: [v for own in each if (v := own.get(name)) is not None] for name in metrics}
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def _of(step: Mapping[str, Any], site: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = step["per_site"].get(site, {})
    return found


def _sites(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({site for step in steps for site in step["per_site"]})


def _full(found: Mapping[str, Values]) -> dict[str, Values]:
    return {site: values for site, values in found.items() if values}


def travelled(journal: Journal) -> int:
    """The bytes that went to sites and came from them for training; of a simulation those of the arrays."""
    down = {(row["round"], row["task"]): _down(row) for row in journal.all("task") if row["work"] != EVALUATE}
    asked: dict[tuple[int, int], int] = {}
    for row in [*journal.all("task"), *journal.all("asked")]:
        names = row.get("sites", row.get("asked", ()))
        if isinstance(names, list):
            asked[row["round"], row["task"]] = asked.get((row["round"], row["task"]), 0) + len(names)
    for row in journal.all("close"):
        asked.setdefault((row["round"], row["task"]), len(row["outcomes"]))
    return sum(size * asked.get(place, 0) for place, size in down.items()) + _up(journal, down)


def _down(task: Mapping[str, Any]) -> int:
    payload = task.get("payload")
    return int(payload["size"] if isinstance(payload, Mapping) else task.get("down", 0))


def _up(journal: Journal, training: Mapping[tuple[int, int], int]) -> int:
    sent = [int(row["size"]) for row in journal.all("accepted") if (row["round"], row["task"]) in training]
    up = {(row["round"], row["task"]): row.get("up", 0) for row in journal.all("task")}
    counted = [int(up[r, t]) for row in journal.all("close") for _, r, t in row["counted"] if (r, t) in training]
    return sum(sent) + sum(counted)
