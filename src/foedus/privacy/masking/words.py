"""An update as words of the ring Z_2^32, in the `fixed` arithmetic, its weight behind it; and their sum as arrays.
A Sum that is bound to the sites asked comes in; whether the words are masked makes no difference to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from foedus.core import Slice, Sum
from foedus.errors import FoedusError
from foedus.params import Array

LIMBS = 10  # words behind the arrays: the weight in units of 2**-92, sixteen bits a word
UNIT = 92  # weights are 2**-64 to 2**64 and have 29 significant bits
COLUMNS = 1 << 15


def encode(rule: Sum, part: Slice, weight: float) -> Array:
    """The words of an update, group after group, and of its weight; uint32, little endian.

    OutOfBound for a value or weight that the ring has no room for, FoedusError for a weight of too many bits.
    """
    if rule.ring is None:
        raise FoedusError("only sums in fixed arithmetic can be masked: take mean(arithmetic=fixed(bound, wmax))")
    rule.fold(None, {group: x[:0] for group, x in part.items()}, weight)  # a weight that has no room, and no arrays
    words = np.empty(sum(x.size for x in part.values()) + LIMBS, "<u4")
    at = 0
    for group, x in part.items():
        for start in range(0, x.size, COLUMNS):
            (q,) = rule.fold(None, {group: x[start : start + COLUMNS]}, weight).values()
            words[at : at + q.size] = q.astype(np.uint32)
            at += q.size
    words[at:] = limbs(_units(weight))
    return words


def decode(rule: Sum, sizes: Mapping[str, tuple[str, int]], words: Array) -> tuple[dict[str, Array], Fraction]:
    """(what `rule.finish` takes, the sum of the weights), of the sum of words; `sizes`: group -> (dtype, length).

    FoedusError where the length is another one.
    """
    total = sum(size for _, size in sizes.values()) + LIMBS
    if words.shape != (total,) or words.dtype != np.dtype("<u4"):
        raise FoedusError(f"a sum of words of shape {words.shape}, {words.dtype}: it has {total:,} words of 32 bits")
    acc, at = {}, 0
    for group, (dtype, size) in sizes.items():
        (name,) = rule.fold(None, {group: np.empty(0, dtype)}, 0.0)
        acc[name] = words[at : at + size].view("<i4").astype(np.int64)
        at += size
    return acc, Fraction(joined(words[at:]), 1 << UNIT)


def limbs(number: int) -> Array:
    """A whole number of up to 160 bits, sixteen bits a word, lowest first."""
    return np.frombuffer(number.to_bytes(2 * LIMBS, "little"), "<u2").astype("<u4")


def joined(sums: Array) -> int:
    """The sum of the numbers whose limbs were added up, of at most 65,536 of them."""
    return sum(int(limb) << (16 * i) for i, limb in enumerate(sums))


def _units(weight: float) -> int:
    units = Fraction(weight) * (1 << UNIT)
    if units.denominator != 1 or not 0 < units < 1 << (16 * LIMBS):
        raise FoedusError("the weight has no room: it must be positive, with at most 29 significant bits")
    return int(units)
