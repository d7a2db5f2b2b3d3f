"""Which columns the examples of sites have, by their names: put in the Job's order, and compared between sites.
Only data and errors may come in; a table without names has an order alone, which is taken as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from foedus.data import PARTS, Pairs, Split
from foedus.errors import FoedusError, JobError

MOST_NAMED = 12  # that a message lists
MOST_TOLD = 16 << 10  # characters of names that a site tells; beyond them their digest

Names = Sequence[str]


def names_of(split: object) -> tuple[str, ...]:
    """The names of the columns that a Split's examples for training have, if it knows them."""
    data = split.train if isinstance(split, Split) else None
    return data.names if isinstance(data, Pairs) else ()


def told(names: Names) -> list[str]:
    """What a site says of its columns: their names, or where these are long, how many they are and their SHA-256."""
    if sum(map(len, names)) <= MOST_TOLD:
        return list(names)
    return [f"{len(names)} columns, SHA-256 {hashlib.sha256(repr(tuple(names)).encode()).hexdigest()}"]


def in_order(split: Split, names: Names, whose: str, stated: bool = True) -> Split:
    """The Split with these columns in this order, and no others. Raises FoedusError for one that has not got them.

    `whose` says who names them. A table without names has to have as many; where they are not `stated` by the Job
    itself, whatever has no names stays as it is.
    """
    parts = {part: getattr(split, part) for part in PARTS}
    named = {part: data for part, data in parts.items() if isinstance(data, Pairs) and data.names}
    for part, data in parts.items() if stated else ():
        if data is not None and part not in named:
            _check_width(part, data, names, whose)
    if all(data.names == tuple(names) for data in named.values()):
        return split
    return Split(**(parts | {part: _placed(part, data, names, whose) for part, data in named.items()}))


def _check_width(part: str, data: object, names: Names, whose: str) -> None:
    if not isinstance(data, Pairs):
        raise FoedusError(
            f"{whose} name columns, and {part} is {type(data).__name__}: load fd.Split.from_frame(…) or (x, y) "
            "arrays, or leave columns=… out"
        )
    if tuple(data.x.shape[1:]) != (len(names),):
        raise FoedusError(
            f"{whose} name {len(names)} columns, and the examples of {part} have shape {list(data.x.shape[1:])} and "
            "no names: load these columns in this order, or a frame by fd.Split.from_frame"
        )


def _placed(part: str, data: Pairs, names: Names, whose: str) -> Pairs:
    own = data.names
    if lacking := [name for name in names if own.count(name) != 1]:
        times = "more than once a" if lacking[0] in own else "no"
        raise FoedusError(
            f"{part} has {times} column {lacking[0]!r}, which {whose} name: it has {_few(own)}; rename or add it at "
            "this site, in load or in the data's adapter"
        )
    return Pairs(data.x[:, [own.index(name) for name in names]], data.y, names, data.about)


class Alike:
    """The columns that the sites of a run have: those of the first that named any, and then of all."""

    def __init__(self) -> None:
        self.site, self.names = "", list[str]()

    def add(self, site: str, names: Names) -> None:
        """Raises JobError where the site has others than those before it, or has them in another order."""
        if names and not self.names:
            self.site, self.names = site, list(names)
        if why := differ(self.site, self.names, site, names):
            raise JobError(why)


def differ(site: str, names: Names, other: str, theirs: Names) -> str:
    """Why the models of two sites do not fit together, with the remedy; "" where they do, as far as is known."""
    if not names or not theirs or list(names) == list(theirs):
        return ""
    if sorted(names) == sorted(theirs):
        stated = f"columns=[{', '.join(map(repr, names))}]" if len(names) <= MOST_NAMED else "columns=[…]"
        return (
            f"site {other!r} has the columns of site {site!r} in another order ({_few(theirs)}, not {_few(names)}): "
            f"write fd.Job(…, {stated}), and every site reads them in that order"
        )
    lacks = [name for name in names if name not in theirs]
    more = [name for name in theirs if name not in names]
    what = [f"lacks {_few(lacks)}"] if lacks else []
    what += [f"has {_few(more)} more"] if more else []
    what = what or [f"has {_few(theirs)}, not {_few(names)}"]
    return (
        f"site {other!r} has other columns than site {site!r}: it {' and '.join(what)}; load the same ones at every "
        "site, or write fd.Job(…, columns=[…]) with those that all have"
    )


def _few(names: Names) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
