"""Boosted trees over columns of different sites: SecureBoost. Cheng et al. 2021. One site has the targets.
The contract, links between people and the growing of trees may come in.

The site with the targets encrypts each person's gradient and Hessian (Paillier), the others add them up by their own
columns' bins, and it chooses the split from the decrypted sums. The trees are those of `histogram_boosting` on the
joined table. A site keeps its thresholds: others know the number of a column and of a bin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from foedus.algorithms.exchange import COUNTED, counting, like, note_of, noted
from foedus.algorithms.link import TRAITS, WORKS, linked, linking, places
from foedus.core import Algorithm, Local, Personal, RoundContext, SiteContext, State, Task, Update
from foedus.errors import JobError
from foedus.keys import key
from foedus.params import Array, Leaf, Params
from foedus.trees import boosting, growing, paillier
from foedus.trees import counting as histograms
from foedus.trees.model import base, scored
from foedus.trees.settings import Settings, settings
from foedus.trees.targets import targets

ABOUT = tuple(Leaf(name, (), "int64", "integer") for name in ("people", "columns", "targets"))
SPLITS = ("node", "column", "bin", "gaps_left")  # of a split as the site hears it that has the column
WORK = "tree"


class How(NamedTuple):
    """The settings that sites and server have in common."""

    trees: Settings
    valid: float
    test: float


def vertical_boosting(
    params: Mapping[str, Any],
    bins: int = 32,
    *,
    label: str | None = None,
    valid: float = 0.1,
    test: float = 0.0,
    link: bool = True,
) -> Algorithm:
    """Boosted trees by XGBoost's `params`, one tree a round, over the columns of all sites (SecureBoost).

    Sites load `fd.Split(train=fd.Records(ids, x, y))`, y at one of them, or at `label`; who is known to all is found by
    private set intersection (`link`), or rows are in one order everywhere. `valid`, `test`: shares of these people.
    It takes binary:logistic and reg:squarederror with the numbers that `histogram_boosting` takes; no categories,
    classes, constraints or weights. A model is used by all its sites together: it is measured as it grows.

    What sites learn: who goes which way in each tree, not why. The site with the targets reads sums of gradients by
    others' columns and bins, which have numbers for names. The server sees who goes which way, and ciphertexts.
    """
    how = How(settings(params, bins, whose="vertical_boosting"), valid, test)
    if how.trees.num_class or how.trees.monotone:
        raise JobError("vertical_boosting: one tree a round, without constraints: leave num_class and those out")
    if not (valid >= 0 and test >= 0 and valid + test < 1):
        raise JobError(f"vertical_boosting(valid={valid}, test={test}): shares that leave somebody to train on")

    def round(state: State, context: RoundContext) -> Any:
        if not state["sites"]:
            state = yield from _begun(how, link, label, context.roster)
        return (yield from _grown(how, state))

    def measure(state: State, context: RoundContext) -> Any:
        yield Task(WORK, noted(do="measure"), [state["holder"]], returns=())
        return state

    return Algorithm(
        lambda params: {"sites": []}, round, {**WORKS, WORK: partial(_work, how)}, lambda state: Params({}),
        TRAITS, Personal(_own, WORK), measure,
    )  # fmt: skip


def _own(params: Params, local: Local) -> Params:
    """A site's part of the model: of each tree the splits that it decides, with its thresholds; the leaves of the
    site with the targets."""
    kept = {f"splits/{i}": x for i, x in enumerate(local["splits"])}
    leaves = {f"leaves/{i}": x for i, x in enumerate(local.get("leaves", ()))}
    return Params({"edges": local["edges"], **kept, **leaves})


def _begun(how: How, link: bool, label: str | None, sites: Sequence[str]) -> Any:
    """Who takes part, and who has the targets; that site makes a key."""
    from foedus.algorithms.vertical import holder_of, same

    found = (yield from linking(sites)).positions if link else {site: [] for site in sites}
    asked = {site: noted(places(own), do="begin", linked=link) for site, own in found.items()}
    totals = yield [Task(WORK, payload, [site], returns=ABOUT) for site, payload in asked.items()]
    told = {leaf.name: [int(total.params[leaf.name]) for total in totals] for leaf in ABOUT}
    people = same("people", dict(zip(found, told["people"], strict=True)))
    holder = holder_of(label, list(found), told["targets"])
    like_key = (Leaf("modulus", (paillier.MODULUS,), "uint8", "integer"),)
    modulus = (yield Task(WORK, noted(do="key"), [holder], returns=like_key)).params["modulus"]
    columns = dict(zip(found, told["columns"], strict=True))
    others = [site for site in found if site != holder and columns[site]]
    return {"sites": [holder, *others], "columns": columns, "people": people, "holder": holder, "modulus": modulus}


def _grown(how: How, state: State) -> Any:
    """A tree more, level by level."""
    holder, others, people = state["holder"], state["sites"][1:], state["people"]
    train, bins = _counts(how, people)[0], how.trees.bins + 1
    like_slopes = (Leaf("slopes", (train, paillier.CIPHER), "uint8", "integer"),)
    slopes = (yield Task(WORK, noted(do="slopes"), [holder], returns=like_slopes)).params
    at = np.zeros(people, np.int32)
    for depth in range(how.trees.max_depth):
        now = {"at": at, **({"slopes": slopes["slopes"], "modulus": state["modulus"]} if depth == 0 else {})}
        sums = yield [
            Task(WORK, noted(Params(now), do="sums", depth=depth), [site], returns=(_sums(state, site, depth, bins),))
            for site in others
        ]
        heard = Params({"at": at, **{f"{i}": total.params["sums"] for i, total in enumerate(sums)}})
        widths = [state["columns"][site] for site in state["sites"]]
        chosen = (Leaf("splits", (1 << depth, 5), "int32", "integer"),)
        payload = noted(heard, do="choose", depth=depth, columns=widths)
        splits = (yield Task(WORK, payload, [holder], returns=chosen)).params["splits"]
        splits = splits[splits[:, 0] >= 0]
        if not len(splits):
            break
        mine = {site: splits[splits[:, 0] == i, 1:] for i, site in enumerate(state["sites"])}
        asked = [
            Task(WORK, noted(Params({"at": at, "splits": own}), do="divide"), [site], returns=(like("left", at),))
            for site, own in mine.items()
            if len(own)
        ]
        left = np.sum([total.params["left"] for total in (yield asked)], axis=0)
        moved = np.isin(at, splits[:, 1])
        at = np.where(moved, 2 * at + 2 - (left > 0), at).astype(np.int32)
    yield Task(WORK, noted(Params({"at": at}), do="finish"), [holder], returns=COUNTED)
    return state


def _sums(state: State, site: str, depth: int, bins: int) -> Leaf:
    return Leaf("sums", ((1 << depth) * state["columns"][site] * bins, paillier.CIPHER), "uint8", "integer")


# ---- at a site -------------------------------------------------------------------------------------------------------
def _work(how: How, payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    note = note_of(payload)
    return DO[note["do"]](how, note, payload, local, site)


def _begin(how: How, note: Mapping[str, Any], payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """The rows of the people who are known to all, each column in bins between its own quantiles."""
    held = site.split.train
    if not hasattr(held, "ids"):
        raise JobError("vertical_boosting reads Records: load fd.Split(train=fd.Records(ids, x)), with y at one site")
    rows = linked(payload["positions"], site) if note["linked"] else np.arange(len(held))
    x = np.asarray(held.x[rows], np.float32)
    x = x.reshape(len(x), -1)
    if np.isinf(x).any():
        raise JobError(f"{site.name}: x holds Inf: give NaN for gaps")
    train = _parted(how, site, len(rows))[0]
    edges = np.array([boosting.cut(x[train, i], how.trees.bins) for i in range(x.shape[1])], np.float32)
    where = histograms.binned(x, edges.reshape(x.shape[1], how.trees.bins - 1))
    own: dict[str, Any] = {"where": where.astype(np.int32), "edges": edges, "splits": []}
    if held.y is not None:
        y = targets(np.asarray(held.y)[rows], how.trees, site.name)
        own |= {"y": y, "margin": np.full(len(y), base(how.trees)), "leaves": []}
    about = (len(rows), x.shape[1], int(held.y is not None))
    return own, Update(Params({leaf.name: np.int64(n) for leaf, n in zip(ABOUT, about, strict=True)}))


def _key(how: How, note: Mapping[str, Any], payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    made = paillier.new_key()
    kept = {name: np.frombuffer(x, np.uint8) for name, x in made._asdict().items()}
    return {**local, **kept}, Update(Params({"modulus": np.frombuffer(made.modulus, np.uint8)}))


def _slopes(
    how: How, note: Mapping[str, Any], payload: Params, local: Local, site: SiteContext
) -> tuple[Local, Update]:
    """Gradients and Hessians of those who train, as whole numbers, encrypted."""
    g, h = _units(how, local, site)
    return local, Update(Params({"slopes": paillier.encrypted(_key_of(local), g, h)}))


def _units(how: How, local: Local, site: SiteContext) -> tuple[Array, Array]:
    train = _parted(how, site, len(local["y"]))[0]
    slopes = histograms.slopes(local["margin"][train, None], local["y"][train], how.trees)
    g, h = (np.rint(part[:, 0] * histograms.UNITS).astype(np.int64) for part in slopes)
    return g, h


def _add(how: How, note: Mapping[str, Any], payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """Sums by node of the level, own column and bin, of what it cannot read."""
    if "slopes" in payload:
        local = {**local, "slopes": payload["slopes"], "modulus": payload["modulus"]}
    train, bins, first = _parted(how, site, len(local["where"]))[0], how.trees.bins + 1, (1 << note["depth"]) - 1
    node, where = payload["at"][train] - first, local["where"][train]
    inside, columns = (node >= 0) & (node <= first), where.shape[1]
    parts = []
    for i in range(columns):
        place = np.where(inside, node * bins + where[:, i], -1)
        sums = paillier.added(local["modulus"].tobytes(), local["slopes"], place, (first + 1) * bins)
        parts.append(sums.reshape(first + 1, bins, -1))
    found = np.stack(parts, axis=1).reshape(-1, paillier.CIPHER)
    return local, Update(Params({"sums": found}))


def _choose(
    how: How, note: Mapping[str, Any], payload: Params, local: Local, site: SiteContext
) -> tuple[Local, Update]:
    """At the site with the targets: the best split of each node of the level, over the columns of all."""
    depth, widths, bins = note["depth"], note["columns"], how.trees.bins
    train, first = _parted(how, site, len(local["y"]))[0], (1 << depth) - 1
    node, slopes = payload["at"][train] - first, _units(how, local, site)
    inside = (node >= 0) & (node <= first)
    parts = [_own_sums(local["where"][train], node, inside, slopes, first + 1, bins + 1)]
    for i, width in enumerate(widths[1:]):
        parts.append(paillier.decrypted(_key_of(local), payload[str(i)]).reshape(first + 1, width, bins + 1, 2))
    sums = np.concatenate(parts, axis=1)
    if not sums.shape[1]:
        raise JobError("no site has a column: load some")
    edges = np.tile(np.arange(bins - 1, dtype=np.float32), (sums.shape[1], 1))  # numbers of bins in place of edges
    columns = growing.Columns(edges, np.zeros(sums.shape[1], int), [0] * sums.shape[1])
    tree = growing.seed(how.trees)
    for at in {*node[inside].tolist()} if depth else ():
        tree.feature[(first + at - 1) // 2] = 0  # there
    tree = growing.grow(tree, depth, sums / histograms.UNITS, columns, how.trees)
    starts, rows = np.cumsum([0, *widths]), np.full((first + 1, 5), -1, np.int32)
    for n in growing.alive(tree, depth):
        if n >= first and tree.feature[n] >= 0 and len(np.flatnonzero(node == n - first)):
            who = int(np.searchsorted(starts, tree.feature[n], "right")) - 1
            rows[n - first] = who, n, tree.feature[n] - starts[who], tree.threshold[n], tree.gaps_left[n]
    return local, Update(Params({"splits": rows}))


def _own_sums(where: Array, node: Array, inside: Array, slopes: Any, nodes: int, bins: int) -> Array:
    found = np.zeros((nodes, where.shape[1], bins, 2))
    for i in range(where.shape[1]):
        place = node[inside] * bins + where[inside, i]
        for k, part in enumerate(slopes):
            found[:, i, :, k] = np.bincount(place, part[inside], nodes * bins).reshape(nodes, bins)
    return found


def _divide(
    how: How, note: Mapping[str, Any], payload: Params, local: Local, site: SiteContext
) -> tuple[Local, Update]:
    """At a site whose columns split nodes: who of these goes left, everybody known to all."""
    left = np.zeros(len(local["where"]), np.int32)
    kept = []
    for node, column, bin_, gaps_left in payload["splits"].tolist():
        here = payload["at"] == node
        place = local["where"][:, column]
        gaps = place == how.trees.bins
        left[here] = np.where(gaps, gaps_left, place <= bin_)[here]
        kept.append([node, column, local["edges"][column][bin_], gaps_left])
    splits = [*local["splits"], np.array(kept, np.float64)]
    return {**local, "splits": splits}, Update(Params({"left": left}))


def _finish(
    how: How, note: Mapping[str, Any], payload: Params, local: Local, site: SiteContext
) -> tuple[Local, Update]:
    """At the site with the targets: the leaves' values, and everybody's margin."""
    at, train = payload["at"], _parted(how, site, len(local["y"]))[0]
    g, h = (np.bincount(at[train], part, how.trees.nodes) / histograms.UNITS for part in _units(how, local, site))
    value = growing.leaf(g, h, how.trees)
    kept = {**local, "margin": local["margin"] + value[at], "leaves": [*local["leaves"], value]}
    return kept, Update(counting(len(train)))


def _measure(
    how: How, note: Mapping[str, Any], payload: Params, local: Local, site: SiteContext
) -> tuple[Local, Update]:
    """At the site with the targets: the sums of the Job's metrics, of `valid` and then of `test`."""
    found, parts = dict[str, Any](), _parted(how, site, len(local["y"]))[1:]
    for prefix, who in zip(("", "test_"), parts, strict=True):
        if len(who):
            outputs, y = scored(local["margin"][who, None], how.trees), local["y"][who]
            found |= {prefix + k: x for k, x in histograms.told(site.metrics, outputs, y, how.trees).items()}
    return local, Update(Params({}), float(max(1, sum(map(len, parts)))), found)


Do = Callable[[How, Mapping[str, Any], Params, Local, SiteContext], tuple[Local, Update]]
DO: Mapping[str, Do] = {
    "begin": _begin, "key": _key, "slopes": _slopes, "sums": _add, "choose": _choose, "divide": _divide,
    "finish": _finish, "measure": _measure,
}  # fmt: skip


def _key_of(local: Local) -> paillier.Key:
    return paillier.Key(local["p"].tobytes(), local["q"].tobytes())


def _parted(how: How, site: SiteContext, people: int) -> list[Array]:
    """Who is in train, valid and test: drawn by names that all sites have in common."""
    order = key(site.key.names[0], "vertical", 0, "parts").numpy().permutation(people)  # type: ignore[arg-type]
    return [np.sort(part) for part in np.split(order, np.cumsum(_counts(how, people))[:-1])]


def _counts(how: How, people: int) -> list[int]:
    valid, test = round(how.valid * people), round(how.test * people)
    return [people - valid - test, valid, test]
