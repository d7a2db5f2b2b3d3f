"""Random-k with error feedback: Sparsified SGD with Memory, Stich et al. 2018, algorithm 1.
Arrays and the contract may come in."""

from __future__ import annotations

from functools import partial

import numpy as np

from foedus.core import Transform
from foedus.keys import Key
from foedus.params import DTYPES, Array, Spec
from foedus.transforms.packing import Codec, Parts, compression, part, size
from foedus.transforms.top_k import count, scattered, shared


def random_k(share: float) -> Transform:
    """This share of the numbers, drawn by key: one of each stretch of 1 / share. Only their seed travels beside them.

    So every number is as likely to be sent, which is all that the paper's proof needs. What is not sent stays at the
    site, and is added to its next update.
    """
    found = shared("random_k", share)
    return compression(Codec(partial(_parts, found), partial(_pack, found), _unpack, feedback=True), ("sparse",))


def places(seed: int, k: int, size: int) -> Array:
    """k places below `size`, ascending, one of each stretch; Philox's raw numbers are the same in every numpy."""
    edges = np.arange(k + 1) * size // max(k, 1)
    raw = np.random.Philox(key=seed).random_raw(k)
    return edges[:-1] + (raw % np.diff(edges).astype(np.uint64)).astype(np.int64)


def _parts(share: float, leaves: Spec) -> Spec:
    return part("values", count(share, leaves), leaves[0].dtype, trains=True), part("seed", 1, "uint64")


def _pack(share: float, x: Array, leaves: Spec, key: Key, kept: Parts) -> Parts:
    values, seed = _parts(share, leaves)[0], np.array([key.number()], np.uint64)
    return {"values": x[places(int(seed[0]), values.size, len(x))].astype(DTYPES[values.dtype]), "seed": seed}


def _unpack(parts: Parts, leaves: Spec) -> Array:
    return scattered(places(int(parts["seed"][0]), len(parts["values"]), size(leaves)), parts["values"], leaves)
