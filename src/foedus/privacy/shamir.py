"""Shamir's secret sharing (1979) of 256-bit secrets, over the prime field of 2**256 + 297.
Only errors may come in. Python's integers take time that depends on their values: keep other users off the machine.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

from foedus.errors import FoedusError

PRIME = 2**256 + 297  # the first above 2**256, so that every 32 bytes are a secret
Share = tuple[int, int]  # a place x, and the polynomial's value there


def split(secret: int, n: int, t: int) -> list[Share]:
    """`n` shares at x = 1 … n: any `t` of them give the secret back, fewer say nothing about it.

    >>> combine(split(7, n=5, t=3)[2:])
    7
    """
    if not 1 <= t <= n:
        raise FoedusError(f"splitting a secret into {n} shares of which {t} are needed: give 1 <= t <= n")
    return split_at(secret, range(1, n + 1), t)


def split_at(secret: int, places: Iterable[int], t: int) -> list[Share]:
    """The shares at these places, which are different and not 0."""
    if not 0 <= secret < PRIME:
        raise FoedusError("this secret has more than 256 bits: share a key that encrypts it")
    return evaluate([secret, *(secrets.randbelow(PRIME) for _ in range(t - 1))], places)


def evaluate(coefficients: Sequence[int], places: Iterable[int]) -> list[Share]:
    """The polynomial of these coefficients, lowest first, at each place."""
    found = []
    for x in places:
        y = 0
        for coefficient in reversed(coefficients):
            y = (y * x + coefficient) % PRIME
        found.append((x, y))
    return found


def combine(shares: Iterable[Share]) -> int:
    """The secret: the value at 0 of the polynomial through these shares. Too few, or a false one, give another number.

    Raises FoedusError where a place comes twice or is none.
    """
    given = sorted(shares)
    places = [x for x, _ in given]
    if not given or len(set(places)) < len(places) or not all(0 < x < PRIME for x in places):
        raise FoedusError("combining shares: each needs a place of its own above 0, and there must be at least one")
    return sum(y * weight for (_, y), weight in zip(given, _weights(places), strict=True)) % PRIME


def _weights(places: Sequence[int]) -> list[int]:
    """Lagrange's weights at 0: the product of x_j / (x_j - x_i) over all j but i; one inversion for all of them."""
    tops, bottoms = [], []
    for x in places:
        top = bottom = 1
        for other in places:
            if other != x:
                top, bottom = top * other, bottom * (other - x)
        tops.append(top % PRIME)
        bottoms.append(bottom % PRIME)
    return [top * inverse % PRIME for top, inverse in zip(tops, _inverses(bottoms), strict=True)]


def _inverses(numbers: Sequence[int]) -> list[int]:
    """All inverses at the price of one (Montgomery 1987)."""
    products = [1]
    for number in numbers:
        products.append(products[-1] * number % PRIME)
    rest = pow(products[-1], -1, PRIME)
    found = []
    for number, before in zip(reversed(numbers), reversed(products[:-1]), strict=True):
        found.append(rest * before % PRIME)
        rest = rest * number % PRIME
    return found[::-1]
