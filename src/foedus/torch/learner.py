"""TorchLearner: a site's work in PyTorch, declared in one call or written as one's own loop.
Machines, batches and losses come in; what it knows of the federation is the contract."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foedus import metrics as measures
from foedus.core import Correct, Elsewhere, Fit, Private, Term
from foedus.data import Pairs, Split
from foedus.errors import JobError, Refused
from foedus.keys import Key, key
from foedus.loops import Loop, fitted
from foedus.midway import Midway
from foedus.params import Array, Params
from foedus.progress import progress
from foedus.torch import build, handover, private
from foedus.torch.arrays import as_array, snapshot
from foedus.torch.batches import Batch, Feed, arguments, measured_at_once
from foedus.torch.loop import Context
from foedus.torch.losses import checked, natural, per_example, totals
from foedus.torch.machine import Machine
from foedus.torch.measuring import Measuring
from foedus.torch.randomness import named, reseed
from foedus.torch.sgd import Optimizer, optimizer
from foedus.torch.standing import Standing
from foedus.torch.together import Call, Together

MOST_DEPTH = 8
MADE = ("machine", "slopes", "losses", "stacked", "side_by_side")  # at first use
MODEL, EVALUATION = key(0, "model"), key(0, "evaluate")


class TorchLearner:
    """A learner whose model is a torch.nn.Module.

    model: a class or function without arguments, or a module, which is copied. Parameters that require a gradient are
        trainable; frozen ones and float buffers are buffers (a frozen array's difference is zero, so that it stays what
        it is); other buffers are integer. Tied parameters travel once, under their first name.
    loss: (outputs, targets) -> mean over the batch. `optimizer`: parameters -> optimizer, made new for each Task.
    epochs, batch_size: of one Task; `steps` counts optimizer steps instead of epochs; `drop_last` leaves out the
        smaller last batch of an epoch. The order of epoch e is `key("order").order(examples, e)`.
    schedule: round (from 0) -> factor of the learning rates. `clip`: the largest norm of the gradient that a step
        takes, the algorithm's correction included.
    dtype: of parameters and buffers, for example "bfloat16". Float inputs and targets take the model's dtype.
    mixed: True computes in bfloat16 what torch.autocast does in it; parameters and steps keep the model's dtype.
    device: "auto" is a GPU where there is one. `collate` puts a dataset's examples together, as in DataLoader.
    outputs: what metrics read of that which the model returns, itself by default; `reads`: logits or probabilities.
    train: one's own loop instead, `train(model, split, ctx)`, see `Context`. It changes the model in place and returns
        metrics or (metrics, weight). Without a `loss`, the metric of that name is cross-entropy, or squared error of
        floats.

    >>> from functools import partial
    >>> learner = TorchLearner(partial(nn.Linear, 4, 2), nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.1))
    >>> learner.init(key(0)).kinds
    {'weight': 'trainable', 'bias': 'trainable'}
    """

    def __init__(
        self,
        model: Any,
        loss: Callable[..., Any] | None = None,
        optimizer: Callable[..., Any] | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        metrics: Sequence[Any] = (),
        *,
        steps: int | None = None,
        schedule: Callable[[int], float] | None = None,
        clip: float | None = None,
        drop_last: bool = False,
        dtype: Any = None,
        mixed: bool = False,
        device: str = "auto",
        collate: Callable[..., Any] | None = None,
        outputs: Callable[[Any], Tensor] | None = None,
        reads: measures.Reads = "logits",
        train: Callable[..., Any] | None = None,
    ) -> None:
        self.model, self.loss, self.optimizer, self.own = (
            model,
            None if loss is None else checked(loss),
            optimizer,
            train,
        )
        self.epochs, self.batch_size, self.steps, self.drop_last = epochs, batch_size, steps, drop_last
        self.schedule, self.clip, self.dtype, self.device = schedule, clip, build.floating(dtype), device
        self.collate, self.outputs, self.reads, self.metrics = collate, outputs, reads, list(metrics)
        self.mixed = mixed
        _check(self)

    def describe(self) -> dict[str, Any]:
        """The settings, for the Job's description."""
        return {name: _described(x) for name, x in self.__getstate__().items()}

    def __getstate__(self) -> dict[str, Any]:
        """All but what is made at first use: the model's memory cannot move, a copy makes its own."""
        return {name: x for name, x in vars(self).items() if name not in MADE}

    @cached_property
    def machine(self) -> Machine:
        """This process's model, used for one site after another."""
        return Machine(build.built(self.model, MODEL, self.dtype), build.device(self.device))

    @cached_property
    def slopes(self) -> private.Slopes:
        """Gradients, one an example, at this process's model."""
        return private.Slopes(self)

    @cached_property
    def losses(self) -> Callable[[Any, Any], Tensor] | None:
        """(outputs, targets) -> what the metric `loss` adds up, one an example."""
        return per_example(self.loss) if self.loss is not None else natural if self.reads == "logits" else None

    def ready(self) -> None:
        """Raises JobError where this machine lacks the device that is named."""
        if self.device != "auto":
            build.device(self.device)

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
            machine.mode(training=True)
            everything = self.own is not None or _draws(split.train)
            with named(key("torch"), machine.device, everything), self.cast():
                fit = work(split, key, correct, Midway(key, params, len(split.train)))
            return fit._replace(params=fit.params.ordered(params.spec))
        except BaseException:
            for name in ("machine", "slopes"):  # whatever was half done to it
                vars(self).pop(name, None)
            raise
        finally:
            machine.clear()

    def module(self, result: Any) -> nn.Module:
        """An ordinary module, in evaluation mode, with the arrays of a Result, of its params, its file or its RUN."""
        return handover.module(self, result)

    def onnx(self, result: Any, path: str | os.PathLike[str], example: Any) -> Path:
        """Writes the model as ONNX (`pip install 'foedus[onnx]'`): input `x` of any number of examples, output `y`.

        `example`: a batch of inputs, of two or more. Raises Missing, and FoedusError for what ONNX cannot say.
        """
        return handover.onnx(self, result, path, example)

    @cached_property
    def stacked(self) -> Together:
        """The model for many sites. Raises Alone with the reason where these have to train one after another."""
        return Together(self)

    def together(self, calls: Sequence[Call]) -> list[Fit | Refused]:
        """What `train` gives for each of the calls (its arguments), or the refusal; close, but not the same bits.

        Raises Alone with the reason where the sites have to train one after another.
        """
        return self.stacked.train(calls)

    def groups(self, params: Params, splits: Sequence[Split]) -> Iterable[list[int]]:
        """The sites, by their place among `splits`, in groups that `rows` may take at once. Raises Alone."""
        return self.stacked.groups(params, splits)

    def rows(self, params: Params, splits: Sequence[Split], keys: Sequence[Key], correct: Correct | None) -> Fit:
        """As `together` for sites that start from one model: a Fit whose parts hold those of all, see foedus.rows.

        What a diverged site reports is no number; nothing is refused.
        """
        return self.stacked.rows(params, splits, keys, correct)

    def evaluate(self, params: Params, data: Any, metrics: Sequence[Any]) -> dict[str, Array]:
        """name -> sums over `data` for these metrics."""
        wanted, losses = self.wanted(metrics)
        with self.measuring(params, _draws(data)):
            batches = self.feed.batches(data, np.arange(len(data)), measured_at_once(data))
            return measures.add(measures.measure(wanted, *self.read(batch, losses), self.reads) for batch in batches)

    @cached_property
    def side_by_side(self) -> Measuring:
        """`evaluate` for many sites. Raises Alone with the reason where these are measured one after another."""
        return Measuring(self)

    def evaluate_together(self, calls: Sequence[tuple[Params, Any, Sequence[Any]]]) -> list[dict[str, Array]]:
        """What `evaluate` gives for each of the calls (its arguments); close, but not the same bits.

        Raises Alone with the reason where the sites have to be measured one after another.
        """
        return self.side_by_side.measure(calls)

    @contextmanager
    def measuring(self, params: Params, all: bool = False) -> Iterator[None]:
        """Inside the block the model is that of `params`, and only measures; `all`: Python's randomness has a name."""
        self.machine.load(params)
        self.machine.mode(training=False)
        with named(EVALUATION, self.machine.device, all), torch.no_grad(), self.cast():
            yield

    def cast(self) -> AbstractContextManager[Any]:
        """In which precision the model computes inside the block."""
        return torch.autocast(self.machine.device.type, torch.bfloat16) if self.mixed else nullcontext()

    def wanted(self, metrics: Sequence[Any]) -> tuple[list[measures.Metric], Callable[..., Tensor] | None]:
        """Those of the metrics that can be measured, and the losses, if one of them reads these."""
        found = [m for m in map(measures.metric, metrics) if self.losses or m.name != "loss"]
        return found, self.losses if any(m.name == "loss" for m in found) else None

    def mean_gradient(self, params: Params, data: Any, key: Key) -> Params:
        """The gradient of the mean loss over `data`, of the trainable arrays; no step is taken."""
        machine = self.machine
        machine.load(params)
        machine.mode(training=True)
        machine.clear()
        with named(key("torch"), machine.device, _draws(data)), self.cast():
            for batch in self.feed.batches(data, np.arange(len(data)), self.batch_size):
                args, named_args = arguments(batch.x)
                loss = self._loss(machine.model(*args, **named_args), batch.y)
                (loss * (batch.n / len(data))).backward()  # type: ignore[no-untyped-call]
        grads = machine.gradients().get().copy()
        machine.clear()
        return grads.ordered(params.trainable().spec)

    def order(self, examples: int, key: Key, first: int = 0) -> Iterator[Array]:
        """The rows of each epoch of a Task, from the `first` on: its batches are cut from each.

        An epoch of one batch has no order to draw.
        """
        if self.at_once(examples):
            return repeat(np.arange(examples))
        named, used = key("order"), self.used(examples)
        return (named.order(examples, epoch)[:used] for epoch in count(first))

    def loss_fn(self, params: Mapping[str, Tensor], batch: Any, key: Key) -> Tensor:
        """The mean loss of `batch` = (inputs, targets) in training, purely: `key` draws dropout, no buffer changes.

        `params`: name -> tensor; what is missing is the model's own. torch.func may differentiate and map it, for a
        batch of tensors, once the model is there: ask for `learner.machine` before.
        """
        x, y, _ = self.feed.batch(batch, 0)
        self.machine.mode(training=True)
        model = self.machine.model
        kept = {name: tensor.clone() for name, tensor in model.named_buffers()}
        arrays = {**kept, **{name: x.clone() if name in kept else x for name, x in params.items()}}
        with named(key, self.machine.device), self.cast():
            return self._loss(torch.func.functional_call(model, arrays, *arguments(x)), y)

    def step(self, params: Params, batch: Any, key: Key, correct: Correct | None = None) -> tuple[Params, float]:
        """The model after one step of a new optimizer on `batch`, and the loss before it: a pure function of these."""
        machine = self.machine
        machine.load(params)
        machine.mode(training=True)
        with named(key, machine.device), self.cast():
            loss = self._step(self.stepper(key, self.machine.trained), self.feed.batch(batch, 0), correct)
        machine.clear()
        return machine.read().ordered(params.spec), float(loss)

    def unfit(self) -> str:
        """Why its examples have no gradients of their own, with the remedy; "" where they have."""
        if self.own is not None:
            return "a training loop of one's own: let the learner step, with loss=… and optimizer=…"
        if self.mixed:
            return "mixed=True, which rounds gradients before they are clipped: leave it out"
        return private.unfit(build.built(self.model, MODEL, self.dtype))

    def _steps(self, split: Split, key: Key, correct: Correct | None, kept: Midway) -> Fit:
        if isinstance(correct, Private):
            return private.trained(self, split, key, correct, kept)
        machine, data, optimizer = self.machine, split.train, self.stepper(key, self.machine.trained)
        count, standing = self.count(len(data)), Standing(machine, kept, optimizer.of, data, everything=_draws(data))
        batches = self._batches(data, key, standing.step)
        for i in range(standing.step, count):
            reseed(key("step", i), machine.device)  # what draws the batch and the step's own has a name of its own
            batch = next(batches)
            standing.passed((self._step(optimizer, batch, correct), batch.n), i + 1 == count)
            progress()
        losses, examples = zip(*standing.seen, strict=True)
        sums = totals(_numbers(losses), examples, key)
        return Fit(machine.read(), len(data), count, optimizer.lr * count, {"train_loss": sums})

    def _batches(self, data: Any, key: Key, first: int) -> Iterator[Batch]:
        """The batches of a Task's steps from that of step `first` on."""
        epoch, at = divmod(first, self.count_once(len(data)))
        epochs = self.order(len(data), key, epoch)
        orders = chain([next(epochs)[at * self.batch_size :]], epochs)
        return chain.from_iterable(self.feed.batches(data, rows, self.batch_size) for rows in orders)

    def at_once(self, examples: int) -> bool:
        """Whether an epoch is one batch."""
        return examples <= self.batch_size

    def used(self, examples: int) -> int:
        """Of how many examples an epoch is made."""
        return examples // self.batch_size * self.batch_size or examples if self.drop_last else examples

    def count(self, examples: int) -> int:
        """How many steps a Task takes."""
        return self.steps or self.epochs * self.count_once(examples)

    def count_once(self, examples: int) -> int:
        """How many steps an epoch takes."""
        return -(-self.used(examples) // self.batch_size)

    def _step(self, optimizer: Optimizer, batch: Batch, correct: Correct | None) -> Tensor:
        self.machine.clear()
        args, named_args = arguments(batch.x)
        made = self.machine.model(*args, **named_args)
        loss = self._loss(made, batch.y)
        if isinstance(correct, Term):
            (loss + correct.of(made, lambda p: self.machine.outputs(p, args, named_args))).backward()
        else:
            loss.backward()  # type: ignore[no-untyped-call]
        if isinstance(correct, Elsewhere):
            there = partial(self._slope, batch)
            self.machine.correct(lambda grads, params: correct.of(grads, params, there))
        elif correct is not None and not isinstance(correct, Term):
            self.machine.correct(correct)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.machine.trained, self.clip)
        optimizer.step()
        return loss.detach()

    def _slope(self, batch: Batch, params: Params) -> Params:
        """The gradient of a batch's loss where the trainable arrays are others; no buffer changes."""
        args, named_args = arguments(batch.x)
        made, leaves = self.machine.elsewhere(params, args, named_args)
        grads = torch.autograd.grad(self._loss(made, batch.y), list(leaves.values()), allow_unused=True)
        found = zip(leaves.items(), grads, strict=True)
        return Params({name: as_array((torch.zeros_like(x) if g is None else g).cpu()) for (name, x), g in found})

    def _own_loop(self, own: Callable[..., Any], split: Split, key: Key, correct: Correct | None, kept: Midway) -> Fit:
        loop = Loop(key("order").torch(), correct)
        returned = own(self.machine.model, split, Context(loop.generator, self.machine, loop, _round(key), kept))
        self.machine.check()
        return fitted(loop, self.machine.read(), split, returned)

    def stepper(self, key: Key, parameters: Sequence[Tensor]) -> Optimizer:
        """A new optimizer of these parameters, with the learning rate of the key's round."""
        if self.optimizer is None:
            raise JobError("this learner has its own loop: it takes no steps by itself")
        return optimizer(self.optimizer, parameters, self.schedule(_round(key)) if self.schedule else 1.0)

    @property
    def feed(self) -> Feed:
        """Where batches go."""
        return Feed(self.machine.device, self.machine.dtype, self.collate)

    def _loss(self, outputs: Any, targets: Any) -> Tensor:
        if self.loss is None:
            raise JobError("this learner has its own loop and no loss=…")
        loss: Tensor = self.loss(outputs, targets)
        return loss

    def read(self, batch: Batch, losses: Callable[..., Tensor] | None) -> tuple[Array, Array, Array | None]:
        """What metrics read of a batch: outputs, targets, and the losses if these are asked for."""
        args, named_args = arguments(batch.x)
        made = self.machine.model(*args, **named_args)
        read = self.outputs(made) if self.outputs else made
        if not isinstance(read, Tensor):
            raise JobError(f"the model returns {type(read).__name__}: say what metrics read, as outputs=lambda made: …")
        each = _floats(losses(read if losses is natural else made, batch.y)) if losses else None
        return _floats(read), _floats(batch.y), each


