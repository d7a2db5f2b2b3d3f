"""TorchLearner: a site's work in PyTorch, declared in one call or written as one's own loop.
Machines, batches and losses come in; what it knows of the federation is the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foedus import metrics as measures
from foedus.core import Correct, Fit
from foedus.data import Pairs, Split
from foedus.errors import JobError, Refused
from foedus.keys import Key, key
from foedus.loops import Loop, fitted
from foedus.params import Array, Params
from foedus.progress import progress
from foedus.torch import build
from foedus.torch.arrays import as_array, snapshot
from foedus.torch.batches import Batch, Feed, forward, measured_at_once, order
from foedus.torch.loop import Context
from foedus.torch.losses import checked, natural, per_example
from foedus.torch.machine import Machine
from foedus.torch.randomness import named, reseed
from foedus.torch.sgd import Optimizer, optimizer

MODEL, EVALUATION = key(0, "model"), key(0, "evaluate")


class TorchLearner:
    """A learner whose model is a torch.nn.Module.

    model: a class or function without arguments, or a module, which is copied. Parameters that require a gradient are
        trainable; frozen ones and float buffers are buffers (a frozen array's difference is zero, so that it stays what
        it is); other buffers are integer. Tied parameters travel once, under their first name.
    loss: (outputs, targets) -> mean over the batch. `optimizer`: parameters -> optimizer, made new for each Task.
    epochs, batch_size: of one Task; `steps` counts optimizer steps instead of epochs; `drop_last` leaves out the smaller
        last batch of an epoch. The order is that of `key("order").numpy()`, a permutation an epoch.
    schedule: round (from 0) -> factor of the learning rates. `clip`: the largest norm of the gradient that a step takes,
        the algorithm's correction included.
    dtype: of parameters and buffers, for example "bfloat16". Float inputs and targets take the model's dtype.
    device: "auto" is a GPU where there is one. `collate` puts a dataset's examples together, as in DataLoader.
    outputs: what metrics read of that which the model returns, itself by default; `reads`: logits or probabilities.
    train: one's own loop instead, `train(model, split, ctx)`, see `Context`. It changes the model in place and returns
        metrics or (metrics, weight). Where it comes without `loss`, the metric is cross-entropy, or squared error of floats.

    >>> from functools import partial
    >>> learner = TorchLearner(partial(nn.Linear, 4, 2), nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.1))
    >>> learner.init(key(0)).kinds
    {'weight': 'trainable', 'bias': 'trainable'}
    """

    def __init__(self, model: Any, loss: Callable[..., Any] | None = None, optimizer: Callable[..., Any] | None = None,
                 epochs: int = 1, batch_size: int = 32, metrics: Sequence[Any] = (), *, steps: int | None = None,
                 schedule: Callable[[int], float] | None = None, clip: float | None = None, drop_last: bool = False,
                 dtype: Any = None, device: str = "auto", collate: Callable[..., Any] | None = None,
                 outputs: Callable[[Any], Tensor] | None = None, reads: measures.Reads = "logits",
                 train: Callable[..., Any] | None = None) -> None:  # fmt: skip
        self.model, self.loss, self.optimizer, self.own = model, loss and checked(loss), optimizer, train
        self.epochs, self.batch_size, self.steps, self.drop_last = epochs, batch_size, steps, drop_last
        self.schedule, self.clip, self.dtype, self.device = schedule, clip, build.floating(dtype), device
        self.collate, self.outputs, self.reads, self.metrics = collate, outputs, reads, list(metrics)
        _check(self)

    def describe(self) -> dict[str, Any]:
        """The settings, for the Job's description."""
        return {name: _described(x) for name, x in self.__getstate__().items()}

    def __getstate__(self) -> dict[str, Any]:
        """All but the model in use, whose memory cannot move: a copy makes its own."""
        return {name: x for name, x in vars(self).items() if name != "machine"}

    @cached_property
    def machine(self) -> Machine:
        """This process's model, used for one site after another."""
        return Machine(build.built(self.model, MODEL, self.dtype), build.device(self.device))

    def init(self, key: Key) -> Params:
        """The first model's Params; the numbers are drawn by `key`."""
        return snapshot(build.built(self.model, key, self.dtype))

    def train(self, params: Params, split: Split, key: Key, correct: Correct | None) -> Fit:
        """The model after local training from `params`, with examples, steps and the sum of step sizes.

        Raises Refused where the loss is no number.
        """
        machine, work = self.machine, self._steps if self.own is None else partial(self._own_loop, self.own)
        try:
            machine.load(params)
            machine.model.train()
            with named(key("torch"), machine.device, self.own is not None or not isinstance(split.train, Pairs)):
                fit = work(split, key, correct)
            return fit._replace(params=machine.read().ordered(params.spec))
        except BaseException:
            vars(self).pop("machine", None)  # whatever was half done to it
            raise
        finally:
            machine.clear()

    def evaluate(self, params: Params, data: Any, metrics: Sequence[Any]) -> dict[str, Array]:
        """name -> sums over `data` for these metrics."""
        self.machine.load(params)
        self.machine.model.eval()
        losses = per_example(self.loss) if self.loss else natural if self.reads == "logits" else None
        wanted = [m for m in map(measures.metric, metrics) if losses or m.name != "loss"]
        with named(EVALUATION, self.machine.device, not isinstance(data, Pairs)), torch.no_grad():
            batches = self._feed().batches(data, np.arange(len(data)), measured_at_once(data))
            return measures.add(self._measured(batch, wanted, losses) for batch in batches)

    def order(self, examples: int, key: Key) -> Iterator[Array]:
        """The rows of each epoch of a Task, cut into batches of `batch_size`, the first `steps` of them where given."""
        epochs = order(examples, self.batch_size, key("order").numpy(), self.drop_last)
        return epochs if self.steps else islice(epochs, self.epochs)

    def loss_fn(self, params: Mapping[str, Tensor], batch: Any, key: Key) -> Tensor:
        """The mean loss of `batch` = (inputs, targets), a pure function: dropout is drawn by `key`, buffers stay as they are.

        `params`: name -> tensor; what is missing is the model's own. It may be differentiated or mapped by torch.func.
        """
        x, y, _ = self._feed().batch(batch, 0)
        model = self.machine.model.train()
        kept = {name: tensor.clone() for name, tensor in model.named_buffers()}
        arrays = {**kept, **{name: x.clone() if name in kept else x for name, x in params.items()}}
        with named(key, self.machine.device):
            return self._loss(torch.func.functional_call(model, arrays, *_arguments(x)), y)

    def step(self, params: Params, batch: Any, key: Key, correct: Correct | None = None) -> tuple[Params, float]:
        """The model after one step of a new optimizer on `batch`, and the loss before it: a pure function of these."""
        machine = self.machine
        machine.load(params)
        machine.model.train()
        with named(key, machine.device):
            loss = self._step(self._optimizer(key), self._feed().batch(batch, 0), correct)
        machine.clear()
        return machine.read().ordered(params.spec), float(loss)
