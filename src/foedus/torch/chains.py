"""The slopes of layers one after another, with a site's axis in front, written out: what autograd finds, in a third of
the time. Only torch may come in; a model with any other operation, or another shape, is left to autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

Stacked = Mapping[str, Tensor]  # name -> (sites, *shape)
Slopes = dict[str, Tensor]


class Found(Protocol):
    """Who hears of the slopes of a layer's parameters, after the layer has used these for the last time."""

    def product(self, name: str, a: Tensor, b: Tensor) -> None: ...  # a @ b, site by site
    def rows(self, name: str, slope: Tensor) -> None: ...  # the sum of each site's rows


class Kept:
    """Keeps them: `slopes` by name."""

    def __init__(self) -> None:
        self.slopes: Slopes = {}

    def product(self, name: str, a: Tensor, b: Tensor) -> None:
        self._add(name, torch.bmm(a, b))

    def rows(self, name: str, slope: Tensor) -> None:
        self._add(name, slope.sum(1))

    def _add(self, name: str, slope: Tensor) -> None:  # a layer may stand in the chain twice
        self.slopes[name] = self.slopes[name] + slope if name in self.slopes else slope


class Taken(NamedTuple):
    """Takes a step of size `lr` down them at once, in the parameters' own memory."""

    params: Stacked
    lr: float

    def product(self, name: str, a: Tensor, b: Tensor) -> None:
        self.params[name].baddbmm_(a, b, alpha=-self.lr)

    def rows(self, name: str, slope: Tensor) -> None:
        self.params[name].sub_(slope.sum(1), alpha=self.lr)


class Link(NamedTuple):
    """A layer of a chain. `backward` tells the slopes of its own parameters, and gives that of its input.

    It sees the input and the output of `forward`; `first`: nobody asks for the slope of the input.
    """

    forward: Callable[[Stacked, Tensor], Tensor]  # (parameters, (sites, batch, …)) -> (sites, batch, …)
    backward: Callable[[Stacked, Tensor, Tensor, Tensor, Found, bool], Tensor]  # (…, x, y, slope, found, first)
    names: Sequence[str] = ()  # of its parameters


Lossy = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # (outputs, targets, shares) -> (losses, slope)


class Chain(NamedTuple):
    """Layers one after another, and the loss of what comes out."""

    links: Sequence[Link]
    loss: Lossy

    def slopes(self, params: Stacked, x: Tensor, y: Tensor, shares: Tensor) -> tuple[Tensor, Slopes]:
        """Each site's loss (sites,), the examples' losses weighted by `shares` (sites, batch), and its slopes."""
        found = Kept()
        return self._told(params, x, y, shares, found), found.slopes

    def descend(self, params: Stacked, x: Tensor, y: Tensor, shares: Tensor, lr: float) -> Tensor:
        """The losses of `slopes`, and a step of plain gradient descent, for a chain in which no layer stands twice."""
        return self._told(params, x, y, shares, Taken(params, lr))

    @property
    def plain(self) -> bool:
        """Whether no layer stands in it twice."""
        names = [name for link in self.links for name in link.names]
        return len(names) == len(set(names))

    def _told(self, params: Stacked, x: Tensor, y: Tensor, shares: Tensor, found: Found) -> Tensor:
        inputs = [x]
        for link in self.links:
            inputs.append(link.forward(params, inputs[-1]))
        losses, slope = self.loss(inputs[-1], y, shares)
        for i in reversed(range(len(self.links))):
            slope = self.links[i].backward(params, inputs[i], inputs[i + 1], slope, found, i == 0)
        return losses


def chain(original: nn.Module, loss: Any) -> Chain | None:
    """The model and its loss as a chain, or None where autograd has to find the slopes.

    >>> found = chain(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)), F.cross_entropy)
    >>> [type(link).__name__ for link in found.links], chain(nn.Dropout(0.5), F.cross_entropy)
    (['Link', 'Link', 'Link'], None)
    """
    made = LOSSES.get(loss) or _module_loss(loss)
    try:
        nodes = list(fx.Tracer().trace(original).nodes)
    except Exception:  # whatever the model's code does with a proxy
        return None
    names = {id(p): name for name, p in original.named_parameters()}
    begin, *inner, end = nodes
    in_a_row = [node.args == (before,) and not node.kwargs for before, node in pairwise(nodes)]
    links = [_link(node, original, names) for node in inner]
    if made is None or begin.op != "placeholder" or end.op != "output" or not all(in_a_row) or None in links:
        return None
    return Chain([link for link in links if link is not None], made)


