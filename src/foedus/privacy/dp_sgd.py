"""Record-level privacy: DP-SGD as a Job asks for it (Abadi et al. 2016), and what it spends at a site.
The contract and accounting may come in; the steps are the learner's own.

A site's number of training rows is no secret here: sampling rate, steps and weight are made of it. Neighbours have as
many rows, and one has nothing in the place of a record.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from foedus import frames
from foedus.core import Algorithm, Correct, Decline, Fit, Local, Private, SiteContext, Update, Work
from foedus.errors import JobError
from foedus.keys import Key
from foedus.metrics import moments
from foedus.params import Params, digest
from foedus.privacy import accounting
from foedus.privacy.accounting import Accountant

TOLD = "train_epsilon"


class DpSgd(NamedTuple):
    """What a Job says of DP-SGD; see `dp_sgd`."""

    clip: float
    noise_multiplier: float | None
    epsilon: float | None
    delta: float
    accountant: Accountant = "pld"

    @property
    def word(self) -> str:
        """What a submission signs; without noise nothing is protected."""
        return "" if self.noise_multiplier == 0 else "dp_sgd"

    def said(self, traits: Sequence[str] = ()) -> str:
        """What is told of it when a run begins."""
        return (
            f"dp_sgd: each record's gradient is clipped to {self.clip:g}, batches are Poisson samples, "
            f"{accounting.goal(self)} for each site; row counts and metrics of evaluation are not protected"
        )


class Plan(NamedTuple):
    """What DP-SGD does at one site: the probability that a record is in a step, steps a Task, noise over clip."""

    rate: float
    steps: int
    noise: float


def dp_sgd(
    clip: float,
    noise_multiplier: float | None = None,
    *,
    epsilon: float | None = None,
    delta: float = 1e-5,
    accountant: Accountant = "pld",
) -> DpSgd:
    """DP-SGD at every site: who has the updates cannot tell whether any one record was there (Abadi et al. 2016).

    Each example's gradient is scaled down to norm `clip`, the sum gets Gaussian noise of standard deviation `clip`
    times `noise_multiplier`, and batches are Poisson samples. With `epsilon` in place of the noise each site finds the
    least noise with which all rounds of the run stay within (epsilon, delta).
    """
    accounting.check("dp_sgd", clip, noise_multiplier, epsilon, delta)
    if accountant not in ("rdp", "pld"):
        raise JobError(f"dp_sgd(accountant={accountant!r}): it is 'rdp' or 'pld'")
    noise, goal = (None if x is None else float(x) for x in (noise_multiplier, epsilon))
    return DpSgd(float(clip), noise, goal, float(delta), accountant)


def plan(how: DpSgd, records: int, batch: int | None, steps: int, rounds: int | None) -> Plan:
    """What is done at a site of so many records; `steps` of a Task, `batch` None: all. Raises FoedusError."""
    rate = min(1.0, (batch or records) / records)
    if how.noise_multiplier is not None:
        return Plan(rate, steps, how.noise_multiplier)
    assert how.epsilon is not None and rounds is not None
    return Plan(rate, steps, _noise(how.epsilon, rate, steps * rounds, how.delta, how.accountant))


def spent(
    n: int,
    batch: int | None,
    epochs: int,
    rounds: int,
    noise_multiplier: float,
    delta: float,
    accountant: Accountant = "pld",
    steps: int | None = None,
) -> float:
    """The epsilon that a site of `n` rows has spent at `delta` after `rounds` trainings of `epochs`, or `steps`."""
    size = min(batch or n, n)
    return _epsilon(noise_multiplier, size / n, (steps or epochs * -(-n // size)) * rounds, delta, accountant)


def private(algorithm: Algorithm, how: DpSgd, learner: Any, rounds: int | None) -> Algorithm:
    """The same algorithm, every training of its works by DP-SGD, and nothing else of the training part read."""
    works = {name: _private(work, how, learner, rounds) for name, work in algorithm.works.items()}
    return algorithm._replace(works=works, traits=(*algorithm.traits, "private"))


def check_rounds(how: DpSgd | None, rounds: int | None, asked: int | None) -> None:
    """Raises JobError for more rounds than the Job's, for which the noise was found."""
    if how is not None and how.epsilon is not None and (asked or 0) > (rounds or 0):
        remedy = "say rounds=… in the job file"
        raise JobError(f"{asked} rounds of a Job whose dp_sgd(epsilon=…) finds its noise for {rounds}: {remedy}")


def _private(work: Work, how: DpSgd, learner: Any, rounds: int | None) -> Work:
    def working(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update | Decline]:
        rows, done = len(site.split.train), list[Fit]()
        if not rows:
            return local, Decline("it has no training rows")
        here, round = plan(how, rows, learner.batch_size, learner.count(rows), rounds), int(site.key.names[1])
        secret = _secret(site, payload, local, rows)

        def train(params: Params, data: Any, key: Key, correct: Correct | None) -> Fit:
            if done or data is not site.split:
                raise JobError(
                    "dp_sgd counts one training of the whole training part a Task, and this work has another"
                )
            check_rounds(how, rounds, round + 1)
            fit = site.train(params, data, key, Private(how.clip, here.noise, secret, correct))
            if fit.steps != here.steps:
                raise JobError(f"dp_sgd: the learner took {fit.steps} steps where it had said {here.steps}")
            done.append(fit)
            return fit._replace(metrics={})

        def evaluate(params: Params, data: Any, metrics: Sequence[Any]) -> Any:
            return _read(site) if data is site.split.train else site.evaluate(params, data, metrics)

        closed = site._replace(train=train, evaluate=evaluate, gradient=lambda *call: _read(site))
        local, update = work(payload, local, closed)
        if isinstance(update, Update) and done and here.noise:
            told = _so_far(how, here, round, rounds)
            update = update._replace(metrics={**update.metrics, TOLD: moments(np.array([told]))})
        return local, update

    return working


def _secret(site: SiteContext, payload: Params, local: Local, rows: int) -> Key:
    """The randomness of a training, for ever the same, and another one for any other model, state or number of rows.

    Were noise used twice, the difference of two updates would have none.
    """
    own = hashlib.sha256(frames.pack(local).bytes()).hexdigest()
    return site.secret("dp_sgd", *site.key.names, digest(payload), own, rows)


def _so_far(how: DpSgd, here: Plan, round: int, rounds: int | None) -> float:
    """An upper bound of what a site has spent that has trained in each round so far, with few calls of the accountant.

    It is what the next power of two of rounds spends by Rényi moments, and never above what the whole run spends.
    """
    bound = partial(_epsilon, here.noise, here.rate, delta=how.delta)
    now = bound(here.steps << round.bit_length(), accountant="rdp")
    if rounds is None or round >= rounds:
        return now
    whole = bound(here.steps * rounds, accountant=how.accountant) if how.epsilon is None else how.epsilon
    return min(now, whole)


def _read(site: SiteContext) -> Any:
    raise JobError(
        f"{site.name}: this algorithm reads the loss or the gradient of the training part beside DP-SGD's steps, "
        "which nothing protects: take fedavg, fedprox, fedopt, fednova, feddyn or scaffold()"
    )


@cache
def _noise(epsilon: float, rate: float, steps: int, delta: float, accountant: Accountant) -> float:
    return accounting.noise_multiplier(epsilon, rate, steps, delta, accountant)


@cache
def _epsilon(noise: float, rate: float, steps: int, delta: float, accountant: Accountant) -> float:
    return accounting.epsilon(noise, rate, steps, delta, accountant) if noise else math.inf
