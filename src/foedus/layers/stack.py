"""Networks that can be cut: layers with a way forward and a way back, each a few pure functions of numpy arrays.
Only keys and params may come in; all arrays of a layer are trainable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from foedus.errors import JobError
from foedus.keys import Key
from foedus.params import Array, Params

Slopes = tuple[Params, Array]  # of the loss in a layer's arrays, and in its inputs


class Layer(NamedTuple):
    """A part of a network. Rows come first in its inputs and outputs; without a key it works as in evaluation."""

    init: Callable[[Key, Array], Params]  # (key, some inputs) -> its arrays, in the inputs' dtype
    forward: Callable[[Params, Array, Key | None], Array]  # (arrays, inputs) -> outputs
    backward: Callable[[Params, Array, Array, Key | None], Slopes]  # (arrays, inputs, slopes of the loss in outputs)
    name: str  # what tells it from others, with all its settings


class Stack(NamedTuple):
    """Layers one after another; the arrays of the i-th are named `i.NAME`, from `first` on."""

    layers: Sequence[Layer]
    first: int = 0

    def cut(self, begin: int, end: int) -> Stack:
        """The layers from `begin` up to `end`, under their names."""
        return Stack(self.layers[begin:end], self.first + begin)

    def own(self, params: Params) -> Params:
        """The arrays of these layers, out of those of more."""
        return self._named({i: _of(params, i) for i in self._numbers()})

    def init(self, key: Key, x: Array) -> Params:
        """The first arrays, drawn by key; `x` are some inputs."""
        found = {}
        for i, layer in zip(self._numbers(), self.layers, strict=True):
            found[i] = layer.init(key(i), x)
            x = layer.forward(found[i], x, None)
        return self._named(found)

    def forward(self, params: Params, x: Array, key: Key | None) -> Array:
        return self._ways(params, x, key)[-1]

    def backward(self, params: Params, x: Array, slope: Array, key: Key | None) -> Slopes:
        """The slopes in the arrays of these layers and in `x`, from those in their outputs."""
        inputs, found = self._ways(params, x, key), {}
        for i, layer in reversed(list(zip(self._numbers(), self.layers, strict=True))):
            here = inputs[i - self.first]
            found[i], slope = layer.backward(_of(params, i), here, slope, key and key(i))
        return self._named({i: found[i] for i in self._numbers()}), slope

    def _ways(self, params: Params, x: Array, key: Key | None) -> list[Array]:
        """What goes into each layer, and what comes out of the last."""
        found = [x]
        for i, layer in zip(self._numbers(), self.layers, strict=True):
            found.append(layer.forward(_of(params, i), found[-1], key and key(i)))
        return found

    def _numbers(self) -> range:
        return range(self.first, self.first + len(self.layers))

    def _named(self, parts: dict[int, Params]) -> Params:
        return Params({f"{i}.{name}": x for i, part in parts.items() for name, x in part.items()})


def _of(params: Params, number: int) -> Params:
    here = f"{number}."
    return Params({name.removeprefix(here): x for name, x in params.items() if name.startswith(here)})


def checked(layers: Sequence[Layer]) -> Stack:
    """These layers as a Stack. Raises JobError for what is no layer."""
    odd = [type(x).__name__ for x in layers if not isinstance(x, Layer)]
    if odd:
        raise JobError(f"{odd[0]} is no layer: take one of foedus.layers, or foedus.torch.layer(module)")
    return Stack(tuple(layers))


def merged(params: Params, some: Params) -> Params:
    """These arrays, and `some` in place of those of the same names."""
    return Params({name: some.get(name, x) for name, x in params.items()})


def down(params: Params, slopes: Params, rate: float) -> Params:
    """A step of gradient descent."""
    return params.map(lambda x, g: x - x.dtype.type(rate) * g, slopes)
