"""Params: the named arrays of a model, each trainable, buffer or integer, kept as one flat array per group.
Only numpy and ml_dtypes may come in."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import tempfile
import weakref
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

from foedus.errors import FoedusError

Kind = Literal["trainable", "buffer", "integer"]
Array = np.ndarray[Any, np.dtype[Any]]
Flats = Mapping[str, Array]

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in [
        "float64",
        "float32",
        "float16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint64",
        "uint32",
        "uint16",
        "uint8",
        "bool",
    ]
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
HALVES = ("float16", "bfloat16")
LARGE = 8 << 20  # bytes
scratch: Path | None = None  # a run worker sets it: its memory then does not grow with the model
_spare: list[mmap.mmap] = []  # room that was given back: filling it again costs a fraction of new one


class Leaf(NamedTuple):
    """One array's announcement. `sent` is the dtype it has at the sites where that differs from `dtype`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    sent: str = ""

    @property
    def group(self) -> str:
        return f"{self.dtype}:buffer" if self.kind == "buffer" else self.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)


Spec = tuple[Leaf, ...]


class Params(Mapping[str, Array]):
    """Named arrays in a fixed order. `a - b` is a delta, `a + 0.5 * delta` a step; integer arrays are never
    differences: `-` keeps the left one, `+` takes the right one.

    Arrays of one group (a dtype, buffers apart) are views of one flat array, so arithmetic is one call a group.

    >>> p = Params({"w": np.ones(2, np.float32), "steps": np.int64(3)})
    >>> (p + 0.5 * p)["w"].tolist(), p.kinds["steps"]
    ([1.5, 1.5], 'integer')
    """

    __slots__ = ("_views", "flats", "spec")
    __array_ufunc__ = None  # np.float64(0.5) * params is ours to answer

    def __init__(self, arrays: Mapping[str, Any], kinds: Mapping[str, Kind] | None = None) -> None:
        plain = {name: _accepted(name, x) for name, x in arrays.items()}
        spec = tuple(_leaf(name, x, (kinds or {}).get(name)) for name, x in plain.items())
        flats = {g: _joined([plain[leaf.name] for leaf in spec if leaf.group == g]) for g in _groups(spec)}
        self._set(spec, flats)

    def _set(self, spec: Spec, flats: Flats) -> None:
        self.spec, self.flats = spec, flats
        self._views: dict[str, Array] | None = None

    @classmethod
    def of(cls, spec: Spec, flats: Flats) -> Params:
        """The Params of `spec` over these flat arrays, nothing copied; `flats` maps group to a 1-D array."""
        made = object.__new__(cls)
        made._set(spec, flats)
        return made

    def _arrays(self) -> dict[str, Array]:
        if self._views is None:
            self._views = {x.name: self.flats[g][a:b].reshape(x.shape) for x, g, a, b in places(self.spec)}
        return self._views

    def __getitem__(self, name: str) -> Array:
        return self._arrays()[name]

    def __iter__(self) -> Iterator[str]:
        return (leaf.name for leaf in self.spec)

    def __len__(self) -> int:
        return len(self.spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Params):
            return NotImplemented
        return self.spec == other.spec and all(np.array_equal(x, other.flats[g]) for g, x in self.flats.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Params({len(self)} arrays, {self.size:,} numbers)"

    @property
    def kinds(self) -> dict[str, Kind]:
        return {leaf.name: leaf.kind for leaf in self.spec}

    @property
    def size(self) -> int:
        return sum(x.size for x in self.flats.values())

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.flats.values())

    def map(self, f: Callable[..., Any], *others: Params, kinds: Sequence[Kind] = ("trainable",)) -> Params:
        """`f` over the flat arrays of the given kinds (trainable ones by default); the others stay as they are."""
        for other in others:
            _same(self.spec, other.spec)
        flats = {g: f(x, *(o.flats[g] for o in others)) if kind(g) in kinds else x for g, x in self.flats.items()}
        return Params.of(self.spec, flats)

    def __sub__(self, other: Params) -> Params:
        return self.map(lambda a, b: np.subtract(a, b, out=room(a)), other, kinds=("trainable", "buffer"))

    def __add__(self, other: Params) -> Params:
        _same(self.spec, other.spec)
        flats = {
            g: other.flats[g] if kind(g) == "integer" else np.add(x, other.flats[g], out=room(x))
            for g, x in self.flats.items()
        }
        return Params.of(self.spec, flats)

    def __rmul__(self, scale: float) -> Params:
        if scale == 1:
            return self
        return self.map(lambda x: np.multiply(x, x.dtype.type(scale), out=room(x)), kinds=("trainable", "buffer"))

    def zeros(self) -> Params:
        """Zeros of the same names, shapes and dtypes."""
        return Params.of(self.spec, {g: np.zeros_like(x) for g, x in self.flats.items()})

    def copy(self) -> Params:
        return Params.of(self.spec, {g: x.copy() for g, x in self.flats.items()})

    def widen(self) -> Params:
        """A float32 master of the half-precision arrays; `narrow` gives back what the sites get."""
        return self._cast(tuple(wide(leaf) for leaf in self.spec))

    def narrow(self) -> Params:
        """These arrays in the dtypes that the sites have them in."""
        return self._cast(tuple(leaf._replace(dtype=leaf.sent or leaf.dtype, sent="") for leaf in self.spec))

    def _cast(self, spec: Spec) -> Params:
        if spec == self.spec:
            return self
        arrays = {leaf.name: self[leaf.name].astype(DTYPES[leaf.dtype]) for leaf in spec}
        flats = {g: _joined([arrays[leaf.name] for leaf in spec if leaf.group == g]) for g in _groups(spec)}
        return Params.of(spec, flats)

    def tagged(self, tag: str) -> Params:
        """The same arrays under the names `tag/name`, so that several Params travel as one (see `join`)."""
        return Params.of(tuple(leaf._replace(name=f"{tag}/{leaf.name}") for leaf in self.spec), self.flats)

    def part(self, tag: str) -> Params:
        """The arrays whose names begin with `tag/`, without it."""
        found, cut = self.only({name for name in self if name.startswith(f"{tag}/")}), len(tag) + 1
        return Params.of(tuple(leaf._replace(name=leaf.name[cut:]) for leaf in found.spec), found.flats)

    def only(self, names: Container[str]) -> Params:
        """The arrays of these names, copied."""
        spec = tuple(leaf for leaf in self.spec if leaf.name in names)
        return Params.of(
            spec, {g: _joined([self[leaf.name] for leaf in spec if leaf.group == g]) for g in _groups(spec)}
        )

    def placed(self, others: Params) -> Params:
        """A copy with the arrays of `others` in the place of those of their names."""
        made = self.copy()
        for name, x in others.items():
            made[name][...] = x
        return made

    def trainable(self) -> Params:
        """The trainable arrays alone; nothing is copied."""
        spec = tuple(leaf for leaf in self.spec if leaf.kind == "trainable")
        return self if len(spec) == len(self.spec) else Params.of(spec, {g: self.flats[g] for g in _groups(spec)})

    def ordered(self, spec: Spec) -> Params:
        """The same arrays in the order of `spec`, which has the same leaves."""
        if spec == self.spec:
            return self
        flats = {g: _joined([self[leaf.name] for leaf in spec if leaf.group == g]) for g in _groups(spec)}
        return Params.of(spec, flats)


