"""What one's own training loop gets from foedus: named randomness, the algorithm's correction, progress.
Only the contract may come in; `foedus.torch` and `foedus.numpy` build on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from foedus.core import Correct, Fit
from foedus.errors import JobError
from foedus.metrics import moments
from foedus.params import Params
from foedus.progress import progress


class Loop:
    """The `ctx` of `train(model, split, ctx)`: `generator`, and `correct`, to be called before each optimizer step."""

    def __init__(self, generator: Any, correction: Correct | None) -> None:
        self.generator, self.correction = generator, correction
        self.steps, self.path, self.without_lr = 0, 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """How many steps were counted, and their sizes."""
        return {"steps": self.steps, "path": self.path, "without_lr": self.without_lr}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps, self.path, self.without_lr = state["steps"], state["path"], state["without_lr"]

    def counted(self, lr: float | None) -> None:
        """Counts one step of that size."""
        self.steps += 1
        self.path += lr or 0.0
        self.without_lr += lr is None
        progress()

    def correct(
        self, grads: Mapping[str, Any], params: Mapping[str, Any], lr: float | None = None
    ) -> Mapping[str, Any]:
        """The gradients after the algorithm's correction; counts one step of size `lr`."""
        self.counted(lr)
        if self.correction is None:
            return grads
        like = Params({name: x for name, x in params.items() if name in grads})
        return self.correction(alike(grads, like), like)


def alike(grads: Mapping[str, Any], like: Params) -> Params:
    """Gradients as Params of the names, shapes and dtypes of `like`."""
    return Params({name: np.asarray(grads[name], x.dtype).reshape(x.shape) for name, x in like.items()})


def fitted(loop: Loop, params: Params, split: Any, returned: Any) -> Fit:
    """What an own loop's return value means: metrics, or (metrics, weight); the weight is len(split.train) without one.

    A loop that ignored the algorithm's correction is an error, never silently FedAvg.
    """
    if loop.correction is not None and loop.steps == 0:
        raise JobError(
            "this algorithm corrects gradients, but the training loop never called ctx.correct(…): "
            "call it between backward() and step()"
        )
    found, weight = returned if isinstance(returned, tuple) else (returned or {}, len(split.train))
    path = float("nan") if loop.without_lr else loop.path
    sums = {f"train_{name}": moments(np.array([float(value)])) * len(split.train) for name, value in found.items()}
    return Fit(params, weight, loop.steps, path, sums)
