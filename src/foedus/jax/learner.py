"""JaxLearner: a site's work on a JAX or Flax model, by an optax optimizer.
Metrics, data and the contract may come in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from foedus import frames
from foedus import metrics as measures
from foedus.core import Correct, Elsewhere, Fit
from foedus.data import Pairs, Split
from foedus.errors import JobError, Refused
from foedus.jax.engine import Arrays, Batch, Engine, params_of
from foedus.jax.nets import Tree, described, net_of, rng_of
from foedus.keys import Key
from foedus.midway import Midway
from foedus.params import Array, Params
from foedus.progress import progress

MEASURED = 1024  # examples measured at once


class JaxLearner:
    """A learner of `model`, a Flax (linen) module or (init, apply): `init(rng)` makes a tree, `apply(tree, x)` outputs.

    loss: (outputs, targets) -> one number an example, as optax's losses; its mean is what is minimised. optimizer: of
    optax, new at each site in each round. inputs: the shape of one example, for a Flax module. lr: the optimizer's step
    size, where an algorithm asks for it (fd.scaffold, fd.fednova). A model whose `apply` or `__call__` takes `train`,
    `training` or `deterministic` is told; dropout is drawn by the Task's key (`rng=` of an `apply` that takes it). Flax
    collections other than `params` (batch_stats) are buffers. reads: what metrics take outputs for.

    >>> import optax
    >>> from foedus import key
    >>> learner = JaxLearner((lambda rng: {"w": jnp.zeros(2)}, lambda p, x: x @ p["w"]), optax.squared_error,
    ...                      optimizer=optax.sgd(0.1))
    >>> list(learner.init(key(0)))
    ['w']
    """

    own = None  # no training loop of one's own: that goes into a NumpyLearner

    def __init__(
        self,
        model: Any,
        loss: Callable[[Any, Any], Any],
        *,
        optimizer: Any,
        inputs: int | Sequence[int] | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        lr: float | None = None,
        metrics: Sequence[Any] = (),
        reads: measures.Reads = "logits",
    ) -> None:
        self.model, self.loss, self.optimizer, self.reads = model, loss, optimizer, reads
        self.inputs = None if inputs is None else (inputs,) if isinstance(inputs, int) else tuple(inputs)
        self.epochs, self.batch_size, self.lr, self.metrics = epochs, batch_size, lr, list(metrics)
        for name, value in (("epochs", epochs), ("batch_size", batch_size)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise JobError(f"JaxLearner({name}={value!r}): it must be a whole number of at least 1")
        if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
            raise JobError(f"JaxLearner(optimizer={optimizer!r}): give one of optax, as optax.sgd(0.1)")
        net_of(model, self.inputs)

    def describe(self) -> dict[str, Any]:
        """The settings, for the Job's description."""
        parts = {name: described(getattr(self, name)) for name in ("model", "loss", "optimizer")}
        return parts | {k: getattr(self, k) for k in ("inputs", "epochs", "batch_size", "lr", "reads")}

    def __getstate__(self) -> dict[str, Any]:
        """All but what is compiled at first use."""
        return {name: x for name, x in vars(self).items() if name != "engine"}

    @cached_property
    def engine(self) -> Engine:
        """The compiled functions of this process."""
        return Engine(net_of(self.model, self.inputs), self.loss, self.optimizer)

    def init(self, key: Key) -> Params:
        """The first model's Params; the numbers are drawn by `key`."""
        tree = self.engine.net.init(rng_of(key))
        return self.engine.params(tree)

    def train(self, params: Params, split: Split, key: Key, correct: Correct | None) -> Fit:
        """The model after local training from `params`, with examples, steps and the sum of step sizes.

        Raises Refused where the loss is no number.
        """
        x, y = self._arrays(split.train)
        engine = self.engine
        arrays = engine.arrays(params)
        self._check_classes(arrays, x, y)
        kept, total = Midway(key, params, len(x)), self.epochs * -(-len(x) // self.batch_size)
        (arrays, state), seen = resumed(kept, (arrays, self.optimizer.init(arrays.trained)))
        for rows in islice(key("order").batches(len(x), self.batch_size, self.epochs), len(seen), None):
            batch = self._batch(x, y, rows, self.batch_size)
            rng = rng_of(key("step", len(seen)))
            if correct is None:
                arrays, state, loss = engine.step(arrays, state, batch, rng)
            else:
                loss, grads, buffers = engine.slope(arrays, batch, rng)
                grads = self._corrected(correct, grads, arrays, batch, rng)
                trained, state = engine.move(arrays.trained, state, grads)
                arrays = Arrays(trained, buffers)
            seen.append((loss, len(rows)))
            if kept.due(len(seen) == total):
                kept.write(partial(written, (arrays, state), seen))
            progress()
        path = float("nan") if self.lr is None else self.lr * len(seen)
        return Fit(engine.made(arrays, params), len(x), len(seen), path, {"train_loss": totals(seen, key)})

    def mean_gradient(self, params: Params, data: Any, key: Key) -> Params:
        """The gradient of the mean loss over `data`, of the trainable arrays; no step is taken."""
        x, y = self._arrays(data)
        arrays, total = self.engine.arrays(params), params.trainable().zeros()
        for i, rows in enumerate(cut(np.arange(len(x)), self.batch_size)):
            batch = self._batch(x, y, rows, self.batch_size)
            grads = self.engine.slope(arrays, batch, rng_of(key("step", i)))[1]
            total = total + (len(rows) / len(x)) * params_of(grads, total)
        return total

    def evaluate(self, params: Params, data: Any, metrics: Sequence[Any]) -> dict[str, Array]:
        """name -> sums over `data` for these metrics."""
        x, y = self._arrays(data)
        arrays, wanted = self.engine.arrays(params), list(map(measures.metric, metrics))
        found = []
        for rows in cut(np.arange(len(x)), MEASURED):
            room = MEASURED if len(x) > MEASURED else 1 << (len(x) - 1).bit_length()
            outputs, losses = self.engine.read(arrays, self._batch(x, y, rows, room))
            outputs, losses = np.asarray(outputs)[: len(rows)], np.asarray(losses, np.float64)[: len(rows)]
            found.append(measures.measure(wanted, outputs, y[rows], losses, self.reads))
        return measures.add(found)

    def _corrected(self, correct: Correct, grads: Any, arrays: Arrays, batch: Batch, rng: Any) -> Any:
        """The gradients after the algorithm's correction, which is in numpy."""
        here = params_of(arrays.trained, None)

        def there(params: Params) -> Params:
            other = Arrays({name: jnp.asarray(params[name]) for name in arrays.trained}, arrays.kept)
            return params_of(self.engine.slope(other, batch, rng)[1], here)

        before = params_of(grads, here)
        after = correct.of(before, here, there) if isinstance(correct, Elsewhere) else correct(before, here)
        return {name: jnp.asarray(x) for name, x in after.items()}

    def _batch(self, x: Array, y: Array, rows: Array, room: int) -> Batch:
        """The rows, filled up with the first one, which then weighs nothing: so a site of any size is compiled once.

        Batch statistics would see what fills up, so models with buffers get the rows alone.
        """
        fill = 0 if self.engine.has_buffers else room - len(rows)
        rows, weights = np.append(rows, np.repeat(rows[:1], fill)), np.append(np.ones(len(rows)), np.zeros(fill))
        return Batch(jnp.asarray(x[rows]), jnp.asarray(y[rows]), jnp.asarray(weights, jnp.float32))

    def _arrays(self, data: Any) -> tuple[Array, Array]:
        if isinstance(data, Pairs):
            x, y = np.asarray(data.x), np.asarray(data.y)
        else:
            x, y = (np.stack([np.asarray(part) for part in column]) for column in zip(*_rows(data), strict=True))
        if self.inputs is not None and x.shape[1:] != self.inputs:
            raise JobError(
                f"an example has shape {x.shape[1:]}, the learner inputs={self.inputs}: "
                "load the same columns, or images of one size, at every site"
            )
        for name, part in (("x", x), ("y", y)):
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                bad = ~np.isfinite(part)
                where = f"column {int(bad.any(axis=0).argmax())} of {name}" if part.ndim == 2 else name
                raise JobError(f"{where} holds NaN or Inf in {int(bad.reshape(len(part), -1).any(1).sum())} rows: "
                               "fill them in or drop these rows, the same way at every site")  # fmt: skip
        return _narrow(x), _narrow(y)

    def _check_classes(self, arrays: Arrays, x: Array, y: Array) -> None:
        """optax reads a class beyond the outputs as NaN, or as another one."""
        shape = self.engine.shape(arrays, x[:1])
        if y.ndim == 1 and y.dtype.kind in "iu" and len(shape) == 2 and shape[1] > 1:
            odd = (y < 0) | (y >= shape[1])
            if odd.any():
                raise JobError(
                    f"y holds {y[odd][0]} in {int(odd.sum())} of {len(y)} rows, and the model has {shape[1]} outputs: "
                    "code the labels from 0 as the other sites do, or give the model an output for each class"
                )


def resumed(kept: Midway, begun: Tree) -> tuple[Tree, list[tuple[Any, int]]]:
    """The tree that an earlier attempt kept, with the losses of its steps; without one what was begun with."""
    found = kept.read(lambda file: frames.unpack(file.read()))
    if found is None:
        return begun, []
    leaves, form = jax.tree_util.tree_flatten(begun)
    old = [jnp.asarray(x, dtype=jnp.result_type(y)) for x, y in zip(found["leaves"].values(), leaves, strict=True)]
    return jax.tree_util.tree_unflatten(form, old), list(zip(found["losses"], found["counts"], strict=True))


def written(tree: Tree, seen: Sequence[tuple[Any, int]], file: BinaryIO) -> None:
    """Writes the tree's leaves, and the losses of the steps, for `resumed`."""
    leaves = enumerate(jax.tree_util.tree_leaves(tree))
    losses, counts = zip(*seen, strict=True)
    state = {"leaves": Params({f"{i:06}": np.asarray(x) for i, x in leaves})}
    for piece in frames.pack(state | {"losses": [float(x) for x in losses], "counts": list(counts)}):
        file.write(piece)


def cut(order: Array, size: int) -> Iterator[Array]:
    return (order[at : at + size] for at in range(0, len(order), size))


def _rows(data: Any) -> list[Any]:
    return [data[i] for i in range(len(data))]


def _narrow(x: Array) -> Array:
    """As jax computes: 32 bits."""
    return x.astype({"f": np.float32, "i": np.int32, "u": np.int32}.get(x.dtype.kind, x.dtype), copy=False)


def totals(seen: Sequence[tuple[Any, int]], key: Key) -> Array:
    """[sum, count, sum of squares] of batches' mean losses, by examples. Raises Refused where one is no number."""
    losses, counts = np.array([float(x) for x, _ in seen]), np.array([n for _, n in seen])
    if not np.isfinite(losses).all():
        site, at = str(key.names[3]) if len(key.names) > 3 else "here", int(np.isfinite(losses).argmin())
        why = f"the loss of step {at + 1} of {len(seen)} is {losses[at]:g}"
        raise Refused(site, "training", why, "lower the learning rate, or look for extreme values in the data")
    return np.array([losses @ counts, math.fsum(counts), losses**2 @ counts])
