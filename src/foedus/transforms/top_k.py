"""Top-k with error feedback: Sparsified SGD with Memory, Stich et al. 2018, algorithm 1.
Arrays and the contract may come in."""

from __future__ import annotations

from functools import partial

import numpy as np

from foedus.core import Transform
from foedus.errors import FoedusError, JobError
from foedus.keys import Key
from foedus.params import DTYPES, Array, Spec
from foedus.transforms.packing import Codec, Parts, compression, part, size, zeros


def top_k(share: float) -> Transform:
    """This share of the numbers, those of the largest magnitude (of equal ones the first), each with its place.

    What is not sent stays at the site, and is added to its next update.
    """
    found = shared("top_k", share)
    return compression(Codec(partial(_parts, found), partial(_pack, found), _unpack, feedback=True), ("sparse",))


def shared(name: str, share: float) -> float:
    """`share`, if it is one. Raises JobError."""
    if isinstance(share, bool) or not 0 < share <= 1:
        raise JobError(f"{name}({share!r}): the share of the numbers that are sent, in (0, 1]")
    return float(share)


def count(share: float, leaves: Spec) -> int:
    """How many numbers are sent."""
    return min(size(leaves), max(1, round(share * size(leaves))))


def largest(x: Array, k: int) -> Array:
    """The places of the k largest magnitudes, ascending."""
    if k == len(x):
        return np.arange(k)
    far = np.abs(x)
    least = np.partition(far, len(x) - k)[len(x) - k]
    above = np.flatnonzero(far > least)
    equal = np.flatnonzero(far == least)[: k - len(above)]
    return np.sort(np.concatenate([above, equal]))


def scattered(at: Array, values: Array, leaves: Spec) -> Array:
    """Zeros, with these values at these places."""
    out = zeros(leaves)
    out[at] = values
    return out


def _parts(share: float, leaves: Spec) -> Spec:
    k, wide = count(share, leaves), size(leaves) > 1 << 32
    places = part("places", k, "uint64" if wide else "uint32")
    return part("values", k, leaves[0].dtype, trains=True), places


def _pack(share: float, x: Array, leaves: Spec, key: Key, kept: Parts) -> Parts:
    values, places = _parts(share, leaves)
    at = largest(x, values.size)
    return {"values": x[at].astype(DTYPES[values.dtype]), "places": at.astype(DTYPES[places.dtype])}


def _unpack(parts: Parts, leaves: Spec) -> Array:
    at = parts["places"].astype(np.int64)
    if not (at[:1] >= 0).all() or not (at[-1:] < size(leaves)).all() or not (np.diff(at) > 0).all():
        raise FoedusError("its places are not ascending places in the model")
    return scattered(at, parts["values"], leaves)
