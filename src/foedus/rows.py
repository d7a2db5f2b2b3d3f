"""A site's work done once for many sites: what differs from site to site has a row a site, and is passed on unseen.
A work is a pure function, so what it does with one payload for any site, it does for all of them; one that looks at its
own site raises Apart, and is done site by site. Only the contract may come in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from foedus.core import Fit, Local, SiteContext, Update, Work
from foedus.keys import Key
from foedus.params import Array, Params, Spec, kind


class Apart(BaseException):
    """A work treats a site as one of its own. No Exception: the work's own code does not catch it."""


def _apart(*_: Any, **__: Any) -> NoReturn:
    raise Apart


class Each:
    """A value of each site, in their order: a work may pass it on, and whatever else it does with it raises Apart."""

    __slots__ = ("values",)

    def __init__(self, values: Sequence[Any] = ()) -> None:
        self.values = values

    def __getattr__(self, name: str) -> NoReturn:
        raise Apart


UNSEEN = (
    *("bool", "eq", "ne", "lt", "le", "gt", "ge", "hash", "str", "repr", "format", "len", "iter", "getitem"),
    *("contains", "call", "float", "int", "index", "round", "neg", "abs", "array", "add", "radd", "sub", "rsub", "mul"),
    *("rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "pow", "rpow", "array_ufunc"),
)
for _name in UNSEEN:
    setattr(Each, f"__{_name}__", _apart)


Change = Callable[[str, slice, Array, Array | None], Array]  # (group, its numbers, array, out) -> array of that shape


class Rows:
    """A model of each site: by group, arrays of (sites, numbers) that lie side by side, or (numbers,) of all alike.

    Site i has row `at[i]`. Rows are added to Params and scaled as Params are, when they are read, so that nobody
    writes the models of all sites once more; whatever else is done raises Apart.
    """

    __slots__ = ("at", "changes", "each", "spec")
    __array_ufunc__ = None  # np.float64(0.5) * rows is ours to answer

    def __init__(
        self,
        spec: Spec,
        each: Mapping[str, Array | Sequence[Array]],
        at: Sequence[int],
        changes: Sequence[Change] = (),
    ) -> None:
        self.spec, self.each, self.at, self.changes = spec, each, at, changes

    def row(self, i: int) -> Params:
        """The model of one site."""
        return Params.of(self.spec, {g: x[0] for g, x in self.read([self.at[i]]).items()})

    def read(self, rows: slice | Sequence[int]) -> dict[str, Array]:
        """group -> (rows, numbers) of these rows."""
        count = len(range(len(self.at))[rows]) if isinstance(rows, slice) else len(rows)
        return {g: self._read(g, x, rows, count) for g, x in self.each.items()}

    def _read(self, group: str, each: Array | Sequence[Array], rows: slice | Sequence[int], count: int) -> Array:
        if isinstance(each, np.ndarray):
            x = self._changed(group, slice(None), each, None)
            return np.broadcast_to(x, (count, x.size))
        made = np.empty((count, sum(part.shape[1] for part in each)), each[0].dtype)
        end = 0
        for part in each:
            place = slice(end, end := end + part.shape[1])
            out = made[:, place]
            x = self._changed(group, place, part[rows], out)
            if x is not out:
                out[:] = x
        return made

    def _changed(self, group: str, place: slice, x: Array, out: Array | None) -> Array:
        for change in self.changes:
            x = change(group, place, x, out)
        return x

    def __sub__(self, other: Params) -> Rows:
        flats = self._fitting(other)
        return self._then(lambda g, at, x, out: x if kind(g) == "integer" else np.subtract(x, flats[g][at], out))

    def __add__(self, other: Params) -> Rows:
        flats = self._fitting(other)
        return self._then(lambda g, at, x, out: flats[g][at] if kind(g) == "integer" else np.add(x, flats[g][at], out))

    def __rmul__(self, scale: float) -> Rows:
        if not isinstance(scale, (int, float)):
            raise Apart
        if scale == 1:
            return self
        return self._then(lambda g, at, x, out: x if kind(g) == "integer" else _scaled(x, scale, out))

    def _fitting(self, other: Any) -> Mapping[str, Array]:
        if not isinstance(other, Params) or other.spec != self.spec:
            raise Apart
        return other.flats

    def _then(self, change: Change) -> Rows:
        return Rows(self.spec, self.each, self.at, (*self.changes, change))

    def __getattr__(self, name: str) -> NoReturn:
        raise Apart

    __bool__ = __eq__ = __len__ = __iter__ = __getitem__ = __radd__ = __rsub__ = __mul__ = __neg__ = _apart
    __hash__ = __str__ = __repr__ = __format__ = _apart


def _scaled(x: Array, scale: float, out: Array | None) -> Array:
    made: Array = np.multiply(x, x.dtype.type(scale), out)
    return made


class Keys:
    """A key of each site; calling it appends names to all."""

    __slots__ = ("heads", "names")

    def __init__(self, heads: Sequence[tuple[str | int, ...]], names: tuple[str | int, ...] = ()) -> None:
        self.heads, self.names = heads, names

    def __call__(self, *names: str | int) -> Keys:
        if not all(isinstance(name, (str, int)) for name in names):
            raise Apart
        return Keys(self.heads, (*self.names, *names))

    def all(self) -> list[Key]:
        """The keys, in the sites' order."""
        return [Key(head + self.names) for head in self.heads]

    def __getattr__(self, name: str) -> NoReturn:
        raise Apart


Train = Callable[[Params, Sequence[Any], Sequence[Key], Any], Fit]  # (params, splits, keys, correct) -> Fit of Rows


def together(
    work: Work, payload: Params, heads: Sequence[tuple[str | int, ...]], splits: Sequence[Any], train: Train,
    metrics: Sequence[Any] = (),
) -> Update:  # fmt: skip
    """What the work returns for the sites whose keys are called `heads`, which keep no state of their own.

    `train` gives a Fit whose params are Rows and whose numbers are Each, in the order of its splits. The Update has
    Rows, and a weight and metrics that are Each or the same for all. Raises Apart where the work has to see one site.
    """
    one: Any = Each()
    split: Any = Each()

    def trained(params: Any, data: Any, key: Any, correct: Any) -> Fit:
        if not isinstance(params, Params) or data is not split or not isinstance(key, Keys):
            raise Apart
        return train(params, splits, key.all(), correct)

    context = SiteContext(one, split, trained, Keys(heads), _apart, _apart, metrics, one, None, _apart)  # type: ignore[arg-type]
    local: Local
    local, update = work(payload, None, context)
    if local is not None or not isinstance(update, Update) or not isinstance(update.params, Rows):
        raise Apart
    return update


def listed(value: Any, count: int) -> Sequence[Any]:
    """The value of each of so many sites."""
    return value.values if isinstance(value, Each) else [value] * count
