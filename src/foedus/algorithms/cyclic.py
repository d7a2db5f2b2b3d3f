"""Cyclic weight transfer: Distributed deep learning networks among institutions for medical imaging, Chang et al. 2018;
compared with federated learning by Sheller et al. 2019. Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.algorithms.fedavg import fedavg
from foedus.algorithms.mixing import side_by_side
from foedus.core import Algorithm, RoundContext, State
from foedus.keys import key


def cyclic(base: Algorithm | None = None, shuffle: bool = False) -> Algorithm:
    """The model travels from site to site, and each trains it on: a round of `base` with one site after another.

    The way is the roster's order, or with `shuffle` one drawn by key in every round. Who is gone is passed by.
    """
    method = fedavg() if base is None else base

    def round(state: State, context: RoundContext) -> Any:
        way, visited = list(context.cohort), False
        if shuffle:
            key(context.seed, context.round, 0, "server", "way").numpy().shuffle(way)
        for site in way:
            found = yield from side_by_side({site: method.round(state, context._replace(cohort=[site]))})
            state, visited = found[site][0] if found else state, visited or bool(found)
        if not visited:  # asks as any Task does: the run pauses, and says why
            return (yield from method.round(state, context._replace(cohort=way[:1])))
        return state

    return method._replace(round=round, traits=("cyclic", *method.traits))
