"""Pools of sites that nobody lists: names and data that are made when they are asked for.
Only errors may come in; what is here costs no more for a million sites than for ten."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from operator import eq
from typing import Any

from foedus.errors import FoedusError

MOST_LISTED = 1000  # names that a row of a journal lists; more are told shorter


class Names(Sequence[str]):
    """`site-0`, `site-1`, … of a count, as many digits each, so that they are in order; no list of them is kept."""

    __slots__ = ("size", "width")

    def __init__(self, count: int, width: int = 1) -> None:
        self.size, self.width = count, max(width, len(str(count - 1)))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self._name(i) for i in range(self.size)[at]]
        return self._name(range(self.size)[at])

    def __iter__(self) -> Iterator[str]:
        return map(self._name, range(self.size))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._at(name) is not None

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return (self.size, self.width) == (other.size, other.width)
        return isinstance(other, Sequence) and len(other) == self.size and all(map(eq, self, other))

    def __hash__(self) -> int:
        return hash((self.size, self.width))

    def __repr__(self) -> str:
        return f"Names({self[0]} … {self[-1]})"

    def index(self, name: str, *_: Any) -> int:
        """The site's number. Raises ValueError for a name that is none of these."""
        found = self._at(name)
        if found is None:
            raise ValueError(f"{name!r} is none of {self!r}")
        return found

    def _name(self, i: int) -> str:
        return f"site-{i:0{self.width}}"

    def _at(self, name: str) -> int | None:
        i = int(name[5:]) if name[5:].isdecimal() else self.size
        return i if i < self.size and name == self._name(i) else None


class Pool(Mapping[str, Any]):
    """Sites in the order of their `names`: `pool[name]` is `made(name)`, each time anew; nothing is kept."""

    def __init__(self, names: Sequence[str], made: Callable[[str], Any]) -> None:
        self.names, self.made = names, made

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return self.made(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and among(self.names, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def counted(count: int, data: Callable[[int], Any], width: int = 1) -> Pool:
    """The Pool of so many sites; `data` is asked by a site's number."""
    names = Names(count, width)
    return Pool(names, partial(_numbered, names, data))


def named(names: Sequence[str], data: Callable[[str], Any]) -> Pool:
    """The Pool of these names, which differ; `data` is asked by a site's name. Raises FoedusError."""
    if not names or not all(isinstance(name, str) and name for name in names):
        raise FoedusError("sites need names: strings that are not empty")
    found = sorted(names)
    if any(map(eq, found, islice(found, 1, None))):
        raise FoedusError("two sites have one name: give each its own")
    return Pool(found, data)


def among(names: Sequence[str], name: str) -> bool:
    """Whether `name` is one of these names, which are in order."""
    if isinstance(names, Names):
        return name in names
    at = bisect_left(names, name)
    return at < len(names) and names[at] == name


def told(names: Sequence[str]) -> Any:
    """Names as plain data for a journal: a list, or for many of a count what makes them."""
    if isinstance(names, Names) and len(names) > MOST_LISTED:
        return {"count": names.size, "width": names.width}
    return list(names)


def heard(said: Any) -> Sequence[str]:
    """The names that `told` told."""
    return Names(said["count"], said["width"]) if isinstance(said, Mapping) else list(said)


def _numbered(names: Names, data: Callable[[int], Any], name: str) -> Any:
    return data(names.index(name))
