"""Slopes that are written out, beside those of autograd; and what is left to autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foedus.torch.chains import chain
from foedus.torch.losses import one_by_one
from foedus.torch.stacked import stacked

SITES, BATCH = 3, 5


class Twice(nn.Module):
    """One layer that stands in the chain twice, between functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.last = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        return self.last(torch.sigmoid(self.same(F.tanh(self.same(x)).relu())))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        return self.one(x) + x


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


def frozen() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 4))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), (6,)),
    "no bias": (lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 4)), (6,)),
    "twice": (Twice, (6,)),
    "series": (lambda: nn.Sequential(nn.Linear(3, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(8, 4)), (4, 3)),
    "flattened first": (lambda: nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(12, 4)), (4, 3)),
}


def classes() -> Tensor:
    return torch.randint(4, (SITES, BATCH))


LOSSES: dict[str, tuple[Any, Callable[[], Tensor]]] = {
    "cross-entropy": (F.cross_entropy, classes),
    "its module": (nn.CrossEntropyLoss(), classes),
    "of shares": (F.cross_entropy, lambda: torch.rand(SITES, BATCH, 4, dtype=torch.float64).softmax(2)),
    "squares": (F.mse_loss, lambda: torch.rand(SITES, BATCH, 4, dtype=torch.float64)),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_slopes_are_those_of_autograd(model: str, loss: str) -> None:
    torch.manual_seed(0)
    (make, shape), (of, targets) = MODELS[model], LOSSES[loss]
    net = make().double()
    params = {
        name: torch.randn(SITES, *p.shape, dtype=torch.float64, requires_grad=True)
        for name, p in net.named_parameters()
    }
    x, y = torch.randn(SITES, BATCH, *shape, dtype=torch.float64), targets()
    shares = torch.tensor([[0.2] * 5, [1 / 3] * 3 + [0.0] * 2, [1.0] + [0.0] * 4], dtype=torch.float64)
    found = chain(net, of)
    assert found is not None
    with torch.no_grad():
        losses, slopes = found.slopes(params, x, y, shares)
    each = one_by_one(of)(stacked(net)(params, x).flatten(0, 1), y.flatten(0, 1))
    expected = ((each.flatten(1).mean(1) if each.dim() > 1 else each).view(shares.shape) * shares).sum(1)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-12, atol=1e-14)
    for name, slope in zip(params, torch.autograd.grad(expected.sum(), list(params.values())), strict=True):
        torch.testing.assert_close(slopes[name], slope, rtol=1e-12, atol=1e-14)


def test_a_step_worked_out_by_hand() -> None:
    """Two equal logits and class 0: softmax (1/2, 1/2), slopes (-1/2, 1/2) times the input 3; a loss of log 2."""
    found = chain(nn.Sequential(nn.Linear(1, 2, bias=False)), F.cross_entropy)
    assert found is not None
    params, one = {"0.weight": torch.zeros(1, 2, 1)}, torch.ones(1, 1)
    losses, slopes = found.slopes(params, torch.full((1, 1, 1), 3.0), torch.zeros(1, 1, dtype=torch.int64), one)
    assert losses.tolist() == pytest.approx([0.6931472]) and slopes["0.weight"].flatten().tolist() == [-1.5, 1.5]


def test_a_step_taken_at_once_is_the_slopes_times_the_rate_from_the_parameters_before() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False))
    found = chain(net, F.cross_entropy)
    assert found is not None and found.plain
    params = {name: torch.randn(SITES, *p.shape, dtype=torch.float64) for name, p in net.named_parameters()}
    x, y = torch.randn(SITES, BATCH, 6, dtype=torch.float64), torch.randint(4, (SITES, BATCH))
    shares = torch.full((SITES, BATCH), 1 / BATCH, dtype=torch.float64)
    losses, slopes = found.slopes(params, x, y, shares)
    after = {name: p.clone() for name, p in params.items()}
    assert torch.equal(found.descend(after, x, y, shares, 0.3), losses)
    for name, p in params.items():
        torch.testing.assert_close(after[name], p - 0.3 * slopes[name], rtol=1e-12, atol=1e-14)


def test_a_layer_that_stands_twice_takes_no_step_at_once() -> None:
    layer = nn.Linear(4, 4)
    found = chain(nn.Sequential(layer, nn.ReLU(), layer), F.cross_entropy)
    assert found is not None and not found.plain


@pytest.mark.parametrize(
    "model, loss",
    [
        (nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), F.cross_entropy),
        (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)), F.cross_entropy),
        (Branch(), F.cross_entropy),
        (frozen(), F.cross_entropy),
        (nn.Linear(6, 4), nn.CrossEntropyLoss(weight=torch.ones(4))),
        (nn.Linear(6, 4), nn.CrossEntropyLoss(label_smoothing=0.1)),
        (nn.Linear(6, 4), nn.CrossEntropyLoss(ignore_index=0)),
        (nn.Linear(6, 4), own_loss),
        (nn.Sequential(nn.Linear(6, 6), nn.Flatten(0)), F.cross_entropy),
    ],
    ids=[
        "dropout",
        "norm",
        "branch",
        "frozen",
        "weights",
        "smoothed",
        "ignored class",
        "own loss",
        "flat",
    ],
)
def test_all_else_is_left_to_autograd(model: nn.Module, loss: Any) -> None:
    assert chain(model, loss) is None
