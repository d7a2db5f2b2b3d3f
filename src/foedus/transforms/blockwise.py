"""Whole numbers and a factor for each block: int8 and int4 (8-bit Optimizers via Block-wise Quantization, Dettmers et
al. 2022, section 2.1, with a linear map). Arrays and the contract may come in."""

from __future__ import annotations

from functools import partial

import numpy as np

from foedus.core import Transform
from foedus.errors import JobError
from foedus.keys import Key
from foedus.params import DTYPES, Array, Spec
from foedus.transforms.packing import ROUNDING, STEP, Codec, Parts, compression, part, scales, size, zeros

NIBBLE = 7  # the largest level that has room in half a byte


def int8(block: int = 256) -> Transform:
    """A byte a number: the nearest of 255 levels between -m and m, where m is the largest magnitude of its block.

    No number changes by more than m / 254. Each block of numbers, across arrays, sends a factor of four bytes beside.
    """
    return _nearest(127, block)


def int4(block: int = 64) -> Transform:
    """Half a byte a number: the nearest of 15 levels; no number changes by more than m / 14."""
    return _nearest(NIBBLE, block)


def _nearest(most: int, block: int) -> Transform:
    def pack(x: Array, leaves: Spec, key: Key, kept: Parts) -> Parts:
        wide = x.astype(np.float64)
        step = (np.maximum.reduceat(np.abs(wide), np.arange(0, len(x), block)) / most).astype(scales(leaves))
        return packed(np.rint(wide / spread(np.where(step > 0, step, 1), block, len(x))), step, most)

    return compression(levelled(pack, most, block, 1), (ROUNDING,))


def levelled(pack: object, most: int, block: int, whole: int) -> Codec:
    """The Codec whose parts are `levels` in [-most, most] and a `scale` for each block; `whole` levels make a scale."""
    if isinstance(block, bool) or not isinstance(block, int) or block < 2 or block % 2:
        raise JobError(f"a block of {block!r} numbers: it is an even whole number from 2 on")
    return Codec(partial(_parts, most, block), pack, partial(_unpack, most, block, whole))  # type: ignore[arg-type]


def packed(levels: Array, scale: Array, most: int) -> Parts:
    """The parts; two levels share a byte where they have room."""
    whole = np.clip(levels, -most, most).astype(np.int8)
    if most > NIBBLE:
        return {"levels": whole, "scale": scale}
    pairs = np.zeros((len(whole) + 1) // 2 * 2, np.uint8)
    pairs[: len(whole)] = (whole + 8).view(np.uint8)
    return {"levels": pairs[::2] | pairs[1::2] << 4, "scale": scale}


def spread(scale: Array, block: int, count: int) -> Array:
    """The scale of each number, float64."""
    return np.repeat(scale.astype(np.float64), block)[:count]


def _parts(most: int, block: int, leaves: Spec) -> Spec:
    count = size(leaves)
    levels = part("levels", count, "int8") if most > NIBBLE else part("levels", -(-count // 2), "uint8")
    return levels, part("scale", -(-count // block), scales(leaves))


def _unpack(most: int, block: int, whole: int, parts: Parts, leaves: Spec) -> Array:
    out, step = zeros(leaves), STEP // block * block or block
    for a in range(0, len(out), step):
        b = min(a + step, len(out))
        scale = spread(parts["scale"][a // block : -(-b // block)], block, b - a)
        with np.errstate(over="ignore"):  # a factor too large is found as an Inf
            out[a:b] = (_levels(parts["levels"], most, a, b) * scale / whole).astype(DTYPES[leaves[0].dtype])
    return out


def _levels(levels: Array, most: int, a: int, b: int) -> Array:
    if most > NIBBLE:
        return levels[a:b].astype(np.float64)
    pairs = levels[a // 2 : -(-b // 2)]
    return np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)[: b - a].astype(np.float64) - 8
