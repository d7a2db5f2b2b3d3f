"""MOON: Model-Contrastive Federated Learning, Li et al. 2021, equations 3 and 4.
Only the contract may come in; the tensors are the learner's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from foedus.algorithms.rounds import advance, rounds
from foedus.core import Algorithm, Local, SiteContext, Term, Update
from foedus.params import Params


def moon(
    mu: float = 1.0, temperature: float = 0.5, represent: Callable[[Any], Any] = lambda made: made[1], **task: Any
) -> Algorithm:
    """FedAvg whose sites keep their representations near the global model's, and far from those of their own last one.

    `represent`: what the model returns -> representations (examples, numbers); by default a model returns
    (outputs, representations), and the learner's `loss` and `outputs=` read the first. In the first round a site has no
    model of its own, and trains plainly. It needs a TorchLearner that takes its steps itself.
    """

    def term(world: Params, own: Params) -> Term:
        def contrast(made: Any, outputs: Callable[[Params], Any]) -> Any:
            z = represent(made)
            nearer = similarity(z, represent(outputs(own))) - similarity(z, represent(outputs(world)))
            return mu * (nearer / temperature).exp().log1p().mean()

        return Term(contrast)

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        fit = site.train(payload, site.split, site.key("train"), None if local is None else term(payload, local))
        return fit.params, Update(fit.params - payload, fit.examples, fit.metrics)

    return rounds(
        lambda state: state, work, lambda state, total, _: advance(state, total.params), traits=("term",), **task
    )


def similarity(a: Any, b: Any) -> Any:
    """The cosine of each row of one and of the other."""
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-8)
