"""q-FFL: Fair Resource Allocation in Federated Learning, Li et al. 2020, equation 2, solved by q-FedAvg (algorithm 2).
Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.algorithms.rounds import advance, loss, number, path, rounds
from foedus.core import Algorithm, Local, RoundContext, SiteContext, State, Total, Update
from foedus.params import Params, join
from foedus.transforms.clip import norm

LEAST = 1e-10  # a loss of nothing has no power below 0


def qffl(q: float = 1.0, lipschitz: float | None = None, **task: Any) -> Algorithm:
    """Sites with a higher loss pull harder: less of the sum of p_i F_i^(q+1) / (q+1), p_i by examples; q = 0 is FedAvg.

    `lipschitz` is the paper's L, by default 1 / the local step size. With F a site's loss at the round's model and
    d = L (w_round - w), it sends F^q d and h = q F^(q-1) |d|^2 + L F^q; the server subtracts (sum F^q d) / (sum h).
    """

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        model = payload.part("w")
        found = max(LEAST, loss(site, model))
        fit = site.train(model, site.split, site.key("train"), None)
        bound = lipschitz or fit.steps / path(fit, "qffl without lipschitz=…")
        moved = fit.params - model
        h = q * found ** (q - 1) * (bound * norm(moved)) ** 2 + bound * found**q
        pulled = moved.map(lambda x: x * x.dtype.type(bound * found**q))
        return local, Update(join(w=pulled, h=number(h)), fit.examples, fit.metrics)

    def step(state: State, total: Total, context: RoundContext) -> State:
        return advance(state, total.params.part("w"), 1 / float(total.params["h/value"]))

    return rounds(lambda state: join(w=state, h=number()), work, step, traits=("mean", "loss"), **task)
