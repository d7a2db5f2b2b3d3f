"""Random numbers that only who has the key can tell: an AES-256-CTR keystream as words, normals and Poisson samples.
Only keys may come in; the cipher is imported when numbers are asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from foedus.keys import Key

Array = np.ndarray[Any, np.dtype[Any]]
BLOCK = 1 << 18  # normals made at once
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


def poisson(key: Key, records: int, expected: int) -> Array:
    """Which of `records` are in a sample that each joins by itself with probability `expected` / `records`, at most 1.

    The probability is rounded down to a multiple of 2^-64.
    """
    if expected >= records:
        return np.arange(records)
    return np.flatnonzero(words(key, records) < np.uint64((expected << 64) // records))


def _block(key: Key, count: int) -> Array:
    half = -(-count // 2)
    lengths, angles = (words(key, 2 * SUMMED * half) >> np.uint64(11)).reshape(2, SUMMED, half)
    radius = np.sqrt(-2 * np.log((lengths + 1) * 2.0**-53))
    turn = 2 * np.pi * (angles * 2.0**-53)
    drawn: Array = np.concatenate([(radius * f(turn)).sum(0) for f in (np.cos, np.sin)])[:count] / np.sqrt(SUMMED)
    return drawn
