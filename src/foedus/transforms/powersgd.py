"""PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization, Vogels et al. 2019, algorithms 1, 2.
Arrays and the contract may come in."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from foedus.core import Transform
from foedus.errors import JobError
from foedus.keys import Key
from foedus.params import DTYPES, Array, Leaf, Spec
from foedus.transforms.packing import STEP, Codec, Parts, compression, exact, part, zeros


def powersgd(rank: int = 2) -> Transform:
    """Each matrix (arrays of more axes by their first) as a product of two thin ones; what is lost stays at the site.

    One step of power iteration, from the right factor of the site's last time. Vectors, and matrices that would not
    become smaller, go as they are. Each site has factors of its own: the paper's mean of the left ones before the right
    ones are made would take two Tasks a round.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise JobError(f"powersgd(rank={rank!r}): a whole number from 1 on")
    codec = Codec(partial(_parts, rank), partial(_pack, rank), partial(_unpack, rank), feedback=True, keeps=("right",))
    return compression(codec)


def orthonormal(p: Array) -> Array:
    """The columns made orthogonal and of length 1, one after another (Gram-Schmidt); what is left of none is zero."""
    p = p.copy()
    for j in range(p.shape[1]):
        length = np.sqrt(np.square(p[:, j]).sum())
        for i in range(j):
            p[:, j] -= (p[:, i] * p[:, j]).sum() * p[:, i]
        rest = np.sqrt(np.square(p[:, j]).sum())
        p[:, j] = p[:, j] / rest if rest > 1e-10 * length else 0.0
    return p


def _places(rank: int, leaves: Spec) -> Iterator[tuple[Leaf, tuple[int, int] | None, slice, slice, slice, slice]]:
    """Each leaf, its rows and columns if it is sent as factors, and its place in model, left, right and plain."""
    at, left, right, plain = 0, 0, 0, 0
    for leaf in leaves:
        rows = leaf.shape[0] if len(leaf.shape) > 1 else 0
        columns = leaf.size // rows if rows else 0
        thin = len(leaf.shape) > 1 and rank * (rows + columns) < leaf.size
        p, q, rest = (rank * rows, rank * columns, 0) if thin else (0, 0, leaf.size)
        yield (
            leaf,
            (rows, columns) if thin else None,
            slice(at, at + leaf.size),
            slice(left, left + p),
            slice(right, right + q),
            slice(plain, plain + rest),
        )
        at, left, right, plain = at + leaf.size, left + p, right + q, plain + rest


def _parts(rank: int, leaves: Spec) -> Spec:
    ends = [(left.stop, right.stop, plain.stop) for *_, left, right, plain in _places(rank, leaves)][-1]
    dtype = exact(leaves)
    return tuple(part(n, k, dtype, trains=True) for n, k in zip(("left", "right", "plain"), ends, strict=True))


def _pack(rank: int, x: Array, leaves: Spec, key: Key, kept: Parts) -> Parts:
    sent = {leaf.name: np.empty(leaf.size, DTYPES[leaf.dtype]) for leaf in _parts(rank, leaves)}
    for leaf, shape, at, left, right, plain in _places(rank, leaves):
        if shape is None:
            sent["plain"][plain] = x[at]
            continue
        matrix = x[at].astype(np.float64).reshape(shape)
        last = kept["right"][right] if "right" in kept else key(leaf.name).numpy().normal(size=shape[1] * rank)
        p = orthonormal(matrix @ last.astype(np.float64).reshape(-1, rank))
        sent["left"][left], sent["right"][right] = p.reshape(-1), (matrix.T @ p).reshape(-1)
    return sent


def _unpack(rank: int, parts: Parts, leaves: Spec) -> Array:
    out = zeros(leaves)
    for _, shape, at, left, right, plain in _places(rank, leaves):
        if shape is None:
            out[at] = parts["plain"][plain]
        else:
            _multiply(out[at].reshape(shape), parts["left"][left], parts["right"][right], rank)
    return out


def _multiply(out: Array, left: Array, right: Array, rank: int) -> None:
    """The product of the factors into `out`, some rows at a time; term after term, for the same bits everywhere."""
    p, q = left.reshape(-1, rank), right.reshape(-1, rank).astype(np.float64)
    rows = max(1, STEP // len(q))
    for a in range(0, len(p), rows):
        some = p[a : a + rows].astype(np.float64)
        out[a : a + rows] = sum(some[:, k, None] * q[:, k] for k in range(rank))