def _link(node: fx.Node, model: nn.Module, names: Mapping[int, str]) -> Link | None:
    target: Any = node.target
    if node.op != "call_module":
        return FUNCTIONS.get(target)
    module = model.get_submodule(target)
    if type(module) is nn.Linear and all(id(p) in names and p.requires_grad for p in module.parameters()):
        return _linear(names[id(module.weight)], names[id(module.bias)] if module.bias is not None else "")
    if type(module) is nn.Flatten:
        return _flat if (module.start_dim, module.end_dim) == (1, -1) else None
    return ACTIVATIONS.get(type(module))


def _linear(weight: str, bias: str) -> Link:
    def forward(params: Stacked, x: Tensor) -> Tensor:
        flat, w = _rows(x), params[weight].mT
        y = torch.baddbmm(params[bias].unsqueeze(1), flat, w) if bias else torch.bmm(flat, w)
        return y if flat is x else y.view(*x.shape[:-1], -1)

    def backward(params: Stacked, x: Tensor, y: Tensor, slope: Tensor, found: Found, first: bool) -> Tensor:
        flat = _rows(slope)
        before = slope if first else torch.bmm(flat, params[weight]).view(x.shape)
        found.product(weight, flat.mT, _rows(x))
        if bias:
            found.rows(bias, flat)
        return before

    return Link(forward, backward, [weight, bias] if bias else [weight])


def _rows(x: Tensor) -> Tensor:
    """(sites, rows, features), whatever lies between."""
    return x if x.dim() == 3 else x.flatten(1, -2)


def _activation(f: Callable[[Tensor], Tensor], slope_of: Callable[[Tensor, Tensor], Tensor]) -> Link:
    return Link(lambda params, x: f(x), lambda params, x, y, slope, found, first: slope_of(slope, y))


def _cross_entropy(outputs: Tensor, y: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits and classes: softmax less one at the class, times the share."""
    if outputs.dim() != 3 or y.dtype != torch.int64 or y.dim() != 2:
        return _by_autograd(F.cross_entropy)(outputs, y, shares)
    at, share = y.unsqueeze(2), shares.unsqueeze(2)
    logits = outputs - outputs.amax(2, keepdim=True)
    own = logits.gather(2, at)
    slope = logits.exp_()  # F.log_softmax takes three times as long over few classes
    sums = slope.sum(2, keepdim=True)
    losses = (sums.log() - own).mul_(share).sum((1, 2))
    return losses, slope.mul_(share / sums).scatter_add_(2, at, -share)


def _by_autograd(each: Callable[..., Tensor]) -> Lossy:
    """Any loss that knows `reduction="none"`."""

    def losses(outputs: Tensor, y: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        leaf = outputs.detach().requires_grad_()
        with torch.enable_grad():
            found = each(leaf.flatten(0, 1), y.flatten(0, 1), reduction="none")
            found = (found.flatten(1).mean(1) if found.dim() > 1 else found).view(shares.shape).mul(shares)
            (slope,) = torch.autograd.grad(found.sum(), [leaf])
        return found.detach().sum(1), slope

    return losses


def _module_loss(loss: Any) -> Lossy | None:
    plain = type(loss) is nn.CrossEntropyLoss and loss.weight is None and loss.label_smoothing == 0
    return _cross_entropy if plain and loss.ignore_index < 0 else None


_flat = Link(
    lambda params, x: x.flatten(2), lambda params, x, y, slope, found, first: slope if first else slope.view(x.shape)
)
_relu = _activation(torch.relu, lambda slope, y: torch.ops.aten.threshold_backward(slope, y, 0))
_tanh = _activation(torch.tanh, torch.ops.aten.tanh_backward)
_sigmoid = _activation(torch.sigmoid, torch.ops.aten.sigmoid_backward)
_same = _activation(lambda x: x, lambda slope, y: slope)

ACTIVATIONS: dict[type, Link] = {nn.ReLU: _relu, nn.Tanh: _tanh, nn.Sigmoid: _sigmoid, nn.Identity: _same}
FUNCTIONS: dict[Any, Link] = {
    **dict.fromkeys((torch.relu, F.relu, "relu"), _relu),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), _tanh),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), _sigmoid),
}
LOSSES: dict[Any, Lossy] = {F.cross_entropy: _cross_entropy, F.mse_loss: _by_autograd(F.mse_loss)}
