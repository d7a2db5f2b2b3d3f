"""The saved form of plain data and Params: one safetensors file, whose metadata holds the plain part.
Only `params` may come in; journals, checkpoints, payloads and updates all travel in this form."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foedus.errors import FoedusError, WireError
from foedus.params import DTYPES, HALVES, Array, Leaf, Params, kind

VERSION = 1
MOST_HEADER, MOST_AXES, MOST_BYTES = 64 << 20, 32, 1 << 48
LARGE = 1 << 20  # bytes whose hashing is worth a thread, or remembering
_TO_FILE = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"} | {
    f"{sign}int{bits}": f"{'U' if sign else 'I'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_FROM_FILE = {name: dtype for dtype, name in _TO_FILE.items()}


@dataclass(frozen=True)
class Frame:
    """A safetensors file that is not yet written: its head, then raw arrays one after another."""

    head: bytes
    arrays: tuple[Array, ...]

    @property
    def size(self) -> int:
        return len(self.head) + sum(x.nbytes for x in self.arrays)

    def __iter__(self) -> Iterator[memoryview | bytes]:
        yield self.head
        for x in self.arrays:
            yield x.view(np.uint8).data

    def digest(self) -> str:
        """SHA-256 of the file that this frame would be."""
        if (found := known(self)) is not None:
            return found.digest
        sha = hashlib.sha256()
        for piece in self:
            sha.update(piece)
        return sha.hexdigest()

    def digesting(self) -> Callable[[], str]:
        """A function that returns `digest`; a large frame is hashed while the caller does something else."""
        if self.size < LARGE:
            return self.digest
        pool = ThreadPoolExecutor(1)
        found = pool.submit(self.digest)
        pool.shutdown(wait=False)
        return found.result

    def holds(self, other: Frame) -> bool:
        """Whether the other one is the same head over the very same arrays."""
        return self.head == other.head and all(a is b for a, b in zip(self.arrays, other.arrays, strict=True))

    def bytes(self) -> bytes:
        return b"".join(self)


class Known(NamedTuple):
    """A frame whose bytes are in a file, as it was read from there."""

    frame: Frame
    digest: str
    path: Path


_known: list[Known] = []  # at most one


def remember(path: Path, tree: Any, digest: str) -> None:
    """Spares the next `digest` of this tree, read from a file: a round sends the state that the last one saved."""
    frame = pack(tree)
    if frame.size >= LARGE and not any(x.flags.writeable for x in frame.arrays):
        _known[:] = [Known(frame, digest, path)]


def known(frame: Frame) -> Known | None:
    """The frame of the same head over the very same arrays, if it is the one that is remembered."""
    return next((found for found in _known if found.frame.holds(frame)), None)


def pack(tree: Any, contiguous: bool = True) -> Frame:
    """`tree` (None, booleans, numbers, strings, lists, string-keyed mappings, arrays, Params) as a Frame.

    Reading gives tuples back as lists and arrays read-only. Raises TypeError for anything else.
    """
    blocks: list[tuple[str, Array, list[tuple[str, Leaf]]]] = []

    def plain(x: Any) -> Any:
        if isinstance(x, Params):
            at = len(blocks)
            for group, flat in x.flats.items():
                blocks.append((group, flat, [(f"{at}/{v.name}", v) for v in x.spec if v.group == group]))
            return {"$params": at, "leaves": [[v.name, v.kind, v.sent] for v in x.spec]}
        if isinstance(x, np.ndarray):
            return {"$array": plain(Params({"": x}))["$params"]}
        if isinstance(x, Mapping):
            return {"$map": {_text(k): plain(v) for k, v in x.items()}}
        if isinstance(x, (list, tuple)):
            return [plain(v) for v in x]
        if x is None or isinstance(x, (bool, int, float, str)):
            return x
        raise TypeError(f"{type(x).__name__} has no saved form: use plain data, arrays and Params")

    frame = _framed({"version": VERSION, "tree": plain(tree)}, blocks)
    return Frame(frame.head, tuple(np.ascontiguousarray(x) for x in frame.arrays)) if contiguous else frame


def model(params: Params, about: Mapping[str, Any]) -> Frame:
    """A model file: arrays under their own names, readable by anything that reads safetensors, `about` as metadata."""
    blocks = [(g, x, [(v.name, v) for v in params.spec if v.group == g]) for g, x in params.flats.items()]
    leaves = [[leaf.name, leaf.kind] for leaf in params.spec]
    return _framed({"version": VERSION, "leaves": leaves, "about": about}, blocks)


def read_model(path: str | os.PathLike[str]) -> Params:
    """The Params of a safetensors file, foedus's own (with kinds and order) or anybody else's (floats are trainable).

    Raises WireError for a file that cannot be read.
    """
    view = _mapped(path)
    try:
        return _model(view)
    except FoedusError as error:
        raise WireError(f"{path}: {error}") from error


def _model(view: memoryview) -> Params:
    header, notes, start = _parsed(view)
    raw = np.frombuffer(view, np.uint8, offset=start)
    found = {name: _entry(name, info, raw.size) for name, info in header.items()}
    _no_overlap(found, raw.size)
    try:
        meta = json.loads(notes.get("foedus", "{}"))
        kinds: dict[str, Any] = dict(meta["leaves"]) if "leaves" in meta else dict.fromkeys(found)
        arrays = {name: _flat(raw, *found[name][::2], found[name].end).reshape(found[name].shape) for name in kinds}
        return Params(arrays, {name: kind for name, kind in kinds.items() if kind})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WireError(f"its description does not fit its arrays ({error}): it is damaged") from error


def _framed(meta: Mapping[str, Any], blocks: list[tuple[str, Array, list[tuple[str, Leaf]]]]) -> Frame:
    blocks.sort(key=lambda block: -block[1].itemsize)  # keeps every array aligned to its own size
    header: dict[str, Any] = {"__metadata__": {"foedus": json.dumps(meta)}}
    at = 0
    for _, _, leaves in blocks:
        for name, leaf in leaves:
            end = at + leaf.size * DTYPES[leaf.dtype].itemsize
            header[name] = {"dtype": _TO_FILE[leaf.dtype], "shape": list(leaf.shape), "data_offsets": [at, end]}
            at = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return Frame(len(head).to_bytes(8, "little") + head, tuple(flat for _, flat, _ in blocks))


def blank(fd: int, spec: tuple[Leaf, ...], name: str, others: Mapping[str, Any]) -> dict[str, int]:
    """Where each group's numbers begin in the file, which becomes `pack({**others, name: params of spec})`.

    The numbers are still zero: they are written there afterwards.
    """
    flats = {g: np.broadcast_to(np.zeros((), DTYPES[g.partition(":")[0]]), n) for g, n in _sizes(spec).items()}
    frame = pack({name: Params.of(spec, flats), **others}, contiguous=False)
    os.pwrite(fd, frame.head, 0)
    os.truncate(fd, max(frame.size, 1))
    at, found = len(frame.head), {}
    for x in frame.arrays:
        group = next((g for g, flat in flats.items() if flat is x), None)
        if group is None:
            os.pwrite(fd, x.tobytes(), at)
        else:
            found[group] = at
        at += x.nbytes
    return found


def _sizes(spec: tuple[Leaf, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for leaf in spec:
        found[leaf.group] = found.get(leaf.group, 0) + leaf.size
    return found


def unpack(data: bytes | bytearray | memoryview | mmap.mmap) -> Any:
    """What `pack` was given; arrays are read-only views of `data`. Raises WireError for anything malformed."""
    view = memoryview(data).toreadonly()
    header, meta, start = _header(view)
    raw = np.frombuffer(view, np.uint8, offset=start)
    found = {name: _entry(name, info, raw.size) for name, info in header.items()}
    _no_overlap(found, raw.size)
    try:
        return _build(meta["tree"], found, raw)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise WireError(f"this file's description does not fit its arrays ({error}): it is damaged") from error


def read(path: str | os.PathLike[str]) -> Any:
    """The tree in a file, memory-mapped: arrays are loaded as they are touched. Raises WireError."""
    view = _mapped(path)
    try:
        return unpack(view)
    except WireError as error:
        raise WireError(f"{path}: {error}") from error


def _mapped(path: str | os.PathLike[str]) -> memoryview:
    try:
        with Path(path).open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise WireError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WireError(f"{path} is empty: it is not a safetensors file") from error


class _Entry(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _header(view: memoryview) -> tuple[dict[str, Any], Mapping[str, Any], int]:
    header, notes, start = _parsed(view)
    try:
        meta = json.loads(notes["foedus"])
        version = meta["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError("this safetensors file was not written by foedus, or it is damaged") from error
    if version not in (VERSION, VERSION - 1):
        raise WireError(f"the file has format {version}, this foedus reads {VERSION}: upgrade foedus")
    return header, meta, start


def _parsed(view: memoryview) -> tuple[dict[str, Any], Mapping[str, Any], int]:
    """Announced arrays, metadata, and where the arrays begin."""
    size = int.from_bytes(view[:8], "little")
    if len(view) < 8 or size > min(MOST_HEADER, len(view) - 8):
        raise WireError("the file is truncated or not a safetensors file")
    try:
        header = json.loads(bytes(view[8 : 8 + size]))
        notes = header.pop("__metadata__", {})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WireError("the file is damaged or not a safetensors file") from error
    if not isinstance(notes, dict):
        raise WireError("the file's metadata is no mapping: it is damaged")
    return header, notes, 8 + size


def _entry(name: str, info: Any, most: int) -> _Entry:
    try:
        dtype, shape, (begin, end) = _FROM_FILE[info["dtype"]], tuple(info["shape"]), info["data_offsets"]
        if len(shape) > MOST_AXES or not all(type(n) is int and 0 <= n < MOST_BYTES for n in (*shape, begin, end)):
            raise ValueError("an array has few axes, and lengths that are whole numbers")
        whole = math.prod(n or 1 for n in shape) < MOST_BYTES and begin <= end <= most
        if not whole or math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
            raise ValueError(f"offsets {begin}-{end} do not fit {dtype}{shape}")
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"array {name[:99]!r} is announced wrongly ({str(error)[:99]}): the file is damaged") from error
    return _Entry(dtype, shape, begin, end)


def _no_overlap(found: Mapping[str, _Entry], size: int) -> None:
    at = 0
    for entry in sorted(found.values(), key=lambda e: (e.begin, e.end)):
        if entry.begin != at:
            raise WireError("the arrays of this file overlap or leave gaps: it is damaged")
        at = entry.end
    if at != size:
        raise WireError(f"the file has {size - at} bytes after its last array: it is truncated or damaged")


def _build(node: Any, found: Mapping[str, _Entry], raw: Array) -> Any:
    if isinstance(node, list):
        return [_build(x, found, raw) for x in node]
    if not isinstance(node, dict):
        return node
    if "$map" in node:
        return {k: _build(v, found, raw) for k, v in node["$map"].items()}
    if "$array" in node:
        entry = found[f"{node['$array']}/"]
        return _flat(raw, entry.dtype, entry.begin, entry.end).reshape(entry.shape)
    at = node["$params"]
    entries = [(found[f"{at}/{name}"], name, given, sent) for name, given, sent in node["leaves"]]
    spec = tuple(_leaf(name, entry, given, sent) for entry, name, given, sent in entries)
    if len({leaf.name for leaf in spec}) < len(spec):
        raise ValueError("a name stands there twice")
    return Params.of(spec, {group: _group(raw, spec, entries, group) for group in dict.fromkeys(v.group for v in spec)})


def _leaf(name: Any, entry: _Entry, given: Any, sent: Any) -> Leaf:
    natural = kind(entry.dtype)
    if type(name) is not str or given not in (("trainable", "buffer") if natural == "trainable" else (natural,)):
        raise ValueError(f"a {entry.dtype} array is announced as {given!r}")
    if sent not in (("", *HALVES) if entry.dtype == "float32" else ("",)):
        raise ValueError(f"a {entry.dtype} array is said to be sent as {sent!r}")
    return Leaf(name, entry.shape, entry.dtype, given, sent)


def _group(raw: Array, spec: tuple[Leaf, ...], entries: list[Any], group: str) -> Array:
    own = [e for (e, *_), leaf in zip(entries, spec, strict=True) if leaf.group == group]
    if any(a.end != b.begin for a, b in pairwise(own)):
        raise ValueError(f"the {group} arrays do not follow one another")
    return _flat(raw, own[0].dtype, own[0].begin, own[-1].end)


def _flat(raw: Array, dtype: str, begin: int, end: int) -> Array:
    return raw[begin:end].view(DTYPES[dtype])


def _text(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the key {key!r} is not a string: saved mappings have string keys")
    return key
