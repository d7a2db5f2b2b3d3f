"""QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding, Alistarh et al. 2017, section 3.1.
Arrays and the contract may come in."""

from __future__ import annotations

import numpy as np

from foedus.core import Transform
from foedus.errors import JobError
from foedus.keys import Key
from foedus.params import Array, Spec
from foedus.transforms.blockwise import levelled, packed, spread
from foedus.transforms.packing import ROUNDING, Parts, compression, scales


def qsgd(levels: int = 7, bucket: int = 512) -> Transform:
    """Each number of a bucket becomes one of `levels` steps of the bucket's L2 norm, up or down by chance, by key.

    The mean over the chance is the number itself, and no number changes by more than norm / levels. Up to 7 levels
    take half a byte, up to 127 a byte, and each bucket four bytes beside; the paper's Elias code is left out.
    """
    if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= 127:
        raise JobError(f"qsgd(levels={levels!r}): a whole number from 1 to 127")

    def pack(x: Array, leaves: Spec, key: Key, kept: Parts) -> Parts:
        wide = x.astype(np.float64)
        norm = np.sqrt(np.add.reduceat(np.square(wide), np.arange(0, len(x), bucket))).astype(scales(leaves))
        share = np.abs(wide) / spread(np.where(norm > 0, norm, 1), bucket, len(x)) * levels
        low = np.floor(share)
        up = key.numpy().random(len(x)) < share - low
        return packed(np.sign(wide) * (low + up), norm, levels)

    return compression(levelled(pack, levels, bucket, levels), (ROUNDING,))
