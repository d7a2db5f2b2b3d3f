"""Chains of Transforms, and the algorithm that is wrapped in one: encode runs left to right, decode right to left.
The contract and the saved form may come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foedus import frames
from foedus.core import (
    Algorithm,
    Decline,
    Local,
    RoundContext,
    SiteContext,
    State,
    Task,
    Total,
    Transform,
    Update,
    Work,
)
from foedus.keys import Key, key
from foedus.params import Params, join


def chain(*links: Transform) -> Transform:
    """One Transform from several; each keeps its own state, its own site-local state and its own key."""

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

    return Transform(lambda: [link.init() for link in links], encode, decode, public)


def transformed(algorithm: Algorithm, transform: Transform) -> Algorithm:
    """The same algorithm, every update encoded at its site and every Total decoded before the algorithm sees it."""

    def round(state: State, context: RoundContext) -> Any:
        inner, own = state["inner"], state["own"]
        steps, answer, count = algorithm.round(inner, context), None, 0
        while True:
            try:
                asked = steps.send(answer)
            except StopIteration as end:
                return {"inner": end.value, "own": own}
            tasks = [asked] if isinstance(asked, Task) else list(asked)
            public = transform.public(own)
            totals = yield [_wrapped(task, public) if task.work in algorithm.works else task for task in tasks]
            for i, task in enumerate(tasks):
                if task.work in algorithm.works:
                    here = key(context.seed, context.round, count + i, "server", "decode")
                    totals[i], own = transform.decode(totals[i], own, here)
            answer, count = totals[0] if isinstance(asked, Task) else totals, count + len(tasks)

    return Algorithm(
        lambda params: {"inner": algorithm.init(params), "own": transform.init()},
        round,
        {name: _encoding(work, transform) for name, work in algorithm.works.items()},
        lambda state: algorithm.params(state["inner"]),
        algorithm.traits,
    )


def _wrapped(task: Task, public: State) -> Task:
    note = np.frombuffer(frames.pack(public).bytes(), np.uint8)
    returns = task.payload.spec if task.returns is None else task.returns
    return task._replace(payload=join(w=task.payload, t=Params({"public": note})), returns=returns)


def _encoding(work: Work, transform: Transform) -> Work:
    def encoding(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update | Decline]:
        inner, own = local or (None, None)
        inner, update = work(payload.part("w"), inner, site)
        if isinstance(update, Decline):
            return local, update
        public = frames.unpack(payload.part("t")["public"].tobytes())
        update, own = transform.encode(update, own, public, site.key("encode"))
        return None if inner is None and _nothing(own) else [inner, own], update

    return encoding


def _nothing(own: Local) -> bool:
    return own is None or (isinstance(own, Sequence) and all(x is None for x in own))
