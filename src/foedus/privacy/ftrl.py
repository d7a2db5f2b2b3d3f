"""Correlated noise at the server: a part of each round's noise is taken back in later ones (DP-FTRL).
The contract and accounting may come in; the server keeps the secret that names the noise, and the noise that it owes.

The sums of all rounds are one release S + C⁻¹Z, Z Gaussian (Denisov et al. 2022): what training adds up has less noise
than by independent rounds at the same epsilon. C is lower-triangular, each diagonal of one number, of which the first
`bands` are those of the square root of the matrix of prefix sums, 1, 1/2, 3/8, … (Kalinin and Lampert 2024). A site
takes part at most once in `separation` rounds; then its part in C S is no longer than clip times the norm of the sum of
C's columns 1, 1 + separation, … (their theorem 2), whatever its updates are. No sampling is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from foedus.core import Algorithm, Local, State, Total, Transform, Update
from foedus.errors import JobError
from foedus.keys import Key
from foedus.metrics import moments
from foedus.params import Params, digest
from foedus.privacy import accounting
from foedus.privacy.accounting import check, goal
from foedus.privacy.dp_sgd import TOLD
from foedus.privacy.keystream import normals
from foedus.privacy.site_level import clipped, fit, round_of
from foedus.transforms.chain import transformed


class DpFtrl(NamedTuple):
    """What a Job says of correlated noise at the server; see `dp_ftrl`."""

    clip: float
    noise_multiplier: float | None
    epsilon: float | None
    delta: float
    separation: int
    bands: int

    @property
    def word(self) -> str:
        """What a submission signs."""
        return "dp_ftrl" if self.noise_multiplier != 0 else ""

    def said(self, traits: Sequence[str] = ()) -> str:
        """What is told of it when a run begins."""
        return (
            f"dp_ftrl: each site's update is clipped to {self.clip:g}, all count alike, a site takes part once in "
            f"{self.separation} rounds at most, the server adds noise to their mean, correlated over {self.bands} "
            f"rounds: {goal(self)} over the whole run for each site; the server itself sees updates without noise"
        )


def dp_ftrl(
    clip: float,
    noise_multiplier: float | None = None,
    *,
    epsilon: float | None = None,
    delta: float = 1e-5,
    separation: int = 1,
    bands: int | None = None,
) -> DpFtrl:
    """Noise at the server that is correlated over rounds, for sites that take part once in `separation` rounds.

    `noise_multiplier` is that of the whole run, as of one release; or `epsilon` finds it. `bands` (None: `separation`)
    is how many rounds are correlated: so many models less one are kept. With one band this is independent noise.
    """
    check("dp_ftrl", clip, noise_multiplier, epsilon, delta)
    for name, value in (("separation", separation), ("bands", bands)):
        if value is not None and (type(value) is not int or value < 1):
            raise JobError(f"dp_ftrl({name}={value!r}): a whole number of rounds, 1 or more")
    return DpFtrl(float(clip), noise_multiplier, epsilon, delta, separation, bands or separation)


def coefficients(bands: int) -> list[float]:
    """The first numbers of the square root: binomial(2j, j) / 4^j."""
    found = [1.0]
    for j in range(1, bands):
        found.append(found[-1] * (2 * j - 1) / (2 * j))
    return found


def sensitivity(rounds: int, separation: int, bands: int) -> float:
    """The norm of the sum of C's columns 1, 1 + separation, … of so many rounds, for updates of norm 1."""
    column, rows = np.array(coefficients(min(bands, rounds))), np.zeros(rounds)
    for first in range(0, rounds, separation):
        part = rows[first : first + len(column)]
        part += column[: len(part)]
    return float(np.linalg.norm(rows))


def noise_of(how: DpFtrl) -> float:
    """The noise multiplier of the whole run, as of one release."""
    if how.noise_multiplier is not None:
        return float(how.noise_multiplier)
    assert how.epsilon is not None
    return accounting.analytic_gaussian_sigma(how.epsilon, how.delta)


def spent(how: DpFtrl, rounds: int, done: int) -> float:
    """An upper bound of the epsilon that the first `done` rounds of a run have spent of each site."""
    z = noise_of(how)
    if not z:
        return math.inf
    if done == rounds and how.epsilon is not None:
        return how.epsilon
    now = z * sensitivity(rounds, how.separation, how.bands) / sensitivity(done, how.separation, how.bands)
    found = accounting.analytic_gaussian_epsilon(now, how.delta)
    return found if how.epsilon is None else min(found, how.epsilon)


def noised(algorithm: Algorithm, how: DpFtrl, rounds: int | None) -> Algorithm:
    """The same algorithm, whose updates are clipped, and its sums noised at the server."""
    found = transformed(algorithm, _correlated(how, rounds or 1))  # a Job without rounds is refused
    inner = found.init
    return found._replace(init=lambda params: inner(fit(params)))


def _correlated(how: DpFtrl, rounds: int) -> Transform:
    past = coefficients(how.bands)[1:]
    size = sensitivity(rounds, how.separation, how.bands)

    def encode(update: Update, local: Local, public: State, key: Key) -> tuple[Update, Local]:
        done = round_of(key) + 1
        _within(done, rounds)
        told = {TOLD: moments(np.array([spent(how, rounds, done)]))} if how.word else {}
        return Update(clipped(update.params, how.clip), 1.0, told), local

    def decode(total: Total, state: State, key: Key) -> tuple[Total, State]:
        _within(state["done"] + 1, rounds)
        counted = [outcome.site for outcome in total.outcomes if outcome.status == "counted"]
        _apart(counted, state["recent"], how.separation)
        fresh, owed = key(digest(total.params), total.count), state["noises"]
        sigma, made = noise_of(how) * size * how.clip, {}
        for group, x in total.params.flats.items():
            made[group] = sigma * normals(fresh(group), x.size)
            for share, older in zip(past, owed, strict=False):
                made[group] -= share * older[group]
        flats = {group: (x + made[group] / total.count).astype(x.dtype) for group, x in total.params.flats.items()}
        recent = [counted, *state["recent"]][: how.separation - 1]
        after = {"done": state["done"] + 1, "recent": recent, "noises": [made, *owed][: how.bands - 1]}
        return total._replace(params=Params.of(total.params.spec, flats)), after

    return Transform(
        lambda: {"done": 0, "recent": [], "noises": []}, encode, decode, lambda state: {}, lambda spec: spec,
        traits=("noised", "central", f"clip {how.clip!r}"),
    )  # fmt: skip


def _within(done: int, rounds: int) -> None:
    if done > rounds:
        raise JobError(f"dp_ftrl: this is round {done} of a run whose noise was found for {rounds}")


def _apart(counted: Sequence[str], recent: Sequence[Sequence[str]], separation: int) -> None:
    """Raises JobError for a site that was counted within the last rounds, for which the accounting has no room."""
    for age, sites in enumerate(recent, 1):
        if again := sorted(set(counted) & set(sites)):
            raise JobError(
                f"dp_ftrl(separation={separation}): {again[0]} takes part again after {age} round(s): ask by "
                f"cohort=fd.participation.in_turns({separation}), or lower separation=…"
            )
