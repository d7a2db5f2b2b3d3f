"""What a Job asks of data: datasets, their columns or images, read from TOML or a mapping and checked as a whole.
Only plain values come in; a word that is not known is an error, never ignored."""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from foedus.errors import JobError
from foedus.params import DTYPES

MOST_EXACT = 1 << 53  # above, float64 no longer tells whole numbers apart
_MEASURED = ("type", "unit", "min", "max", "missing")
TYPES = {
    "number": _MEASURED,
    "integer": _MEASURED,
    "code": ("type", "codes", "least_each", "missing"),
    "text": ("type", "missing"),
}


class Column(NamedTuple):
    """A column: `missing` is the largest share of gaps, `least_each` the fewest rows of each of its codes."""

    type: str
    unit: str = ""
    min: float = -math.inf
    max: float = math.inf
    codes: tuple[int | str, ...] = ()
    least_each: int = 0
    missing: float = 0.0

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers: measured ones, or codes that are whole numbers."""
        return self.type in ("number", "integer") or (self.type == "code" and not isinstance(self.codes[0], str))


class Image(NamedTuple):
    """One example of an array: its shape (-1: any length), its dtype ("": any) and the range of its values."""

    shape: tuple[int, ...]
    dtype: str = ""
    min: float = -math.inf
    max: float = math.inf


class Dataset(NamedTuple):
    """What one dataset holds: columns, or images with columns or a mask as targets, or images alone."""

    columns: Mapping[str, Column] = {}
    image: Image | None = None
    mask: Image | None = None
    least_rows: int = 1


class Schema(NamedTuple):
    """The datasets that a Job describes, by name."""

    datasets: Mapping[str, Dataset]

    def plain(self) -> dict[str, Any]:
        """The schema as JSON without floats (as signed bodies are); `read` gives the same Schema again."""
        return {name: _plain(dataset) for name, dataset in self.datasets.items()}


def read(
    schema: str | os.PathLike[str] | Mapping[str, Any] | Schema | None, beside: str | os.PathLike[str] = "."
) -> Schema:
    """The Schema of a TOML file (relative to the folder `beside`), of a mapping, or None (asks nothing).

    Raises JobError that names the entry for a file that is not there, an unknown key or a contradiction.

    >>> read({"heart": {"columns": {"age": {"type": "number", "min": 0}}}}).datasets["heart"].columns["age"].min
    0.0
    """
    if isinstance(schema, Schema):
        return schema
    if isinstance(schema, (str, os.PathLike)):
        schema = _toml(Path(beside, schema))
    if not isinstance(schema, Mapping | None):
        raise JobError(f"the schema is {type(schema).__name__}: give the path of a TOML file, or a mapping")
    return Schema({_name(name, "schema"): _dataset(table, f"schema {name}") for name, table in (schema or {}).items()})


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"schema {path}: {error.strerror}; put the TOML file beside the job file") from None
    except ValueError as error:
        raise JobError(f"schema {path}: {error}") from None


def _dataset(table: Any, where: str) -> Dataset:
    found = _table(table, where, Dataset._fields)
    columns = _table(found.get("columns", {}), f"{where}.columns", None)
    images = {key: _image(found[key], f"{where}.{key}") for key in ("image", "mask") if key in found}
    rules = {_name(name, f"{where}.columns"): _column(rule, f"{where}.columns.{name}") for name, rule in columns.items()}
    least = _value(found.get("least_rows", 1), f"{where}.least_rows", _count)
    if not rules and "image" not in images:
        raise JobError(f"{where}: it says nothing of the data; add a table `columns` or `image`")
    if rules and "mask" in images:
        raise JobError(f"{where}: `columns` and `mask` both describe the targets of an image; keep one of them")
    return Dataset(rules, least_rows=least, **images)


def _column(table: Any, where: str) -> Column:
    kind = _table(table, where, None).get("type")
    if kind not in TYPES:
        raise JobError(f"{where}: type = {kind!r}; every column has a type: {_list(TYPES)}")
    for key in table.keys() & (Column._fields - frozenset(TYPES[kind])):
        raise JobError(f"{where}: `{key}` does not go with type = {kind!r}, whose keys are {_list(TYPES[kind])}")
    found = _table(table, where, TYPES[kind])
    column = Column(**{key: _value(value, f"{where}.{key}", _READERS[key]) for key, value in found.items()})
    if kind == "code" and not column.codes:
        raise JobError(f"{where}: a code needs its list; add for example codes = [0, 1]")
    return _ordered(column, where)


def _image(table: Any, where: str) -> Image:
    found = _table(table, where, Image._fields)
    if "shape" not in found:
        raise JobError(f"{where}: `shape` is missing; give one image's, for example shape = [1, 64, 64]")
    return _ordered(
        Image(**{key: _value(value, f"{where}.{key}", _READERS[key]) for key, value in found.items()}), where
    )


def _ordered[R: Column | Image](rule: R, where: str) -> R:
    return rule


def _table(table: Any, where: str, known: Iterable[str] | None) -> Mapping[str, Any]:
    """The table, whose keys are all known (None: they are names)."""
    if not isinstance(table, Mapping):
        raise JobError(f"{where} = {table!r}: this is a table of its own; write [{where.removeprefix('schema ')}]")
    for key in table if known is not None else ():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise JobError(f"{where}: unknown key {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"keys: {_list(known)}"))
    return table
