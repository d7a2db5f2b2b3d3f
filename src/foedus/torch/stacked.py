"""Many copies of one model at once: parameters and inputs have a site's axis in front, and one pass serves all sites.
Only torch may come in; a model's forward pass is traced, and each of its operations rewritten for the new axis.

An operation without a line in the tables below is mapped over the sites by torch.func.vmap, which takes three times as
long; a model that cannot be traced is mapped as a whole.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from foedus.errors import Alone

Stacked = Mapping[str, Tensor]  # name -> (sites, *shape)
Forward = Callable[..., Any]  # (parameters, inputs (sites, batch, …)) -> outputs (sites, batch, …)
Name = Callable[[Tensor | None], str]  # the parameter's name, "" for None


class Step(NamedTuple):
    """One operation: its result's name, `run(parameters, *args)`, and arguments in which nodes stand for results."""

    name: str
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    nested: bool  # the arguments are more than nodes


def stacked(original: nn.Module) -> Forward:
    """The model's forward pass in its present mode, for many sites. Raises Alone for what couples a batch's examples.

    >>> forward = stacked(nn.Linear(3, 2))
    >>> forward({"weight": torch.ones(5, 2, 3), "bias": torch.zeros(5, 2)}, torch.ones(5, 7, 3)).shape
    torch.Size([5, 7, 2])
    """
    for name, module in original.named_modules():
        if isinstance(module, COUPLED) and module.training:
            raise Alone(f"{type(module).__name__} {name!r} computes with all examples of a batch, or draws numbers")
    model = copy.deepcopy(original)  # tracing may leave its traces in attributes that the forward pass sets
    names = {id(p): name for name, p in (*model.named_buffers(), *model.named_parameters())}
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # whatever the model's code does with a proxy
        return _whole(original)
    steps = [_step(node, model, lambda p: names[id(p)] if p is not None else "") for node in graph.nodes]
    return _program(
        [step for step in steps if step is not None], [n.name for n in graph.nodes if n.op == "placeholder"]
    )


def _whole(model: nn.Module) -> Forward:
    def one(params: Any, args: Any, kwargs: Any) -> Any:
        return torch.func.functional_call(model, params, args, kwargs)

    return lambda params, *args, **kwargs: torch.func.vmap(one)(dict(params), args, kwargs)


def _program(steps: list[Step], inputs: list[str]) -> Forward:
    def forward(params: Stacked, *args: Any, **kwargs: Any) -> Any:
        found: dict[str, Any] = {**dict(zip(inputs, args, strict=False)), **kwargs}
        for name, run, ask, named, nested in steps:
            if nested:
                found[name] = run(params, *_filled(ask, found), **_filled(named, found))
            else:
                found[name] = run(params, *[found[x.name] for x in ask])
        return found["output"]

    return forward


def _filled(value: Any, found: Mapping[str, Any]) -> Any:
    """The arguments with results in the place of nodes."""
    if isinstance(value, fx.Node):
        return found[value.name]
    if isinstance(value, (tuple, list)):
        return type(value)([_filled(x, found) for x in value])
    if isinstance(value, dict):
        return {k: _filled(x, found) for k, x in value.items()}
    return slice(*(_filled((value.start, value.stop, value.step), found))) if isinstance(value, slice) else value


def _step(node: fx.Node, model: nn.Module, name: Name) -> Step | None:
    if node.op == "placeholder":
        return None
    nested = bool(node.kwargs) or not all(isinstance(x, fx.Node) for x in node.args)
    return Step(node.name, _operation(node, model, name), node.args, dict(node.kwargs), nested)


def _operation(node: fx.Node, model: nn.Module, name: Name) -> Callable[..., Any]:
    target: Any = node.target
    if node.op == "output":
        return lambda params, made: made
    if node.op == "get_attr":
        tensor = operator.attrgetter(target)(model)
        return lambda params: params[name(tensor)]
    if node.op == "call_module":
        module = model.get_submodule(target)
        make = MODULES.get(type(module))
        return make(module, name) if make else _mapped_module(module, name)
    if node.op == "call_method":
        return METHODS.get(target) or _mapped(lambda x, *args, **kwargs: getattr(x, target)(*args, **kwargs))
    return FUNCTIONS.get(target) or _mapped(target)


