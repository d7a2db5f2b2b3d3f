"""Random numbers that only who has the key can tell: an AES-256-CTR keystream as words, normals and Poisson samples.
Only keys may come in; the cipher is imported when numbers are asked for.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from foedus.keys import Key

Array = np.ndarray[Any, np.dtype[Any]]
BLOCK = 1 << 18  # normals made at once
TAIL = 12  # sigmas within which a discrete normal is: beyond lie 2^-107
SUMMED = 4  # normals that each one is made of


def words(key: Key, count: int) -> Array:
    """`count` uint64: the keystream of AES-256-CTR under `key.digest()`, from block 0, as little-endian words."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    stream = Cipher(algorithms.AES(key.digest()), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(stream.update(bytes(8 * count)), "<u8")


def normals(key: Key, count: int) -> Array:
    """`count` standard normals, float64, each half the sum of four by Box and Muller.

    One alone would show in its last bits which sums it may have been added to (Mironov 2012); of four that cannot be
    told in any time that matters (Holohan and Braghin 2021).
    """
    blocks = [_block(key(i), min(BLOCK, count - at)) for i, at in enumerate(range(0, count, BLOCK))]
    return np.concatenate(blocks) if blocks else np.zeros(0)


def discrete_normals(key: Key, count: int, sigma: float) -> Array:
    """`count` int64, each k with probability in proportion to exp(-k² / (2 sigma²)), within TAIL sigma.

    By a table of 128 bits: from the law that has no such end each is within 2^-105 in total variation.
    """
    high, low = _edges(float(sigma))
    blocks = [_looked_up(key(i), min(BLOCK, count - at), high, low) for i, at in enumerate(range(0, count, BLOCK))]
    return np.concatenate(blocks) - len(high) // 2 if blocks else np.zeros(0, np.int64)


def poisson(key: Key, records: int, expected: int) -> Array:
    """Which of `records` are in a sample that each joins by itself with probability `expected` / `records`, at most 1.

    The probability is rounded down to a multiple of 2^-64.
    """
    if expected >= records:
        return np.arange(records)
    return np.flatnonzero(words(key, records) < np.uint64((expected << 64) // records))


def _looked_up(key: Key, count: int, high: Array, low: Array) -> Array:
    """How many of the table's edges are not above a number of 128 bits."""
    first, rest = words(key, 2 * count).reshape(2, count)
    found = np.searchsorted(high, first, side="right")
    for i in np.flatnonzero(high[found - 1] == first):  # once in 2^50 numbers
        while found[i] and high[found[i] - 1] == first[i] and low[found[i] - 1] > rest[i]:
            found[i] -= 1
    return found


@lru_cache(8)
def _edges(sigma: float) -> tuple[Array, Array]:
    """The upper halves and the lower ones of 2^128 P[X <= k], for k from -TAIL sigma on, without the last."""
    most = int(TAIL * sigma)
    with localcontext(prec=60):
        twice = 2 * Decimal(sigma) ** 2
        half = [(-(Decimal(k) ** 2) / twice).exp() for k in range(most + 1)]
        total = 2 * sum(half) - half[0]
        edges = [int(x / total * 2**128) for x in accumulate(half[:0:-1] + half[:-1])]
    return np.array([x >> 64 for x in edges], "u8"), np.array([x & (2**64 - 1) for x in edges], "u8")


def _block(key: Key, count: int) -> Array:
    half = -(-count // 2)
    lengths, angles = (words(key, 2 * SUMMED * half) >> np.uint64(11)).reshape(2, SUMMED, half)
    radius = np.sqrt(-2 * np.log((lengths + 1) * 2.0**-53))
    turn = 2 * np.pi * (angles * 2.0**-53)
    drawn: Array = np.concatenate([(radius * f(turn)).sum(0) for f in (np.cos, np.sin)])[:count] / np.sqrt(SUMMED)
    return drawn
