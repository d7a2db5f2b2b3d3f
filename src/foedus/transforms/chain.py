"""Chains of Transforms, and the algorithm that is wrapped in one: encode runs left to right, decode right to left.
The contract and the saved form may come in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np

from foedus import frames
from foedus.aggregators import mean
from foedus.aggregators.folding import check, check_finite
from foedus.core import (
    Algorithm,
    Decline,
    Local,
    Opened,
    Personal,
    RoundContext,
    SiteContext,
    State,
    Task,
    Total,
    Transform,
    Update,
    Work,
)
from foedus.errors import Incompatible
from foedus.keys import Key
from foedus.params import Leaf, Params, Spec, join
from foedus.play import played


def chain(*links: Transform) -> Transform:
    """One Transform from several; each keeps its own state, its own site-local state and its own key.

    Raises Incompatible for one that changes numbers behind one that packs them.
    """
    packing = [link.read is not None for link in links]
    if packing != sorted(packing):
        raise Incompatible("a compression and a Transform of numbers (clip) behind it do not go together: put it first")

    def encode(update: Update, local: Local, public: State, key: Key) -> tuple[Update, Local]:
        kept = list(local or [None] * len(links))
        for i, link in enumerate(links):
            update, kept[i] = link.encode(update, kept[i], public[i], key(i))
        return update, kept

    def decode(total: Total, state: State, key: Key) -> tuple[Total, State]:
        states = list(state)
        for i, link in reversed(list(enumerate(links))):
            total, states[i] = link.decode(total, states[i], key(i))
        return total, states

    def public(state: State) -> State:
        return [link.public(s) for link, s in zip(links, state, strict=True)]

    def returns(spec: Spec) -> Spec:
        for link in links:
            spec = link.returns(spec)
        return spec

    def read(params: Params, spec: Spec) -> Params:
        specs = [spec]
        for link in links:
            specs.append(link.returns(specs[-1]))
        for link, before in reversed(list(zip(links, specs, strict=False))):
            params = link.read(params, before) if link.read else params
        return params

    def init() -> State:
        return [link.init() for link in links]

    traits = [trait for link in links for trait in link.traits]
    return Transform(init, encode, decode, public, returns, read if any(packing) else None, traits)


def at_home(transform: Transform) -> Transform:
    """The same, read where it was encoded: what leaves a site are the numbers that a server would have made of it."""
    read = transform.read
    if read is None:
        return transform

    def encode(update: Update, local: Local, public: State, key: Key) -> tuple[Update, Local]:
        sent, local = transform.encode(update, local, public, key)
        return sent._replace(params=read(sent.params, update.params.spec)), local

    return transform._replace(encode=encode, returns=lambda spec: spec, read=None)


def transformed(algorithm: Algorithm, transform: Transform) -> Algorithm:
    """The same algorithm, every update encoded at its site and every Total decoded before the algorithm sees it.

    What a compression sent is read at the server update by update, before it is aggregated. Raises Incompatible for an
    algorithm whose Tasks carry activations, slopes or points.
    """
    if "exchange" in algorithm.traits:
        remedy = "leave out compress=…, and cut where the network is narrow"
        raise Incompatible(f"a Transform of updates and an algorithm that sends none do not go together: {remedy}")

    def round(state: State, context: RoundContext) -> Any:
        own, numbers = state["own"], count()

        def ask(tasks: list[Task]) -> Any:
            nonlocal own
            public = transform.public(own)
            totals = yield [_wrapped(x, transform, public) if x.work in algorithm.works else x for x in tasks]
            for i, (task, number) in enumerate(zip(tasks, numbers, strict=False)):
                if task.work in algorithm.works and totals[i].count:
                    totals[i], own = transform.decode(totals[i], own, context.secret("decode", context.round, number))
            return totals

        inner = yield from played(algorithm.round(state["inner"], context), ask)
        return {"inner": inner, "own": own}

    return Algorithm(
        lambda params: {"inner": algorithm.init(params), "own": transform.init()},
        round,
        {name: _encoding(work, transform) for name, work in algorithm.works.items()},
        lambda state: algorithm.params(state["inner"]),
        (*algorithm.traits, *transform.traits),
        _unwrapped(algorithm.personal),
    )


def _unwrapped(personal: Personal | None) -> Personal | None:
    """The same where the site keeps its own state beside that of the transform."""
    return personal and Personal(lambda model, local: personal.model(model, local[0]), personal.work, personal.alone)


def _wrapped(task: Task, transform: Transform, public: State) -> Task:
    rows = None if task.returns is None else [list(leaf) for leaf in task.returns]
    note = Params({"note": np.frombuffer(frames.pack({"public": public, "returns": rows}).bytes(), np.uint8)})
    inner = task.payload.spec if task.returns is None else task.returns
    aggregator = task.aggregator or mean()
    return task._replace(
        payload=join(w=task.payload, t=note),
        letters={site: join(w=letter, t=note) for site, letter in task.letters.items()},
        returns=transform.returns(inner),
        aggregator=aggregator._replace(opened=_opening(transform, inner, aggregator.opened)),
    )


def _opening(transform: Transform, inner: Spec, further: Opened | None) -> Opened | None:
    """How the server reads what the sites return; `further` is that of an algorithm that is transformed itself."""
    read = transform.read
    if read is None:
        return further
    if further is None:
        return Opened(inner, lambda params: read(params, inner))
    return Opened(further.spec, lambda params: further.read(read(params, inner)))


def _encoding(work: Work, transform: Transform) -> Work:
    def encoding(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update | Decline]:
        inner, own = local or (None, None)
        model, note = payload.part("w"), frames.unpack(payload["t/note"].tobytes())
        inner, update = work(model, inner, site)
        if isinstance(update, Decline):
            return local, update
        announced = model.spec if note["returns"] is None else tuple(map(_leaf, note["returns"]))
        update = check(update, announced, site.name)
        if transform.read is not None:
            check_finite(update.params, site.name)  # packing could hide it, and keep it for the next update
        update, own = transform.encode(update, own, note["public"], site.key("encode"))
        return None if inner is None and _nothing(own) else [inner, own], update

    return encoding


def _leaf(row: Sequence[Any]) -> Leaf:
    name, shape, *rest = row
    return Leaf(name, tuple(shape), *rest)


def _nothing(own: Local) -> bool:
    return own is None or (isinstance(own, Sequence) and all(x is None for x in own))
