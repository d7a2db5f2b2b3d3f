"""The layers that are there without torch.
Only numpy and the room of layers may come in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foedus.keys import Key
from foedus.layers.stack import Layer, Slopes
from foedus.params import Array, Params


def dense(units: int, scale: float | None = None) -> Layer:
    """x @ w + b: w is drawn from the normal distribution times `scale` (by default 1/sqrt(inputs)), b begins at 0."""

    def init(key: Key, x: Array) -> Params:
        size = 1 / np.sqrt(x.shape[1]) if scale is None else scale
        w = key.numpy().normal(size=(x.shape[1], units)) * size
        return Params({"w": w.astype(x.dtype), "b": np.zeros(units, x.dtype)})

    def backward(params: Params, x: Array, slope: Array, key: Key | None) -> Slopes:
        return Params({"w": x.T @ slope, "b": slope.sum(0)}), slope @ params["w"].T

    return Layer(init, lambda params, x, key: x @ params["w"] + params["b"], backward, f"dense({units}, {scale})")


def linear(units: int, scale: float | None = None) -> Layer:
    """x @ w: as `dense` without b, for what is added up with others."""

    def init(key: Key, x: Array) -> Params:
        return Params({"w": dense(units, scale).init(key, x)["w"]})

    def backward(params: Params, x: Array, slope: Array, key: Key | None) -> Slopes:
        return Params({"w": x.T @ slope}), slope @ params["w"].T

    return Layer(init, lambda params, x, key: x @ params["w"], backward, f"linear({units}, {scale})")


def shift() -> Layer:
    """x + b, which begins at 0."""
    return Layer(
        lambda key, x: Params({"b": np.zeros(x.shape[1], x.dtype)}),
        lambda params, x, key: x + params["b"],
        lambda params, x, slope, key: (Params({"b": slope.sum(0)}), slope),
        "shift()",
    )


def _bent(name: str, f: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Layer:
    """A function of each number, with its derivative."""
    none = Params({})
    return Layer(lambda key, x: none, lambda params, x, key: f(x), lambda params, x, g, key: (none, g * slope(x)), name)


def tanh() -> Layer:
    return _bent("tanh()", np.tanh, lambda x: 1 - np.square(np.tanh(x)))


def relu() -> Layer:
    return _bent("relu()", lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(x.dtype))