def _check(learner: TorchLearner) -> None:
    own = learner.own is not None
    if not own and (learner.loss is None or learner.optimizer is None):
        raise JobError("a TorchLearner needs loss=… and optimizer=… (and steps by itself) or train=… (your own loop)")
    given = [name for name in ("optimizer", "steps", "schedule", "clip") if getattr(learner, name) is not None]
    if own and given:
        raise JobError(f"a TorchLearner with train=… takes no steps by itself: move {', '.join(given)} into your loop")
    steps = 1 if learner.steps is None else learner.steps
    for name, value in (("epochs", learner.epochs), ("batch_size", learner.batch_size), ("steps", steps)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise JobError(f"TorchLearner({name}={value!r}): it must be a whole number of at least 1")
    if learner.clip is not None and not learner.clip > 0:
        raise JobError(f"TorchLearner(clip={learner.clip!r}): it must be a positive number")


def _described(x: Any, depth: int = 0) -> Any:
    """`x` as plain data: functions by name, with their settings and the values they closed over."""
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    deeper = partial(_described, depth=depth + 1)
    if isinstance(x, torch.dtype):
        return str(x)
    if isinstance(x, partial):
        return [*map(deeper, (x.func, *x.args)), {k: deeper(v) for k, v in x.keywords.items()}]
    if isinstance(x, (list, tuple)) and not hasattr(x, "_fields"):
        return [deeper(part) for part in x]
    cells = [cell.cell_contents for cell in getattr(x, "__closure__", None) or ()] if depth < MOST_DEPTH else []
    name = x if hasattr(x, "__qualname__") else type(x)
    return [name.__module__, name.__qualname__, *map(deeper, cells)]


def _round(key: Key) -> int:
    return int(key.names[1]) if len(key.names) > 1 else 0


def _numbers(scalars: Sequence[Tensor | float]) -> list[float]:
    """The scalars, with one wait for the device."""
    if isinstance(scalars[-1], float) or scalars[-1].device.type == "cpu":
        return [float(x) for x in scalars]
    known = [x for x in scalars if isinstance(x, float)]  # before a restart
    found: list[float] = torch.stack([x.reshape(()) for x in scalars if isinstance(x, Tensor)]).tolist()
    return known + found


def _draws(data: Any) -> bool:
    """Whether taking an example may draw random numbers, by whatever generator."""
    return not isinstance(data, Pairs)


def _floats(x: Tensor) -> Array:
    x = x.detach().cpu()
    return as_array(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)
