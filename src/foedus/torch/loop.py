"""The `ctx` of one's own PyTorch loop, `train(model, split, ctx)`: named randomness and the algorithm's correction.
The loops' common part and the model's machine come in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from foedus.errors import JobError
from foedus.loops import Loop
from foedus.midway import Midway
from foedus.progress import progress
from foedus.torch.machine import Machine
from foedus.torch.standing import Standing, Stateful


class Context:
    """What foedus gives to a training loop.

    generator: a torch.Generator on the CPU, for shuffling; the global ones of torch, numpy and Python are seeded too.
    device: where the model is. round: the round's number, from 0.
    """

    def __init__(
        self, generator: torch.Generator, machine: Machine, loop: Loop, round: int, kept: Midway | None
    ) -> None:
        self.generator, self.device, self.round = generator, machine.device, round
        self._machine, self._loop, self._kept = machine, loop, kept

    def correct(self, model: nn.Module, lr: float | None = None) -> None:
        """Applies the algorithm's correction to the gradients of `model`, in place, and counts one step of size `lr`.

        To be called before each optimizer step, after `backward()`. Raises JobError where there are no gradients.
        """
        if all(p.grad is None for p in self._machine.trained):
            raise JobError(
                "ctx.correct(model) found no gradient: give it the model that the loop was called with, "
                "between backward() and step()"
            )
        self._loop.counted(lr)
        if self._loop.correction is not None:
            self._machine.correct(self._loop.correction)

    def resumable(self, items: Iterable[Any], *parts: Any) -> Iterator[Any]:
        """The items of the loop, epochs or steps; a training that was killed goes on after the last one that was kept.

        With the model the state of `parts` is kept (the optimizer, a schedule: what has `state_dict` and
        `load_state_dict`), and of all generators. What else the loop remembers begins anew. To be called once, when
        these are made. Raises JobError.

        >>> def train(model, split, ctx):
        ...     optimizer = torch.optim.Adam(model.parameters())
        ...     for epoch in ctx.resumable(range(10), optimizer):
        ...         ...
        """
        for part in parts:
            if not isinstance(part, Stateful):
                raise JobError(f"ctx.resumable(…): {type(part).__name__} has no state_dict and load_state_dict")
        if self._kept is None:
            raise JobError("ctx.resumable(…) is called once in a training, around its outermost loop")
        kept, self._kept = self._kept, None
        standing = Standing(self._machine, kept, self._loop, _Drawn(self.generator), *parts, everything=True)
        return standing.each(list(items))

    def progress(self, n: int = 1) -> None:
        """Says that the work advanced by `n` steps; `correct` says so as well."""
        progress(n)


class _Drawn:
    """A generator that says where it stands."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def state_dict(self) -> torch.Tensor:
        return self.generator.get_state()

    def load_state_dict(self, state: torch.Tensor) -> None:
        self.generator.set_state(state)
