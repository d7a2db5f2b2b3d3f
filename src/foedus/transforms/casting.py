"""Half precision on the way: bf16 and fp16 (IEEE 754, nearest even). Arrays and the contract may come in."""

from __future__ import annotations

from functools import partial

import numpy as np

from foedus.core import Transform
from foedus.errors import JobError
from foedus.keys import Key
from foedus.params import DTYPES, Array, Spec
from foedus.transforms.packing import ROUNDING, STEP, Codec, Parts, compression, part, size, zeros


def bf16() -> Transform:
    """Two bytes a number: 8 significant bits, the range of float32. No number changes by more than one part in 256."""
    return _cast("bfloat16")


def fp16() -> Transform:
    """Two bytes a number: 11 significant bits, up to 65504; an update with larger numbers is refused."""
    return _cast("float16")


def _cast(dtype: str) -> Transform:
    return compression(Codec(partial(_parts, dtype), partial(_pack, dtype), _unpack), (ROUNDING,))


def _parts(dtype: str, leaves: Spec) -> Spec:
    return (part("half", size(leaves), dtype, trains=True),)


def _pack(dtype: str, x: Array, leaves: Spec, key: Key, kept: Parts) -> Parts:
    with np.errstate(over="ignore"):
        half = x.astype(DTYPES[dtype])
    if not np.isfinite(half).all():
        raise JobError(f"an update holds {np.abs(x).max():g}, for which {dtype} has no room: use bf16() or int8()")
    return {"half": half}


def _unpack(parts: Parts, leaves: Spec) -> Array:
    out = zeros(leaves)
    for a in range(0, len(out), STEP):
        out[a : a + STEP] = parts["half"][a : a + STEP]
    return out
