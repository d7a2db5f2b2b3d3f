"""FedRep: Exploiting Shared Representations for Personalized Federated Learning, Collins et al. 2021, algorithm 1.
Only the contract may come in."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from foedus.algorithms.parts import chosen, last_layer, shared
from foedus.algorithms.rounds import Rate
from foedus.core import Algorithm, Correct, Fit, SiteContext
from foedus.params import Params


def fedrep(personal: str | Sequence[str] | None = None, heads: int = 1, rate: Rate = 1.0, **task: Any) -> Algorithm:
    """A site trains its own head first, with the shared body as it came, then the body under that head.

    `personal`: patterns of names, such as `["head.*"]`; by default the last layer. `heads`: how many local trainings
    the head gets before the body gets one. Sites count alike. Only the sites' own models are measured, with names in
    `personal_`.
    """

    def train(model: Params, own: Sequence[str], site: SiteContext) -> Fit:
        for i in range(heads):
            fit = site.train(model, site.split, site.key("head", i), moving(model, own))
            model = model.placed(fit.params.only(own))
        body = set(model) - set(own)
        fit = site.train(model, site.split, site.key("train"), moving(model, body))
        return fit._replace(params=model.placed(fit.params.only(body)))

    return shared(chosen(personal, last_layer, "fedrep"), train, alike=True, rate=rate, **task)


def moving(model: Params, names: Container[str]) -> Correct:
    """Leaves gradients of these arrays alone."""
    ones = model.trainable().map(np.ones_like)
    mask = ones.zeros().placed(ones.only(names))
    return lambda grads, params: grads.map(np.multiply, mask)
