"""What a Job asks of data: datasets, their columns or images, read from TOML or a mapping and checked as a whole.
Only plain values come in; a word that is not known is an error, never ignored."""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """One example of an array: its shape (-1: any length), its dtype ("": any) and the range of its values.

    Of pictures, too, the size of a voxel along their axes in space, in mm (-1: any), DICOM's Modality, and in what the
    names of the files of their channels end.
    """

    shape: tuple[int, ...]
    dtype: str = ""
    min: float = -math.inf
    max: float = math.inf
    spacing: tuple[float, ...] = ()
    modality: str = ""
    channels: tuple[str, ...] = ()


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
    columns = _table(found.get("columns", {}), f"{where}.columns")
    rules = {
        _name(name, f"{where}.columns"): _column(rule, f"{where}.columns.{name}") for name, rule in columns.items()
    }
    images = {key: _image(found[key], f"{where}.{key}") for key in ("image", "mask") if key in found}
    if not rules and "image" not in images:
        raise JobError(f"{where}: it says nothing of the data; add a table `columns` or `image`")
    if "mask" in images and (rules or "image" not in images):
        raise JobError(f"{where}: `mask` is the target of an `image`, in place of `columns`; state image and mask only")
    if "mask" in images and bool(images["image"].channels) != bool(images["mask"].channels):
        raise JobError(f"{where}: image and mask are both found by `channels`, or neither; say mask.channels = ['seg']")
    least = _values(found, where, ("least_rows",))
    return Dataset(rules, images.get("image"), images.get("mask"), **least)


def _column(table: Any, where: str) -> Column:
    kind = _table(table, where).get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise JobError(f"{where}: type = {kind!r}; every column has one, out of {', '.join(TYPES)}")
    stray = [key for key in Column._fields if key in table and key not in TYPES[kind]]
    if stray:
        raise JobError(f"{where}: {stray[0]!r} does not go with type = {kind!r}; its keys: {', '.join(TYPES[kind])}")
    column = Column(kind, **_values(_table(table, where, TYPES[kind]), where, TYPES[kind][1:]))
    if kind == "code" and not column.codes:
        raise JobError(f"{where}: a code needs its list, for example codes = [0, 1]")
    _check_range(column, where)
    return column


def _image(table: Any, where: str) -> Image:
    found = _table(table, where, Image._fields)
    if "shape" not in found:
        raise JobError(f"{where}: 'shape' is missing; give that of one example, such as shape = [1, 64, 64]")
    image = Image(**_values(found, where, Image._fields))
    _check_range(image, where)
    if len(image.spacing) > len(image.shape):
        raise JobError(f"{where}: spacing has {len(image.spacing)} axes, and shape {len(image.shape)}")
    return image


def _check_range(rule: Column | Image, where: str) -> None:
    if rule.min > rule.max:
        raise JobError(f"{where}: min = {rule.min:g} is above max = {rule.max:g}, so no value would fit")


def _table(table: Any, where: str, known: Sequence[str] = ()) -> Mapping[str, Any]:
    """The table, all of whose keys are known (none are: they are names)."""
    if not isinstance(table, Mapping):
        raise JobError(f"{where} is {table!r}: make it a table, [{where.removeprefix('schema ')}]")
    for key in table if known else ():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
            raise JobError(f"{where}: unknown key {key!r}; {hint}")
    return table


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not name.strip() or is_number(name):
        raise JobError(
            f"{where}: {name!r} is no name; use text that is not a number, so that a header can be told from data"
        )
    return name


def is_number(text: str) -> bool:
    """Whether the text reads as a number, NaN and infinities among them."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _values(table: Mapping[str, Any], where: str, keys: Iterable[str]) -> dict[str, Any]:
    """The values of those keys that are there, each read as its kind."""
    found = {}
    for key in keys:
        if key in table:
            try:
                found[key] = _READERS[key](table[key])
            except ValueError as error:
                raise JobError(f"{where}: {key} = {table[key]!r} is not {error}") from None
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def _number(value: Any) -> float:
    """A finite number; signed bodies hold it as the text of `float.hex`."""
    try:
        text = isinstance(value, str) and value.lstrip("-").startswith("0x")
        number = float.fromhex(value) if text else float(value) if type(value) in (int, float) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def _share(value: Any) -> float:
    if 0 <= (share := _number(value)) <= 1:
        return share
    raise ValueError("a share from 0 to 1 (0.3 is 30 %)")


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError("a whole number of at least 1")
    return value


def _codes(value: Any) -> tuple[int | str, ...]:
    codes = tuple(value) if isinstance(value, list | tuple) else ()
    kinds = {type(code) for code in codes}
    small = kinds == {int} and max(map(abs, codes)) < MOST_EXACT
    if not (small or kinds == {str}) or len(set(codes)) < len(codes):
        raise ValueError("a list of whole numbers, or of texts, each of them once")
    return codes


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(value) if isinstance(value, list | tuple) else ()
    if not shape or not all(type(n) is int and (n > 0 or n == -1) for n in shape):
        raise ValueError("a list of lengths, such as [1, 64, 64] (-1: any length)")
    return shape


def _spacing(value: Any) -> tuple[float, ...]:
    try:
        sizes = tuple(map(_number, value)) if isinstance(value, list | tuple) else ()
    except ValueError:
        sizes = ()
    if not sizes or not all(n > 0 or n == -1 for n in sizes):
        raise ValueError("a list of sizes in mm, such as [1, 1, 2.5] (-1: any)")
    return sizes


def _words(value: Any) -> tuple[str, ...]:
    words = tuple(value) if isinstance(value, list | tuple) else ()
    if not words or not all(isinstance(word, str) and word for word in words) or len(set(words)) < len(words):
        raise ValueError("a list of texts, each of them once")
    return words


def _dtype(value: Any) -> str:
    if value not in DTYPES:
        raise ValueError(f"a dtype out of {', '.join(DTYPES)}")
    return str(value)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "unit": _text, "min": _number, "max": _number, "missing": _share, "codes": _codes, "least_each": _count,
    "least_rows": _count, "shape": _shape, "dtype": _dtype, "spacing": _spacing, "modality": _text, "channels": _words,
}  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, Column | Image | Dataset):
        usual = value._field_defaults
        return {key: _plain(held) for key, held in value._asdict().items() if key not in usual or held != usual[key]}
    if isinstance(value, Mapping):
        return {key: _plain(held) for key, held in value.items()}
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < MOST_EXACT else value.hex()
    return list(map(_plain, value)) if isinstance(value, tuple) else value
