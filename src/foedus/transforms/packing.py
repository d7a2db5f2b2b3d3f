"""What compressions have in common: the trainable numbers of each dtype become smaller arrays, all others stay.
A Codec comes in; the server reads every update before it is aggregated, so that any aggregator goes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from foedus.core import Local, State, Transform, Update
from foedus.keys import Key
from foedus.params import DTYPES, HALVES, Array, Leaf, Params, Spec, kind, room

Parts = Mapping[str, Array]
ROUNDING = "rounding"  # the trait of a compression that keeps every number, behind which a seal may stand
STEP = 1 << 16  # numbers unpacked at once


class Codec(NamedTuple):
    """How the trainable numbers of one dtype travel; `leaves` are those of the model that they belong to."""

    parts: Callable[[Spec], Spec]  # leaves -> what is sent
    pack: Callable[[Array, Spec, Key, Parts], Parts]  # (numbers, leaves, key, what was kept) -> what is sent
    unpack: Callable[[Parts, Spec], Array]  # (what was sent, leaves) -> numbers; FoedusError for nonsense
    feedback: bool = False  # what is lost stays at the site, and is added to the next update
    keeps: Sequence[str] = ()  # parts that the site keeps for its next `pack`


def compression(codec: Codec, traits: Sequence[str] = ()) -> Transform:
    """The Transform that sends what `codec` packs, and is read at the server update by update.

    With feedback (Stich et al. 2018, algorithm 1) a site keeps one model, in float32 where the model is in halves.
    """

    def encode(update: Update, local: Local, public: State, key: Key) -> tuple[Update, Local]:
        sent, kept = dict[str, Array](), dict[str, Parts]()
        for group, leaves in trainable(update.params.spec).items():
            old, x = (local or {}).get(group, {}), update.params.flats[group]
            if codec.feedback:
                x = x.astype(DTYPES[exact(leaves)], copy=False)
                x = x + old["residual"] if "residual" in old else x
            parts = codec.pack(x, leaves, key(group), old)
            sent |= {tag(group, name): part for name, part in parts.items()}
            if codec.feedback:
                kept[group] = {"residual": x - codec.unpack(parts, leaves)} | {n: parts[n] for n in codec.keeps}
        return update._replace(params=_joined(update.params, returns(update.params.spec), sent)), kept or None

    def returns(spec: Spec) -> Spec:
        packed = [
            leaf._replace(name=tag(group, leaf.name))
            for group, leaves in trainable(spec).items()
            for leaf in codec.parts(leaves)
        ]
        return (*packed, *(leaf._replace(name=f"r/{leaf.name}") for leaf in spec if leaf.kind != "trainable"))

    def read(sent: Params, spec: Spec) -> Params:
        flats, known = dict[str, Array](), trainable(spec)
        for group, leaves in groupby(sorted(spec, key=_group), _group):
            if group in known:
                parts = {leaf.name: sent[tag(group, leaf.name)] for leaf in codec.parts(known[group])}
                flats[group] = codec.unpack(parts, known[group])
            else:
                flats[group] = np.concatenate([sent[f"r/{leaf.name}"].reshape(-1) for leaf in leaves])
        return Params.of(spec, {group: flats[group] for group in dict.fromkeys(map(_group, spec))})

    return Transform(encode=encode, returns=returns, read=read, traits=traits)


def trainable(spec: Spec) -> dict[str, Spec]:
    """group -> its leaves, of the trainable arrays."""
    groups = dict.fromkeys(leaf.group for leaf in spec if leaf.kind == "trainable")
    return {group: tuple(leaf for leaf in spec if leaf.group == group) for group in groups}


def size(leaves: Spec) -> int:
    return sum(leaf.size for leaf in leaves)


def part(name: str, count: int, dtype: str, trains: bool = False) -> Leaf:
    """The announcement of a flat part; numbers that no later compression may touch are a buffer."""
    natural = kind(dtype)
    return Leaf(name, (count,), dtype, natural if trains or natural == "integer" else "buffer")


def scales(leaves: Spec) -> str:
    """The dtype of factors of these leaves' numbers."""
    return "float64" if leaves[0].dtype == "float64" else "float32"


def exact(leaves: Spec) -> str:
    """The dtype in which numbers of these leaves and what was lost of them are added up."""
    return "float32" if leaves[0].dtype in HALVES else leaves[0].dtype


def zeros(leaves: Spec) -> Array:
    """Room for the numbers of these leaves, all zero."""
    out = room(np.broadcast_to(DTYPES[leaves[0].dtype].type(0), size(leaves)))
    out[:] = 0
    return out


def tag(group: str, name: str) -> str:
    return f"p.{group}/{name}"


def _group(leaf: Leaf) -> str:
    return leaf.group


def _joined(params: Params, spec: Spec, sent: Parts) -> Params:
    arrays = {leaf.name: sent[leaf.name] if leaf.name in sent else params[leaf.name[2:]] for leaf in spec}
    return Params(arrays, {leaf.name: leaf.kind for leaf in spec})