def join(**parts: Params) -> Params:
    """Several Params as one: `join(w=params, c=control)["w/layer.weight"]`."""
    tagged = [p.tagged(tag) for tag, p in parts.items()]
    spec = tuple(leaf for p in tagged for leaf in p.spec)
    return Params.of(spec, {g: _joined([p.flats[g] for p in tagged if g in p.flats]) for g in _groups(spec)})


def room(like: Array) -> Array:
    """An array like this one, to be filled: memory, or for a large one a file in `scratch` where that is set."""
    if scratch is None or like.nbytes < LARGE:
        return np.empty_like(like)
    held = next((_spare.pop(i) for i, m in enumerate(_spare) if len(m) == like.nbytes), None) or _mapped(like.nbytes)
    flat = np.frombuffer(held, np.uint8)  # all views keep it; when the last one is gone, its room is there again
    weakref.finalize(flat, _spare.append, held).atexit = False
    return flat.view(like.dtype).reshape(like.shape)


def _mapped(size: int) -> mmap.mmap:
    """Memory in a file without a name; the oldest spare ones go, so that few are kept."""
    del _spare[:-1]
    with tempfile.TemporaryFile(dir=scratch) as file:
        file.truncate(size)
        return mmap.mmap(file.fileno(), size)


def kind(group: str) -> Kind:
    """The kind of a group's arrays."""
    if group.endswith(":buffer"):
        return "buffer"
    return "trainable" if group in ("float64", "float32", *HALVES) else "integer"


