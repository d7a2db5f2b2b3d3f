"""A site's work done once for many sites: what differs from site to site has a row a site, and is passed on unseen.
A work is a pure function, so what it does with one payload for any site, it does for all of them; one that looks at its
own site raises Apart, and is done site by site. Only the contract may come in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

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
    *(
        "bool",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "hash",
        "str",
        "repr",
        "format",
        "len",
        "iter",
        "getitem",
        "contains",
    ),
    *("contains", "call", "float", "int", "index", "round", "neg", "abs", "array", "add", "radd", "sub", "rsub", "mul"),
    *("rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "pow", "rpow", "array_ufunc"),
)
for _name in UNSEEN:
    setattr(Each, f"__{_name}__", _apart)


class Rows:
    """A model of each site: flat arrays of (sites, numbers) by group, or of (numbers,) where all have the same.

    Site i has row `at[i]`. Rows are added to Params and scaled as Params are; whatever else is done raises Apart.
    """

    __slots__ = ("at", "each", "spec")
    __array_ufunc__ = None  # np.float64(0.5) * rows is ours to answer

    def __init__(self, spec: Spec, each: Mapping[str, Array], at: Sequence[int]) -> None:
        self.spec, self.each, self.at = spec, each, at

    def row(self, i: int) -> Params:
        """The model of one site."""
        return Params.of(self.spec, {g: x if x.ndim == 1 else x[self.at[i]] for g, x in self.each.items()})

    def __sub__(self, other: Params) -> Rows:
        flats = self._fitting(other)
        return self._with({g: x if kind(g) == "integer" else x - flats[g] for g, x in self.each.items()})

    def __add__(self, other: Params) -> Rows:
        flats = self._fitting(other)
        return self._with({g: flats[g] if kind(g) == "integer" else x + flats[g] for g, x in self.each.items()})

    def __rmul__(self, scale: float) -> Rows:
        if not isinstance(scale, (int, float)):
            raise Apart
        scaled = {g: x if kind(g) == "integer" else x * x.dtype.type(scale) for g, x in self.each.items()}
        return self if scale == 1 else self._with(scaled)

    def _fitting(self, other: Any) -> Mapping[str, Array]:
        if not isinstance(other, Params) or other.spec != self.spec:
            raise Apart
        return other.flats

    def _with(self, each: Mapping[str, Array]) -> Rows:
        return Rows(self.spec, each, self.at)

    def __getattr__(self, name: str) -> NoReturn:
        raise Apart

    __bool__ = __eq__ = __len__ = __iter__ = __getitem__ = __radd__ = __rsub__ = __mul__ = __neg__ = _apart
    __hash__ = __str__ = __repr__ = __format__ = _apart


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
