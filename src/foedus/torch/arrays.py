"""Between torch's tensors and numpy's arrays: the same memory under both names, and a model's arrays as Params.
Only torch, numpy and params may come in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from foedus.errors import JobError
from foedus.params import DTYPES, Array, Kind, Params, Spec, places

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
OURS: dict[np.dtype[Any], torch.dtype] = {dtype: getattr(torch, name) for name, dtype in DTYPES.items()}


class Place(NamedTuple):
    """Where a model holds one of its arrays."""

    name: str
    module: nn.Module
    attribute: str
    tensor: Tensor

    @property
    def kind(self) -> Kind:
        if not self.tensor.is_floating_point():
            return "integer"
        return "trainable" if self.tensor.requires_grad else "buffer"


class Buffers:
    """Params in numpy's memory and, as `views`, the same numbers as tensors on a device.

    On the CPU both are one memory, aligned as torch's own; where they are `apart`, `put` and `get` copy.
    """

    def __init__(self, like: Params, device: torch.device, apart: bool) -> None:
        self.host = {g: torch.empty(x.size, dtype=torch_dtype(x.dtype)) for g, x in like.flats.items()}
        self.params = Params.of(like.spec, {g: as_array(x) for g, x in self.host.items()})
        self.flats = {g: torch.empty_like(x, device=device) for g, x in self.host.items()} if apart else self.host
        self.apart = apart
        self.views = [self.flats[g][a:b].view(leaf.shape) for leaf, g, a, b in places(like.spec)]
        self.put(like)

    def put(self, params: Params) -> None:
        """Makes these the numbers; names, shapes and dtypes are the same."""
        self.params.map(_copied, params, kinds=("trainable", "buffer", "integer"))
        if self.apart:
            for g, x in self.flats.items():
                x.copy_(self.host[g])

    def get(self) -> Params:
        """The numbers, in memory that changes with the next `put` and with the tensors."""
        if self.apart:
            for g, x in self.flats.items():
                self.host[g].copy_(x)
        return self.params


def found(model: nn.Module) -> tuple[list[Place], list[Place]]:
    """The arrays of `state_dict`, a shared one under its first name, and the other buffers, which stay where they are.

    Raises JobError for what cannot travel.
    """
    kept, every = model.state_dict(keep_vars=True), list(_places(model))
    first = list({id(place.tensor): place for place in reversed(every)}.values())[::-1]
    sent, rest = [p for p in first if p.name in kept], [p for p in first if p.name not in kept]
    strange = [*(kept.keys() - {p.name for p in every}), *(p.name for p in sent if not _travels(p.tensor))]
    if strange:
        remedy = "give lazy modules their sizes, and keep what is no plain array out of state_dict"
        raise JobError(f"the model's {min(strange)!r} cannot be sent: {remedy}")
    return sent, rest


def snapshot(model: nn.Module) -> Params:
    """The model's arrays, copied."""
    places = found(model)[0]
    arrays = {p.name: as_array(p.tensor.detach().cpu()) for p in places}
    return Params(arrays, {p.name: p.kind for p in places})


def fitting(params: Params, spec: Spec) -> Params:
    """`params` in the order of `spec`. Raises JobError by name where the arrays are not those of `spec`."""
    if params.spec == spec:
        return params
    theirs, ours = ({x.name: (x.dtype, x.shape, x.kind) for x in leaves} for leaves in (params.spec, spec))
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            differ = f"{_said(theirs.get(name))} in the global model, {_said(ours.get(name))} in this learner's"
            raise JobError(f"array {name!r} is {differ}: start from a model of the same class")
    return params.ordered(spec)


def as_array(x: Tensor) -> Array:
    """The same memory as a numpy array; bfloat16 included."""
    if x.dtype == torch.bfloat16:
        return np.asarray(x.view(torch.int16).numpy().view(BFLOAT16))
    return np.asarray(x.numpy())


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """torch's dtype of that name. Raises JobError where there is none."""
    made = OURS.get(dtype) or OURS.get(dtype.newbyteorder("="))
    if made is None:
        raise JobError(f"a model takes no {dtype}: give numbers, as float32 or int64")
    return made


def _places(model: nn.Module) -> Iterator[Place]:
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        for own in (module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            for attribute, tensor in own:
                yield Place(dot + attribute, module, attribute, tensor)


def _travels(x: Tensor) -> bool:
    lazy = isinstance(x, (nn.UninitializedParameter, nn.UninitializedBuffer))
    return not lazy and str(x.dtype).removeprefix("torch.") in DTYPES and x.layout == torch.strided


def _copied(into: Array, x: Array) -> Array:
    if into is not x:
        np.copyto(into, x)
    return into


def _said(leaf: tuple[Any, ...] | None) -> str:
    return "missing" if leaf is None else f"{leaf[2]} {leaf[0]}{list(leaf[1])}"


def joined(parts: Sequence[Any]) -> Any:
    """Arrays or tensors along their first axis."""
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else np.concatenate([np.asarray(x) for x in parts])
