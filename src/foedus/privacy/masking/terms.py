"""What one sealed Task is about, as all who take part must see it: where two see it differently, masks do not cancel.
Names and digests come in; who is right about them is for each site to know.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import lru_cache
from typing import NamedTuple

from foedus.errors import FoedusError
from foedus.privacy.secagg import majority

WHOLE = 64  # up to here each site shares with all others
SAFE = 2.0**-44  # the chance, for all sites together, that a site picks so many of a colluding third
MOST_SITES = 1 << 16  # so that sums of 16-bit limbs have room in 32 bits


class Terms(NamedTuple):
    """`roster` is all sites asked, `model` and `job` are SHA-256 digests (hex) of what the site itself received."""

    run: str
    round: int
    task: int
    attempt: int
    roster: tuple[str, ...]
    model: str
    job: str
    threshold: int

    @property
    def slot(self) -> bytes:
        """32 bytes for run, round, Task, attempt and roster: all that is known when keys are made, a round ahead."""
        return _digest("slot", self[:5])

    @property
    def context(self) -> bytes:
        """32 bytes for all of it: every key of the Task is derived with them."""
        return _digest("context", tuple(self))


def terms(
    run: str,
    round: int,
    task: int,
    attempt: int,
    roster: tuple[str, ...] | list[str],
    model: str,
    job: str,
    threshold: int | None = None,
) -> Terms:
    """The Terms of a Task; `threshold` (None: ⌊2n/3⌋+1) is how many sites must go to the end with it.

    FoedusError for fewer than two sites, and for a lower threshold: two survivor sets could then both find signers.
    """
    names = tuple(sorted(roster))
    least = majority(len(names))
    if len(set(names)) < len(names) or not 2 <= len(names) <= MOST_SITES:
        raise FoedusError(f"a sealed Task asks {len(names)} sites: it needs 2 to {MOST_SITES:,}, each once")
    if threshold is not None and not least <= threshold <= len(names):
        raise FoedusError(f"threshold {threshold} of {len(names)} sites: it must be {least} to {len(names)}")
    return Terms(run, round, task, attempt, names, model, job, threshold or least)


def place(given: Terms, site: str) -> int:
    """The site's place for secret sharing, from 1."""
    return given.roster.index(site) + 1


def holders(given: Terms) -> tuple[int, int]:
    """(others with whom each site shares its secrets, shares that give them back)."""
    others = degree(len(given.roster))
    return others, given.threshold if others == len(given.roster) - 1 else majority(others + 1)


@lru_cache
def degree(asked: int) -> int:
    """How many others each site picks: all up to 64 sites, above them a number that grows with log n (Bell et al.).

    The fewest (even) such that with a chance of 2**-44 no site picks majority - 1 of its holders out of a third of all.
    A site with its neighbours gone is then no way round the masks either: see tests/test_masking_graph.py.
    """
    if asked <= WHOLE:
        return asked - 1
    bad, others = (asked - 1) // 3, asked - 1
    return next(k for k in range(16, asked, 2) if asked * _tail(others, bad, k, majority(k + 1) - 1) <= SAFE)


def _tail(others: int, bad: int, picked: int, least: int) -> float:
    """P[at least `least` of `picked` among `others` are of the `bad` ones]."""
    ways = sum(math.comb(bad, j) * math.comb(others - bad, picked - j) for j in range(least, picked + 1))
    return ways / math.comb(others, picked)


@lru_cache(maxsize=256)
def _digest(what: str, facts: tuple[object, ...]) -> bytes:
    return hashlib.sha256(json.dumps([f"foedus/secagg/1/{what}", *facts]).encode()).digest()
