"""pFedMe: Personalized Federated Learning with Moreau Envelopes, Dinh et al. 2020, algorithm 1.
Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.algorithms.rounds import advance, rounds
from foedus.core import Algorithm, Correct, Local, Personal, SiteContext, Update
from foedus.errors import JobError
from foedus.params import Params


def pfedme(lam: float = 15.0, eta: float = 0.005, local: int = 20, beta: float = 1.0, **task: Any) -> Algorithm:
    """Each site's model theta has the least loss plus lam/2 |theta - w|^2; w learns from theta, theta from the data.

    `local` times a round (the paper's R) theta is trained by the learner, from where it is, under g + lam (theta - w),
    and w = w - eta lam (w - theta). The server goes `beta` of the way to the mean of the w; sites count alike. A
    learner of a few steps (the paper's K is 5), each below 2 / lam, is what it asks for.
    """

    def work(payload: Params, kept: Local, site: SiteContext) -> tuple[Local, Update]:
        w = theta = payload
        for r in range(local):
            fit = site.train(theta, site.split, site.key("train", r), pulled(lam, w.trainable()))
            if lam * fit.path >= 2 * fit.steps:
                raise JobError(f"pfedme: its local steps swing past w; take some below 2 / lam, which is {2 / lam:g}")
            theta = fit.params
            w = advance(w, theta - w, eta * lam)
        return theta, Update(w - payload, 1.0, fit.metrics)

    return rounds(
        lambda state: state,
        work,
        lambda state, total, context: advance(state, total.params, beta),
        personal=Personal(lambda model, theta: theta),
        **task,
    )


def pulled(lam: float, w: Params) -> Correct:
    """The gradient of the loss and of lam/2 |theta - w|^2."""
    return lambda grads, theta: grads + lam * (theta - w)
