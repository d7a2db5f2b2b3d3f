"""Optimizers of torch and optax as (init, step) of a ServerOptimizer; their state is kept as plain data and arrays.
The contract may come in, and the two libraries when a step is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from foedus.core import State
from foedus.errors import explained
from foedus.params import Params

Both = tuple[Callable[[Params], State], Callable[..., tuple[State, Params]]]


def of_torch(factory: Callable[..., Any]) -> Both:
    """(init, step) of the optimizer that `factory(parameters)` makes; it is made anew with its state for each step."""

    def step(state: State, mean: Params, model: Params) -> tuple[State, Params]:
        try:
            import torch
        except ImportError as error:
            raise explained(error) from error

        points = [torch.nn.Parameter(torch.tensor(x)) for x in model.values()]
        made = factory(points)
        made.load_state_dict(made.state_dict() | {"state": _each(state, torch.tensor)})
        for p, x in zip(points, mean.values(), strict=True):
            p.grad = torch.tensor(-x)
        made.step()
        there = Params({name: p.detach().numpy() for name, p in zip(model, points, strict=True)})
        kept = {str(i): _each(x, lambda t: t.detach().numpy()) for i, x in made.state_dict()["state"].items()}
        return kept, there - model

    return lambda model: {}, step


def of_optax(transformation: Any) -> Both:
    """(init, step) of an optax transformation. jax computes in float32, unless it is told otherwise."""

    def leaves(tree: Any) -> list[Any]:
        import jax

        return [np.asarray(x) for x in jax.tree.leaves(tree)]

    def step(state: State, mean: Params, model: Params) -> tuple[State, Params]:
        import jax

        kept = jax.tree.unflatten(jax.tree.structure(transformation.init(dict(model))), state)
        grads = {name: -x for name, x in mean.items()}
        found, kept = transformation.update(grads, kept, dict(model))
        return leaves(kept), Params({name: np.asarray(found[name], x.dtype) for name, x in mean.items()})

    return lambda model: leaves(transformation.init(dict(model))), step


def _each(state: Any, change: Callable[[Any], Any]) -> Any:
    """The same data with each array or tensor changed, and keys that are numbers as numbers."""
    if isinstance(state, Mapping):
        return {int(k) if str(k).isdigit() else k: _each(x, change) for k, x in state.items()}
    return change(state) if hasattr(state, "shape") else state
