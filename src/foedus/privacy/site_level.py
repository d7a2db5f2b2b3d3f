"""Privacy of whole sites: clipped updates whose noise the server adds to the mean, or each site to its own.
The contract and accounting may come in; who draws the noise keeps the secret that names it.

`central_dp` is DP-FedAvg (McMahan et al. 2018), its clip fixed or adapted (Andrew et al. 2021): whoever sees all the
models is within (epsilon, delta) as sure with a site as with nothing in its place. The server is trusted to add the
noise. `local_dp` trusts nobody: an update is within (epsilon, delta) whatever the site holds (Balle and Wang 2018).
No sampling is assumed: a site counts as part of every round.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from foedus import frames
from foedus.core import Algorithm, Local, SiteContext, State, Total, Transform, Update, Work
from foedus.errors import JobError
from foedus.keys import Key
from foedus.metrics import moments
from foedus.params import Array, Params, Spec, digest, join, kind
from foedus.privacy import accounting
from foedus.privacy.accounting import Accountant, Noise, Steps, check, goal, split_noise
from foedus.privacy.dp_sgd import TOLD
from foedus.privacy.keystream import normals
from foedus.transforms.chain import transformed
from foedus.transforms.clip import norm

SHARE = 20  # the count's noise is by default one of so many updates: Andrew et al. 2021, section 3.1
WITHIN = Params({"within": np.float32(0.0)}).spec


class Rounds(Noise, Protocol):
    """What is said of noise that is independent in each round; `accountant` is what finds its multiplier."""

    @property
    def accountant(self) -> Accountant: ...


class CentralDp(NamedTuple):
    """What a Job says of noise at the server; see `central_dp`."""

    clip: float
    noise_multiplier: float | None
    epsilon: float | None
    delta: float
    quantile: float | None = None
    rate: float = 0.2
    count_noise: float | None = None

    @property
    def accountant(self) -> Accountant:
        """What finds the multiplier."""
        return "pld"

    @property
    def word(self) -> str:
        """What a submission signs."""
        return "central_dp" if self.noise_multiplier != 0 else ""

    def said(self, traits: Sequence[str] = ()) -> str:
        """What is told of it when a run begins."""
        adapted = "" if self.quantile is None else f", adapted so that {self.quantile:.0%} of updates are within"
        return (
            f"central_dp: each site's update is clipped to {self.clip:g}{adapted}, all count alike, the server adds "
            f"noise to their mean: {goal(self)} for each site; the server itself sees updates without noise"
        )


class LocalDp(NamedTuple):
    """What a Job says of noise at each site; see `local_dp`."""

    clip: float
    noise_multiplier: float | None
    epsilon: float | None
    delta: float

    @property
    def accountant(self) -> Accountant:
        """What finds the multiplier."""
        return "pld"

    @property
    def word(self) -> str:
        """What a submission signs."""
        return "local_dp" if self.noise_multiplier != 0 else ""

    def said(self, traits: Sequence[str] = ()) -> str:
        """What is told of it when a run begins."""
        return f"local_dp: each site clips its update to {self.clip:g} and adds noise to it: {goal(self)}"


def central_dp(
    clip: float,
    noise_multiplier: float | None = None,
    *,
    epsilon: float | None = None,
    delta: float = 1e-5,
    quantile: float | None = None,
    rate: float = 0.2,
    count_noise: float | None = None,
) -> CentralDp:
    """Noise at the server: the mean of updates of norm at most `clip`, each counted alike, plus N(0, (z clip / n)²).

    `noise_multiplier` is z, or `epsilon` finds it for all rounds of the run. With `quantile` (0.5: the median norm) the
    clip is where it begins, and goes on as C exp(-rate (b - quantile)), where b is the noised share of updates within
    it; `count_noise` (None: a twentieth of the updates, z at least) is that of their count, and part of z (Andrew
    et al. 2021).
    """
    check("central_dp", clip, noise_multiplier, epsilon, delta)
    for name, value, most in (
        ("quantile", quantile, 1.0),
        ("rate", rate, math.inf),
        ("count_noise", count_noise, math.inf),
    ):
        if value is not None and not 0 < value < most:
            raise JobError(f"central_dp({name}={value!r}): it must be above 0{' and below 1' if most == 1 else ''}")
    return CentralDp(float(clip), noise_multiplier, epsilon, delta, quantile, rate, count_noise)


def local_dp(
    clip: float, noise_multiplier: float | None = None, *, epsilon: float | None = None, delta: float = 1e-5
) -> LocalDp:
    """Noise at each site: an update of norm at most `clip` plus N(0, (2 z clip)²), for two updates are 2 clip apart.

    `noise_multiplier` is z, or `epsilon` finds it for all rounds of the run.
    """
    check("local_dp", clip, noise_multiplier, epsilon, delta)
    return LocalDp(float(clip), noise_multiplier, epsilon, delta)


def noise_of(how: Rounds, rounds: int | None) -> float:
    """The noise multiplier of a run of so many rounds."""
    if how.noise_multiplier is not None:
        return float(how.noise_multiplier)
    assert how.epsilon is not None and rounds is not None
    return _noise(float(how.epsilon), rounds, how.delta, how.accountant)


def spent(how: Rounds, rounds: int | None, done: int) -> float:
    """An upper bound of the epsilon that `done` rounds of a run have spent of each site."""
    z = noise_of(how, rounds)
    if not z:
        return math.inf
    found = accounting.composed([Steps(z, 1.0, done)], how.delta, "rdp")
    return min(found, how.epsilon) if how.epsilon is not None and rounds is not None and done <= rounds else found


def noised(algorithm: Algorithm, how: CentralDp | LocalDp, rounds: int | None) -> Algorithm:
    """The same algorithm, whose updates are clipped, and noised where `how` says."""
    if isinstance(how, CentralDp):
        found = transformed(algorithm, _central(how, rounds))
        inner = found.init
        return found._replace(init=lambda params: inner(fit(params)))
    works = {name: _local(work, how, rounds) for name, work in algorithm.works.items()}
    return algorithm._replace(
        works=works, traits=(*algorithm.traits, "noised"), init=lambda params: algorithm.init(fit(params))
    )


# ---- at the server ---------------------------------------------------------------------------------------------------
def _central(how: CentralDp, rounds: int | None) -> Transform:
    adapts = how.quantile is not None

    def encode(update: Update, local: Local, public: State, key: Key) -> tuple[Update, Local]:
        short = clipped(update.params, public["clip"])
        bit = Params({"within": np.float32(norm(update.params) <= public["clip"])})
        told = {TOLD: moments(np.array([spent(how, rounds, round_of(key) + 1)]))}
        return Update(join(u=short, b=bit) if adapts else short, 1.0, told if how.word else {}), local

    def decode(total: Total, state: State, key: Key) -> tuple[Total, State]:
        z, n, model = noise_of(how, rounds), total.count, total.params.part("u") if adapts else total.params
        drawn, clip, done = key(digest(total.params), n), state["clip"], state["done"] + 1
        if rounds is not None and done > rounds:
            raise JobError(f"central_dp: this is the {done}th noised sum of a run of {rounds}: one a round is counted")
        if adapts:
            count_noise = 0.0 if not z else how.count_noise or max(n / SHARE, z)
            z = split_noise(z, count_noise) if z else z
            within = float(total.params["b/within"]) + count_noise / n * float(normals(drawn("count"), 1)[0])
            state = {"clip": clip * math.exp(-how.rate * (within - (how.quantile or 0.0)))}
        model = _noisy(model, z * clip / n, drawn("noise"))
        return total._replace(params=model), {**state, "done": done}

    def returns(spec: Spec) -> Spec:
        if not adapts:
            return spec
        return join(u=_empty(spec), b=_empty(WITHIN)).spec

    return Transform(
        lambda: {"clip": how.clip, "done": 0}, encode, decode, lambda state: {"clip": state["clip"]}, returns,
        traits=("noised", "central", *([] if adapts else [f"clip {how.clip!r}"])),
    )  # fmt: skip


def _empty(spec: Spec) -> Params:
    return Params({leaf.name: np.zeros(leaf.shape, leaf.dtype) for leaf in spec}, {x.name: x.kind for x in spec})


# ---- at a site -------------------------------------------------------------------------------------------------------
def _local(work: Work, how: LocalDp, rounds: int | None) -> Work:
    def working(payload: Params, local: Local, site: SiteContext) -> Any:
        before = hashlib.sha256(frames.pack(local).bytes()).hexdigest()
        local, update = work(payload, local, site)
        if not isinstance(update, Update):
            return local, update
        short, done = clipped(update.params, how.clip), round_of(site.key) + 1
        if rounds is not None and how.epsilon is not None and done > rounds:
            raise JobError(f"local_dp: this is round {done} of a run whose noise was found for {rounds}")
        name = site.secret("local_dp", *site.key.names, digest(payload), digest(short), before)
        model = _noisy(short, 2 * how.clip * noise_of(how, rounds), name)
        return local, Update(model, 1.0, {TOLD: moments(np.array([spent(how, rounds, done)]))})

    return working


# ---- both ------------------------------------------------------------------------------------------------------------
def clipped(params: Params, bound: float) -> Params:
    """Never longer than `bound`, also after rounding to the dtype; an update that is not finite is nothing."""
    found, scale = params, 1.0
    while not (size := norm(found)) <= bound:
        if not math.isfinite(size):
            return params.map(np.zeros_like)
        scale *= bound / size * (1 - 1e-6)
        found = params.map(partial(_scaled, scale))
    return found


def _scaled(scale: float, x: Array) -> Array:
    made: Array = (x.astype(np.float64) * scale).astype(x.dtype)
    return made


def round_of(key: Key) -> int:
    """The round of a Task's key. Raises JobError for a second Task in it, which the accounting does not have."""
    round, task = key.names[1:3]
    if task:
        raise JobError("site-level noise is accounted for one Task a round, and this algorithm has more: take fedavg")
    return int(round)


def _noisy(params: Params, sigma: float, name: Key) -> Params:
    """Noise of that standard deviation in every number, each group's by a name of its own."""
    if not sigma:
        return params
    drawn = {g: (x + sigma * normals(name(g), x.size)).astype(x.dtype) for g, x in params.flats.items()}
    return Params.of(params.spec, drawn)


def fit(params: Params) -> Params:
    """Raises JobError for arrays that no noise protects."""
    odd = [leaf for leaf in params.spec if kind(leaf.group) != "trainable"]
    if odd:
        raise JobError(
            f"array {odd[0].name!r} is {odd[0].kind}, and noise protects trainable arrays alone: take nn.GroupNorm in "
            "place of BatchNorm, or fd.algorithms.fedbn where its arrays stay at the sites"
        )
    return params


@cache
def _noise(epsilon: float, rounds: int, delta: float, accountant: Accountant) -> float:
    return accounting.noise_multiplier(epsilon, 1.0, rounds, delta, accountant)
