"""What a site holds, opened as pieces: tables in blocks of rows, arrays and pictures of examples; nothing is loaded whole
that can be streamed or memory-mapped. Paths, frames and arrays come in; only the checker sees what goes out."""

from __future__ import annotations

import csv
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from foedus import frames
from foedus.data import PARTS, Pairs, Split, load_split
from foedus.errors import FoedusError, Missing
from foedus.params import Array
from foedus.schema.rules import Column, Dataset, is_number

CELLS = 1 << 16  # of a table that are in memory at once
MOST_LINE = 16 << 20
ADAPTER = "give an adapter whose adapt(path, name) returns a data frame, (x, y) arrays or a Split of them"
_X, _Y = ("x", "image", "images"), ("y", "mask", "masks", "label", "labels")
_PNG = struct.Struct(">8s4x4sIIBB")  # signature, IHDR, width, height, bits, colour type
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type, of those that are no palette


class Unreadable(Exception):
    """Data that cannot be checked: what is wrong, and the remedy; neither holds any of the data."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what, self.remedy = what, remedy


class Block(NamedTuple):
    """Some rows, column by column, and how many rows were left out because they have more or fewer cells."""

    columns: Sequence[Any]
    ragged: int = 0


class Table(NamedTuple):
    """Rows of `width` cells; `names` is None where the columns have only an order."""

    names: tuple[str, ...] | None
    width: int
    blocks: Iterator[Block]


class Picture(NamedTuple):
    """What a picture's head tells of it: the shapes it may be read in, and its dtype."""

    shapes: tuple[tuple[int, ...], ...]
    dtype: str


class Stack(NamedTuple):
    """Examples along the first axis of `values`, which may also be a single example where `alone` allows it."""

    values: Array
    alone: bool


class Piece(NamedTuple):
    """Something of a dataset that is checked at once."""

    table: Table | None = None
    image: Stack | Picture | None = None
    mask: Stack | None = None


def parts(rule: Dataset, data: Any) -> list[tuple[str, Any]]:
    """What is checked one after another, each with its place ("2 of 3"): the files of a folder, else `data` alone.

    Raises Unreadable for a folder without files that can be checked.
    """
    if not isinstance(data, (str, os.PathLike)) or not Path(data).is_dir():
        return [("", data)]
    files = _files(Path(data))
    tables, arrays = ([path for path in files if path.suffix.lower() in kinds] for kinds in (TABLES, ARRAYS))
    chosen = (tables if rule.columns else []) + (arrays if rule.image or not (rule.columns and tables) else [])
    if not chosen:
        raise Unreadable(f"the folder holds no {', '.join((*TABLES, *ARRAYS))} file", ADAPTER)
    return [(f"{i} of {len(chosen)}", path) for i, path in enumerate(chosen, 1)]


def pieces(rule: Dataset, data: Any) -> Iterator[Piece]:
    """The pieces of a file, a Split, a pair, a frame, an array or a mapping of arrays. Raises Unreadable for others."""
    if isinstance(data, (str, os.PathLike)):
        yield from _file(rule, Path(data))
    elif isinstance(data, Split):
        for held in (getattr(data, part) for part in PARTS):
            yield from pieces(rule, held) if held is not None else ()
    elif isinstance(data, Pairs) or (isinstance(data, tuple) and len(data) == 2):
        yield _pair(rule, *((data.x, data.y) if isinstance(data, Pairs) else data))
    elif hasattr(data, "iloc") and hasattr(data, "columns"):
        yield Piece(table=_joined([data]))
    elif isinstance(data, Mapping):
        yield _named(rule, data)
    elif hasattr(data, "shape") and hasattr(data, "dtype"):
        yield _pair(rule, data, None)
    else:
        raise Unreadable(f"{type(data).__name__} is not checkable", ADAPTER)


# ---- files -----------------------------------------------------------------------------------------------------------
def _files(folder: Path) -> list[Path]:
    """All files below the folder, by name, without hidden ones; links to folders are not followed."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def _file(rule: Dataset, path: Path) -> Iterator[Piece]:
    kind = path.suffix.lower()
    opener = (TABLES | ARRAYS).get(kind)
    if opener is None:
        raise Unreadable(f"a {kind or 'bare'} file is not checkable".replace("bare file", "file without a suffix"), ADAPTER)
    if not path.stat().st_size:
        raise Unreadable("the file is empty", "bind a file that holds data")
    yield from opener(rule, path)
