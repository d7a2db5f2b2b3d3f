"""Fixed arithmetic: integers known by hand, the printed error bound, and what has no room is refused, never clipped."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus.aggregators import Folding, combine, fixed, mean
from foedus.aggregators.fixed import RING, quantise
from foedus.aggregators.folding import check_room
from foedus.core import Origin, Update
from foedus.errors import FoedusError, Refused
from foedus.params import Params


def site(*values: float, weight: float = 1.0, dtype: Any = np.float32) -> Update:
    return Update(Params({"w": np.array(values, dtype)}), weight)


def test_integers_by_hand() -> None:
    found = quantise(np.float32([0.5, -0.5, 1, -1]), 2.0**-16)
    assert (found % 2**32).tolist() == [32768, 4294934528, 65536, 4294901760]


def test_a_tie_goes_to_the_even_integer() -> None:
    assert quantise(np.float64([0.5, 1.5, 2.5, -0.5]), 1.0).tolist() == [0, 2, 2, 0]


def test_the_weight_scales_before_rounding() -> None:
    assert quantise(np.float32([3.0]), 1.0, 0.5).tolist() == [2]  # 1.5 goes to the even 2


def test_the_grid_by_hand() -> None:
    assert RING == 2147483647
    assert fixed(8.0, 1.0).step(3) == 8.0 / 715827882  # 2147483647 // 3


@pytest.mark.parametrize(("bound", "wmax"), [(0, 1), (1, 0), (-1, 1), (float("inf"), 1), (1, float("nan"))])
def test_bounds_are_positive_and_finite(bound: float, wmax: float) -> None:
    with pytest.raises(FoedusError, match="both must be positive and finite"):
        fixed(bound, wmax)


def test_a_mean_by_hand() -> None:
    found = combine(mean(arithmetic=fixed(4.0, 2.0)), {"a": site(1, -2), "b": site(4, 0, weight=2.0)})
    step = 4.0 / (RING // 2)
    first = Fraction(round(0.5 / step) + round(4 / step)) * Fraction(step) * 2 / 3  # ((1/2) 1 + (2/2) 4) * wmax / 3
    assert found["w"][0] == np.float32(float(first)) == np.float32(3)
    assert found["w"][1] == np.float32(-2 / 3)


@pytest.mark.parametrize(
    ("update", "why"),
    [
        (site(0, 8.1), r"array 'w': 8\.1 is above bound=8; clip, or raise the bound"),
        (site(0, -8.1), r"array 'w': 8\.1 is above bound=8"),
        (site(0, 1, weight=1025), r"weight 1025 is above wmax=1024; raise wmax"),
        (site(0, float("nan")), r"array 'w' holds NaN or Inf"),
        (site(0, float("inf")), r"array 'w' holds NaN or Inf"),
    ],
)
def test_what_has_no_room_is_refused_by_name_and_never_clipped(update: Update, why: str) -> None:
    folding = Folding(mean(arithmetic=fixed(8.0, 1024)), update.params.spec, 2)
    folding.add(site(1, 2), Origin("a", 0, 0))
    with pytest.raises(Refused, match=rf"site 'bad', checking its update: {why}"):
        folding.add(update, Origin("bad", 0, 0))
    assert folding.total().params["w"] == pytest.approx([1, 2], rel=1e-6)


@pytest.mark.parametrize(
    ("update", "why"),
    [
        (site(8.1, 0), r"array 'w': 8\.1 is above bound=8"),
        (site(0, -8.1), r"array 'w': 8\.1 is above bound=8"),
        (site(0, 1, weight=1025), r"weight 1025 is above wmax=1024; raise wmax"),
    ],
)
def test_what_has_no_room_is_found_before_anything_is_added(update: Update, why: str) -> None:
    arithmetic = mean(arithmetic=fixed(8.0, 1024))
    with pytest.raises(Refused, match=rf"site 'bad', checking its update: {why}"):
        check_room(arithmetic, update, "bad", 2)
    check_room(arithmetic, site(8, -8, weight=1024), "good", 2)


def test_the_array_of_another_group_is_named() -> None:
    params = Params({"w": np.float32([7]), "d": np.float64([1, 9]), "e": np.float64([5])})
    with pytest.raises(Refused, match="array 'd': 9 is above"):
        combine(mean(arithmetic=fixed(8.0, 1.0)), {"a": Update(params)})


def test_the_sum_of_the_largest_values_stays_in_the_ring() -> None:
    for asked in (1, 2, 3, 7, 100, 20_000):
        for bound in (1.0, 0.1, 3.3, 1e-20, 1e20):
            step = fixed(bound, 1.0).step(asked)
            for x in (np.float64([bound]), np.float64([-bound])):
                assert abs(int(quantise(x, step)[0])) * asked <= 2**31 - 1


@pytest.mark.properties
@given(seed=st.integers(0, 2**32), sites=st.integers(1, 9), bound=st.floats(1e-3, 1e3))
@settings(max_examples=60)
def test_the_printed_error_bound_holds(seed: int, sites: int, bound: float) -> None:
    rng = np.random.default_rng(seed)
    weights = [float(rng.integers(1, 100)) for _ in range(sites)]
    rows = [rng.uniform(-bound, bound, 20) for _ in range(sites)]
    arithmetic = fixed(bound * 1.01, 100)
    found = combine(
        mean(arithmetic=arithmetic),
        {f"s{i}": site(*x, weight=w, dtype=np.float64) for i, (x, w) in enumerate(zip(rows, weights, strict=True))},
    )
    limit = Fraction(arithmetic.error(sites, sum(weights)))
    for i, got in enumerate(found["w"]):
        exact = sum((Fraction(w) * Fraction(x[i]) for w, x in zip(weights, rows, strict=True)), Fraction())
        error = abs(Fraction(float(got)) - exact / Fraction(sum(weights)))
        assert error <= limit * Fraction(1 + 1e-9) + Fraction(1e-15 * bound)  # and the rounding of the last float64


def test_the_error_bound_by_hand() -> None:
    # 3 sites, each off by at most step / 2 in units of wmax = 10; together they weigh 6.
    assert fixed(1.0, 10.0).error(3, 6.0) == pytest.approx(3 * (1 / (RING // 3)) / 2 * 10 / 6)


def test_it_needs_the_number_of_sites_asked() -> None:
    unbound = mean(arithmetic=fixed(1.0, 1.0))
    assert unbound.bind is not None and unbound.ring is None
    with pytest.raises(FoedusError, match=r"call bind\(n\) first"):
        unbound.fold(None, {"float32": np.zeros(1, np.float32)}, 1.0)
    assert unbound.bind(3).ring == (fixed(1.0, 1.0), 3)


def test_the_grid_is_that_of_the_sites_asked_not_of_those_that_came() -> None:
    asked = Folding(mean(arithmetic=fixed(1.0, 1.0)), site(0).params.spec, 1000)
    asked.add(site(1 / 3), Origin("a", 0, 0))
    step = fixed(1.0, 1.0).step(1000)
    assert asked.total().params["w"][0] == np.float32(round(float(np.float32(1 / 3)) / step) * step)
