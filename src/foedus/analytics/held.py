"""What a site holds for an analysis: a table, read column by column, gaps and all. pandas is needed for files alone.
Only data and the errors may come in."""

from __future__ import annotations

import csv
import datetime
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foedus.data import Pairs, Site, Split
from foedus.errors import FoedusError, Missing
from foedus.params import Array

DECIMALS = r"\s*[-+]?\d*,\d+\s*"
LABEL = "label"  # what a Job's targets are called
MOST_GROUPS = 12  # of a column whose levels may all be listed, however few rows have them


class Held:
    """A site's table as a dataset of one example, so that nothing is set aside; it may have no rows.

    What was read of it once is kept, for every Task reads it again.
    """

    __slots__ = ("_coded", "_typed", "columns", "rows")

    def __init__(self, columns: Mapping[str, Any], rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._typed: dict[str, Column] = {}
        self._coded: dict[str, Coded] = {}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Held:
        return self


class Column(NamedTuple):
    """A column: numbers as float64 with NaN for gaps, or texts with None; `kind` is empty where all are gaps.

    Of dates their years, as numbers are: a day may tell who it is, and is never looked at.
    """

    values: Array
    kind: str  # "number", "date", "text", "empty"
    infinite: bool = False  # whether some of the numbers are

    @property
    def there(self) -> Array:
        """Where there is a value, as booleans."""
        if self.kind == "text":
            return np.array([v is not None for v in self.values], bool)
        return np.asarray(~np.isnan(self.values))


class Coded(NamedTuple):
    """A column as categories: their names in order, and which one each row has (-1: a gap)."""

    names: list[str]
    rows: Array


def loader(load: Callable[[Site], Any] | None) -> Callable[[Site], Split]:
    """A Job's `data` from a function that returns a site's table, by default what its owner bound."""
    return partial(_split, load)


def _split(load: Callable[[Site], Any] | None, site: Site) -> Split:
    return Split(train=held(load(site) if load else site.data))


def held(table: Any) -> Held:
    """A data frame, a mapping of columns, the path of a .csv, .tsv or .parquet file, or what a Split trains on.

    Raises FoedusError for others.
    """
    if isinstance(table, (str, os.PathLike)):
        table = _read(Path(table))
    if isinstance(table, Split):
        return held(table.train)
    if isinstance(table, Held):
        return table
    if isinstance(table, Pairs):
        return _of_pairs(table)
    if hasattr(table, "iloc") and hasattr(table, "columns"):
        twice = [str(name) for name in table.columns if list(table.columns).count(name) > 1]
        if twice:
            raise FoedusError(f"there are two columns {twice[0]!r}: rename one of them")
        return Held({str(name): table[name] for name in table.columns}, len(table))
    if isinstance(table, Mapping):
        sizes = {str(name): len(column) for name, column in table.items()}
        if len(set(sizes.values())) > 1:
            raise FoedusError(f"columns of different lengths ({sizes}): give one value for each row")
        return Held({str(name): column for name, column in table.items()}, max(sizes.values(), default=0))
    raise FoedusError(f"a {type(table).__name__} is no table: return a data frame, or a mapping of columns")


def _of_pairs(table: Pairs) -> Held:
    """A Job's examples that were a frame: the columns of x by their names, and y as `label`."""
    x, y = np.asarray(table.x), np.asarray(table.y)
    if x.ndim != 2 or len(table.names) != x.shape[1]:
        raise FoedusError(
            "these examples have no names of columns: load them with fd.Split.from_frame, or give a frame"
        )
    if LABEL in table.names or y.ndim != 1:
        raise FoedusError(f"these examples have a column {LABEL!r}, or several targets: give a data frame")
    return Held({**dict(zip(table.names, x.T, strict=True)), LABEL: y}, len(table))


def _read(path: Path) -> Any:
    try:
        import pandas
    except ImportError as error:
        raise Missing("pandas", "analytics") from error
    if path.suffix == ".parquet":
        return pandas.read_parquet(path)
    if path.suffix in (".csv", ".tsv"):
        return _csv(pandas, path)
    raise FoedusError(f"a {path.suffix or 'folder'} is no table: load it with data=…, which returns a data frame")


def _csv(pandas: Any, path: Path) -> Any:
    """The frame of a file whose delimiter is the one its first line has most of, and whose decimals may have commas."""
    with path.open(encoding="utf-8-sig") as file:
        head = next(csv.reader([file.readline()], delimiter="\0"), [""])[0]
    delimiter = "\t" if path.suffix == ".tsv" else max(",;\t", key=head.count)
    read = partial(pandas.read_csv, path, sep=delimiter, index_col=False, encoding="utf-8-sig")
    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        try:
            frame = read()
            texts = [frame[name].dropna() for name in frame.columns if pandas.api.types.is_string_dtype(frame[name])]
            commas = delimiter != "," and any(len(x) and x.str.fullmatch(DECIMALS).all() for x in texts)
            return read(decimal=",") if commas else frame
        except (pandas.errors.ParserWarning, pandas.errors.ParserError) as error:
            raise FoedusError(
                f"{path.name}: a row has more cells than its first line: quote cells that hold {delimiter!r}"
            ) from error


def column(table: Held, name: str, finite: bool = True) -> Column:
    """The column of that name; an empty one where the table has no rows.

    Raises FoedusError with the remedy, for infinite numbers, too, if they have to be `finite`.
    """
    if name in table.columns:
        if name not in table._typed:
            table._typed[name] = _typed(table.columns[name])
        if finite and table._typed[name].infinite:
            raise FoedusError(f"column {name!r} holds infinite numbers: mend them, or leave their cells empty")
        return table._typed[name]
    if not table.rows:
        return Column(np.empty(0), "empty")
    raise FoedusError(f"there is no column {name!r}; rename the site's own one, or load it with data=…")


def _typed(values: Any) -> Column:
    dtype = getattr(values, "dtype", None)
    if dtype is None:
        values = np.asarray(values, object)
        dtype = values.dtype
    kind = getattr(dtype, "kind", "O")
    if kind in "biuf":
        return _numbers(values, getattr(dtype, "na_value", None) is not None)
    if kind == "M":
        return _years(values)
    if kind == "m":  # in days
        return _numbers(np.asarray(values) / np.timedelta64(1, "D"), False)
    return _objects(list(values), _gaps(values))


def _numbers(values: Any, gaps: bool) -> Column:
    x = values.to_numpy(dtype=np.float64, na_value=np.nan) if gaps and hasattr(values, "to_numpy") else values
    x = np.array(x, np.float64)
    return Column(x, "empty" if np.isnan(x).all() else "number", bool(np.isinf(x).any()))


def _years(values: Any) -> Column:
    """The year of each date, as its own time zone has it."""
    if hasattr(values, "dt"):
        found = np.array(values.dt.year, np.float64)
    else:
        dates = np.asarray(values, "datetime64[Y]")
        found = np.where(np.isnat(dates), np.nan, dates.astype(np.int64) + 1970.0)
    return Column(found, "empty" if np.isnan(found).all() else "date")


def _gaps(values: Any) -> Sequence[bool]:
    if hasattr(values, "isna"):
        return list(np.asarray(values.isna(), bool))
    return [v is None or (isinstance(v, float) and v != v) for v in values]


def _objects(values: Sequence[Any], gaps: Sequence[bool]) -> Column:
    """Texts; or numbers or dates, where all that is there are such."""
    kinds = {type(v) for v, gap in zip(values, gaps, strict=True) if not gap}
    if all(issubclass(kind, (int, float, np.number, np.bool_)) for kind in kinds):
        return _numbers([np.nan if gap else float(v) for v, gap in zip(values, gaps, strict=True)], False)
    if kinds and all(issubclass(kind, datetime.date) for kind in kinds):
        return Column(np.array([np.nan if gap else v.year for v, gap in zip(values, gaps, strict=True)]), "date")
    texts = np.empty(len(values), object)
    texts[:] = [None if gap else str(v) for v, gap in zip(values, gaps, strict=True)]
    return Column(texts, "text")


def coded(table: Held, name: str, finite: bool = True) -> Coded:
    """The column as categories, by the text of each value; 1, 1.0 and True are one, and an empty text is a gap."""
    found = _undated(table, name, finite)
    if name not in table._coded or not table.rows:
        gap = ~found.there
        if found.kind == "text":
            gap = np.array([not v for v in found.values], bool)
        values, rows = np.unique(found.values[~gap].astype(str if found.kind == "text" else float), return_inverse=True)
        names = [text(v) for v in values.tolist()]
        order = np.argsort(np.array(names, str), kind="stable")
        places = np.full(len(gap), -1)
        places[~gap] = np.argsort(order)[rows]
        table._coded[name] = Coded([names[i] for i in order], places)
    return table._coded[name]


def names_people(found: Coded, least: int) -> bool:
    """Whether a column's levels are rather names than groups: each row has its own, or most stand with few others."""
    counts = np.bincount(found.rows[found.rows >= 0], minlength=len(found.names))
    rows = int(counts.sum())
    alone = rows >= 2 * least and len(counts) == rows
    return alone or (len(counts) > MOST_GROUPS and 2 * counts[counts < least].sum() > rows)


def text(value: Any) -> str:
    """A category as text: 1, 1.0 and True are one."""
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    return str(value)


def numbers(table: Held, name: str) -> Array:
    """The column as float64, gaps as NaN. Raises FoedusError where it holds text or dates."""
    found = _undated(table, name)
    if found.kind == "text":
        raise FoedusError(f"column {name!r} holds text where numbers are needed: turn it into numbers at every site")
    return found.values


def _undated(table: Held, name: str, finite: bool = True) -> Column:
    """The column, unless it holds dates, which have to be made something of first."""
    found = column(table, name, finite)
    if found.kind == "date":
        raise FoedusError(
            f"column {name!r} holds dates: turn them into numbers, such as days since a first day, or into texts"
        )
    return found
