"""What a site holds: examples in a Split, and the Sites of a simulation, which can be shown, hashed and kept as files.
Only the saved form, keys and errors may come in; arrays, tensors and frames are told apart by what they can do."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from foedus import frames, pool
from foedus.errors import FoedusError, Missing
from foedus.keys import Key
from foedus.params import DTYPES, Array, digest
from foedus.tables import After, divided

PARTS = ("train", "valid", "test")
VALID_SHARE = 0.1
EMPTY = "a site without any takes no part; look at what is read and left out for it"
MOST_LABELS = 12  # that a table or plot shows one by one


class Site(NamedTuple):
    """What a Job's `load(site)` sees: `data` is what the site's owner bound, `key` its named randomness."""

    name: str
    data: Any
    key: Key


class Pairs:
    """Examples (x[i], y[i]): a dataset with a length, taken apart by whole numbers, slices and index arrays.

    Arrays and tensors stay what they are; lists and frames of numbers become arrays. `names`: of x's columns, where a
    frame had them. `about`: name -> what is known of each example and no model reads, as a sex or a scanner: subgroups
    of a validation may be by it.
    """

    __slots__ = ("about", "names", "x", "y")

    def __init__(
        self, x: Any, y: Any, names: Sequence[str] = (), about: Mapping[str, Sequence[Any] | Array] | None = None
    ) -> None:
        self.names = tuple(names) or tuple(map(str, getattr(x, "columns", ())))
        self.x, self.y = _column(x, "x"), _column(y, "y")
        self.about = {name: np.asarray(values) for name, values in (about or {}).items()}
        if len(self.x) != len(self.y):
            raise FoedusError(f"x has {len(self.x)} examples and y has {len(self.y)}: give one target for each example")
        for name, values in self.about.items():
            if values.shape != (len(self.x),):
                raise FoedusError(
                    f"about[{name!r}] is {list(values.shape)}: give one value for each of {len(self.x)} examples"
                )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        return self.x[index], self.y[index]

    def __repr__(self) -> str:
        return f"Pairs({len(self)} examples)"


class Records:
    """Examples of people who are known elsewhere too: `ids`, columns `x` and, at one site, targets `y`.

    `ids` (text or whole numbers, each once) say who is who; without them rows have the same order at every site.

    >>> len(Records(["ann", "bob"], [[1.0], [2.0]]))
    2
    """

    __slots__ = ("ids", "x", "y")

    def __init__(self, ids: Any, x: Any, y: Any = None) -> None:
        self.x = _column(x, "x")
        self.ids = None if ids is None else list(ids)
        self.y = None if y is None else _column(y, "y")
        for name, values in (("ids", self.ids), ("y", self.y)):
            if values is not None and len(values) != len(self.x):
                raise FoedusError(f"x has {len(self.x)} examples and {name} has {len(values)}: give as many")

    @classmethod
    def from_frame(cls, frame: Any, id: str, label: str | None = None) -> Records:
        """The Records of a data frame of numbers (pandas): `id` is the ids' column, `label` the target's."""
        check_columns(frame, id, *([] if label is None else [label]))
        x = frame.drop(columns=[id] if label is None else [id, label])
        return cls(frame[id].tolist(), x, None if label is None else frame[label])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Any:
        return self.x[index] if self.y is None else (self.x[index], self.y[index])

    def __repr__(self) -> str:
        return f"Records({len(self)} examples{'' if self.y is None else ' with targets'})"


class Rows:
    """The rows of a memory-mapped array at `indices`: an array that stays on disk, but for what is taken from it."""

    __slots__ = ("indices", "x")

    def __init__(self, x: Any, indices: Array) -> None:
        self.x, self.indices = x, indices

    @property
    def dtype(self) -> Any:
        return self.x.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.indices), *self.x.shape[1:])

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * int(self.dtype.itemsize)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.x[self.indices[index]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self.x[self.indices], dtype)


class Subset:
    """The examples of `data` at `indices`, in that order."""

    __slots__ = ("data", "indices")

    def __init__(self, data: Any, indices: Array) -> None:
        self.data, self.indices = data, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.data[int(self.indices[index])]

    @property
    def about(self) -> dict[str, Array]:
        """What is known of these examples beside what a model reads."""
        return {name: np.asarray(x)[self.indices] for name, x in getattr(self.data, "about", {}).items()}


@dataclass(frozen=True, eq=False, slots=True)
class Split:
    """A site's examples for training, validation and test: each `(x, y)`, or a dataset with a length and getitem.

    An `(x, y)` tuple becomes Pairs. Raises FoedusError for parts that are empty, do not fit or are no examples.

    >>> split = Split(train=(np.eye(3), [0, 1, 1]))
    >>> len(split.train), split.train[2][1].item()
    (3, 1)
    """

    train: Any
    valid: Any = None
    test: Any = None

    def __post_init__(self) -> None:
        for part in PARTS:
            if part == "train" or getattr(self, part) is not None:
                object.__setattr__(self, part, _examples(getattr(self, part), part))

    @classmethod
    def from_frame(
        cls, train: Any, label: str, valid: Any = None, test: Any = None, about: Sequence[str] = ()
    ) -> Split:
        """The Split of data frames of numbers (pandas): `label` is the target's column, all others are features.

        `valid` and `test` may be `fd.after(when, on=column)`: the later rows of `train`; that column is no feature.
        Nor are those of `about`, numbers or texts, which subgroups of a validation may be by.
        """
        later = {name: part for name, part in (("valid", valid), ("test", test)) if isinstance(part, After)}
        frames = {"train": train, "valid": valid, "test": test}
        if later:
            check_columns(train, label, *(part.on for part in later.values()))
            frames |= divided(train, later)
        return cls(*(None if frame is None else _labelled(frame, label, about) for frame in frames.values()))

    def with_valid(self, key: Key) -> Split:
        """This Split, with a validation part: where there is none, `key` draws 10 % of train, at least one example.

        A single example stays in train, and so do Records: they are divided once it is known who is everywhere.
        """
        if self.valid is not None or len(self.train) < 2 or isinstance(self.train, Records):
            return self
        order = key.numpy().permutation(len(self.train))
        cut = max(1, round(VALID_SHARE * len(order)))
        return Split(take(self.train, np.sort(order[cut:])), take(self.train, np.sort(order[:cut])), self.test)


class Sites(Mapping[str, Any]):
    """Sites for a simulation: name -> what its `load` finds as `site.data`, usually a Split.

    `classes` names the labels 0, 1, … where they were text.
    """

    def __init__(self, data: Mapping[str, Any], classes: Sequence[str] = ()) -> None:
        if not data or not all(isinstance(name, str) and name for name in data):
            raise FoedusError("Sites needs at least one site, and every name is a string that is not empty")
        self._data: Mapping[str, Any] = {name: _held(held) for name, held in data.items()}
        self.classes = tuple(classes)

    @classmethod
    def lazy(cls, sites: int | Sequence[str], data: Callable[[Any], Any], classes: Sequence[str] = ()) -> Sites:
        """Sites whose data is made each time that it is needed, and kept nowhere: a pool may have millions.

        `sites` is a count, and then `data(number)` is what a site holds, or names, and then it is `data(name)`.
        Raises FoedusError.

        >>> pool = Sites.lazy(1_000_000, lambda i: (np.full((2, 1), i), [0, 1]))
        >>> pool["site-000042"].train.x.tolist()
        [[42], [42]]
        """
        named = isinstance(sites, Sequence) and not isinstance(sites, str) and all(isinstance(x, str) for x in sites)
        if not (named or (isinstance(sites, int) and not isinstance(sites, bool) and sites >= 1)):
            raise FoedusError(f"sites={sites!r}: give a count of at least 1, or a list of names")
        if not callable(data):
            raise FoedusError(f"Sites.lazy(…, {type(data).__name__}): give a function of the site's number, or name")
        made = cls.__new__(cls)
        made._data = pool.counted(sites, data, 3) if isinstance(sites, int) else pool.named(sites, data)
        made.classes = tuple(classes)
        return made

    @property
    def names(self) -> Sequence[str]:
        """The sites' names in order."""
        return self._data.names if isinstance(self._data, pool.Pool) else sorted(self._data)

    def __getitem__(self, name: str) -> Any:
        return _held(self._data[name])

    def __contains__(self, name: object) -> bool:
        return name in self._data

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return f"Sites({', '.join(self) if len(self) < 6 else f'{len(self)} sites'})"

    def table(self) -> str:
        """Who has what, as text: a row per site with its examples in each part and, for a few labels, of each label."""
        parts, labels = self._counts()
        numbers = [_padded([head, *map(str, counts)]) for head, counts in (*parts.items(), *labels.items())]
        rows = zip(_padded(["site", *self], "<"), *numbers, strict=True)
        return "\n".join("  ".join(row) for row in rows)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Who has what, as a matplotlib Figure: a bar per site, stacked by label or part; written to `path` if given.

        Raises Missing without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise Missing("matplotlib", "plot") from error
        parts, labels = self._counts()
        figure = Figure(figsize=(max(4.0, min(16.0, 1.5 + 0.4 * len(self))), 3.5), layout="constrained")
        axes = figure.add_subplot(ylabel="examples")
        floor = np.zeros(len(self))
        for name, counts in (labels or parts).items():
            axes.bar(list(self), counts, bottom=floor, label=name)
            floor = floor + counts
        axes.tick_params("x", rotation=90 if len(self) > 6 else 0)
        axes.legend(title="label" if labels else None, fontsize="small")
        if path is not None:
            figure.savefig(path)
        return figure

    def _counts(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """Examples by part and, where there are few, by label: name -> a count for each site."""
        rows = [_counted(name, held) for name, held in self.items()]
        found = sorted({label for _, by in rows for label in by}, key=lambda label: (isinstance(label, str), label))
        shown = found if len(found) <= MOST_LABELS else []
        named = {self.classes[v] if self.classes else str(v): [by[v] for _, by in rows] for v in shown}
        return {part: [sizes[part] for sizes, _ in rows] for part in PARTS}, named

    @property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of all names and arrays, whatever the order of the sites. Raises FoedusError."""
        every = {name: digest(_arrays(name, held)) for name, held in self.items()}
        return hashlib.sha256(json.dumps(every, sort_keys=True).encode()).hexdigest()

    def save(self, folder: str | os.PathLike[str]) -> dict[str, Path]:
        """Writes one safetensors file a site into `folder`, for `load_split`; name -> file. Raises FoedusError."""
        place = Path(folder)
        files = {name: place / f"{quote(name, safe='')}.safetensors" for name in self}
        strangers = {path.name for path in place.glob("*.safetensors")} - {path.name for path in files.values()}
        if strangers:
            raise FoedusError(f"{place} already holds {min(strangers)}, of other sites: choose an empty folder")
        place.mkdir(parents=True, exist_ok=True)
        for name, path in files.items():
            _write(path, _tree(name, self[name]) | {"site": name, "classes": list(self.classes)})
        return files

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Sites:
        """The Sites that `save` wrote, in the order of their names; arrays are numpy's. Raises FoedusError."""
        trees = [_read(path) for path in sorted(Path(folder).glob("*.safetensors"))]
        if not trees or not all("site" in tree for tree in trees):
            raise FoedusError(f"{folder} holds no sites saved by Sites.save")
        return cls({tree["site"]: _split(tree) for tree in sorted(trees, key=lambda t: t["site"])}, trees[0]["classes"])


def save_split(path: str | os.PathLike[str], split: Split) -> None:
    """Writes a Split of arrays as one safetensors file, whole or not at all. Raises FoedusError for other data."""
    _write(Path(path), _tree(Path(path).name, split))


def load_split(path: str | os.PathLike[str]) -> Split:
    """The Split that `save_split` or `Sites.save` wrote; arrays are numpy's, in memory and writable."""
    return _split(_read(Path(path)))


def take(data: Any, indices: Array) -> Any:
    """The examples at `indices`: Pairs of Pairs, a Subset of any other dataset; what is memory-mapped stays on disk."""
    if not isinstance(data, Pairs):
        return Subset(data, indices)
    about = {name: values[indices] for name, values in data.about.items()}
    return Pairs(_rows(data.x, indices), _rows(data.y, indices), data.names, about)


def _rows(x: Any, indices: Array) -> Any:
    if isinstance(x, Rows):
        return Rows(x.x, x.indices[indices])
    return Rows(x, indices) if isinstance(x, np.memmap) else x[indices]


def check_columns(frame: Any, *names: str) -> None:
    """Raises FoedusError if this is no data frame, or one without these columns."""
    if not hasattr(frame, "iloc") or not hasattr(frame, "columns"):
        raise FoedusError(f"{type(frame).__name__} is no data frame: read it with pandas first")
    unknown = [name for name in names if name not in frame.columns]
    if unknown:
        raise FoedusError(f"there is no column {unknown[0]!r}: choose from {', '.join(map(str, frame.columns))}")


def _labelled(frame: Any, label: str, about: Sequence[str]) -> Pairs:
    check_columns(frame, label, *about)
    return Pairs(frame.drop(columns=[label, *about]), frame[label], (), {name: frame[name] for name in about})


def _held(data: Any) -> Any:
    return Split(data) if _is_pair(data) else data


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2


def _examples(data: Any, part: str) -> Any:
    if _is_pair(data):
        data = Pairs(*data)
    if hasattr(data, "iloc"):
        raise FoedusError(f"{part} is a data frame: use Split.from_frame(frame, label=...)")
    sized = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not sized or isinstance(data, (str, bytes, tuple, Mapping)):
        raise FoedusError(f"{part} is {type(data).__name__}: give (x, y), or a dataset with a length and getitem")
    if not len(data):
        raise FoedusError(f"{part} has no examples: " + (EMPTY if part == "train" else f"leave {part} out"))
    return data


def _column(values: Any, name: str) -> Any:
    """`values` as something with a shape, indexed along its examples."""
    if hasattr(values, "iloc"):
        values = _numbers(values)
    elif not (hasattr(values, "shape") and hasattr(values, "dtype")):
        try:
            values = np.asarray(values)
        except ValueError as error:
            raise FoedusError(f"the examples of {name} differ in shape: give a dataset instead of (x, y)") from error
    if not len(values.shape):
        raise FoedusError(f"{name} is a single value: give an array with one row for each example")
    if getattr(values.dtype, "kind", "") == "O":
        kinds = sorted({type(value).__name__ for value in np.asarray(values).ravel()[:100]})
        raise FoedusError(f"{name} holds Python objects ({', '.join(kinds)}): give an array of numbers")
    return values


def _numbers(frame: Any) -> Array:
    """A frame as (rows, columns) of float64, gaps as NaN; a series as an array of its own dtype."""
    series = not hasattr(frame, "columns")
    dtypes = {frame.name: frame.dtype} if series else dict(frame.dtypes)
    text = [name for name, dtype in dtypes.items() if dtype.kind not in "biuf"]
    if text:
        raise FoedusError(f"column {text[0]!r} does not hold numbers: turn it into numbers the same way at every site")
    return np.asarray(frame.to_numpy() if series else frame.to_numpy(dtype=np.float64, na_value=np.nan))


def _counted(name: str, held: Any) -> tuple[Counter[str], Counter[Any]]:
    """How many examples a site has in each part, and of each label."""
    if not isinstance(held, Split):
        raise FoedusError(f"site {name!r} holds {type(held).__name__}: only a Split can be counted")
    parts = {part: getattr(held, part) for part in PARTS if getattr(held, part) is not None}
    labels: Counter[Any] = Counter()
    for data in parts.values():
        y = np.asarray(data.y) if isinstance(data, Pairs) else np.empty((0, 0))
        if y.ndim == 1 and y.dtype.kind in "biuU":
            labels.update(y.tolist())
    return Counter({part: len(data) for part, data in parts.items()}), labels


def _padded(cells: Sequence[str], side: str = ">") -> list[str]:
    width = max(map(len, cells))
    return [f"{cell:{side}{width}}" for cell in cells]


def _arrays(name: str, held: Any) -> dict[str, Array]:
    parts = {part: getattr(held, part, None) for part in PARTS}
    if not isinstance(held, Split) or not all(data is None or isinstance(data, Pairs) for data in parts.values()):
        raise FoedusError(f"site {name!r} does not hold arrays: give Sites a Split of (x, y) arrays")
    return {f"{p}/{c}": np.asarray(getattr(data, c)) for p, data in parts.items() if data is not None for c in "xy"}


def _tree(name: str, held: Any) -> dict[str, Any]:
    """What is saved of a site's Split: its arrays, and the names of their columns."""
    arrays = _arrays(name, held)
    for what, x in arrays.items():
        if x.dtype.name not in DTYPES:
            raise FoedusError(f"{name}: {what} is {x.dtype}, which has no saved form: turn it into numbers first")
    parts = {part: getattr(held, part) for part in PARTS}
    about = {
        part: {name: x.tolist() for name, x in data.about.items()} for part, data in parts.items() if data is not None
    }
    return {
        "split": arrays,
        "names": {p: list(getattr(data, "names", ())) for p, data in parts.items()},
        "about": about,
    }


def _write(path: Path, tree: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        for piece in frames.pack(tree):
            file.write(piece)
    temporary.replace(path)


def _read(path: Path) -> Mapping[str, Any]:
    tree = frames.read(path)
    if not isinstance(tree, Mapping) or not isinstance(tree.get("split"), Mapping):
        raise FoedusError(f"{path} is not a Split that foedus saved")
    return tree


def _split(tree: Mapping[str, Any]) -> Split:
    arrays = {name: np.array(x) for name, x in tree["split"].items()}
    names, about = tree.get("names", {}), tree.get("about", {})  # which an older version left out
    parts = [
        Pairs(arrays[f"{p}/x"], arrays.get(f"{p}/y"), names.get(p, ()), about.get(p)) if f"{p}/x" in arrays else None
        for p in PARTS
    ]
    return Split(*parts)
