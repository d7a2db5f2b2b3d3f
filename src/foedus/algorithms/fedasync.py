"""FedAsync: Asynchronous Federated Optimization, Xie et al. 2019, algorithm 1.
Only the contract may come in."""

from __future__ import annotations

from foedus.aggregators import mean
from foedus.algorithms.buffered import buffered, in_turn
from foedus.algorithms.rounds import Rate, at, rounds
from foedus.core import Algorithm, Local, RoundContext, SiteContext, State, Total, Update
from foedus.params import Params
from foedus.staleness import ROOT, Staleness


def fedasync(
    alpha: Rate = 0.6,
    *,
    staleness: Staleness = ROOT,
    rho: float = 0.005,
    busy: int | None = None,
) -> Algorithm:
    """The model becomes (1 - a) model + a (a site's model) whenever one arrives, with a = alpha s(age).

    `alpha` may be a schedule: round (from 0) -> number. `staleness`: age -> s, 1 at age 0, which is that of a model
    trained from the newest one. `rho` pulls each local gradient back to the model that was sent (0: not at all).
    `busy`: so many sites are at work at any time (None: all of the cohort).
    """

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        start = payload.trainable()
        pull = (lambda grads, params: grads + rho * (params - start)) if rho else None
        fit = site.train(payload, site.split, site.key("train"), pull)
        return local, Update(fit.params, 1.0, fit.metrics)

    def step(state: State, total: Total, context: RoundContext) -> State:
        mixed = at(alpha, context.round) * total.weight  # of one update of weight 1: s(age)
        return state + mixed * (total.params - state)

    made = rounds(lambda state: state, work, step, aggregator=mean(staleness), **buffered(1, busy))
    traits = (*made.traits, "buffer 1")
    return made._replace(round=lambda state, context: made.round(state, in_turn(context)), traits=traits)
