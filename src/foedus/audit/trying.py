"""Each attack on what was seen, as a Finding: numbers beside a baseline, and a sentence.
Views, records and a learner come in; who has the Job's code can do all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from foedus.audit import labels, linear, matching
from foedus.audit.findings import Finding, Outcome, Picture
from foedus.audit.matching import Known
from foedus.audit.view import View, uniform
from foedus.errors import FoedusError, JobError
from foedus.keys import Key
from foedus.params import Array

SHOWN = 8  # records in a picture
GAIN = 0.05  # of labels, above what frequencies alone tell
RARE = 0.05  # the chance that somebody who draws labels by frequency does as well
EXACT = 100.0  # dB from which on numbers are equal up to rounding


class Seen(NamedTuple):
    """One View under a defence, the records that it may tell of, and what is known beforehand."""

    defence: str
    view: View
    x: Array
    y: Array
    known: Known
    learner: Any
    key: Key
    steps: int


Tried = tuple[Finding, Picture | None]


def tried(seen: Seen) -> Iterator[Tried]:
    """All attacks on inputs and labels."""
    found = _counts(seen)
    if seen.view.words is not None:
        p = uniform(seen.view.words)
        said = (
            f"the bytes of {seen.view.on} are {'' if p > 1e-4 else 'not '}like uniform noise (chi-squared, p = {p:.2g})"
        )
        outcome: Outcome = "nothing" if p > 1e-4 else "leak"
        yield Finding(seen.defence, "uniformity", seen.view.on, outcome, {"p": p}, f"{said}."), None
    yield _analytic(seen)
    yield from _searched(seen, found)
    yield _labels(seen, found)


def not_tried(defence: str, attack: str, on: str, why: str) -> Tried:
    return Finding(defence, attack, on, "not tried", {}, why), None


def _analytic(seen: Seen) -> Tried:
    layer = linear.first_layer(seen.view.model, int(np.prod(seen.x.shape[1:])))
    if layer is None:
        return not_tried(seen.defence, "analytic", seen.view.on, "no dense layer with a bias takes the inputs")
    return _matched(seen, "analytic", linear.inputs(seen.view.slope, layer))


def _searched(seen: Seen, counts: Array | None) -> Iterator[Tried]:
    try:
        from foedus.audit import inverting
        from foedus.torch import TorchLearner
    except ImportError:
        return
    why = ""
    inner = getattr(seen.learner, "learner", seen.learner)
    if not isinstance(inner, TorchLearner) or inner.loss is None:
        why = "only a TorchLearner with loss=… can be differentiated twice"
    elif len(seen.x) > inverting.MOST:
        why = f"of more than {inverting.MOST} records in one update nothing is found; records=… audits a smaller site"
    elif counts is None and seen.y.dtype.kind != "f":
        why = "the labels are not recovered"
    if why:
        yield not_tried(seen.defence, "search", seen.view.on, why)
        return
    given = inverting.sought(
        inner, seen.view.model, seen.view.slope, seen.x.shape[1:], _listed(counts), len(seen.x), seen.known
    )
    for name, search in (("DLG", inverting.dlg), ("cosine", inverting.cosine)):
        if search is inverting.dlg and seen.view.model.size > inverting.SMALL:
            yield not_tried(seen.defence, name, seen.view.on, f"for models of up to {inverting.SMALL:,} parameters")
            continue
        try:
            yield _matched(seen, name, inverting.found(search, given, seen.key(name), seen.steps))
        except FoedusError as error:
            yield not_tried(seen.defence, name, seen.view.on, str(error))


def _listed(counts: Array | None) -> Array | None:
    return None if counts is None else np.repeat(np.arange(len(counts)), counts)


def _matched(seen: Seen, attack: str, candidates: Array) -> Tried:
    rows = matching.clipped(candidates, seen.known)
    truth, span = seen.x[: matching.MOST], seen.known.span
    found = matching.match(rows, truth, span)
    base = matching.baseline(len(rows), truth, seen.known, seen.key("baseline"))
    got, best, usual = matching.recovered(found, base), float(found.psnr.max()), float(base.psnr.max())
    values = {
        "psnr": best, "psnr_median": float(np.median(found.psnr)), "recovered": got, "records": len(truth),
        "baseline": usual, "baseline_median": float(np.median(base.psnr)), "candidates": len(rows),
    }  # fmt: skip
    one = "a single update" if seen.view.on == "its update" else seen.view.on
    if got:
        said = f"{_whose(seen)} can be recovered {_how_well(best)} from {one} ({attack}: {got} of {len(truth)} records"
        said += f" above the baseline of {usual:.1f} dB)."
    else:
        said = f"{attack} finds nothing above the baseline in {one} (best {best:.1f} dB, baseline {usual:.1f} dB)."
    picture = _picture(seen, attack, rows, found, truth)
    return Finding(seen.defence, attack, seen.view.on, "leak" if got else "nothing", values, said), picture


def _how_well(psnr: float) -> str:
    return f"at {psnr:.1f} dB" if psnr < EXACT else f"exactly (at {psnr:.0f} dB)"


def _whose(seen: Seen) -> str:
    sites = seen.view.sites
    return f"the inputs of site {sites[0]}" if len(sites) == 1 else f"inputs of the {len(sites)} sites"


def _picture(seen: Seen, attack: str, rows: Array, found: matching.Match, truth: Array) -> Picture | None:
    order = [i for i in np.argsort(-found.psnr, kind="stable")[:SHOWN] if found.chosen[i] >= 0]
    if not order:
        return None
    shown = rows[found.chosen[order]].reshape(-1, *truth.shape[1:])
    return Picture(seen.defence, attack, seen.view.on, truth[order].astype(float), shown, found.psnr[order])


def _counts(seen: Seen) -> Array | None:
    """Labels by class as they are recovered; None where they are no classes, or nothing tells of them."""
    count = labels.classes(seen.y, seen.known.y)
    bias = labels.last_bias(seen.view.model, count) if count else None
    gradient = getattr(seen.learner, "mean_gradient", None)
    if bias is None or gradient is None:
        return None
    try:
        return labels.counts(
            seen.view.slope, seen.view.model, bias, len(seen.y), seen.known, gradient, seen.key("labels")
        )
    except JobError:
        return None  # one's own loop without a gradient: what the model says on average is not known


def _labels(seen: Seen, counts: Array | None) -> Tried:
    if counts is None:
        why = "the targets are no classes, or the last layer has no bias that tells of them"
        return not_tried(seen.defence, "labels", seen.view.on, why)
    truth = np.bincount(seen.y.astype(np.int64), minlength=len(counts))
    usual = np.bincount(seen.known.y.astype(np.int64), minlength=len(counts))[: len(counts)] / len(seen.known.y)
    base = float(usual.max()) if len(seen.y) == 1 else labels.shared(labels.rounded(usual, len(seen.y)), truth)
    right = labels.shared(counts, truth)
    bias = seen.view.slope[str(labels.last_bias(seen.view.model, len(counts)))]
    leak = right > base + GAIN and (labels.sums_to_zero(bias) or labels.chance(right, usual, len(seen.y)) < RARE)
    what = "the label is" if len(seen.y) == 1 else f"{right:.0%} of the labels are"
    said = f"{what} recovered from {seen.view.on} (frequencies alone give {base:.0%})."
    if not leak:
        said = f"labels: nothing above the baseline in {seen.view.on} ({right:.0%}, frequencies alone {base:.0%})."
    values = {"accuracy": right, "baseline": base, "records": len(seen.y)}
    return Finding(seen.defence, "labels", seen.view.on, "leak" if leak else "nothing", values, said), None
