"""Partitioners: one data set divided among the sites of a simulation, every example at one site and in one part of it.
Arrays or a data frame come in; all randomness is named by (seed, site), so equal arguments give equal sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foedus.data import Pairs, Sites, Split, check_columns, take
from foedus.errors import FoedusError
from foedus.keys import Key, key
from foedus.params import Array

__all__ = ["by_column", "dirichlet", "iid", "pathological"]


def iid(x: Any, y: Any, *, sites: int | Sequence[str], valid: float = 0.1, test: float = 0.2, seed: int = 0) -> Sites:
    """Sites of equal size (to one example), each a random sample of the data.

    `sites` is a count or names. `valid` and `test` are shares of each site's examples, set aside at the site with its
    own mix of labels; 0: none. A part that is asked for gets at least one example where the site has three or more.
    Labels that are text become 0, 1, … in sorted order (`Sites.classes`). Raises FoedusError.

    >>> {name: len(split.train) for name, split in iid(np.eye(100), np.arange(100) % 2, sites=2).items()}
    {'site-000': 35, 'site-001': 35}
    """
    data, classes = _labelled(x, y)
    names = _names(sites, len(data))
    order = _key(seed, "", "iid").numpy().permutation(len(data))
    return _sites(data, dict(zip(names, np.array_split(order, len(names)), strict=True)), classes, valid, test, seed)


def dirichlet(
    x: Any,
    y: Any,
    *,
    sites: int | Sequence[str],
    alpha: float,
    least: int = 1,
    valid: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Sites:
    """Sites with skewed labels: each label's examples are divided by a draw from Dirichlet(alpha) over the sites.

    Small `alpha` gives each site few labels and unequal sizes, large `alpha` comes near `iid`. A site with fewer than
    `least` examples then gets random ones from the largest site. Other arguments and errors as for `iid`.
    Yurochkin et al. 2019 (ICML), section 4. (Hsu et al. 2019 instead draw each site's mix of labels, at equal sizes.)
    """
    if not 0 < alpha < np.inf:
        raise FoedusError(f"dirichlet(alpha={alpha!r}): it must be a positive number, for example 0.5")
    data, classes = _labelled(x, y)
    names = _names(sites, len(data), least)
    labels = _labels(data)
    shares = _shares([_key(seed, name, "dirichlet") for name in names], alpha, len(labels))
    parts: list[list[Array]] = [[] for _ in names]
    for column, members in enumerate(labels):
        ends = np.rint(np.cumsum(shares[:, column])[:-1] * len(members)).astype(np.int64)
        for part, own in zip(parts, np.split(_shuffled(members, seed, column), ends), strict=True):
            part.append(own)
    held = [np.concatenate(part) for part in parts]
    _share_out(held, least, _key(seed, "", "move"))
    return _sites(data, dict(zip(names, held, strict=True)), classes, valid, test, seed)


def pathological(
    x: Any, y: Any, *, sites: int | Sequence[str], classes: int, valid: float = 0.1, test: float = 0.2, seed: int = 0
) -> Sites:
    """Sites that each hold examples of exactly `classes` labels, in shards of about equal size dealt at random.

    McMahan et al. 2017 (AISTATS), section 3, but no shard mixes two labels and no site gets two shards of one label,
    so that the number is exact. Where sites x classes are fewer than the labels there are, shards have to mix
    neighbouring labels, as in the paper. Other arguments and errors as for `iid`.
    """
    data, texts = _labelled(x, y)
    names = _names(sites, len(data))
    members = [_shuffled(own, seed, i) for i, own in enumerate(_labels(data))]
    if isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or not 1 <= classes <= len(members):
        raise FoedusError(
            f"pathological(classes={classes!r}): it must be from 1 to the {len(members)} labels there are"
        )
    if len(names) * classes < len(members):
        members = np.array_split(np.concatenate(members), len(names) * classes)
    held = _dealt(members, len(names), classes, _key(seed, "", "deal").numpy())
    return _sites(data, dict(zip(names, held, strict=True)), texts, valid, test, seed)


def by_column(frame: Any, column: str, label: str, *, valid: float = 0.1, test: float = 0.2, seed: int = 0) -> Sites:
    """A site for each value of `column` (a hospital, a state), named by it; the other columns but `label` are features.

    Features are numbers, (rows, columns) of float64. Other arguments and errors as for `iid`.
    """
    check_columns(frame, column, label)
    for name in {column, label}:
        gaps = int(frame[name].isna().sum())
        if gaps:
            raise FoedusError(
                f"column {name!r} has {gaps} gaps: drop these rows first, frame.dropna(subset=[{name!r}])"
            )
    data, classes = _labelled(frame.drop(columns=[column, label]), frame[label].to_numpy())
    values = np.array([str(value) for value in frame[column]])
    held = {str(name): np.flatnonzero(values == name) for name in np.unique(values)}
    return _sites(data, held, classes, valid, test, seed)


def _labelled(x: Any, y: Any) -> tuple[Pairs, tuple[str, ...]]:
    """The examples, text labels as codes, and the texts."""
    target = np.asarray(y)
    if target.dtype.kind not in "OUT":
        return Pairs(x, y), ()
    if not all(isinstance(label, str) for label in target.tolist()):
        raise FoedusError("labels are neither numbers nor text: give whole numbers, or strings")
    texts, codes = np.unique(target.astype(np.str_), return_inverse=True)
    return Pairs(x, codes.astype(np.int64)), tuple(texts.tolist())


def _labels(data: Pairs) -> list[Array]:
    """For each label in order, the indices of its examples. Raises FoedusError if targets are not classes."""
    y = np.asarray(data.y)
    if y.ndim != 1 or y.dtype.kind not in "biuf" or (y.dtype.kind == "f" and not (y == np.floor(y)).all()):
        raise FoedusError(f"targets of shape {y.shape} and dtype {y.dtype} are no classes: divide them with iid")
    return [np.flatnonzero(y == label) for label in np.unique(y)]


def _names(sites: int | Sequence[str], examples: int, least: int = 1) -> list[str]:
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


def _key(seed: int, site: str, purpose: str) -> Key:
    return key(seed, "partition", 0, site, purpose)


def _shuffled(members: Array, seed: int, label: int) -> Array:
    return _key(seed, "", f"label {label}").numpy().permutation(members)


def _shares(names: Sequence[Key], alpha: float, labels: int) -> Array:
    """Shares (sites, labels) that are Dirichlet(alpha) along each column, from Gamma draws that each site has its own.

    In logarithms, as Gamma(alpha) = Gamma(alpha + 1) U^(1/alpha): for small alpha all draws would round to 0.
    """
    rows = [(r.standard_gamma(alpha + 1, labels), r.random(labels)) for r in (name.numpy() for name in names)]
    logs = np.array([np.log(gamma) + np.log1p(-uniform) / alpha for gamma, uniform in rows])
    shares = np.exp(logs - logs.max(axis=0))
    return np.asarray(shares / shares.sum(axis=0))


def _share_out(held: list[Array], least: int, name: Key) -> None:
    """Moves random examples from the largest site to each site with fewer than `least`."""
    random = name.numpy()
    for i in range(len(held)):
        while len(held[i]) < least:
            largest = max(range(len(held)), key=lambda j: len(held[j]))
            at = random.integers(len(held[largest]))
            held[i] = np.append(held[i], held[largest][at])
            held[largest] = np.delete(held[largest], at)


def _dealt(members: Sequence[Array], sites: int, classes: int, random: np.random.Generator) -> list[Array]:
    """The examples of each site: `classes` shards, all of different labels, from the sites that have most room left."""
    counts = _shards([len(own) for own in members], sites, classes)
    parts: list[list[Array]] = [[] for _ in range(sites)]
    for label in random.permutation(len(members)):
        room = np.array([classes - len(part) for part in parts]) + random.random(sites)
        owners = np.argsort(-room)[: counts[label]]
        for owner, shard in zip(owners, np.array_split(members[label], counts[label]), strict=True):
            parts[owner].append(shard)
    return [np.concatenate(part) for part in parts]


def _shards(sizes: Sequence[int], sites: int, classes: int) -> list[int]:
    """How many shards each label is cut into, so that the largest shard is smallest (D'Hondt); at most one a site."""
    counts, most = [1] * len(sizes), [min(size, sites) for size in sizes]
    if sites * classes > sum(most):
        raise FoedusError(
            f"pathological: {sites} sites cannot have {classes} labels each, as the rarest label has {min(sizes)} "
            "examples: use fewer sites or classes"
        )
    for _ in range(sites * classes - len(sizes)):
        counts[max((i for i in range(len(sizes)) if counts[i] < most[i]), key=lambda i: sizes[i] / counts[i])] += 1
    return counts


def _sites(
    data: Pairs, held: Mapping[str, Array], classes: Sequence[str], valid: float, test: float, seed: int
) -> Sites:
    if not (min(valid, test) >= 0 and valid + test < 1):
        raise FoedusError(f"valid={valid!r}, test={test!r}: shares of at least 0 that leave something for train")
    splits = {name: _split(data, np.sort(own), valid, test, _key(seed, name, "split")) for name, own in held.items()}
    return Sites(splits, classes)


def _split(data: Pairs, own: Array, valid: float, test: float, name: Key) -> Split:
    """One site's Split, each part with about the site's own mix of labels; train is never empty."""
    if len(own) < 3:
        return Split(take(data, own))
    random = name.numpy()
    most, more = (max(1, round(share * len(own))) if share else 0 for share in (test, valid))
    tested = _drawn(data, own, min(most, len(own) - 1 - min(more, 1)), random)
    rest = np.setdiff1d(own, tested)
    validated = _drawn(data, rest, min(more, len(rest) - 1), random)
    parts = (np.setdiff1d(rest, validated), validated, tested)
    return Split(*(take(data, part) if len(part) else None for part in parts))


def _drawn(data: Pairs, pool: Array, count: int, random: np.random.Generator) -> Array:
    """`count` examples out of `pool`: taken at even steps from the examples in the order of their labels."""
    y, lots = np.asarray(data.y)[pool], random.random(len(pool))
    order = np.lexsort((lots, y)) if y.ndim == 1 else np.argsort(lots)
    steps = (np.arange(count) * len(pool) + random.integers(len(pool))) // max(count, 1)
    return np.asarray(pool[order[steps]])