def _mapped(f: Callable[..., Any]) -> Callable[..., Any]:
    """The operation site by site, by vmap; what is no tensor goes to all of them."""

    def run(params: Stacked, *args: Any, **kwargs: Any) -> Any:
        if not any(map(_holds_tensor, args)):
            return f(*args, **kwargs)
        along = tuple(0 if _holds_tensor(x) else None for x in args)
        return torch.func.vmap(lambda *xs: f(*xs, **kwargs), along)(*args)

    return run


def _mapped_module(module: nn.Module, name: Name) -> Callable[..., Any]:
    names = {own: name(p) for own, p in (*module.named_parameters(), *module.named_buffers())}

    def run(params: Stacked, *args: Any, **kwargs: Any) -> Any:
        here = {own: params[known] for own, known in names.items()}
        one = torch.func.vmap(lambda p, *xs: torch.func.functional_call(module, p, xs, kwargs))
        return one(here, *args)

    return run


def _holds_tensor(x: Any) -> bool:
    return isinstance(x, Tensor) or (isinstance(x, (tuple, list)) and any(map(_holds_tensor, x)))


# What an operation becomes with the sites' axis in front. A module's line: (module, name) -> run(parameters, x).


def _linear(m: nn.Linear, name: Name) -> Callable[..., Tensor]:
    weight, bias = name(m.weight), name(m.bias)

    def run(params: Stacked, x: Tensor) -> Tensor:
        flat = x if x.dim() == 3 else x.flatten(1, -2)
        w = params[weight].mT
        y = torch.baddbmm(params[bias].unsqueeze(1), flat, w) if bias else torch.bmm(flat, w)
        return y if x.dim() == 3 else y.unflatten(1, x.shape[1:-1])  # type: ignore[no-untyped-call]

    return run


def _conv(m: Any, name: Name) -> Callable[..., Tensor]:
    """All sites' filters as the groups of one convolution."""
    if m.padding_mode != "zeros":
        return _mapped_module(m, name)
    weight, bias, convolve = name(m.weight), name(m.bias), CONVOLUTIONS[type(m)]

    def run(params: Stacked, x: Tensor) -> Tensor:
        b = params[bias].flatten() if bias else None
        channels = x.transpose(0, 1).flatten(1, 2)
        y = convolve(channels, params[weight].flatten(0, 1), b, m.stride, m.padding, m.dilation, len(x) * m.groups)
        return y.unflatten(1, (len(x), -1)).transpose(0, 1)  # type: ignore[no-any-return, no-untyped-call]

    return run


def _embedding(m: nn.Embedding, name: Name) -> Callable[..., Tensor]:
    if m.max_norm is not None or m.scale_grad_by_freq or m.sparse:
        return _mapped_module(m, name)
    weight = name(m.weight)

    def run(params: Stacked, x: Tensor) -> Tensor:
        first = torch.arange(len(x), device=x.device).view(-1, *[1] * (x.dim() - 1)) * m.num_embeddings
        y = F.embedding(x + first, params[weight].flatten(0, 1))
        return y if m.padding_idx is None else torch.where((x == m.padding_idx).unsqueeze(-1), y.detach(), y)

    return run


def _scaled(m: Any, name: Name, normal: Callable[[Tensor], tuple[Tensor, tuple[int, ...]]]) -> Callable[..., Tensor]:
    """A normalisation of single examples, then each site's own scale and shift, of the shape that `normal` gives."""
    weight, bias = name(m.weight), name(m.bias)

    def run(params: Stacked, x: Tensor) -> Tensor:
        y, shape = normal(x)
        y = y * params[weight].view(len(x), *shape) if weight else y
        return y + params[bias].view(len(x), *shape) if bias else y

    return run