def wide(leaf: Leaf) -> Leaf:
    """The leaf of the float32 master of a half-precision array; any other leaf as it is."""
    return leaf._replace(dtype="float32", sent=leaf.dtype) if leaf.dtype in HALVES else leaf


def places(spec: Spec) -> Iterator[tuple[Leaf, str, int, int]]:
    """Each leaf with its group and the bounds of its numbers in that group's flat array."""
    at: dict[str, int] = {}
    for leaf in spec:
        begin = at.get(leaf.group, 0)
        at[leaf.group] = begin + leaf.size
        yield leaf, leaf.group, begin, at[leaf.group]


def digest(params: Mapping[str, Any]) -> str:
    """SHA-256 (64 hex digits) over the arrays sorted by name: name, dtype, shape and little-endian bytes of each."""
    sha = hashlib.sha256()
    for name in sorted(params):
        x = np.asarray(params[name])
        sha.update(json.dumps([name, x.dtype.name, list(x.shape)]).encode() + b"\n")
        sha.update(
            np.ascontiguousarray(x.astype(x.dtype.newbyteorder("<"), copy=False)).reshape(-1).view(np.uint8).data
        )
    return sha.hexdigest()


def _accepted(name: str, value: Any) -> Array:
    if not isinstance(name, str):
        raise FoedusError(f"an array's name must be a string, not {name!r}")
    x = np.asarray(value)
    if x.dtype.name not in DTYPES:
        raise FoedusError(f"array {name!r} has dtype {x.dtype}; Params take {', '.join(DTYPES)}: convert it first")
    return x.astype(DTYPES[x.dtype.name], copy=False)


def _leaf(name: str, x: Array, given: Kind | None) -> Leaf:
    natural = kind(x.dtype.name)
    if given is not None and (given == "integer") != (natural == "integer"):
        raise FoedusError(f"array {name!r} is {x.dtype}: it cannot be {given}")
    return Leaf(name, tuple(x.shape), x.dtype.name, given or natural)


def _groups(spec: Spec) -> list[str]:
    return list(dict.fromkeys(leaf.group for leaf in spec))


def _joined(arrays: Sequence[Array]) -> Array:
    if len(arrays) == 1:
        return np.array(arrays[0]).reshape(-1)
    return np.concatenate([x.reshape(-1) for x in arrays])


def _same(a: Spec, b: Spec) -> None:
    if a != b and [(x.name, x.shape, x.group) for x in a] != [(x.name, x.shape, x.group) for x in b]:
        odd = sorted({(x.name, x.shape, x.dtype) for x in a} ^ {(x.name, x.shape, x.dtype) for x in b})[:3]
        raise FoedusError(f"these Params do not match: {odd}; both need the same names, shapes and dtypes in one order")
