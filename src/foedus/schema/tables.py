"""Tables in blocks of rows: CSV files as a stream; frames and arrays, which are in memory, by slices.
Paths, frames and arrays come in; cells go out, which only the checker sees."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from foedus.schema.rules import Dataset, is_number

CELLS = 1 << 16  # of a table that are in memory at once
MOST_LINE = 16 << 20
DELIMITERS = (",", ";", "\t")
ADAPTER = "give an adapter whose adapt(path, name) returns a data frame, (x, y) arrays or a Split of them"


class Unreadable(Exception):
    """Data that cannot be checked: what is wrong, and the remedy; neither holds anything of the data."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what, self.remedy = what, remedy


class Block(NamedTuple):
    """Some rows, column by column, and how many more were left out because they have more or fewer cells."""

    columns: Sequence[Any]
    ragged: int = 0


class Table(NamedTuple):
    """Rows of `width` cells; `names` is None where the columns have only an order."""

    names: tuple[str, ...] | None
    width: int
    blocks: Iterator[Block]


def joined(parts: Sequence[Any], names: Sequence[str] = ()) -> Table:
    """The columns of frames, series and arrays side by side; by name where every one of them has a name."""
    found = [column for part in parts for column in _columns(part)]
    columns = [column for _, column in found]
    known = [name for name in names or [name for name, _ in found] if isinstance(name, str)]
    if len({len(column) for column in columns}) != 1 or (names and len(names) != len(columns)):
        raise Unreadable("its columns differ in length, or there are none", "give every column a value for each row")
    return Table(tuple(known) if len(known) == len(columns) else None, len(columns), _slices(columns))


def read_csv(rule: Dataset, path: Path) -> Table:
    """The table of a CSV or TSV file in UTF-8, with or without a header. Raises Unreadable."""
    head, delimiter = _head(rule, path)
    names = tuple(head) if _is_header(rule, head) else None
    return Table(names, len(head), _rows(path, delimiter, len(head), skip=names is not None))


def loose(name: str) -> str:
    """A column's name without what is easily mistaken: case and outer blanks."""
    return name.strip().casefold()


def _columns(part: Any) -> Iterator[tuple[Any, Any]]:
    """Each column with its name, or None."""
    if hasattr(part, "iloc"):
        yield from part.items() if hasattr(part, "columns") else [(part.name, part)]
        return
    array = np.atleast_1d(np.asarray(part))
    if array.ndim > 2:
        raise Unreadable(
            f"an array of {array.ndim} axes holds no columns", "give (rows, columns), or ask for an `image`"
        )
    yield from ((None, column) for column in (array.T if array.ndim == 2 else [array]))


def _slices(columns: Sequence[Any]) -> Iterator[Block]:
    step = max(1, CELLS // len(columns))
    for at in range(0, len(columns[0]), step):
        yield Block([_cells(column[at : at + step]) for column in columns])


def _cells(column: Any) -> Any:
    """Cells as float64 where they are numbers, or durations, in days; else as texts, a gap being empty."""
    frame = hasattr(column, "isna")
    if column.dtype.kind in "biuf":
        return column.to_numpy(np.float64, na_value=np.nan) if frame else column.astype(np.float64)
    if column.dtype.kind == "m":
        return np.asarray(np.asarray(column) / np.timedelta64(1, "D"), np.float64)
    cells = column.tolist()
    gaps = column.isna().tolist() if frame else [cell is None for cell in cells]
    return ["" if gap else str(cell) for cell, gap in zip(cells, gaps, strict=True)]


def _head(rule: Dataset, path: Path) -> tuple[list[str], str]:
    """The cells of the first row, and the delimiter: the one that finds the schema's columns."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = next(_lines(file), "").rstrip("\r\n")
    if not first:
        raise Unreadable("the file holds no rows", "bind a file that holds data")
    known = set(map(loose, rule.columns))

    def likely(delimiter: str) -> tuple[int, bool, int]:
        cells = first.split(delimiter)
        return len(known & set(map(loose, cells))), len(cells) == len(known), len(cells)

    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(DELIMITERS, key=likely)
    return next(csv.reader([first], delimiter=delimiter)), delimiter


def _is_header(rule: Dataset, head: Sequence[str]) -> bool:
    """Whether a first row is a header: it holds a name of the schema, or no number where numbers are asked for."""
    if set(map(loose, rule.columns)) & set(map(loose, head)):
        return True
    return any(column.numeric for column in rule.columns.values()) and not any(map(is_number, head))


def _rows(path: Path, delimiter: str, width: int, skip: bool) -> Iterator[Block]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = islice(csv.reader(_lines(file), delimiter=delimiter), int(skip), None)
        while batch := list(islice(rows, max(1, CELLS // width))):
            good = [row for row in batch if len(row) == width]
            yield Block(list(zip(*good, strict=True)), len(batch) - len(good))


def _lines(file: TextIO) -> Iterator[str]:
    """The lines of a file that are not blank; one that would fill the memory is refused."""
    while line := file.readline(MOST_LINE):
        if len(line) == MOST_LINE:
            raise Unreadable("a line of the file has no end", "save the data as UTF-8 CSV, one row a line")
        if line.strip(" \r\n"):
            yield line
