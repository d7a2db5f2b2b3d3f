"""LayeredLearner: a site's work on a network of layers, by gradient descent; what can be cut, and what it is cut from.
Layers, metrics and the contract may come in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from foedus import metrics as measures
from foedus.core import Correct, Fit
from foedus.data import Split
from foedus.errors import JobError
from foedus.keys import Key
from foedus.layers.losses import Loss, loss_of
from foedus.layers.stack import Layer, Stack, checked, down
from foedus.params import Array, Params
from foedus.progress import progress

BATCH = 4096  # examples measured at once


class LayeredLearner:
    """A learner whose model is `layers` one after another, for inputs of the shape `inputs` (of one example).

    layers: of `foedus.layers`, or `foedus.torch.layer(module)`. loss: "squared", "logistic", "softmax" or a Loss.
    lr, epochs, batch_size (None: all examples at once): of plain gradient descent. dtype: of all numbers.
    Arrays of the i-th layer are named `i.NAME`. It trains by any algorithm; `fd.split_learning` cuts it.

    >>> from foedus.layers import dense, tanh
    >>> learner = LayeredLearner([dense(3), tanh(), dense(2)], inputs=4, loss="softmax", metrics=["accuracy"])
    >>> [leaf.shape for leaf in learner.init(Key((0,))).spec]
    [(4, 3), (3,), (3, 2), (2,)]
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        inputs: int | tuple[int, ...],
        loss: str | Loss,
        *,
        lr: float = 0.1,
        epochs: int = 1,
        batch_size: int | None = 32,
        metrics: Sequence[Any] = (),
        dtype: str = "float32",
    ) -> None:
        self.stack: Stack = checked(layers)
        self.inputs = (inputs,) if isinstance(inputs, int) else tuple(inputs)
        self.loss, self.lr, self.epochs, self.batch_size = loss_of(loss), lr, epochs, batch_size
        self.metrics, self.dtype = list(metrics), dtype
        if dtype not in ("float32", "float64"):
            raise JobError(f"LayeredLearner(dtype={dtype!r}): it is 'float32' or 'float64'")
        for name, value in (("epochs", epochs), ("batch_size", batch_size or 1)):
            if not isinstance(value, int) or value < 1:
                raise JobError(f"LayeredLearner({name}={value!r}): it must be a whole number of at least 1")

    def describe(self) -> dict[str, Any]:
        """The settings, for the Job's description."""
        names = {"layers": [layer.name for layer in self.stack.layers], "loss": self.loss.name, "inputs": self.inputs}
        return names | {name: getattr(self, name) for name in ("lr", "epochs", "batch_size", "dtype")}

    def init(self, key: Key) -> Params:
        """The first model's Params."""
        return self.stack.init(key, self.blank(1))

    def blank(self, rows: int) -> Array:
        """Inputs of so many examples, all zero."""
        return np.zeros((rows, *self.inputs), self.dtype)

    def arrays(self, data: Any) -> tuple[Array, Array]:
        """(inputs, targets) of these examples. Raises JobError for inputs of another shape."""
        pair = (data.x, data.y) if hasattr(data, "x") else zip(*(data[i] for i in range(len(data))), strict=True)
        x, y = (np.asarray(part) for part in pair)
        if x.shape[1:] != self.inputs:
            raise JobError(f"an example has shape {x.shape[1:]}, the learner's inputs={self.inputs}")
        return x.astype(self.dtype), y.astype(self.loss.target or self.dtype).reshape(len(y))

    def batches(self, examples: int, key: Key) -> Iterator[Array]:
        """The rows of each batch of a Task."""
        return key("order").batches(examples, self.batch_size or examples, self.epochs)

    def train(self, params: Params, split: Split, key: Key, correct: Correct | None) -> Fit:
        """The model after local training from `params`, with examples, steps and the sum of step sizes."""
        x, y = self.arrays(split.train)
        steps, sums = 0, np.zeros(3)
        for i, rows in enumerate(self.batches(len(x), key)):
            losses, grads = self._gradient(params, x[rows], y[rows], key("step", i))
            params = down(params, correct(grads, params) if correct else grads, self.lr)
            steps, sums = steps + 1, sums + measures.moments(losses)
            progress()
        return Fit(params, len(x), steps, self.lr * steps, {"train_loss": sums})

    def mean_gradient(self, params: Params, data: Any, key: Key) -> Params:
        """The gradient of the mean loss over `data`."""
        return self._gradient(params, *self.arrays(data), key)[1]

    def evaluate(self, params: Params, data: Any, metrics: Sequence[Any]) -> dict[str, Array]:
        """name -> sums over `data` for these metrics."""
        x, y = self.arrays(data)
        parts = (slice(at, at + BATCH) for at in range(0, len(x), BATCH))
        return measures.add(measured(self.loss, self.stack.forward(params, x[p], None), y[p], metrics) for p in parts)

    def _gradient(self, params: Params, x: Array, y: Array, key: Key) -> tuple[Array, Params]:
        outputs = self.stack.forward(params, x, key)
        grads, _ = self.stack.backward(params, x, self.loss.slope(outputs, y), key)
        return self.loss.each(outputs, y), grads


def measured(loss: Loss, outputs: Array, y: Array, metrics: Sequence[Any]) -> dict[str, Array]:
    """name -> sums over these rows; one column of outputs is read as a number for each."""
    read = outputs[:, 0] if outputs.shape[1:] == (1,) else outputs
    return measures.measure(metrics, read, y, loss.each(outputs, y), loss.reads)
