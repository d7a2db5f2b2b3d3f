"""A model's compiled functions, and the way between its tree and Params.
Nets and Params may come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from foedus.errors import JobError
from foedus.jax.nets import Net, Tree, rng_of
from foedus.keys import key
from foedus.params import Array, Params


class Batch(NamedTuple):
    """Inputs, targets and weights (examples)."""

    x: Any
    y: Any
    weights: Any


class Arrays(NamedTuple):
    """A model on its way through jax: name -> array."""

    trained: dict[str, Any]
    kept: dict[str, Any]  # buffers


class Engine:
    """A model's compiled functions, and the way between its tree and Params."""

    def __init__(self, net: Net, loss: Callable[[Any, Any], Any], optimizer: Any) -> None:
        self.net, self.loss, self.optimizer = net, loss, optimizer
        shapes = jax.eval_shape(net.init, rng_of(key(0)))
        leaves, self.form = jax.tree_util.tree_flatten_with_path(shapes)
        self.names = [".".join(map(_step, path)) for path, _ in leaves]
        self.has_buffers = any(map(net.buffers, self.names))
        self.slope, self.step = jax.jit(self._slope), jax.jit(self._stepped)
        self.move, self.read = jax.jit(self._moved), jax.jit(self._read)

    def params(self, tree: Tree) -> Params:
        """The Params of a tree."""
        arrays = {name: np.asarray(x) for name, x in self.named(tree).items()}
        return Params(arrays, {name: "buffer" for name in self.names if self.net.buffers(name)})

    def named(self, tree: Tree) -> dict[str, Any]:
        return dict(zip(self.names, jax.tree_util.tree_leaves(tree), strict=True))

    def arrays(self, params: Params) -> Arrays:
        """Params as jax has them; whole numbers are buffers here."""
        kinds = params.kinds
        found = {name: jnp.asarray(params[name]) for name in self.names}
        trained = {name: x for name, x in found.items() if kinds[name] == "trainable"}
        return Arrays(trained, {name: x for name, x in found.items() if name not in trained})

    def made(self, arrays: Arrays, like: Params) -> Params:
        """The Params of these arrays, in the order and dtypes of `like`."""
        made = like.copy()
        for name, x in {**arrays.trained, **arrays.kept}.items():
            made[name][...] = np.asarray(x)
        return made

    def shape(self, arrays: Arrays, x: Array) -> tuple[int, ...]:
        """The shape of the outputs for x."""
        made: tuple[int, ...] = jax.eval_shape(lambda a: self._outputs(a, x, None, False)[0], arrays).shape
        return made

    def _outputs(self, arrays: Arrays, x: Any, rng: Any, training: bool) -> tuple[Any, dict[str, Any]]:
        every = {**arrays.trained, **arrays.kept}
        tree = jax.tree_util.tree_unflatten(self.form, [every[name] for name in self.names])
        outputs, after = self.net.apply(tree, x, rng, training)
        return outputs, {name: x for name, x in self.named(after).items() if name in arrays.kept}

    def _losses(self, outputs: Any, batch: Batch) -> Any:
        if outputs.ndim == 2 and outputs.shape[1] == 1 and batch.y.ndim == 1:
            outputs = outputs[:, 0]
        losses = self.loss(outputs, batch.y)
        if losses.ndim == 0:
            raise JobError(
                "loss=… gives one number for the batch: give one an example, as "
                "optax.softmax_cross_entropy_with_integer_labels does; their mean is taken here"
            )
        return losses.reshape(len(losses), -1).mean(1)

    def _slope(self, arrays: Arrays, batch: Batch, rng: Any) -> tuple[Any, Any, Any]:
        """(mean loss, gradients, buffers after)."""

        def mean(trained: Any) -> tuple[Any, Any]:
            outputs, kept = self._outputs(Arrays(trained, arrays.kept), batch.x, rng, True)
            return (self._losses(outputs, batch) * batch.weights).sum() / batch.weights.sum(), kept

        (loss, kept), grads = jax.value_and_grad(mean, has_aux=True)(arrays.trained)
        return loss, grads, kept

    def _moved(self, trained: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        way, state = self.optimizer.update(grads, state, trained)
        return optax.apply_updates(trained, way), state

    def _stepped(self, arrays: Arrays, state: Any, batch: Batch, rng: Any) -> tuple[Arrays, Any, Any]:
        loss, grads, kept = self._slope(arrays, batch, rng)
        trained, state = self._moved(arrays.trained, state, grads)
        return Arrays(trained, kept), state, loss

    def _read(self, arrays: Arrays, batch: Batch) -> tuple[Any, Any]:
        outputs, _ = self._outputs(arrays, batch.x, None, False)
        return outputs, self._losses(outputs, batch)


def params_of(arrays: Mapping[str, Any], like: Params | None) -> Params:
    made = Params({name: np.asarray(x) for name, x in arrays.items()})
    return made if like is None else made.ordered(like.spec)


def _step(entry: Any) -> str:
    """A step on the way to a leaf."""
    return str(next(getattr(entry, word) for word in ("key", "idx", "name") if hasattr(entry, word)))
