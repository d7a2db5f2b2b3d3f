"""A torch module as a layer that can be cut off: its arrays are Params, its ways forward and back pure functions.
Only torch, keys, params and the room of layers may come in.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foedus.errors import JobError
from foedus.keys import Key, key
from foedus.layers.stack import Layer, Slopes
from foedus.params import Array, Params
from foedus.torch.build import CPU, built
from foedus.torch.randomness import named


def layer(module: nn.Module | Callable[..., nn.Module]) -> Layer:
    """The layer of what a class or function of nothing makes, drawn by key, or of a module as it is; on the CPU.

    Raises JobError for one with buffers (BatchNorm) or frozen parameters, which have no place in a network that is cut.

    >>> body, head = layer(lambda: nn.Linear(4, 8)), layer(lambda: nn.Sequential(nn.Tanh(), nn.Linear(8, 2)))
    """
    model = _suited(built(module, key(0, "model")))

    def init(seed: Key, x: Array) -> Params:
        made = built(module, seed).to(torch.from_numpy(x).dtype)
        return Params({name: p.detach().numpy() for name, p in made.named_parameters()})

    def run(params: dict[str, Tensor], x: Tensor, seed: Key | None) -> Any:
        model.train(seed is not None)
        with named(seed, CPU) if seed is not None else nullcontext():
            return torch.func.functional_call(model, params, (x,))

    def forward(params: Params, x: Array, seed: Key | None) -> Array:
        with torch.no_grad():
            return np.asarray(run(_tensors(params), torch.tensor(x), seed).numpy())

    def backward(params: Params, x: Array, slope: Array, seed: Key | None) -> Slopes:
        arrays, rows = _tensors(params), torch.tensor(x)
        wanted = [t.requires_grad_() for t in (*arrays.values(), rows)]
        outputs = run(arrays, rows, seed)
        found = torch.autograd.grad(outputs, wanted, torch.tensor(slope), materialize_grads=True)
        *grads, down = (g.numpy() for g in found)
        return Params(dict(zip(arrays, grads, strict=True))), down

    return Layer(init, forward, backward, repr(model))


def _tensors(params: Params) -> dict[str, Tensor]:
    return {name: torch.tensor(x) for name, x in params.items()}


def _suited(model: nn.Module) -> nn.Module:
    odd = [name for name, _ in model.named_buffers()]
    odd += [name for name, p in model.named_parameters() if not p.requires_grad]
    if odd:
        raise JobError(
            f"the layer's {odd[0]!r} is not trained by gradients: take GroupNorm or LayerNorm, freeze nothing"
        )
    return model
