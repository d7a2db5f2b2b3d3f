"""Optimizers as a step and its size; torch.optim.SGD in its plain form is done here, without a second of imports.
Only torch may come in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foedus.errors import JobError

PLAIN = {"lr", "momentum", "dampening", "weight_decay", "nesterov"}


class Optimizer(NamedTuple):
    """What takes a step, and its size."""

    step: Callable[[], Any]
    lr: float
    of: Any  # the object that holds its state


def optimizer(factory: Callable[..., Any], parameters: Sequence[Tensor], factor: float = 1.0) -> Optimizer:
    """A new optimizer of `parameters` whose learning rates are `factor` times those that `factory` gives."""
    if not parameters:
        raise JobError("the model has no trainable parameters: there is nothing to optimize")
    settings = plain(factory)
    if settings is not None:
        lr = settings["lr"] * factor
        own = SGD(parameters, **{**settings, "lr": lr})
        return Optimizer(own.step, lr, own)
    made = factory(parameters)
    for group in made.param_groups:
        group["lr"] *= factor
    return Optimizer(made.step, float(made.param_groups[0]["lr"]), made)


def plain(factory: Any) -> dict[str, Any] | None:
    """The settings of a `partial(torch.optim.SGD, …)` that `SGD` follows to the bit, None for any other factory."""
    function, args, given = factory, (), {}
    if isinstance(factory, partial):
        function, args, given = factory.func, factory.args, factory.keywords
    numbers = all(isinstance(x, (int, float)) and 0 <= x < math.inf for x in given.values())
    if function is not torch.optim.SGD or args or given.keys() - PLAIN or not numbers:
        return None
    found = {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, **given}
    return None if found["nesterov"] and (not found["momentum"] or found["dampening"]) else found


def plain_descent(made: Optimizer) -> bool:
    """Whether a step is the gradient times the learning rate, and no more."""
    return isinstance(made.of, SGD) and not made.of.momentum and not made.of.weight_decay


class SGD:
    """Stochastic gradient descent with momentum as in torch.optim.SGD (Sutskever et al. 2013), the same bits."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lr: float,
        momentum: float,
        dampening: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        self.parameters, self.lr, self.momentum, self.dampening = parameters, lr, momentum, dampening
        self.weight_decay, self.nesterov = weight_decay, nesterov
        self.velocity: dict[int, Tensor] = {}

    def state_dict(self) -> dict[str, dict[int, Tensor]]:
        return {"velocity": self.velocity}

    def load_state_dict(self, state: Mapping[str, Mapping[int, Tensor]]) -> None:
        self.velocity = {i: v.to(self.parameters[i].device) for i, v in state["velocity"].items()}

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter that has a gradient."""
        moved = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        if not moved:
            return
        points = [self.parameters[i] for i in moved]
        grads = [p.grad for p in points if p.grad is not None]
        if self.weight_decay:
            grads = list(torch._foreach_add(grads, points, alpha=self.weight_decay))
        if self.momentum:
            grads = [self._pushed(i, g) for i, g in zip(moved, grads, strict=True)]
        torch._foreach_add_(points, grads, alpha=-self.lr)

    def _pushed(self, i: int, grad: Tensor) -> Tensor:
        if i in self.velocity:
            self.velocity[i].mul_(self.momentum).add_(grad, alpha=1 - self.dampening)
        else:
            self.velocity[i] = grad.clone()
        return grad.add(self.velocity[i], alpha=self.momentum) if self.nesterov else self.velocity[i]
