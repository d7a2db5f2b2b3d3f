"""What a site holds, opened piece by piece: tables, arrays and the heads of pictures; .npy files are memory-mapped.
Paths, frames and arrays come in; only the checker sees what goes out."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foedus import frames
from foedus.data import PARTS, Pairs, Split, load_split
from foedus.errors import FoedusError, Missing
from foedus.schema.rules import Dataset
from foedus.schema.tables import ADAPTER, Table, Unreadable, joined, read_csv

X_NAMES, Y_NAMES = ("x", "image", "images"), ("y", "mask", "masks", "label", "labels")
_PNG = struct.Struct(">8s4x4sIIBB")  # signature, type of the first chunk, width, height, bits, colour type
_CHANNELS = {2: 3, 4: 2, 6: 4}  # by colour type; the others are grey values or a palette


class Stack(NamedTuple):
    """An array of examples along its first axis; `alone`: it may also be a single example."""

    values: Any
    alone: bool = False


class Picture(NamedTuple):
    """What the head of a picture tells: the shapes that it may be read in, and its dtype."""

    shapes: tuple[tuple[int, ...], ...]
    dtype: str


class Piece(NamedTuple):
    """Something of a dataset that is checked at once."""

    table: Table | None = None
    image: Stack | Picture | None = None
    mask: Stack | None = None


def parts(rule: Dataset, data: Any) -> list[Any]:
    """What is opened one after another: the files of a folder that fit the rule, by name; else `data` alone."""
    if not isinstance(data, (str, os.PathLike)) or not os.path.isdir(data):
        return [data]
    files = _files(Path(data))
    tables = [path for path in files if path.suffix.lower() in TABLES and rule.columns]
    arrays = [path for path in files if path.suffix.lower() in ARRAYS and (rule.image or not tables)]
    return tables + arrays or [data]


def pieces(rule: Dataset, data: Any) -> Iterator[Piece]:
    """The pieces of a file, a Split, a pair, a frame, an array or a mapping of arrays. Raises Unreadable for others."""
    if isinstance(data, (str, os.PathLike)):
        yield from _file(rule, Path(data))
    elif isinstance(data, Split):
        for held in (getattr(data, part) for part in PARTS):
            yield from pieces(rule, held) if held is not None else ()
    elif isinstance(data, Pairs):
        yield _pair(rule, data.x, data.y)
    elif isinstance(data, tuple) and len(data) == 2:
        yield _pair(rule, *data)
    elif hasattr(data, "iloc") and hasattr(data, "columns"):
        yield Piece(joined([data]))
    elif isinstance(data, Mapping):
        yield _named(rule, data)
    elif hasattr(data, "shape") and hasattr(data, "dtype"):
        yield _pair(rule, data)
    else:
        raise Unreadable(f"an object of type {type(data).__name__} is not checkable", ADAPTER)


def _pair(rule: Dataset, x: Any, y: Any = None, alone: bool = False) -> Piece:
    """Examples and targets: images with a mask, images with columns, or columns alone."""
    sides = [side for side in ([y] if rule.image else [x, y]) if side is not None]
    table = joined(sides) if rule.columns and sides else None
    mask = Stack(np.asarray(y), alone) if rule.mask and y is not None else None
    return Piece(table, Stack(np.asarray(x), alone) if rule.image else None, mask)


def _named(rule: Dataset, arrays: Mapping[str, Any], alone: bool = False) -> Piece:
    """Arrays by name: columns by their own names, or x and y; a single array is x."""
    columns = [name for name in rule.columns if name in arrays]
    x, y = (next((arrays[name] for name in known if name in arrays), None) for known in (X_NAMES, Y_NAMES))
    if x is None and len(arrays) == 1 and not columns:
        (x,) = arrays.values()
    if x is None and (rule.image or not columns):
        raise Unreadable("none of its arrays is named x or image", "name them x and y, or by the schema's columns")
    if not columns:
        return _pair(rule, x, y, alone)
    table = joined([arrays[name] for name in columns], columns)
    return Piece(table, Stack(np.asarray(x), alone) if rule.image else None)


def _files(folder: Path) -> list[Path]:
    """All files below the folder, by name, without hidden ones; links to folders are not followed."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def _file(rule: Dataset, path: Path) -> Iterator[Piece]:
    opener = (TABLES | ARRAYS).get(path.suffix.lower())
    if not path.stat().st_size:
        raise Unreadable("the file is empty", "bind a file that holds data")
    if path.is_dir():
        raise Unreadable(f"the folder holds no file that is checkable ({KINDS})", ADAPTER)
    if opener is None:
        raise Unreadable(f"this kind of file is not checkable ({KINDS} are)", ADAPTER)
    yield from opener(rule, path)


def _csv(rule: Dataset, path: Path) -> Iterator[Piece]:
    yield Piece(read_csv(rule, path))


def _parquet(rule: Dataset, path: Path) -> Iterator[Piece]:
    try:
        import pandas

        frame = pandas.read_parquet(path)
    except ImportError as error:
        raise Missing("pandas with pyarrow", "parquet") from error
    yield Piece(joined([frame]))


def _npy(rule: Dataset, path: Path) -> Iterator[Piece]:
    yield _pair(rule, np.load(path, mmap_mode="r", allow_pickle=False), alone=True)


def _npz(rule: Dataset, path: Path) -> Iterator[Piece]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        yield _named(rule, arrays, alone=True)


def _safetensors(rule: Dataset, path: Path) -> Iterator[Piece]:
    """A Split that foedus saved, or arrays that anybody did."""
    try:
        split = load_split(path)
    except FoedusError:
        yield _named(rule, frames.read_model(path), alone=True)
    else:
        yield from pieces(rule, split)


def _png(rule: Dataset, path: Path) -> Iterator[Piece]:
    """The head of a PNG file (ISO/IEC 15948, clause 11.2.2); its values are not read."""
    if rule.image is None:
        raise Unreadable("a picture holds no columns", ADAPTER)
    with path.open("rb") as file:
        head = file.read(_PNG.size)
    if len(head) < _PNG.size or not head.startswith(b"\x89PNG\r\n\x1a\n"):
        raise Unreadable("the file is no PNG picture", "save it again as PNG")
    _, _, width, height, bits, colour = _PNG.unpack(head)
    count = _CHANNELS.get(colour, 1)
    shapes = ((height, width, count), (count, height, width), (height, width))
    yield Piece(image=Picture(shapes if count == 1 else shapes[:2], "uint16" if bits == 16 else "uint8"))


_Opener = Callable[[Dataset, Path], Iterator[Piece]]
TABLES: dict[str, _Opener] = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
ARRAYS: dict[str, _Opener] = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors, ".png": _png}
KINDS = ", ".join((*TABLES, *ARRAYS))
