"""Inputs of a dense first layer with a bias, from the gradient alone: x = (∂L/∂W_i) / (∂L/∂b_i).
Exact for one record (Phong et al. 2018), and where one of a batch activates a ReLU neuron (Boenisch et al. 2021)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foedus.params import Array, Params

FAINT = 1e-9  # of the largest: a neuron's bias that moved less gives nothing but rounding


class Dense(NamedTuple):
    """A dense layer's arrays; `across`: its weight is (inputs, outputs), else (outputs, inputs)."""

    weight: str
    bias: str
    across: bool


def first_layer(model: Params, size: int) -> Dense | None:
    """The dense layer that takes `size` inputs and has a bias; None where there is none. The first one of several."""
    leaves = [leaf for leaf in model.spec if leaf.kind == "trainable"]
    for i, leaf in enumerate(leaves):
        outputs = _outputs(leaf.shape, size)
        if outputs is None:
            continue
        fits = [j for j, other in enumerate(leaves) if j != i and _bias(other.shape, outputs)]
        if fits:
            near = min(fits, key=lambda j: (abs(j - i), j < i))
            return Dense(leaf.name, leaves[near].name, leaf.shape[-1] != size)
    return None


def inputs(slope: Params, layer: Dense) -> Array:
    """(neurons, inputs): each neuron's candidate, those whose bias moved most first."""
    bias = slope[layer.bias].reshape(-1).astype(np.float64)
    weight = slope[layer.weight].astype(np.float64)
    rows = (weight.T if layer.across else weight).reshape(len(bias), -1)
    order = np.argsort(-np.abs(bias), kind="stable")
    order = order[np.abs(bias[order]) > FAINT * np.abs(bias).max(initial=0.0)]
    found: Array = rows[order] / bias[order, None]
    return found


def _outputs(shape: tuple[int, ...], size: int) -> int | None:
    """How many outputs a weight of this shape has, if it takes `size` inputs."""
    if shape == (size,):
        return 1
    if len(shape) != 2 or size not in shape:
        return None
    return shape[0] if shape[1] == size else shape[1]


def _bias(shape: tuple[int, ...], outputs: int) -> bool:
    return shape == (outputs,) or (outputs == 1 and shape == ())
