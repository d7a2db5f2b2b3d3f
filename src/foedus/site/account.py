"""What a site's owner is shown of the ledger: of each dataset what was spent, by whom, and what is left.
The site's folder comes in; nothing is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from foedus.privacy.spending import Limit, epsilon
from foedus.site import bindings, policy
from foedus.site.ledger import Ledger, steps_of
from foedus.site.place import Place
from foedus.site.terms import Terms

Json = dict[str, Any]


def describe(place: Place) -> Json:
    """Everything about what was spent, as plain data. Raises Damaged where the ledger was falsified."""
    ledger = Ledger(place.folder, place.store, place.key(), look=True)
    terms = policy.load(place.folder / "policy.toml").terms
    names = dict.fromkeys([*(b.name for b in bindings.every(place.store)), *(row["dataset"] for row in ledger.rows)])
    found = {name: _dataset(name, ledger.rows, terms.get(name, Terms())) for name in names}
    return {"site": place.name, "ledger": str(ledger.path), "rows": len(ledger.rows), "datasets": found}


def _dataset(name: str, rows: Sequence[Mapping[str, Any]], terms: Terms) -> Json:
    mine = [row for row in rows if row["dataset"] == name]
    steps = [found for row in mine if (found := steps_of(row)) is not None]
    limit = terms.limit or Limit(float("inf"), terms.delta)
    spent = epsilon(steps, limit.delta)
    return {
        "epsilon": spent, "delta": limit.delta, "limit": terms.epsilon,
        "left": None if terms.epsilon is None else max(0.0, terms.epsilon - spent),
        "trainings": len(steps), "unbounded": len(mine) - len(steps),
        "runs": list(dict.fromkeys(row["run"] for row in mine)),
        "submitters": dict(Counter(row["submitter"] for row in mine)),
        "last": max((row["at"] for row in mine), default=None),
        "purpose": list(terms.purpose), "approval": terms.approval, "valid_until": str(terms.valid_until or ""),
    }  # fmt: skip


def lines(found: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    made = [f"site {found['site']}: {found['rows']} rows, each signed over the one before, in {found['ledger']}"]
    for name, about in found["datasets"].items():
        of = "" if about["limit"] is None else f" of {about['limit']:g}"
        spent = f"epsilon {about['epsilon']:.3g}{of} at delta {about['delta']:g}"
        if about["unbounded"]:
            some = f", beside {spent} of {about['trainings']} with it" if about["trainings"] else ""
            spent = f"unbounded: {about['unbounded']} trainings without differential privacy{some}"
        made.append(f"{name}: {spent}{_by(about)}")
        terms = {"purpose": ", ".join(about["purpose"]), "approval": about["approval"], "until": about["valid_until"]}
        made += [f"  {word} {text}" for word, text in terms.items() if text]
    return made


def _by(about: Mapping[str, Any]) -> str:
    if not about["runs"]:
        return ", nothing was trained on it"
    who = ", ".join(f"{name} {count}" for name, count in about["submitters"].items())
    runs = len(about["runs"])
    return f", {about['trainings'] + about['unbounded']} trainings in {runs} run{'s' * (runs > 1)} ({who})"
