"""What a site holds, opened piece by piece: tables, arrays and the heads of pictures; .npy files are memory-mapped.
Paths, frames and arrays come in; only the checker sees what goes out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foedus import frames
from foedus.data import PARTS, Pairs, Split, load_split
from foedus.errors import FoedusError, Missing
from foedus.schema.pictures import SUFFIXES, Picture, is_dicom, is_picture, pictures, stem, together
from foedus.schema.rules import Dataset
from foedus.schema.tables import ADAPTER, Table, Unreadable, joined, read_csv

X_NAMES, Y_NAMES = ("x", "image", "images"), ("y", "mask", "masks", "label", "labels")
MASKS = "labels"  # the folder of masks, beside that of images


class Stack(NamedTuple):
    """An array of examples along its first axis; `alone`: it may also be a single example."""

    values: Any
    alone: bool = False


class Piece(NamedTuple):
    """Something of a dataset that is checked at once."""

    table: Table | None = None
    image: Stack | Picture | None = None
    mask: Stack | Picture | None = None


class Example(NamedTuple):
    """Where an example's pictures lie: a file, or a folder of DICOM, for each channel; None where it is not there."""

    image: tuple[Path | None, ...]
    mask: tuple[Path | None, ...] = ()


def parts(rule: Dataset, data: Any) -> list[Any]:
    """What is opened one after another: the files of a folder that fit the rule, by name; else `data` alone."""
    if not isinstance(data, (str, os.PathLike)) or not os.path.isdir(data):
        return [data]
    files = _files(Path(data))
    tables = [path for path in files if path.suffix.lower() in TABLES and rule.columns]
    arrays = [path for path in files if path.suffix.lower() in ARRAYS and (rule.image or not tables)]
    shown = [path for path in files if is_picture(path)] if rule.image or not tables else []
    return [*tables, *arrays, *_examples(rule, Path(data), shown)] or [data]


def _examples(rule: Dataset, folder: Path, shown: list[Path]) -> list[Example]:
    """Pictures as examples: by the channels that end their names, by images and labels of one name, or each alone."""
    places = sorted({path.parent if is_dicom(path) else path for path in shown})
    if rule.image and rule.image.channels:
        return _by_channel(rule.image.channels, rule.mask.channels if rule.mask else (), places)
    if not rule.mask:
        return [Example((path,)) for path in places]
    sides: tuple[dict[Any, list[Path | None]], ...] = ({}, {})
    for path in places:
        first, *rest = path.relative_to(folder).parts or (".",)
        sides[first == MASKS].setdefault((*rest[:-1], stem(path)), []).append(path)
    names = sorted(sides[0].keys() | sides[1].keys())
    return [Example(*(tuple(side.get(name, [None])) for side in sides)) for name in names]


def _by_channel(image: Sequence[str], mask: Sequence[str], places: list[Path]) -> list[Example]:
    """An example for each folder that holds pictures."""
    cases: dict[Path, list[Path]] = {}
    for path in places:
        cases.setdefault(path.parent, []).append(path)
    sides = [[tuple(_ending(held, word) for word in side) for side in (image, mask)] for held in cases.values()]
    return [Example(*side) for side in sides]


def _ending(paths: list[Path], word: str) -> Path | None:
    found = [path for path in paths if stem(path).endswith((f"_{word}", f"-{word}"))]
    return found[0] if len(found) == 1 else None


def pieces(rule: Dataset, data: Any) -> Iterator[Piece]:
    """The pieces of a file, a Split, a pair, a frame, an array or a mapping of arrays. Raises Unreadable for others."""
    if isinstance(data, Example):
        yield from _pictured(rule, data)
    elif isinstance(data, (str, os.PathLike)):
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
    opener = (TABLES | ARRAYS).get(path.suffix.lower()) or (_alone if path.is_file() and is_picture(path) else None)
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


def _alone(rule: Dataset, path: Path) -> Iterator[Piece]:
    yield from _pictured(rule, Example((path,)))


def _pictured(rule: Dataset, example: Example) -> Iterator[Piece]:
    """What the heads of an example's pictures tell: of a folder of DICOM alone, of each of its series."""
    if rule.image is None:
        raise Unreadable("a picture holds no columns", ADAPTER)
    if None in example.image or None in example.mask:
        raise Unreadable(*_lacking(rule))
    sides = [[list(pictures(path)) for path in side if path] for side in example]
    if example.mask or len(example.image) > 1:
        if any(len(found) != 1 for side in sides for found in side):
            raise Unreadable("a folder of DICOM does not hold one series", "keep one series a folder")
        image, mask = (together([found for (found,) in side]) if side else None for side in sides)
        if image and mask and image.grid != mask.grid:
            raise Unreadable("the image and the mask of an example differ in size", "resample them to one grid")
        yield Piece(image=image, mask=mask)
    else:
        yield from (Piece(image=found) for found in sides[0][0])


def _lacking(rule: Dataset) -> tuple[str, str]:
    """What is wrong with an example that lacks a picture, and the remedy."""
    assert rule.image is not None
    words = [*rule.image.channels, *(rule.mask.channels if rule.mask else ())]
    if words:
        ends = ", ".join(f"_{word}" for word in words)
        return "an example has not one picture for each channel", f"give each a folder with files that end in {ends}"
    return "an image has no mask, or a mask no image", f"give both the same name, in images and {MASKS}"


_Opener = Callable[[Dataset, Path], Iterator[Piece]]
TABLES: dict[str, _Opener] = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
ARRAYS: dict[str, _Opener] = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}
KINDS = ", ".join((*TABLES, *ARRAYS, *SUFFIXES))
