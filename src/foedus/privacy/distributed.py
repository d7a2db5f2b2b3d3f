"""Noise that the sites add together: each a share, in whole numbers, of which secure aggregation shows the sum alone.
The contract, secure aggregation and accounting may come in; each site keeps the secret that names its share.

An update's numbers are multiples of a power of two, cut towards zero, so that its norm stays within the clip; a site's
noise is a discrete Gaussian on that grid (Canonne, Kamath and Steinke 2020). Of several the sum is no discrete
Gaussian, but by Kairouz, Liu and Steinke 2021 it is ½r²-concentrated differentially private with
r = clip / (σ √honest) + τ √d, where τ = 10 Σ exp(-2 π² σ² k / (k + 1)), k below the number of sites. σ is 16 grid
steps or more, so τ √d is below 1e-1000 of any model, and r is what Gaussian noise has. The sum is taken in a ring,
which it never leaves: what comes of it is the mean.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from foedus import frames
from foedus.aggregators import mean
from foedus.aggregators.fixed import RING, fixed
from foedus.core import Algorithm, RoundContext, SiteContext, State, Task, Update, Work
from foedus.errors import JobError
from foedus.keys import Key
from foedus.metrics import moments
from foedus.params import Array, Params, digest
from foedus.play import each
from foedus.privacy.accounting import Accountant, check, goal
from foedus.privacy.dp_sgd import TOLD
from foedus.privacy.keystream import TAIL, discrete_normals
from foedus.privacy.secagg import Secagg, majority
from foedus.privacy.site_level import clipped, fit, noise_of, round_of, spent

FINE, COARSE = 512, 16  # grid steps in a sigma: so many, or where numbers are too large for their dtype, at least these
EXACT = 1 << 24  # whole numbers below it are exact in float32


class DistributedDp(NamedTuple):
    """What a Job says of noise that sites add together; see `distributed_dp`."""

    clip: float
    noise_multiplier: float | None
    epsilon: float | None
    delta: float
    colluding: int | None = None

    @property
    def accountant(self) -> Accountant:
        """What finds the multiplier: its bounds hold for noise that is ½r²-concentrated, as Gaussian noise is."""
        return "rdp"

    @property
    def word(self) -> str:
        """What a submission signs."""
        return "distributed_dp" if self.noise_multiplier != 0 else ""

    def said(self, traits: Sequence[str] = ()) -> str:
        """What is told of it when a run begins."""
        who = "fewer than a third of the sites" if self.colluding is None else f"no more than {self.colluding} sites"
        return (
            f"distributed_dp: each site clips its update to {self.clip:g} and adds its share of the noise: "
            f"{goal(self)} for each site, from the sums that the server sees, if {who} collude with it"
        )


class Grid(NamedTuple):
    """How a Task's numbers are rounded, and a site's noise: its standard deviation in steps."""

    step: float
    sigma: float


def distributed_dp(
    clip: float,
    noise_multiplier: float | None = None,
    *,
    epsilon: float | None = None,
    delta: float = 1e-5,
    colluding: int | None = None,
) -> DistributedDp:
    """Noise of which each site adds a share, under secure aggregation: nobody sees an update with less than all of it.

    The sum of updates of norm at most `clip`, each counted alike, has noise of standard deviation z clip or more;
    `noise_multiplier` is z, or `epsilon` finds it for all rounds of the run. What sites that work with the server know
    of the noise does not count: `colluding` of them (None: as many as secure aggregation bears, fewer than a third).
    """
    check("distributed_dp", clip, noise_multiplier, epsilon, delta)
    if colluding is not None and (type(colluding) is not int or colluding < 0):
        raise JobError(f"distributed_dp(colluding={colluding!r}): a whole number of sites, 0 or more")
    return DistributedDp(float(clip), noise_multiplier, epsilon, delta, colluding)


def noised(algorithm: Algorithm, how: DistributedDp, seal: Secagg, rounds: int | None) -> Algorithm:
    """The same algorithm, its updates clipped and noised by their sites, for Tasks that `seal` seals."""

    def added(task: Task) -> Task:
        if task.work not in algorithm.works or task.aggregator not in (None, mean()):
            return task
        asked = len(task.sites)
        step = grid(how, noise_of(how, rounds), asked, seal.needed(asked)).step
        return task._replace(aggregator=mean(arithmetic=fixed(step * (RING // asked), 1.0)))

    def round(state: State, context: RoundContext) -> Any:
        return each(algorithm.round(state, context), added)

    works = {name: _noised(work, how, rounds) for name, work in algorithm.works.items()}
    return algorithm._replace(
        init=lambda params: algorithm.init(_wide(fit(params))),
        round=round,
        works=works,
        traits=(*algorithm.traits, "noised"),
    )


def grid(how: DistributedDp, z: float, asked: int, threshold: int) -> Grid:
    """The grid and a site's noise where `asked` sites share a sum, of which `threshold` go to the end.

    Raises JobError where too few honest ones are left, or where numbers have no room.
    """
    colluding = asked - majority(asked) if how.colluding is None else how.colluding
    honest = threshold - colluding
    if honest < 1:
        raise JobError(
            f"distributed_dp: of {asked} sites {threshold} go to the end with a sum, and {colluding} of them may "
            "collude: nobody's noise counts; ask more sites, or lower colluding=…"
        )
    sigma = z * how.clip / math.sqrt(honest)
    largest = how.clip + TAIL * sigma
    step = 2.0 ** math.floor(math.log2(sigma / FINE if z else how.clip / EXACT * 2))
    while largest / step >= EXACT - 1:
        step *= 2
    if z and sigma / step < COARSE:
        raise JobError(f"distributed_dp: noise multiplier {z:g} is too small to be made of whole numbers: raise it")
    if largest > step * (RING // asked):
        raise JobError(f"distributed_dp: the sum of {asked} sites has no room in 32 bits: ask fewer in a round")
    return Grid(step, sigma / step)


def _noised(work: Work, how: DistributedDp, rounds: int | None) -> Work:
    def working(payload: Params, local: Any, site: SiteContext) -> Any:
        if site.seal is None:
            raise JobError("distributed_dp: this Task has no seal, and one update alone has too little noise")
        before = hashlib.sha256(frames.pack(local).bytes()).hexdigest()
        local, update = work(payload, local, site)
        if not isinstance(update, Update):
            return local, update
        done = round_of(site.key) + 1
        if rounds is not None and how.epsilon is not None and done > rounds:
            raise JobError(f"distributed_dp: this is round {done} of a run whose noise was found for {rounds}")
        found, short = grid(how, noise_of(how, rounds), *site.seal), clipped(_wide(update.params), how.clip)
        name = site.secret("distributed_dp", *site.key.names, *site.seal, digest(payload), digest(short), before)
        told = {TOLD: moments(np.array([spent(how, rounds, done)]))} if how.word else {}
        return local, Update(_added(short, found, name), 1.0, told)

    return working


def _added(params: Params, found: Grid, name: Key) -> Params:
    made = {}
    for group, x in params.flats.items():
        whole: Array = np.trunc(x.astype(np.float64) / found.step)
        if found.sigma:
            whole += discrete_normals(name(group), x.size, found.sigma)
        made[group] = (whole * found.step).astype(x.dtype)
    return Params.of(params.spec, made)


def _wide(params: Params) -> Params:
    """Raises JobError for arrays whose dtype has no room for the noise's whole numbers."""
    for leaf in params.spec:
        if leaf.dtype not in ("float32", "float64"):
            raise JobError(
                f"array {leaf.name!r} is {leaf.dtype}, and distributed_dp's whole numbers need 24 bits: take float32"
            )
    return params
