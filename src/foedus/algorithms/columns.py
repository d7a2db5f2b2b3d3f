"""What a site does in vertical learning: its own columns forward and back, and at the label's site the rest.
Layers and the contract may come in; `vertical` says who is asked for what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from foedus.algorithms.exchange import note_of
from foedus.algorithms.link import linked
from foedus.core import Local, SiteContext, Update
from foedus.errors import JobError
from foedus.keys import Key, key
from foedus.layers import Loss, Stack, down, measured
from foedus.params import Array, Leaf, Params

ABOUT = tuple(Leaf(name, (), "int64", "integer") for name in ("people", "width", "targets"))


class How(NamedTuple):
    """The settings of `vertical`, that sites and server have in common."""

    bottom: Stack
    top: Stack
    loss: Loss
    lr: float
    batch_size: int | None
    epochs: int
    valid: float
    test: float
    dtype: str


def work(how: How, payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """What the payload's note says, after a step with the slope that comes with it."""
    note = note_of(payload)
    if "slope" in payload:
        x, at = columns(how, local, site), batch(how, site.key, len(local["rows"]), note["before"])
        grads, _ = how.bottom.backward(local["w"], x[at], payload["slope"], drawn(site, note["before"]))
        local = {**local, "w": down(local["w"], grads, how.lr)}
    return DO[note["do"]](how, note, payload, local, site)


def begin(how: How, note: Mapping[str, Any], payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """The rows of the people who are known to all, and this site's first part of the network."""
    held = site.split.train
    if not hasattr(held, "ids"):
        raise JobError("vertical learning reads Records: load fd.Split(train=fd.Records(ids, x)), with y at one site")
    kept = linked(payload["positions"], site) if note["linked"] else np.arange(len(held))
    local = {"rows": kept, "w": Params({})}
    x = columns(how, local, site)[:1]
    w = how.bottom.init(key(site.key.names[0], "vertical", 0, site.name), x)  # type: ignore[arg-type]
    about = (len(kept), how.bottom.forward(w, x, None).shape[1], int(held.y is not None))
    return {**local, "w": w}, Update(Params({leaf.name: np.int64(n) for leaf, n in zip(ABOUT, about, strict=True)}))


def forward(
    how: How, note: Mapping[str, Any], payload: Params, local: Local, site: SiteContext
) -> tuple[Local, Update]:
    """What this site's columns say of a batch."""
    x, at = columns(how, local, site), batch(how, site.key, len(local["rows"]), note["at"])
    return local, Update(Params({"h": how.bottom.forward(local["w"], x[at], drawn(site, note["at"]))}))


def learn(how: How, note: Mapping[str, Any], payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """At the label's site: a step of the top, and the slope of the mean loss in what the bottoms add up to."""
    h, seed, at = payload["h"], drawn(site, note["at"]), batch(how, site.key, len(local["rows"]), note["at"])
    top = local.get("top") or how.top.init(key(site.key.names[0], "vertical", 0, "top"), h)  # type: ignore[arg-type]
    y, outputs = targets(how, local, site)[at], how.top.forward(top, h, seed)
    grads, slope = how.top.backward(top, h, how.loss.slope(outputs, y), seed)
    sums = measured(how.loss, outputs, y, ["loss"])
    return {**local, "top": down(top, grads, how.lr)}, Update(
        Params({"slope": slope}), 1.0, {"train_loss": sums["loss"]}
    )


def back(how: How, note: Mapping[str, Any], payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """Nothing more than the step."""
    return local, Update(Params({}))


def look(how: How, note: Mapping[str, Any], payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """What this site's columns say of those who are there to measure."""
    at = np.concatenate(parted(how, site.key, len(local["rows"]))[1:])
    return local, Update(Params({"h": how.bottom.forward(local["w"], columns(how, local, site)[at], None)}))


def measure(
    how: How, note: Mapping[str, Any], payload: Params, local: Local, site: SiteContext
) -> tuple[Local, Update]:
    """At the label's site: the sums of the Job's metrics, of `valid` and then of `test`."""
    outputs, y = how.top.forward(local["top"], payload["h"], None), targets(how, local, site)
    found, a = dict[str, Array](), 0
    for prefix, who in zip(("", "test_"), parted(how, site.key, len(y))[1:], strict=True):
        sums = measured(how.loss, outputs[a : a + len(who)], y[who], site.metrics) if len(who) else {}
        found |= {prefix + name: x for name, x in sums.items()}
        a += len(who)
    return local, Update(Params({}), float(a), found)


Do = Callable[[How, Mapping[str, Any], Params, Local, SiteContext], tuple[Local, Update]]
DO: Mapping[str, Do] = {f.__name__: f for f in (begin, forward, learn, back, look, measure)}


def columns(how: How, local: Local, site: SiteContext) -> Array:
    """This site's columns of the people known to all, in the common order."""
    return np.asarray(site.split.train.x[local["rows"]], how.dtype)


def targets(how: How, local: Local, site: SiteContext) -> Array:
    return np.asarray(site.split.train.y[local["rows"]], how.loss.target or how.dtype)


def drawn(site: SiteContext, at: Sequence[int]) -> Key:
    """The randomness of a batch (dropout): the same on the way back."""
    return key(*site.key.names[:2], "vertical", site.name, *at)  # type: ignore[arg-type]


def parted(how: How, here: Key, people: int) -> list[Array]:
    """Who is in train, valid and test: drawn by names that all sites have in common."""
    order = key(here.names[0], "vertical", 0, "parts").numpy().permutation(people)  # type: ignore[arg-type]
    cut = counts(how, people)
    return [np.sort(part) for part in np.split(order, np.cumsum(cut)[:-1])]


def counts(how: How, people: int) -> list[int]:
    """How many people are in train, valid and test."""
    valid, test = round(how.valid * people), round(how.test * people)
    return [people - valid - test, valid, test]


def batch(how: How, here: Key, people: int, at: Sequence[int]) -> Array:
    """Who is in the i-th batch of an epoch."""
    (seed, round, *_), (epoch, i) = here.names, at
    train = parted(how, here, people)[0]
    order = key(seed, round, "vertical", "order", epoch).numpy().permutation(train)  # type: ignore[arg-type]
    size = how.batch_size or len(train)
    return np.asarray(order[i * size : (i + 1) * size])