def _layer_norm(m: nn.LayerNorm, name: Name) -> Callable[..., Tensor]:
    def normal(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        ones = (1,) * (x.dim() - 1 - len(m.normalized_shape))
        return F.layer_norm(x, m.normalized_shape, None, None, m.eps), (*ones, *m.normalized_shape)

    return _scaled(m, name, normal)


def _group_norm(m: Any, name: Name) -> Callable[..., Tensor]:
    """GroupNorm, and InstanceNorm, whose groups are the channels."""

    def normal(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        y = F.group_norm(x.flatten(0, 1), getattr(m, "num_groups", x.shape[2]), None, None, m.eps)
        return y.unflatten(0, x.shape[:2]), (1, x.shape[2], *[1] * (x.dim() - 3))  # type: ignore[no-untyped-call]

    return _scaled(m, name, normal)


def _instance_norm(m: Any, name: Name) -> Callable[..., Tensor]:
    return _mapped_module(m, name) if m.track_running_stats else _group_norm(m, name)


def _same(m: nn.Module, name: Name) -> Callable[..., Any]:
    """A module that treats every number, or a trailing axis, alike."""
    return lambda params, x: m(x)


def _merged(m: nn.Module, name: Name) -> Callable[..., Tensor]:
    """A module without parameters that takes examples: sites and batch become one axis for it."""
    return lambda params, x: m(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _flatten(m: nn.Flatten, name: Name) -> Callable[..., Tensor]:
    return lambda params, x: x.flatten(_after(m.start_dim), _after(m.end_dim))


def _after(dim: int) -> int:
    """A model's axis in the stacked tensor."""
    return dim + 1 if dim >= 0 else dim


def _unary(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, x, *args, **kwargs: f(x, *args, **kwargs)


def _binary(f: Callable[..., Any]) -> Callable[..., Any]:
    """Two stacked tensors of different ranks would meet on the wrong axes."""
    mapped = _mapped(f)

    def run(params: Stacked, a: Any, b: Any, **kwargs: Any) -> Any:
        both = isinstance(a, Tensor) and isinstance(b, Tensor)
        return mapped(params, a, b, **kwargs) if both and a.dim() != b.dim() else f(a, b, **kwargs)

    return run


def _flat(params: Stacked, x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    return x.flatten(_after(start_dim), _after(end_dim))


def _size(params: Stacked, x: Tensor, dim: int | None = None) -> Any:
    return x.shape[1:] if dim is None else x.shape[_after(dim)]


def _attribute(params: Stacked, x: Any, name: str) -> Any:
    if not isinstance(x, Tensor):
        return getattr(x, name)
    return x.shape[1:] if name == "shape" else x.dim() - 1 if name == "ndim" else getattr(x, name)


CONVOLUTIONS: dict[type, Callable[..., Tensor]] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
COUPLED = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.RReLU)
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
    *(nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Identity),
)
POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Upsample),
)
MODULES: dict[type, Callable[[Any, Name], Callable[..., Any]]] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.Flatten: _flatten,
    **dict.fromkeys(CONVOLUTIONS, _conv),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance_norm),
    **dict.fromkeys(ACTIVATIONS, _same),
    **dict.fromkeys(POOLS, _merged),
}
_ALIKE = ("relu", "tanh", "sigmoid", "exp", "log", "sqrt", "abs", "neg", "square", "clamp", "float", "contiguous")
_PAIRS = ("add", "sub", "mul", "div")
METHODS: dict[str, Callable[..., Any]] = {
    **{name: _unary(getattr(Tensor, name)) for name in _ALIKE},
    **{name: _binary(getattr(Tensor, name)) for name in _PAIRS},
    "flatten": _flat,
    "size": _size,
}
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **{f: _unary(f) for f in (F.relu, F.gelu, F.silu, F.leaky_relu, F.elu, F.softplus, F.tanh, F.sigmoid)},
    **{f: _unary(f) for f in (torch.relu, torch.tanh, torch.sigmoid, torch.exp, torch.log, torch.sqrt, torch.abs)},
    **{f: _binary(f) for f in (operator.add, operator.sub, operator.mul, operator.truediv)},
    **{f: _binary(f) for f in (torch.add, torch.sub, torch.mul, torch.div)},
    operator.neg: _unary(operator.neg),
    torch.flatten: _flat,
    getattr: _attribute,
}
