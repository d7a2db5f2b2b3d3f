"""Sites whose sizes or labels differ, or not: each example goes to one site, drawn by key.
Arrays come in; what all partitioners share is in `dividing`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foedus.data import Sites
from foedus.errors import FoedusError
from foedus.params import Array
from foedus.partition.dividing import classed, drawn_by, labelled, made, named, share_out, shares, shuffled


def iid(x: Any, y: Any, *, sites: int | Sequence[str], valid: float = 0.1, test: float = 0.2, seed: int = 0) -> Sites:
    """Sites of equal size (to one example), each a random sample of the data.

    `sites` is a count or names. `valid` and `test` are shares of each site's examples, set aside at the site with its
    own mix of labels; 0: none. A part that is asked for gets at least one example where the site has three or more.
    Labels that are text become 0, 1, … in sorted order (`Sites.classes`). Raises FoedusError.

    >>> {name: len(split.train) for name, split in iid(np.eye(100), np.arange(100) % 2, sites=2).items()}
    {'site-000': 35, 'site-001': 35}
    """
    data, classes = labelled(x, y)
    names = named(sites, len(data))
    order = drawn_by(seed, "", "iid").numpy().permutation(len(data))
    return made(data, dict(zip(names, np.array_split(order, len(names)), strict=True)), classes, valid, test, seed)


def quantity(
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
    """Sites of unequal sizes, drawn from Dirichlet(alpha), each a random sample of the data.

    Small `alpha` gives a few sites most of the data, large `alpha` comes near `iid`; `least` as for `dirichlet`, other
    arguments and errors as for `iid`. Li et al. 2022 (ICDE), quantity skew.
    """
    _check_alpha("quantity", alpha)
    data, classes = labelled(x, y)
    names = named(sites, len(data), least)
    parted = shares([drawn_by(seed, name, "quantity") for name in names], alpha, 1)
    order = drawn_by(seed, "", "quantity").numpy().permutation(len(data))
    held = np.split(order, np.rint(np.cumsum(parted[:-1, 0]) * len(data)).astype(np.int64))
    share_out(held, least, drawn_by(seed, "", "move"))
    return made(data, dict(zip(names, held, strict=True)), classes, valid, test, seed)


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
    _check_alpha("dirichlet", alpha)
    data, classes = labelled(x, y)
    names = named(sites, len(data), least)
    labels = classed(data)
    parted = shares([drawn_by(seed, name, "dirichlet") for name in names], alpha, len(labels))
    parts: list[list[Array]] = [[] for _ in names]
    for column, members in enumerate(labels):
        ends = np.rint(np.cumsum(parted[:, column])[:-1] * len(members)).astype(np.int64)
        for part, own in zip(parts, np.split(shuffled(members, seed, column), ends), strict=True):
            part.append(own)
    held = [np.concatenate(part) for part in parts]
    share_out(held, least, drawn_by(seed, "", "move"))
    return made(data, dict(zip(names, held, strict=True)), classes, valid, test, seed)


def pathological(
    x: Any, y: Any, *, sites: int | Sequence[str], classes: int, valid: float = 0.1, test: float = 0.2, seed: int = 0
) -> Sites:
    """Sites that each hold examples of exactly `classes` labels, in shards of about equal size dealt at random.

    McMahan et al. 2017 (AISTATS), section 3, but no shard mixes two labels and no site gets two shards of one label,
    so that the number is exact. Where sites x classes are fewer than the labels there are, shards have to mix
    neighbouring labels, as in the paper. Other arguments and errors as for `iid`.
    """
    data, texts = labelled(x, y)
    names = named(sites, len(data))
    members = [shuffled(own, seed, i) for i, own in enumerate(classed(data))]
    if isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or not 1 <= classes <= len(members):
        raise FoedusError(
            f"pathological(classes={classes!r}): it must be from 1 to the {len(members)} labels there are"
        )
    if len(names) * classes < len(members):
        members = np.array_split(np.concatenate(members), len(names) * classes)
    held = _dealt(members, len(names), classes, drawn_by(seed, "", "deal").numpy())
    return made(data, dict(zip(names, held, strict=True)), texts, valid, test, seed)


def _check_alpha(name: str, alpha: float) -> None:
    if not 0 < alpha < np.inf:
        raise FoedusError(f"{name}(alpha={alpha!r}): it must be a positive number, for example 0.5")


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
