"""What a privacy costs and buys, by dp-accounting: epsilon, noise multipliers, the analytic Gaussian mechanism.
Only errors may come in; the library comes in when a number is asked for.

One step is the Gaussian mechanism on a sum to which each record (or site) adds at most the clip, on a sample to which
each belongs by itself with `sampling_rate` (Poisson; 1: everybody in each step). Neighbours differ by one of them,
there or not there. `noise_multiplier` is the noise's standard deviation over the clip.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from foedus.errors import FoedusError, JobError, explained

if TYPE_CHECKING:
    import dp_accounting

Accountant = Literal["rdp", "pld"]


class Noise(Protocol):
    """What is said of any noise."""

    @property
    def clip(self) -> float: ...
    @property
    def noise_multiplier(self) -> float | None: ...
    @property
    def epsilon(self) -> float | None: ...
    @property
    def delta(self) -> float: ...


class Steps(NamedTuple):
    """Steps of one kind, one after another."""

    noise_multiplier: float
    sampling_rate: float
    steps: int


def check(name: str, clip: float, noise: float | None, epsilon: float | None, delta: float) -> None:
    """Raises JobError for numbers that say no noise, or two."""
    if (noise is None) == (epsilon is None):
        raise JobError(f"{name}: give noise_multiplier=…, or epsilon=… from which it is found, and not both")
    for what, value in (("clip", clip), ("epsilon", epsilon)):
        if value is not None and not 0 < value < math.inf:
            raise JobError(f"{name}({what}={value!r}): it must be positive and finite")
    if noise is not None and not 0 <= noise < math.inf:
        raise JobError(f"{name}(noise_multiplier={noise!r}): it must be positive, or 0 to compare without noise")
    if not 0 < delta < 1:
        raise JobError(f"{name}(delta={delta!r}): it must be in (0, 1), and below one over the protected; such as 1e-5")


def goal(how: Noise) -> str:
    """What is said of a noise: its epsilon, or its multiplier."""
    goal = f"epsilon {how.epsilon:g}" if how.epsilon is not None else f"noise multiplier {how.noise_multiplier:g}"
    return f"{goal} at delta {how.delta:g}"


def epsilon(
    noise_multiplier: float, sampling_rate: float, steps: int, delta: float, accountant: Accountant = "pld"
) -> float:
    """The epsilon that `steps` steps spend at `delta`; `pld` is the tight one, `rdp` what most papers report.

    Abadi et al. 2016; Mironov et al. 2019 (rdp); Koskela et al. 2020 and Doroshenko et al. 2022 (pld).
    """
    return composed([Steps(noise_multiplier, sampling_rate, steps)], delta, accountant)


def composed(spent: Iterable[Steps], delta: float, accountant: Accountant = "pld") -> float:
    """The epsilon at `delta` of all these steps together, one after another; 0 of none."""
    together = Counter[tuple[float, float]]()
    for noise, rate, steps in spent:
        _check(sampling_rate=rate, steps=steps, delta=delta, noise_multiplier=noise)
        together[noise, rate] += steps
    with _quiet():
        found = _accountant(accountant)
        for (noise, rate), steps in together.items():
            found.compose(_event(noise, rate, steps))
        return float(found.get_epsilon(delta)) if together else 0.0


def noise_multiplier(
    epsilon: float, sampling_rate: float, steps: int, delta: float, accountant: Accountant = "pld"
) -> float:
    """The least noise multiplier, to 1e-4, with which `steps` steps stay within (epsilon, delta)."""
    _accountant(accountant)
    _check(sampling_rate=sampling_rate, steps=steps, delta=delta, epsilon=epsilon)
    with _quiet():
        loose = _calibrated("rdp", (epsilon, sampling_rate, steps, delta), 0.0, 1.0)
        if accountant == "rdp":
            return loose
        return _calibrated(accountant, (epsilon, sampling_rate, steps, delta), loose / 4, loose)


def analytic_gaussian_sigma(epsilon: float, delta: float, sensitivity: float = 1.0) -> float:
    """The least standard deviation of one Gaussian release of that L2 sensitivity (Balle and Wang 2018)."""
    _check(delta=delta, epsilon=epsilon, sensitivity=sensitivity)
    return float(_library().get_sigma_gaussian(epsilon, delta)) * sensitivity


def analytic_gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The epsilon of one Gaussian release of that noise over its L2 sensitivity (Balle and Wang 2018, theorem 8)."""
    _check(delta=delta, noise_multiplier=noise_multiplier)
    return float(_library().get_epsilon_gaussian(noise_multiplier, delta))


def split_noise(noise_multiplier: float, count_sigma: float) -> float:
    """The updates' noise multiplier where adaptive clipping spends a part of `noise_multiplier` on its count.

    z_Δ = (z⁻² − (2 σ_b)⁻²)^(−1/2) (Andrew et al. 2021, theorem 1): noise `count_sigma` on the count of updates within
    the clip and z_Δ on their sum cost together what z costs alone. FoedusError where the count leaves nothing.
    """
    _check(noise_multiplier=noise_multiplier, count_sigma=count_sigma)
    left = noise_multiplier**-2 - (2 * count_sigma) ** -2
    if left <= 0:
        least = noise_multiplier / 2
        raise FoedusError(
            f"a count with noise {count_sigma:g} spends all of noise multiplier {noise_multiplier:g}: "
            f"take count_sigma above {least:g}"
        )
    return float(left**-0.5)


def _calibrated(name: Accountant, goal: tuple[float, float, int, float], low: float, guess: float) -> float:
    epsilon, rate, steps, delta = goal
    dp = _library()
    start = dp.LowerEndpointAndGuess(low, guess)
    events = partial(_event, rate=rate, steps=steps)
    found = dp.calibrate_dp_mechanism(lambda: _accountant(name), events, epsilon, delta, start, tol=1e-4)
    return float(found)


def _event(noise: float, rate: float, steps: int) -> dp_accounting.DpEvent:
    dp = _library()
    step: Any = dp.GaussianDpEvent(noise)
    sampled = step if rate == 1 else dp.PoissonSampledDpEvent(rate, step)
    return dp.SelfComposedDpEvent(sampled, steps)


def _accountant(name: Accountant) -> Any:
    dp = _library()
    if name not in ("rdp", "pld"):
        raise FoedusError(f"accountant={name!r}: it is 'rdp' or 'pld'")
    return dp.rdp.RdpAccountant() if name == "rdp" else dp.pld.PLDAccountant()


def _library() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise explained(error) from error
    return dp_accounting


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what the library logs of orders that it leaves out: the bound holds without them."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _check(**given: float) -> None:
    for name, value in given.items():
        whole = name != "steps" or (isinstance(value, int) and not isinstance(value, bool))
        most = {"sampling_rate": 1.0, "delta": 1.0}.get(name, math.inf)
        good = whole and 0 < value <= most and math.isfinite(value) and not (name == "delta" and value == 1)
        if not good:
            said = {"sampling_rate": "in (0, 1]; 1: everybody in each step", "delta": "in (0, 1), for example 1e-5"}
            raise FoedusError(f"{name}={value!r}: it must be {said.get(name, 'positive and finite')}")
