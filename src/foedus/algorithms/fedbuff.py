"""FedBuff: Federated Learning with Buffered Asynchronous Aggregation, Nguyen et al. 2022, algorithm 1.
Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.aggregators import discounted, mean
from foedus.algorithms.buffered import alike, buffered, changed, in_turn, whole, with_buffers
from foedus.algorithms.fedavg import fedavg
from foedus.algorithms.rounds import scaled
from foedus.core import Algorithm, Gather, RoundContext, State, Task, Total
from foedus.errors import JobError
from foedus.staleness import ROOT, Staleness


def fedbuff(
    buffer: int = 10,
    base: Algorithm | None = None,
    *,
    busy: int | None = None,
    staleness: Staleness | None = ROOT,
) -> Algorithm:
    """`base` (None: FedAvg), whose server steps whenever `buffer` updates have arrived, while slower sites go on.

    The base's step gets the sum of s(age) d over the buffer, divided by its size: old updates count less, and all sites
    alike. Its rate is the server's. Buffers (BatchNorm's averages) become the mean of those of the sites.
    `busy`: so many sites are at work at any time (None: all of the cohort); who is done makes room for another, which
    gets the newest model. `staleness`: age -> s, 1 at age 0 (None: no weights).
    """
    inner = changed(alike(base or fedavg()), whole)
    how = buffered(buffer, busy)

    def round(state: State, context: RoundContext) -> Any:
        steps = inner.round(state, in_turn(context))
        asked = next(steps)
        task = asked if isinstance(asked, Task) else asked[0]
        if task.returns is not None:
            raise JobError("fedbuff: its base returns other arrays than it sends; wrap fedbuff, and not its base")
        rule = task.aggregator or mean()
        if staleness is not None and not isinstance(rule, Gather):
            rule = discounted(rule, staleness)
        total: Total = yield task._replace(aggregator=rule, **how)
        step = scaled(total.params, total.weight / total.count)
        found = total._replace(params=with_buffers(step, lambda: total.params - task.payload.widen()))
        try:
            steps.send(found if isinstance(asked, Task) else [found])
        except StopIteration as end:
            return end.value
        raise JobError("fedbuff: its base asks several Tasks a round; take fedavg, fedprox, moon or a server optimizer")

    ages = [] if staleness is None else ["ages"]
    return inner._replace(round=round, traits=(*inner.traits, "late", f"buffer {buffer}", *ages))
