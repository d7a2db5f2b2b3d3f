"""How many others each site picks above 64: a bound on all ways round the masks, computed apart from the formula.

A server that colludes with a third of the sites may let any others be lost, once it knows the graph. It wins if some
honest sites S are left, with honest survivors R outside with whom none of them has a mask in common: it then learns the
sum of S alone. For each site in S a majority of its holders must have answered for its seed, so all of these but itself
are in S or collude. Summed over all S (and, where that says too little, all R), that has a chance below 2**-40.
"""

from __future__ import annotations

import math

import pytest

from foedus.privacy.masking.terms import degree, majority

NEVER = -math.inf


def ways(n: int, k: int) -> float:
    """log2 of n choose k."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2) if 0 <= k <= n else NEVER


def added(logs: list[float]) -> float:
    most = max(logs, default=NEVER)
    return most if most == NEVER else most + math.log2(sum(2 ** (x - most) for x in logs))


def picks(n: int, k: int, inside: int, outside: int) -> float:
    """log2 P[of k picked among n - 1 others, all but one of a majority of k + 1 are `inside` and none `outside`]."""
    rest = n - 1 - inside - outside
    terms = [ways(inside, j) + ways(rest, k - j) - ways(n - 1, k) for j in range(majority(k + 1) - 1, k + 1)]
    return min(0.0, added(terms))


def cut_off(n: int, k: int) -> float:
    liars, logs = (n - 1) // 3, list[float]()
    honest, survivors = n - liars, majority(n) - liars
    for s in range(1, honest // 2 + 1):
        alone = ways(honest, s) + s * picks(n, k, s - 1 + liars, 0)
        if alone > -60:
            apart = [
                ways(honest, h) + ways(h, s) + s * picks(n, k, s - 1 + liars, h - s)
                + (h - s) * picks(n, k, h - s - 1 + liars, s)
                for h in range(max(survivors, 2 * s), honest + 1)
            ]  # fmt: skip
            alone = min(alone, added(apart))
        logs.append(alone)
    return added(logs)


@pytest.mark.parametrize("n", [65, 80, 100, 200, 400])
def test_a_colluding_third_finds_no_way_round_the_masks(n: int) -> None:
    assert cut_off(n, degree(n)) < -40


def test_the_degree_grows_with_the_logarithm() -> None:
    found = {n: degree(n) for n in (65, 100, 200, 400, 1000)}
    assert all(k % 2 == 0 and k < n for n, k in found.items())
    assert found[1000] < 2 * found[200] and found[1000] <= 150
