"""What topologies share: models that are averaged, and rounds of several federations, or of one site, inside a round.
Aggregators and the contract may come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foedus.aggregators import Folding, mean
from foedus.aggregators.mean import significant
from foedus.core import Algorithm, Decline, Local, Origin, Round, RoundContext, SiteContext, State, Task, Total, Update
from foedus.errors import JobError
from foedus.params import Params


def mixed(models: Sequence[Params], weights: Sequence[float]) -> Params:
    """The exact weighted mean of models; where all are the same, it is that one."""
    folding = Folding(mean(), models[0].spec, len(models))
    for i, (model, weight) in enumerate(zip(models, weights, strict=True)):
        folding.add(Update(model, significant(weight)), Origin(f"model {i}", 0, 0))
    return folding.total().params


def stateful(base: Algorithm) -> Sequence[str]:
    """The trait of an algorithm whose state is more than a model, so that two of them have no mean."""
    return () if isinstance(base.init(Params({"": np.zeros(1, np.float32)})), Params) else ("server state",)


def side_by_side(rounds: Mapping[Any, Round]) -> Any:
    """Plays several rounds at once: name -> (the state after it, the weight of its last Total).

    A Task that does not say how many updates it needs goes without whom it loses; a round that none counts in is left.
    """
    left, answers = dict(rounds), dict.fromkeys(rounds)
    weights, ended = dict.fromkeys(rounds, 0.0), dict[Any, tuple[State, float]]()
    while left:
        asked = {}
        for name, steps in list(left.items()):
            try:
                asked[name] = steps.send(answers[name])
            except StopIteration as end:
                ended[name] = end.value, weights[name]
                del left[name]
        tasks = [(name, task) for name, some in asked.items() for task in ([some] if isinstance(some, Task) else some)]
        totals = (yield [_patient(task) for _, task in tasks]) if tasks else []
        for name, some in asked.items():
            mine = [total for (owner, _), total in zip(tasks, totals, strict=True) if owner == name]
            answers[name], weights[name] = mine[0] if isinstance(some, Task) else mine, mine[-1].weight
            if not all(total.count for total in mine):
                left.pop(name).close()
    return ended


def _patient(task: Task) -> Task:
    fixed = (
        task.least is not None or task.quorum is not None or (task.aggregator is not None and task.aggregator.least > 1)
    )
    return task if fixed else task._replace(least=0)


def by_itself(
    base: Algorithm, model: Params, local: Local, site: SiteContext
) -> tuple[Local, Update | Decline, Params]:
    """A round of `base` in a federation of this site alone: what it keeps and returns, and the model after it."""
    seed, number = site.key.names[:2]
    steps = base.round(model, RoundContext(int(seed), int(number), [site.name], [site.name]))
    task = next(steps)
    local, update = base.works[task.work](task.payload, local, site)
    if isinstance(update, Decline):
        return local, update, model
    try:
        steps.send(Total(update.params.widen(), update.weight, 1, update.metrics, []))
    except StopIteration as end:
        return local, update, end.value
    raise JobError("this algorithm asks sites more than once a round: wrap fedavg, fedprox or moon")
