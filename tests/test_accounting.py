"""What a privacy costs: published epsilons, the analytic Gaussian mechanism, the noise that a clipped count takes."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import pytest

import foedus as fd
from foedus.errors import FoedusError, Missing
from foedus.privacy import analytic_gaussian_sigma, epsilon, noise_multiplier, split_noise

KNOWN = [
    (1.1, 256 / 60000, 14062, 2.596556, 2.381686),
    (1.0, 0.01, 10000, 6.712757, 6.187745),
    (1.0, 1, 1, 4.728507, 4.377178),
]


@pytest.mark.parametrize(("z", "rate", "steps", "rdp", "pld"), KNOWN)
def test_published_epsilons(z: float, rate: float, steps: int, rdp: float, pld: float) -> None:
    assert epsilon(z, rate, steps, 1e-5, accountant="rdp") == pytest.approx(rdp, abs=1e-6)
    assert epsilon(z, rate, steps, 1e-5, accountant="pld") == pytest.approx(pld, abs=1e-6)


@pytest.mark.parametrize(("accountant", "rate", "steps"), [("rdp", 0.1, 100), ("pld", 1, 10)])
def test_the_noise_is_the_least_that_keeps_within_epsilon(accountant: Any, rate: float, steps: int) -> None:
    z = noise_multiplier(2.0, rate, steps, 1e-5, accountant)
    assert epsilon(z, rate, steps, 1e-5, accountant) <= 2.0
    assert epsilon(z - 2e-4, rate, steps, 1e-5, accountant) > 2.0


def test_the_tight_accountant_is_taken_unless_another_is_named() -> None:
    assert epsilon(1.0, 1, 1, 1e-5) == epsilon(1.0, 1, 1, 1e-5, accountant="pld")


def delta_of(sigma: float, spent: float) -> float:
    """Balle and Wang 2018, theorem 8, for sensitivity 1."""
    phi = NormalDist().cdf
    return phi(0.5 / sigma - spent * sigma) - math.exp(spent) * phi(-0.5 / sigma - spent * sigma)


def test_the_analytic_gaussian_mechanism() -> None:
    assert analytic_gaussian_sigma(1.0, 1e-5) == pytest.approx(3.7306316348, abs=1e-6)
    assert analytic_gaussian_sigma(1.0, 1e-5, sensitivity=2.0) == pytest.approx(2 * 3.7306316348, abs=2e-6)
    for spent, delta in ((0.1, 1e-6), (1, 1e-5), (8, 1e-3)):
        assert delta_of(analytic_gaussian_sigma(spent, delta), spent) == pytest.approx(delta, rel=1e-6)


def test_one_step_for_everybody_costs_what_the_mechanism_costs() -> None:
    sigma = analytic_gaussian_sigma(1.0, 1e-5)
    assert epsilon(sigma, 1, 1, 1e-5) == pytest.approx(1.0, abs=1e-3)


def test_the_noise_that_adaptive_clipping_splits() -> None:
    assert split_noise(1.0, 5.0) == pytest.approx(1.005037815259212, abs=1e-15)
    assert split_noise(1.0, 1.0) == pytest.approx(1.1547005383792515, abs=1e-15)


def test_a_count_that_spends_everything_is_refused() -> None:
    with pytest.raises(FoedusError, match=r"take count_sigma above 0\.5"):
        split_noise(1.0, 0.5)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sampling_rate": 0}, "sampling_rate=0: it must be in"),
        ({"sampling_rate": 1.01}, "1: everybody in each step"),
        ({"steps": 0}, "steps=0: it must be positive"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"steps": True}, "steps=True"),
        ({"delta": 0}, "delta=0: it must be in"),
        ({"delta": 1}, "delta=1"),
        ({"noise_multiplier": 0}, "noise_multiplier=0"),
        ({"noise_multiplier": math.inf}, "noise_multiplier=inf"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan"),
        ({"accountant": "moments"}, "accountant='moments': it is 'rdp' or 'pld'"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(FoedusError, match=why):
        epsilon(**{"noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": 10, "delta": 1e-5} | change)


def test_the_same_numbers_are_reached_as_fd_privacy() -> None:
    assert fd.privacy.split_noise is split_noise and fd.privacy.epsilon is epsilon
    assert fd.privacy.shamir.combine(fd.privacy.shamir.split(5, 3, 2)) == 5
    with pytest.raises(AttributeError, match=r"foedus\.privacy has no 'epsilonn'"):
        fd.privacy.epsilonn  # noqa: B018


def test_without_the_library_the_pip_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(Missing, match=r"pip install 'foedus\[privacy\]'"):
        epsilon(1.0, 0.1, 10, 1e-5)
