"""What all partitioners share: names, keys, labels as codes, and a site's examples divided into its parts.
Arrays come in; all randomness is named by (seed, site)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foedus.data import Pairs, Sites, Split, take
from foedus.errors import FoedusError
from foedus.keys import Key, key
from foedus.params import Array


def labelled(x: Any, y: Any) -> tuple[Pairs, tuple[str, ...]]:
    """The examples, text labels as codes, and the texts."""
    target = np.asarray(y)
    if target.dtype.kind not in "OUT":
        return Pairs(x, y), ()
    if not all(isinstance(label, str) for label in target.tolist()):
        raise FoedusError("labels are neither numbers nor text: give whole numbers, or strings")
    texts, codes = np.unique(target.astype(np.str_), return_inverse=True)
    return Pairs(x, codes.astype(np.int64)), tuple(texts.tolist())


def classed(data: Pairs) -> list[Array]:
    """For each label in order, the indices of its examples. Raises FoedusError if targets are not classes."""
    y = np.asarray(data.y)
    if y.ndim != 1 or y.dtype.kind not in "biuf" or (y.dtype.kind == "f" and not (y == np.floor(y)).all()):
        raise FoedusError(f"targets of shape {y.shape} and dtype {y.dtype} are no classes: divide them with iid")
    return [np.flatnonzero(y == label) for label in np.unique(y)]


def named(sites: int | Sequence[str], examples: int, least: int = 1) -> list[str]:
    """The sites' names; those of a count sort in the order of their numbers."""
    if isinstance(sites, (int, np.integer)) and not isinstance(sites, bool):
        names = [f"site-{i:0{max(3, len(str(sites - 1)))}}" for i in range(sites)]
    else:
        names = list(sites) if isinstance(sites, Sequence) and not isinstance(sites, str) else []
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
        raise FoedusError(f"sites={sites!r}: give a count of at least 1, or a list of names that differ")
    if least < 1 or examples < least * len(names):
        raise FoedusError(f"{examples} examples do not give {len(names)} sites at least {least} each: use fewer sites")
    return names


def drawn_by(seed: int, site: str, purpose: str) -> Key:
    return key(seed, "partition", 0, site, purpose)


def shuffled(members: Array, seed: int, label: int) -> Array:
    return drawn_by(seed, "", f"label {label}").numpy().permutation(members)


def shares(names: Sequence[Key], alpha: float, labels: int) -> Array:
    """Shares (sites, labels) that are Dirichlet(alpha) along each column, from Gamma draws that each site has its own.

    In logarithms, as Gamma(alpha) = Gamma(alpha + 1) U^(1/alpha): for small alpha all draws would round to 0.
    """
    rows = [(r.standard_gamma(alpha + 1, labels), r.random(labels)) for r in (name.numpy() for name in names)]
    logs = np.array([np.log(gamma) + np.log1p(-uniform) / alpha for gamma, uniform in rows])
    raised = np.exp(logs - logs.max(axis=0))
    return np.asarray(raised / raised.sum(axis=0))


def share_out(held: list[Array], least: int, name: Key) -> None:
    """Moves random examples from the largest site to each site with fewer than `least`."""
    random = name.numpy()
    for i in range(len(held)):
        while len(held[i]) < least:
            largest = max(range(len(held)), key=lambda j: len(held[j]))
            at = random.integers(len(held[largest]))
            held[i] = np.append(held[i], held[largest][at])
            held[largest] = np.delete(held[largest], at)


def made(
    data: Pairs,
    held: Mapping[str, Array],
    classes: Sequence[str],
    valid: float,
    test: float,
    seed: int,
    order: Array | None = None,
) -> Sites:
    """Sites that hold these examples, each divided into its parts: by lot, or in `order`, the oldest first."""
    if not (min(valid, test) >= 0 and valid + test < 1):
        raise FoedusError(f"valid={valid!r}, test={test!r}: shares of at least 0 that leave something for train")
    if order is not None:
        ages = np.argsort(order)
        found = {name: in_order(data, own[np.argsort(ages[own])], valid, test) for name, own in held.items()}
        return Sites(found, classes)
    splits = {name: split(data, np.sort(own), valid, test, drawn_by(seed, name, "split")) for name, own in held.items()}
    return Sites(splits, classes)


def split(data: Pairs, own: Array, valid: float, test: float, name: Key) -> Split:
    """One site's Split, each part with about the site's own mix of labels; train is never empty."""
    more, most = sizes(len(own), valid, test)
    if not most + more:
        return Split(take(data, own))
    random = name.numpy()
    tested = drawn(data, own, most, random)
    rest = np.setdiff1d(own, tested)
    validated = drawn(data, rest, more, random)
    return parted(data, np.setdiff1d(rest, validated), validated, tested)


def in_order(data: Pairs, own: Array, valid: float, test: float) -> Split:
    """One site's Split whose train has the first of its examples and test the last."""
    more, most = sizes(len(own), valid, test)
    cut = len(own) - more - most
    return parted(data, own[:cut], own[cut : cut + more], own[cut + more :])


def sizes(examples: int, valid: float, test: float) -> tuple[int, int]:
    """How many of a site's examples are for valid and for test; none where it has fewer than three."""
    if examples < 3:
        return 0, 0
    most, more = (max(1, round(share * examples)) if share else 0 for share in (test, valid))
    most = min(most, examples - 1 - min(more, 1))
    return min(more, examples - most - 1), most


def parted(data: Pairs, *parts: Array) -> Split:
    return Split(*(take(data, part) if len(part) else None for part in parts))


def drawn(data: Pairs, pool: Array, count: int, random: np.random.Generator) -> Array:
    """`count` examples out of `pool`: taken at even steps from the examples in the order of their labels."""
    y, lots = np.asarray(data.y)[pool], random.random(len(pool))
    order = np.lexsort((lots, y)) if y.ndim == 1 else np.argsort(lots)
    steps = (np.arange(count) * len(pool) + random.integers(len(pool))) // max(count, 1)
    return np.asarray(pool[order[steps]])
