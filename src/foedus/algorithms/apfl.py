"""APFL: Adaptive Personalized Federated Learning, Deng et al. 2020, algorithm 1 and the step of alpha in section 3.
Only the contract may come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from foedus.algorithms.rounds import advance, path, rounds
from foedus.core import Algorithm, Elsewhere, Local, Personal, SiteContext, Update
from foedus.errors import JobError
from foedus.params import Params


def apfl(alpha: float = 0.5, adaptive: bool = True, **task: Any) -> Algorithm:
    """A site's model is u = alpha v + (1 - alpha) w: its own v and what it made of the round's model, w.

    Each local step is w = w - eta g(w) and v = v - eta alpha g(u), with one batch for both. `adaptive`: a round begins
    with alpha = alpha - eta <v - w, g(u)>, kept in [0, 1], where g is over all of the site's data. The server takes the
    mean of the w; sites count alike. It means plain gradient descent at the sites.
    """
    if not 0 <= alpha <= 1:
        raise JobError(f"apfl(alpha={alpha!r}): the share of a site's own model, from 0 to 1")

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        share, v = (alpha, payload) if local is None else (local["alpha"], local["v"])
        fit = site.train(payload, site.split, site.key("train"), None)
        eta = path(fit, "apfl") / fit.steps
        if adaptive:
            slope = site.gradient(mixed(share, v, payload), site.split.train, site.key("alpha"))
            share = min(1.0, max(0.0, share - eta * inner((v - payload).trainable(), slope)))
        both = Elsewhere(beside(share, payload.trainable(), eta))
        u = site.train(mixed(share, v, payload), site.split, site.key("train"), both).params
        rest = u.trainable() - (1 - share) * fit.params.trainable()
        new = u.placed(1 / share * rest if share else v.trainable())
        return {"alpha": share, "v": new}, Update(fit.params - payload, 1.0, fit.metrics)

    return rounds(
        lambda state: state,
        work,
        lambda state, total, context: advance(state, total.params),
        traits=("elsewhere",),
        personal=Personal(lambda model, local: mixed(local["alpha"], local["v"], model)),
        **task,
    )


def mixed(alpha: float, v: Params, w: Params) -> Params:
    """alpha v + (1 - alpha) w of trainable arrays; the others are those of v."""
    return v.placed(alpha * v.trainable() + (1 - alpha) * w.trainable())


def beside(alpha: float, w: Params, eta: float) -> Callable[..., Params]:
    """How u goes while w goes from here by its own gradients: the sum of what v and w do, by their shares."""

    def step(grads: Params, u: Params, at: Callable[[Params], Params]) -> Params:
        nonlocal w
        slope = at(w)
        w = w - eta * slope
        return alpha**2 * grads + (1 - alpha) * slope

    return step


def inner(a: Params, b: Params) -> float:
    """The inner product."""
    return float(sum((x.astype(float) * b.flats[group]).sum() for group, x in a.flats.items()))
