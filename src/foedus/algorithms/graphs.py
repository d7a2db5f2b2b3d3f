"""Who speaks with whom where no server stands between sites: graphs over a round's names, and weights on their edges.
Named randomness may come in; names are in order, and edges are pairs in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import ceil, sqrt
from typing import Any

from foedus.errors import JobError
from foedus.keys import Key

Edges = set[tuple[str, str]]
Graph = Callable[[Sequence[str], Key], Edges]  # (names in order, the round's key) -> edges


def ring(names: Sequence[str], key: Key | None = None) -> Edges:
    """Each name with the next one, the last with the first.

    >>> sorted(ring(["a", "b", "c", "d"]))
    [('a', 'b'), ('a', 'd'), ('b', 'c'), ('c', 'd')]
    """
    return _edges(pairwise([*names, *names[:1]]))


def grid(names: Sequence[str], key: Key | None = None) -> Edges:
    """Rows one below the other, as square as may be: each name with its right and its lower neighbour.

    >>> sorted(grid(["a", "b", "c", "d", "e"]))
    [('a', 'b'), ('a', 'd'), ('b', 'c'), ('b', 'e'), ('d', 'e')]
    """
    width = ceil(sqrt(len(names))) or 1
    right = [(a, b) for i, (a, b) in enumerate(pairwise(names), 1) if i % width]
    return _edges([*right, *zip(names, names[width:], strict=False)])


def random_rings(count: int = 2) -> Graph:
    """So many rings, each in an order drawn by key, other ones in every round; so it always hangs together."""
    if not isinstance(count, int) or count < 1:
        raise JobError(f"random_rings({count!r}): a whole number of rings, at least 1")

    def graph(names: Sequence[str], key: Key) -> Edges:
        orders = (key("ring", i).numpy().permutation(len(names)) for i in range(count))
        return {edge for order in orders for edge in ring([names[i] for i in order])}

    return graph


def given(neighbours: Mapping[str, Sequence[str]]) -> Graph:
    """A graph as {site: its neighbours}, one direction is enough.

    Where a site is not there, its neighbours are linked to one another in a chain; a site that is not named is linked
    to the names before and after it.
    """
    drawn = sorted(_edges((a, b) for a, found in neighbours.items() for b in found))
    known = sorted({name for edge in drawn for name in edge} | set(neighbours))

    def graph(names: Sequence[str], key: Key | None = None) -> Edges:
        edges = set(drawn)
        for gone in sorted(set(known) - set(names)):
            around = around_of(edges, gone)
            edges = {edge for edge in edges if gone not in edge} | _edges(pairwise(around))
        return edges | _edges(pair for pair in pairwise(names) if not {*pair} <= {*known})

    return graph


def around_of(edges: Edges, name: str) -> list[str]:
    """The neighbours of a name, in order."""
    return sorted(b if a == name else a for a, b in edges if name in (a, b))


def metropolis(edges: Edges, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """name -> {neighbour or itself: weight}: 1 / (1 + the larger degree), the rest on itself (Xiao and Boyd 2004).

    Symmetric, and each row and column adds up to 1, so that mixing leaves the mean where it is.

    >>> metropolis({("a", "b"), ("b", "c")}, "abc")["a"]
    {'a': 0.6666666666666667, 'b': 0.3333333333333333}
    """
    around = {name: around_of(edges, name) for name in names}
    rows: dict[str, dict[str, float]] = {}
    for name, found in around.items():
        shares = {other: 1 / (1 + max(len(found), len(around[other]))) for other in found}
        rows[name] = {name: 1 - sum(shares.values())} | shares
    return rows


def _edges(pairs: Any) -> Edges:
    return {(min(a, b), max(a, b)) for a, b in pairs if a != b}
