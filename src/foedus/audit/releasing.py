"""Attacks that need runs of their own: shadow models, and canaries that are in or out.
A Job and what its sites hold come in; each run is watched as the first one was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import numpy as np

from foedus.audit import canaries as coins
from foedus.audit import members
from foedus.audit.findings import Finding
from foedus.audit.leaving import Watched, watched
from foedus.audit.matching import Known
from foedus.audit.view import slope
from foedus.data import Pairs, Split
from foedus.errors import JobError
from foedus.job import Job
from foedus.keys import Key
from foedus.params import Array, Params
from foedus.pool import Pool
from foedus.privacy.dp_sgd import TOLD

Neighbours = Literal["record", "site"]
RELEASED = "the released model"
BESIDE = 128  # records whose gradients stand for the rest of an update
NUMBERS = 1 << 17  # of a gradient, at most
RIDGE = 1e-3
ROUNDS = 8  # of which updates are looked at
NO_LOSS = "the learner measures no loss"
FEWEST = 5  # members, and others, below which rates say nothing


class Scene(NamedTuple):
    """The Job under one defence, its sites, and the site in question with its records as arrays."""

    defence: str
    job: Job
    pool: Pool
    site: str
    split: Split
    inside: Pairs  # what it trains on
    outside: Pairs | None  # what it holds besides
    known: Known
    seed: int
    rounds: int | None
    key: Key


def membership(scene: Scene, run: Watched, shadows: int) -> list[Finding]:
    """By the loss, and where shadow models are asked for, by LiRA."""
    learner = scene.job.learner
    if scene.outside is None or min(len(scene.inside), len(scene.outside)) < FEWEST:
        why = f"a site needs {FEWEST} records that it trains on, and {FEWEST} that it does not"
        return [Finding(scene.defence, "membership", RELEASED, "not tried", {}, why)]
    every = joined(_few(scene.inside), _few(scene.outside))
    inside, outside = (members.losses(learner, run.released, _few(data)) for data in (scene.inside, scene.outside))
    if inside is None or outside is None:
        return [Finding(scene.defence, "membership", RELEASED, "not tried", {}, NO_LOSS)]
    found = [_told(scene, "loss threshold", members.rates(-inside, -outside))]
    if shadows:
        observed, drawn, seen = _shadowed(scene, np.concatenate([inside, outside]), every, shadows)
        scores = members.lira(observed, seen, drawn)
        found.append(_told(scene, "LiRA", members.rates(scores[: len(inside)], scores[len(inside) :])))
    return found


def canaries(
    scene: Scene, count: int, neighbours: Neighbours, delta: float, claimed: float | None, doubt: float = coins.DOUBT
) -> Finding:
    """The audit of ε in one run; `claimed`: the ε that is said to hold, for these neighbours.

    None: what the site's own account says, where it trains by DP-SGD.
    """
    drawn, inside = coins.made(count, scene.known, np.concatenate([scene.inside.y, scene.known.y]), scene.key("audit"))
    pool, splits = _planted(scene, drawn, inside, neighbours)
    run = watched(scene.job, pool, scene.site, scene.seed, scene.rounds, splits)
    scores = _scores(scene, run, drawn, neighbours)
    if not scores:
        return Finding(scene.defence, "canaries", "a run", "not tried", {}, NO_LOSS)
    bound = coins.audited(scores, inside, delta, doubt)
    values = {
        "epsilon": bound.epsilon, "right": bound.right, "guesses": bound.guesses, "canaries": count, "delta": delta,
    }  # fmt: skip
    said = _accounted(scene.job, run, delta) if claimed is None and neighbours == "record" else claimed
    return _judged(scene, bound, values, neighbours, said)


def _accounted(job: Job, run: Watched, delta: float) -> float | None:
    """The epsilon that the site says it has spent at `delta`, or at less."""
    told = [left.update.metrics[TOLD] for left in run.updates if TOLD in left.update.metrics]
    return max(float(x[0] / x[1]) for x in told) if told and job.dp_sgd and job.dp_sgd.delta <= delta else None


def _scores(scene: Scene, run: Watched, drawn: Pairs, neighbours: Neighbours) -> dict[str, Array]:
    """What speaks for each canary, by the name of what says it; the higher, the more."""
    found = {}
    final = members.losses(scene.job.learner, run.released, drawn)
    if final is not None:
        found["the final loss"] = -final
    with suppress(JobError):  # one's own loop, without a gradient
        found["updates"] = _weighed(scene, run, drawn, neighbours)
    return found


def _judged(
    scene: Scene, bound: coins.Bound, values: dict[str, float], neighbours: Neighbours, claimed: float | None
) -> Finding:
    what = f"{bound.right} of {bound.guesses} guesses of {bound.canaries} canary {neighbours}s are right, by {bound.by}"
    least = f"the audited lower bound of ε is {bound.epsilon:.2f} (95 %, {what})"
    if claimed is None:
        said = f"no ε is claimed; {least}."
    elif claimed < bound.epsilon:
        said = f"THE CLAIMED ε = {claimed:g} IS REFUTED: {least}."
    else:
        said = f"the claimed ε = {claimed:g} stands: {least}."
    found = values if claimed is None else values | {"claimed": claimed}
    return Finding(scene.defence, "canaries", "a run", "leak" if bound.epsilon else "nothing", found, said)


def _told(scene: Scene, attack: str, found: members.Rates) -> Finding:
    values = {
        "auc": found.auc, "auc_low": found.auc_interval[0], "auc_high": found.auc_interval[1], "tpr": found.tpr,
        "tpr_low": found.tpr_interval[0], "tpr_high": found.tpr_interval[1], "fpr_high": found.fpr_interval[1],
        "members": found.members, "others": found.others,
    }  # fmt: skip
    leak = found.auc_interval[0] > 0.5 or found.tpr_interval[0] > found.fpr_interval[1]
    verb = "tells members from others" if leak else "does not tell members from others"
    said = (
        f"membership by {attack} {verb}: AUC {found.auc:.2f} ({found.auc_interval[0]:.2f} to "
        f"{found.auc_interval[1]:.2f}); where {found.passed} of {found.others} others pass (a false-positive rate of "
        f"at most {found.fpr_interval[1]:.1%}), {found.tpr:.0%} of {found.members} members do "
        f"({found.tpr_interval[0]:.0%} to {found.tpr_interval[1]:.0%})."
    )
    return Finding(scene.defence, attack, RELEASED, "leak" if leak else "nothing", values, said)


def _few(data: Pairs) -> Pairs:
    return Pairs(data.x[: members.MOST], data.y[: members.MOST])


def _shadowed(scene: Scene, losses: Array, every: Pairs, shadows: int) -> tuple[Array, Array, Array]:
    """(observed confidences, which records each shadow model trained on, their confidences under it)."""
    drawn = members.halves([scene.key("shadow", i).numpy() for i in range(shadows)], len(every))
    seen = []
    for i, rows in enumerate(drawn):
        split = Split(Pairs(every.x[rows], every.y[rows]), scene.split.valid, scene.split.test)
        run = watched(scene.job, scene.pool, scene.site, scene.seed + 1 + i, scene.rounds, {scene.site: split})
        seen.append(members.losses(scene.job.learner, run.released, every))
    return members.confidence(losses), drawn, members.confidence(np.array(seen))


def evenly(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, the first among them, evenly.

    >>> evenly(3, 8), evenly(20, 4)
    ([0, 1, 2], [0, 5, 10, 15])
    """
    return list(range(0, count, -(-count // most)))


def _planted(scene: Scene, drawn: Pairs, inside: Array, neighbours: Neighbours) -> tuple[Pool, Mapping[str, Split]]:
    """The sites with the canaries that are in: among the site's records, or each as a site of its own."""
    mine, others = scene.split, (scene.split.valid, scene.split.test)
    if neighbours == "record":
        there = joined(scene.inside, Pairs(drawn.x[inside], drawn.y[inside]))
        return scene.pool, {scene.site: Split(there, *others)}
    one = {f"canary-{i:05}": Split((drawn.x[i : i + 1], drawn.y[i : i + 1])) for i in np.flatnonzero(inside)}
    made: Callable[[str], Any] = lambda name: one[name] if name in one else scene.pool[name]  # noqa: E731
    return Pool(sorted([*scene.pool.names, *one]), made), {scene.site: mine, **one}


def _weighed(scene: Scene, run: Watched, drawn: Pairs, neighbours: Neighbours) -> Array:
    """Each canary's score: its share in what was seen, summed over the rounds.

    By least squares of the update over the gradients of the canaries and of the records that they lie among: an ε holds
    against somebody who knows all of these, and only not the coins.
    """
    models, total = run.models(), np.zeros(len(drawn))
    every = joined(scene.inside, Pairs(scene.known.x, scene.known.y))
    beside = Pairs(every.x[:BESIDE], every.y[:BESIDE])
    for i in evenly(len(run.updates), ROUNDS):
        left = run.updates[i]
        read = left.read(run.names) if neighbours == "record" and left.task.seal is None else None
        moved = models[i] - models[i + 1] if read is None else slope(read, left)
        columns = [_gradients(scene, left.sent(run.names), data) for data in (drawn, beside)]
        total += evidence(np.vstack(columns), _picked(moved), len(drawn))
    return total


def evidence(rows: Array, seen: Array, count: int) -> Array:
    """How much `seen` speaks for each of the first `count` rows being in it, the rest being there in any amount.

    The log-likelihood ratio of its coefficient, by least squares with a little ridge, between the two halves of a coin:
    its distance from their mean over its variance, up to a common factor.
    """
    length = np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
    unit = rows / length[:, None]
    inverse = np.linalg.inv(unit @ unit.T + RIDGE * np.eye(len(unit)))
    amounts = (inverse @ (unit @ seen) / length)[:count]
    sure = (length**2 / np.diag(inverse))[:count]
    found: Array = (amounts - np.average(amounts, weights=sure)) * sure
    return found / max(float(np.abs(found).max()), 1e-30)


def _gradients(scene: Scene, model: Params, data: Pairs) -> Array:
    """(examples, numbers): each example's own gradient."""
    gradient = scene.job.learner.mean_gradient  # type: ignore[union-attr]
    each = (Pairs(data.x[i : i + 1], data.y[i : i + 1]) for i in range(len(data)))
    return np.stack([_picked(gradient(model, one, scene.key("gradient"))) for one in each])


def _picked(arrays: Params) -> Array:
    """All numbers in the order of their names, or of a large model every so-manieth."""
    flat = np.concatenate([arrays[name].reshape(-1).astype(np.float64) for name in sorted(arrays)])
    return flat[:: -(-flat.size // NUMBERS)]


def joined(*parts: Pairs) -> Pairs:
    """The examples of all parts, one after another."""
    return Pairs(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))
