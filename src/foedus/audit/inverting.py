"""Inputs found by search: which records give the gradient that was seen? For models of torch.
DLG (Zhu et al. 2019): squared distance, L-BFGS. Geiping et al. 2020: cosine and total variation, Adam with signs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foedus.audit.matching import Known
from foedus.errors import FoedusError
from foedus.keys import Key
from foedus.params import Array, Params
from foedus.torch.batches import tensor

MOST = 16  # records that are searched for at once
SMALL = 200_000  # parameters: beyond, L-BFGS is left out
CLOSE = 1e-12  # of the squared norm of the gradient: nothing is left to find
SMOOTH = 1e-3  # the weight of total variation beside a cosine of 1
DROPS = (3 / 8, 5 / 8, 7 / 8)  # of all steps: the step size becomes a tenth

Search = Callable[["Sought", Key, int], tuple[float, Tensor]]


class Sought(NamedTuple):
    """What is searched for: `records` inputs of `shape` and their targets, known to lie in a range."""

    learner: Any
    model: Mapping[str, Tensor]
    slope: Mapping[str, Tensor]
    shape: tuple[int, ...]
    labels: Array | None  # None: targets are numbers, and searched for as well
    records: int
    known: Known

    def gradient(self, x: Tensor, y: Tensor, key: Key) -> list[Tensor]:
        """The gradient that these records would give, itself differentiable."""
        loss = self.learner.loss_fn(self.model, (x, y), key)
        wanted = [self.model[name] for name in self.slope]
        return list(torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True))

    def start(self, key: Key) -> tuple[Tensor, Tensor]:
        """Inputs drawn as records of others are, number by number; targets."""
        others, draw = self.known.x.reshape(len(self.known.x), -1), key("start").numpy()
        x = draw.normal(others.mean(), max(float(others.std()), 1e-6), (self.records, *self.shape))
        dtype = self.learner.machine.dtype
        if self.labels is not None:
            return torch.tensor(x, dtype=dtype), torch.tensor(self.labels)
        y = np.broadcast_to(self.known.y.mean(0), (self.records, *self.known.y.shape[1:]))
        return torch.tensor(x, dtype=dtype), torch.tensor(y.copy(), dtype=dtype)


def sought(
    learner: Any,
    model: Params,
    slope: Params,
    shape: tuple[int, ...],
    labels: Array | None,
    records: int,
    known: Known,
) -> Sought:
    """The search for the records of one update."""
    trained = learner.machine.dtype  # and with it the model is there
    here = {name: tensor(x).clone().requires_grad_() for name, x in model.items()}
    return Sought(
        learner, here, {name: torch.tensor(x).to(trained) for name, x in slope.items()}, shape, labels, records, known
    )


def found(search: Search, given: Sought, key: Key, steps: int, starts: int = 2) -> Array:
    """(records, …): the best of several starts by the search's own measure, which needs no truth. FoedusError."""
    try:
        tries = [search(given, key(i), steps) for i in range(starts)]
    except RuntimeError as error:
        raise FoedusError(f"this model's gradient cannot be differentiated again ({error})") from error
    best = min(tries, key=lambda made: made[0] if np.isfinite(made[0]) else np.inf)
    return best[1].detach().double().numpy()


def dlg(given: Sought, key: Key, steps: int) -> tuple[float, Tensor]:
    """Deep leakage from gradients: (relative squared distance, inputs)."""
    x, y = given.start(key)
    free = [x.requires_grad_(), *([y.requires_grad_()] if given.labels is None else [])]
    norm = float(sum(s.square().sum() for s in given.slope.values())) or 1.0
    search = torch.optim.LBFGS(free, max_iter=20, history_size=50, line_search_fn="strong_wolfe")
    last = torch.inf

    def distance() -> Tensor:
        search.zero_grad()
        pairs = zip(given.gradient(x, y, key), given.slope.values(), strict=True)
        away: Tensor = torch.stack([(a - b).square().sum() for a, b in pairs]).sum() / norm
        away.backward()  # type: ignore[no-untyped-call]
        return away.detach()

    for _ in range(max(1, steps // 20)):
        now = float(search.step(distance))  # type: ignore[no-untyped-call]
        if not now < 0.9999 * last or now < CLOSE:
            break
        last = now
    return float(distance()), x


def cosine(given: Sought, key: Key, steps: int) -> tuple[float, Tensor]:
    """Inverting gradients: (1 - cosine + total variation, inputs), each step a sign of the gradient."""
    x, y = given.start(key)
    free = [x.requires_grad_(), *([y.requires_grad_()] if given.labels is None else [])]
    scale = max(float(given.known.x.std()), 1e-6)
    search = torch.optim.Adam(free, lr=0.1 * scale)
    drops = torch.optim.lr_scheduler.MultiStepLR(search, [int(at * steps) for at in DROPS])
    best, kept = torch.inf, x.detach().clone()
    for _ in range(steps):
        search.zero_grad()
        away = _angle(given.gradient(x, y, key), list(given.slope.values())) + SMOOTH * _rough(x) / scale
        away.backward()  # type: ignore[no-untyped-call]
        if (now := float(away.detach())) < best:
            best, kept = now, x.detach().clone()
        for tensor_ in free:
            if tensor_.grad is not None:
                tensor_.grad.sign_()
        search.step()
        drops.step()
        with torch.no_grad():
            x.clamp_(given.known.low, given.known.high)
    return best, kept


def _angle(made: list[Tensor], seen: list[Tensor]) -> Tensor:
    inner = torch.stack([(a * b).sum() for a, b in zip(made, seen, strict=True)]).sum()
    norms = [torch.stack([x.square().sum() for x in side]).sum().clamp_min(1e-30).sqrt() for side in (made, seen)]
    return 1 - inner / norms[0] / norms[1]


def _rough(x: Tensor) -> Tensor:
    """The mean absolute difference of neighbours over the last two axes; 0 of what is no image."""
    if x.ndim < 3 or min(x.shape[-2:]) < 2:
        return x.new_zeros(())
    return (x[..., 1:, :] - x[..., :-1, :]).abs().mean() + (x[..., 1:] - x[..., :-1]).abs().mean()
