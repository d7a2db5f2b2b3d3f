"""Secret sharing: the published answers, any t shares, and that fewer fit every secret equally well."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foedus.errors import FoedusError
from foedus.privacy.shamir import PRIME, combine, evaluate, split, split_at

SECRET = int.from_bytes(bytes(range(32)), "little")


def test_the_prime_is_the_one_above_two_to_the_256() -> None:
    assert PRIME == 2**256 + 297
    assert pow(3, PRIME - 1, PRIME) == 1 and all(PRIME % p for p in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31))


def test_a_polynomial_by_hand() -> None:
    shares = evaluate([SECRET, 7, 11], [1, 2, 3, 10])
    assert shares == [(1, SECRET + 18), (2, SECRET + 14 + 44), (3, SECRET + 21 + 99), (10, SECRET + 70 + 1100)]
    assert all(combine(three) == SECRET for three in combinations(shares, 3))
    assert combine(reversed(shares)) == SECRET


def test_the_polynomial_wraps_at_the_prime() -> None:
    assert evaluate([PRIME - 1, 5], [1]) == [(1, 4)]


@pytest.mark.properties
@given(st.integers(0, 2**256 - 1), st.integers(1, 9), st.data())
def test_any_t_shares_give_the_secret_back(secret: int, n: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(1, n))
    shares = split(secret, n, t)
    assert [x for x, _ in shares] == list(range(1, n + 1)) and all(0 <= y < PRIME for _, y in shares)
    chosen = data.draw(st.permutations(shares))
    assert combine(chosen[:t]) == combine(chosen) == secret


@pytest.mark.properties
@given(st.lists(st.integers(1, 2**16), min_size=1, max_size=8, unique=True), st.data())
def test_the_value_at_zero_is_that_of_plain_rational_interpolation(places: list[int], data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 2**20), min_size=len(places), max_size=len(places)))
    slow = Fraction(0)
    for x, y in zip(places, values, strict=True):
        term = Fraction(y)
        for other in places:
            if other != x:
                term *= Fraction(other, other - x)
        slow += term
    assert combine(zip(places, values, strict=True)) * slow.denominator % PRIME == slow.numerator % PRIME


def test_fewer_shares_fit_any_secret() -> None:
    """With t - 1 shares and any guess there is a polynomial of the right degree: nothing was learnt."""
    shares = split(SECRET, n=5, t=3)[:2]
    for guess in (0, 1, SECRET, 2**256 - 1):
        at_three = _through([(0, guess), *shares], 3)
        assert combine([*shares, (3, at_three)]) == guess


def _through(points: list[tuple[int, int]], at: int) -> int:
    """The value at `at` of the polynomial through the points, slowly."""
    total = 0
    for x, y in points:
        top = bottom = 1
        for other, _ in points:
            if other != x:
                top, bottom = top * (at - other), bottom * (x - other)
        total += y * top * pow(bottom, -1, PRIME)
    return total % PRIME


def test_two_splits_of_one_secret_have_nothing_in_common() -> None:
    assert not set(split(SECRET, 5, 3)) & set(split(SECRET, 5, 3))


@pytest.mark.parametrize(("n", "t"), [(3, 4), (3, 0), (0, 0)])
def test_an_impossible_threshold_is_refused(n: int, t: int) -> None:
    with pytest.raises(FoedusError, match="1 <= t <= n"):
        split(1, n, t)


@pytest.mark.parametrize("secret", [-1, PRIME])
def test_a_number_that_is_no_secret_is_refused_and_not_repeated(secret: int) -> None:
    with pytest.raises(FoedusError, match="256 bits") as error:
        split_at(secret, [1], 1)
    assert str(secret) not in str(error.value)


@pytest.mark.parametrize("shares", [[], [(1, 5), (1, 5)], [(0, 5)], [(PRIME, 5)]])
def test_shares_without_places_of_their_own_are_refused(shares: list[tuple[int, int]]) -> None:
    with pytest.raises(FoedusError, match="a place of its own"):
        combine(shares)
