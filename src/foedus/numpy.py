"""NumpyLearner: a site's work in plain numpy, by mini-batch gradient descent or by one's own loop.
Only numpy, metrics and the contract may come in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from foedus import metrics as measures
from foedus.core import Correct, Elsewhere, Fit, Private, Term
from foedus.data import Split
from foedus.errors import JobError
from foedus.keys import Key
from foedus.loops import Loop, alike, fitted
from foedus.params import Array, Params
from foedus.privacy.keystream import normals, poisson
from foedus.progress import progress
from foedus.transforms.clip import norm

Arrays = Mapping[str, Array]
BATCH = 4096  # examples measured at once


class NumpyLearner:
    """A learner from plain functions over named arrays.

    model: a mapping of arrays, or a function of a numpy generator that makes one.
    gradient: (params, x, y) -> (losses, one an example; gradients of their mean, name -> array).
    predict: (params, x) -> outputs that metrics read (as `reads`: logits or probabilities).
    batch_size: examples a step; None: all of a site's, in the order of its data.
    train: one's own loop, `train(params, split, ctx)`, which changes the arrays of `params` in place.

    >>> def gradient(p, x, y):
    ...     error = x @ p["w"] - y
    ...     return error**2, {"w": 2 * x.T @ error / len(x)}
    >>> learner = NumpyLearner({"w": np.zeros(2)}, gradient, lambda p, x: x @ p["w"], lr=0.1, metrics=["rmse"])
    """

    def __init__(
        self,
        model: Any,
        gradient: Callable[..., Any] | None = None,
        predict: Callable[..., Any] | None = None,
        *,
        lr: float = 0.1,
        epochs: int = 1,
        batch_size: int | None = 32,
        train: Callable[..., Any] | None = None,
        metrics: Sequence[Any] = (),
        reads: measures.Reads = "logits",
    ) -> None:
        if gradient is None and train is None:
            raise JobError("a NumpyLearner needs gradient=… (and steps by itself) or train=… (your own loop)")
        self.model, self.gradient, self.predict, self.own = model, gradient, predict, train
        self.lr, self.epochs, self.batch_size, self.reads = lr, epochs, batch_size, reads
        self.metrics = list(metrics)

    def describe(self) -> dict[str, Any]:
        """The settings, for the Job's description."""
        names = {k: getattr(f, "__qualname__", None) for k, f in vars(self).items() if callable(f)}
        return names | {k: getattr(self, k) for k in ("lr", "epochs", "batch_size", "reads")}

    def init(self, key: Key) -> Params:
        """The first model's Params."""
        made = self.model
        if callable(made):
            made = made(key.numpy()) if inspect.signature(made).parameters else made()
        return made if isinstance(made, Params) else Params(made)

    def train(self, params: Params, split: Split, key: Key, correct: Correct | None) -> Fit:
        """The model after local training from `params`, with examples, steps and the sum of step sizes."""
        if self.own is not None:
            return self._own_loop(self.own, params, split, key, correct)
        if isinstance(correct, Private):
            return self._private(params, *_arrays(split.train), correct)
        x, y = _arrays(split.train)
        here, steps = params.copy(), 0
        total = [np.zeros(3)]
        for batch in key("order").batches(len(x), self.batch_size or len(x), self.epochs):
            losses, grads = self._gradient(here, x[batch], y[batch])
            if isinstance(correct, Elsewhere):
                there = partial(self._slope, here, x[batch], y[batch])
                grads = correct.of(grads, here.trainable(), there)
            elif correct is not None:
                grads = correct(grads, here.trainable())
            self._down(here, grads)
            total.append(measures.moments(losses))
            steps += 1
        return Fit(here, len(x), steps, self.lr * steps, {"train_loss": np.sum(total, axis=0)})

    def _down(self, here: Params, grads: Params) -> None:
        for group, flat in grads.flats.items():
            here.flats[group][:] -= np.asarray(self.lr * flat, here.flats[group].dtype)

    def unfit(self) -> str:
        """Why its examples have no gradients of their own, with the remedy; "" where they have."""
        return "" if self.own is None else "a training loop of one's own: give gradient=… alone"

    def count(self, examples: int) -> int:
        """How many steps a Task takes."""
        return self.epochs * -(-examples // (self.batch_size or examples))

    def _private(self, params: Params, x: Any, y: Any, how: Private) -> Fit:
        """DP-SGD (Abadi et al. 2016, algorithm 1): `gradient` is asked for one row at a time."""
        if isinstance(how.after, (Term, Elsewhere, Private)):
            raise NotImplementedError("dp_sgd: this algorithm reads each batch's examples beside the noised gradient")
        here, n, count = params.copy(), len(x), self.count(len(x))
        size = self.batch_size or n
        for step in range(count):
            rows = poisson(how.secret("rows", step), n, size)
            grads = self._noised(here, x, y, rows, how, how.secret("noise", step), min(size, n))
            self._down(here, how.after(grads, here.trainable()) if how.after else grads)
            progress()
        return Fit(here, n, count, self.lr * count)

    def _noised(self, here: Params, x: Any, y: Any, rows: Array, how: Private, key: Key, expected: int) -> Params:
        """The rows' gradients, each clipped, their sum with noise, over the expected number of rows."""
        like = here.trainable()
        sums = {group: np.zeros(flat.shape) for group, flat in like.flats.items()}
        for i in rows:
            _, found = self._gradient(here, x[i : i + 1], y[i : i + 1])
            size = norm(found)
            if np.isfinite(size):  # a gradient that is no number counts as zero
                for group, flat in found.flats.items():
                    sums[group] += flat * np.float64(min(1.0, how.clip / max(size, 1e-300)))
        drawn = normals(key, sum(total.size for total in sums.values())) if how.noise else np.zeros(0)
        for group, total in sums.items() if how.noise else ():
            noise, drawn = np.split(drawn, [total.size])
            sums[group] = total + how.clip * how.noise * noise
        return Params.of(like.spec, {g: np.asarray(t / expected, like.flats[g].dtype) for g, t in sums.items()})

    def _gradient(self, params: Params, x: Any, y: Any) -> tuple[Array, Params]:
        assert self.gradient is not None
        losses, grads = self.gradient(params, x, y)
        return np.broadcast_to(losses, len(x)), alike(grads, params.trainable())

    def _slope(self, here: Params, x: Any, y: Any, there: Params) -> Params:
        """The gradient over these examples where the trainable arrays are others."""
        return self._gradient(here.placed(there), x, y)[1]

    def _own_loop(
        self, own: Callable[..., Any], params: Params, split: Split, key: Key, correct: Correct | None
    ) -> Fit:
        here = params.copy()
        loop = Loop(key("order").numpy(), correct)
        returned = own(dict(here), split, loop)
        return fitted(loop, here, split, returned)

    def mean_gradient(self, params: Params, data: Any, key: Key) -> Params:
        """The gradient of the mean loss over `data`, of the trainable arrays."""
        if self.gradient is None:
            raise JobError("this learner has its own loop and no gradient=…, which the algorithm asks for")
        return self._gradient(params, *_arrays(data))[1]

    def evaluate(self, params: Params, data: Any, metrics: Sequence[Any]) -> dict[str, Array]:
        """name -> sums over `data` for these metrics (the loss where there is a gradient function)."""
        x, y = _arrays(data)
        wanted = [m for m in map(measures.metric, metrics) if self._can(m.name)]
        found = []
        for at in range(0, len(x), BATCH):
            here, truth = x[at : at + BATCH], y[at : at + BATCH]
            losses = self._gradient(params, here, truth)[0] if self.gradient else None
            outputs = self.predict(params, here) if self.predict else np.zeros(len(here))
            found.append(measures.measure(wanted, outputs, truth, losses, self.reads))
        return measures.add(found)

    def _can(self, name: str) -> bool:
        return self.gradient is not None if name == "loss" else self.predict is not None


def _arrays(data: Any) -> tuple[Any, Any]:
    if hasattr(data, "x") and hasattr(data, "y"):
        return np.asarray(data.x), np.asarray(data.y)
    rows = [data[i] for i in range(len(data))]
    return np.stack([x for x, _ in rows]), np.asarray([y for _, y in rows])
