"""The `ctx` of one's own PyTorch loop, `train(model, split, ctx)`: named randomness and the algorithm's correction.
The loops' common part and the model's machine come in."""

from __future__ import annotations

import torch
from torch import nn

from foedus.errors import JobError
from foedus.loops import Loop
from foedus.progress import progress
from foedus.torch.machine import Machine


class Context:
    """What foedus gives to a training loop.

    generator: a torch.Generator on the CPU, for shuffling; the global ones of torch, numpy and Python are seeded too.
    device: where the model is. round: the round's number, from 0.
    """

    def __init__(self, generator: torch.Generator, machine: Machine, loop: Loop, round: int) -> None:
        self.generator, self.device, self.round = generator, machine.device, round
        self._machine, self._loop = machine, loop

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

    def progress(self, n: int = 1) -> None:
        """Says that the work advanced by `n` steps; `correct` says so as well."""
        progress(n)
