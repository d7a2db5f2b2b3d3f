"""A model's card, in Markdown, from the journal of its run: who took part, how private it was, how well it does, and
what nobody has shown. A Story and the model come in; what sites and submitters chose is escaped."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from foedus.params import Params, digest
from foedus.privacy.distributed import DistributedDp
from foedus.privacy.dp_metrics import DpMetrics
from foedus.privacy.dp_sgd import DpSgd
from foedus.privacy.ftrl import DpFtrl
from foedus.privacy.he import He
from foedus.privacy.presets import READABLE
from foedus.privacy.secagg import Secagg
from foedus.privacy.site_level import CentralDp, LocalDp
from foedus.report import story
from foedus.report.story import Measured, Story

MOST_SITES = 200
SPENT = "train_epsilon"
HELPERS = (
    "rounds",
    "mixing",
    "parts",
    "optimizers",
    "exchange",
    "halves",
    "crossing",
    "graphs",
    "columns",
    "buffered",
    "relayed",
)
PROTECTIONS: Mapping[str, Any] = {
    "secagg": Secagg,
    "he": He,
    "dp_sgd": DpSgd,
    "central_dp": CentralDp,
    "local_dp": LocalDp,
    "distributed_dp": DistributedDp,
    "dp_ftrl": DpFtrl,
    "dp_metrics": DpMetrics,
}


def card(told: Story, run: str, model: Params, what: str = "the last model") -> str:
    """The card of `model`, which is `what` of the run."""
    name = told.about.get("description", {}).get("name") or (told.journal.find("submitted") or {}).get("name") or run
    parts = [
        [f"# {_plain(name)}", "", f"{what.capitalize()} of the federated run `{_plain(run)}`, trained with foedus."],
        _model(model),
        _training(told),
        ["## Privacy", "", *(f"- {_plain(line)}" for line in _privacy(told)), *_spent(told)],
        _results(told),
        _sites(told),
        _limits(told, run),
    ]
    return "\n".join(line for part in parts for line in [*part, ""])


def _model(model: Params) -> list[str]:
    rows = [(f"`{_plain(x.name)}`", "×".join(map(str, x.shape)) or "one number", x.dtype, x.kind) for x in model.spec]
    return [
        "## Model", "",
        f"{model.size:,} numbers in {len(model.spec)} arrays, in `model.safetensors`, of digest `{digest(model)}`.", "",
        *_table(("array", "shape", "dtype", "kind"), rows[:MOST_SITES]),
    ]  # fmt: skip


def _training(told: Story) -> list[str]:
    about, description = told.about, told.about.get("description", {})
    submitted, end = told.journal.find("submitted") or {}, told.end or {}
    examples = sum(float(step.get("examples") or 0) for step in told.steps)
    first, last = (told.rows[0].at, told.rows[-1].at) if told.rows else (0.0, 0.0)
    facts = {
        "algorithm": ", ".join(_methods(description.get("algorithm"))),
        "learner": _settings(description.get("learner")),
        "purpose": description.get("purpose", ""), "submitted by": submitted.get("submitter", ""),
        "from, to": f"{_day(first)}, {_day(last)}", "backend": about.get("backend", ""),
        "rounds": f"{len(told.steps)} ({end.get('reason', 'not finished')})",
        "examples trained on": f"{examples:,.0f}, over all rounds and epochs" if examples else "",
        "seed": about.get("seed", ""), "job": about.get("job", ""), "build": about.get("build", {}).get("hash", ""),
    }  # fmt: skip
    return ["## Training", "", *_table(("", ""), [(k, _plain(v)) for k, v in facts.items() if str(v)])]


def _spent(told: Story) -> list[str]:
    found = story.pooled(told).get(SPENT)
    if found is None or found.value is None:
        return []
    worst = story.worst(told).get(SPENT)
    most = f", at most {worst.value:.3g}" if worst is not None and worst.value is not None else ""
    return [f"- Spent after round {found.round}: epsilon {found.value:.3g} on average over the sites{most}."]


def _results(told: Story) -> list[str]:
    rows = [(f"`{_plain(name)}`", _value(x), _interval(x), str(x.round)) for name, x in story.pooled(told).items()]
    made = [
        "## Results",
        "",
        "Over the examples of all sites; plain names are of validation parts, `test_` of test parts.",
        "",
    ]
    return made + _table(("metric", "value", "95 %", "round"), rows) if rows else []


def _sites(told: Story) -> list[str]:
    found = story.per_site(told)
    names = sorted({name for row in found.values() for name in row if not name.startswith("train_")})[:8]
    counted = {site: sum(status in ("counted", "later") for status in row.values()) for site, row in told.grid.items()}
    rows = [
        (_plain(site), str(counted[site]), *(_value(found.get(site, {}).get(name)) for name in names))
        for site in list(counted)[:MOST_SITES]
    ]
    made = ["## Sites", "", *_table(("site", "rounds counted", *(f"`{_plain(n)}`" for n in names)), rows)]
    reasons = [f"- {_plain(r.site)}: {r.status} in {len(r.rounds)} rounds: {_plain(r.why)}" for r in told.reasons[:20]]
    return made + (["", "Not counted:", "", *reasons] if reasons else [])


def _limits(told: Story, run: str) -> list[str]:
    same = "the same bits on the same build" if told.about.get("exact") else "a run that comes near, not to the bit"
    return [
        "## What this card does not say", "",
        "- It is written from the run's journal. Nobody has judged the model by it: hold it against what was stated "
        "beforehand with `foedus validate`.",
        "- Nothing here is known of people or machines that no site above has data of.",
        f"- `foedus verify {_plain(run)}` checks the journal, and with the sites' data at hand computes {same}.",
    ]  # fmt: skip


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(value: Any) -> str:
    """Text that cannot end a cell, a line or a code span."""
    return str(value).replace("|", "\\|").replace("`", "'").replace("<", "&lt;").replace("\n", " ")


def _methods(described: Any) -> list[str]:
    """The algorithms' modules that a description names, in its order; those that all are made of are left out."""
    if isinstance(described, Mapping):
        described = list(described.values())
    if isinstance(described, list):
        found = [name for x in described for name in _methods(x)]
        return [name for name in dict.fromkeys(found) if name not in HELPERS]
    of = "foedus.algorithms."
    return [described.removeprefix(of)] if isinstance(described, str) and described.startswith(of) else []


def _settings(described: Any) -> str:
    """Settings that are numbers or words."""
    plain = described.items() if isinstance(described, Mapping) else ()
    return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain if _scalar(v))


def _scalar(value: Any) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)


def _privacy(told: Story) -> list[str]:
    """What the run's protections are, as its Job is described, and what its submission signed."""
    described = told.about.get("description", {}).get("privacy")
    parts = described if isinstance(described, list) else [described] if described else []
    signed = (told.journal.find("submitted") or {}).get("privacy", "")
    made = [f"{_protection(part)}: {_settings(part)}" if isinstance(part, Mapping) else str(part) for part in parts]
    return [*(made or [f"none: {READABLE}"]), *([f"signed with the submission: {signed}"] if signed else [])]


def _protection(part: Mapping[str, Any]) -> str:
    return next((name for name, kind in PROTECTIONS.items() if set(part) == set(kind._fields)), "protection")


def _value(found: Measured | None) -> str:
    return "" if found is None or found.value is None else f"{found.value:.4g}"


def _interval(found: Measured) -> str:
    low, high = found.interval or (None, None)
    return "" if low is None or high is None else f"{low:.4g} to {high:.4g}"


def _day(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d") if at else ""
