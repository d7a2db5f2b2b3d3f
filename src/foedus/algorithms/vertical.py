"""Vertical learning: sites hold different columns of the same people, one has the targets (Hardy et al. 2017; Vepakomma
et al. 2018). What the sites' parts say is added up, so that nobody but the server sees more than sums.
Layers and the contract may come in.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from foedus.algorithms import columns
from foedus.algorithms.columns import ABOUT, How
from foedus.algorithms.exchange import like, noted
from foedus.algorithms.link import TRAITS, WORKS, linking, places
from foedus.core import Algorithm, Local, Personal, RoundContext, State, Task, Total
from foedus.errors import JobError
from foedus.layers import Layer, Loss, checked, linear, loss_of, shift
from foedus.params import Params


def vertical(
    loss: str | Loss,
    bottom: Sequence[Layer] | None = None,
    top: Sequence[Layer] | None = None,
    *,
    label: str | None = None,
    lr: float = 0.1,
    batch_size: int | None = None,
    epochs: int = 1,
    valid: float = 0.1,
    test: float = 0.0,
    link: bool = True,
    dtype: str = "float64",
) -> Algorithm:
    """Gradient descent on top(sum over the sites of bottom(own columns)); without layers a linear or logistic model.

    Each site has a `bottom` of its own, the site with targets (`label`, where several have some) the `top` too, and
    there they stay. Sites load `fd.Split(train=fd.Records(ids, x, y))`; who is known to all is found by private set
    intersection (`link`), or rows are in one order everywhere. `valid`, `test`: shares of these people. A round is
    `epochs` passes in batches of `batch_size` (None: all people at once), each batch two exchanges.
    """
    if not (valid >= 0 and test >= 0 and valid + test < 1):
        raise JobError(f"vertical(valid={valid}, test={test}): they are shares, and leave somebody to train on")
    below, above = checked(bottom or [linear(1, scale=0)]), checked([shift()] if top is None else top)
    how = How(below, above, loss_of(loss), lr, batch_size, epochs, valid, test, dtype)

    def round(state: State, context: RoundContext) -> Any:
        if not state["sites"]:
            state = yield from begun(link, label, context.roster)
        before, slope = None, None
        for at, size in batches(how, state["people"]):
            h = added((yield asked(how, state, "forward", size, slope, before=before, at=at)))
            slope = (yield asked(how, state, "learn", size, h, at=at)).params
            before = at
        yield asked(how, state, "back", 0, slope, before=before)
        return state

    def measure(state: State, context: RoundContext) -> Any:
        size = sum(columns.counts(how, state["people"])[1:])
        if size:
            h = added((yield asked(how, state, "look", size)))
            yield asked(how, state, "measure", 0, h)

    def own(params: Params, local: Local) -> Params:
        return Params({**local["w"], **{f"top.{name}": x for name, x in (local.get("top") or {}).items()}})

    return Algorithm(
        lambda params: {"sites": []},
        round,
        {**WORKS, "vertical": partial(columns.work, how)},
        lambda state: Params({}),
        TRAITS,
        Personal(own, "vertical"),
        measure,
    )


def begun(link: bool, label: str | None, sites: Sequence[str]) -> Generator[Any, Any, dict[str, Any]]:
    """Who takes part, with how many people in common, how wide what they send is, and who has the targets."""
    found = (yield from linking(sites)).positions if link else {site: [] for site in sites}
    totals = yield [
        Task("vertical", noted(places(own), do="begin", linked=link), [site], returns=ABOUT)
        for site, own in found.items()
    ]
    told = {name: [int(total.params[name]) for total in totals] for name in ("people", "width", "targets")}
    people, width = (same(name, dict(zip(found, told[name], strict=True))) for name in ("people", "width"))
    holder = holder_of(label, list(found), told["targets"])
    return {"sites": list(found), "people": people, "width": width, "holder": holder}


def same(name: str, told: dict[str, int]) -> int:
    """What all sites said alike. Raises JobError where they differ."""
    if len(set(told.values())) > 1:
        remedy = {"people": "let link=True find who is everywhere", "width": "give every site the same bottom"}
        raise JobError(f"sites differ in {name} ({', '.join(f'{s}: {n}' for s, n in told.items())}): {remedy[name]}")
    if not all(told.values()):
        raise JobError("nobody is known to all sites: compare how ids are written at each")
    return next(iter(told.values()))


def holder_of(label: str | None, sites: Sequence[str], targets: Sequence[int]) -> str:
    """Who has the targets. Raises JobError where it is nobody, or not said who."""
    have = [site for site, found in zip(sites, targets, strict=True) if found]
    if label is None and len(have) == 1:
        return have[0]
    if label not in have:
        remedy = f"say whose with label=… ({', '.join(have)})" if have else "give one site fd.Records(ids, x, y)"
        raise JobError(f"{len(have)} sites have targets: {remedy}")
    return label


def batches(how: How, people: int) -> Iterator[tuple[list[int], int]]:
    """([epoch, number in the epoch], people in it) of each batch of a round."""
    train = columns.counts(how, people)[0]
    size = how.batch_size or train
    for epoch in range(how.epochs):
        yield from (([epoch, at // size], min(size, train - at)) for at in range(0, train, size))


def asked(how: How, state: State, do: str, size: int, arrays: Params | None = None, **note: Any) -> Task:
    """A Task to all sites for what they say of so many people, or to the label's site for what it makes of that."""
    sites = [state["holder"]] if do in ("learn", "measure") else state["sites"]
    name, blank = "slope" if do == "learn" else "h", np.zeros((size, state["width"]), how.dtype)
    return Task("vertical", noted(arrays, do=do, **note), sites, returns=(like(name, blank),) if size else ())


def added(total: Total) -> Params:
    """The sum of what the sites said."""
    return total.count * total.params
