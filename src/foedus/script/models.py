"""A script's model as named arrays: a torch module, a mapping of arrays, or a pair of functions (read, write).
Only params may come in, and torch where the model is one of its modules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol

import numpy as np

from foedus.errors import JobError
from foedus.keys import Key
from foedus.params import Params, Spec


class Held(Protocol):
    """What a script trains: `read` its arrays, `write` others into it."""

    def read(self) -> Params: ...
    def write(self, params: Params) -> None: ...


def held(model: Any, only: Callable[[str], bool] | None = None) -> Held:
    """The arrays of a model, of those names that `only` takes. Raises JobError for what is no model."""
    for wrapper in ("module", "_orig_mod"):  # DistributedDataParallel, torch.compile
        if type(model).__name__ in ("DistributedDataParallel", "OptimizedModule"):
            model = getattr(model, wrapper, model)
    if type(model).__name__.startswith(("FullyShardedDataParallel", "FSDP")):
        raise JobError(
            "each rank has a piece of this model: give fd.rounds (read, write), two functions that gather it"
        )
    if hasattr(model, "state_dict") and hasattr(model, "named_modules"):
        return Module(model, only)
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        return Functions(*model, only)
    if isinstance(model, MutableMapping):
        return Functions(lambda: model, lambda arrays: _into(model, arrays), only)
    raise JobError(
        f"fd.rounds({type(model).__name__}): give a torch module, a mapping of arrays, or (read, write), two functions"
    )


def first_model(model: Any, key: Key) -> Params:
    """The Params of a module, a mapping of arrays, Params, or of what a function makes, with randomness from `key`."""
    torch = sys.modules.get("torch")
    if callable(model) and not (torch and isinstance(model, torch.nn.Module)):
        made = _made(model, key)
        return made if isinstance(made, Params) else held(made).read() if hasattr(made, "state_dict") else Params(made)
    return model if isinstance(model, Params) else held(model).read()


def _made(model: Callable[[], Any], key: Key) -> Any:
    """What the function makes; torch, if it is there then, has the key's randomness."""
    try:
        import torch
    except ImportError:
        return model()
    from foedus.torch.randomness import named

    with named(key, torch.device("cpu"), everything=True):
        return model()


class Functions:
    """Two functions: one gives name -> array, one is given that, trained elsewhere."""

    def __init__(
        self,
        read: Callable[[], Mapping[str, Any]],
        write: Callable[[Mapping[str, Any]], object],
        only: Callable[[str], bool] | None,
    ) -> None:
        self._read, self._write, self.only = read, write, only or (lambda name: True)

    def read(self) -> Params:
        return Params({name: np.array(x) for name, x in self._read().items() if self.only(name)})

    def write(self, params: Params) -> None:
        self._write({name: np.array(x) for name, x in params.items()})


class Module:
    """A torch module's parameters and buffers, wherever they are."""

    def __init__(self, model: Any, only: Callable[[str], bool] | None) -> None:
        self.model, self.only = model, only or (lambda name: True)

    def read(self) -> Params:
        from foedus.torch.arrays import as_array

        places = self._places()
        arrays = {p.name: as_array(p.tensor.detach().cpu().contiguous()) for p in places}
        return Params(arrays, {p.name: p.kind for p in places})

    def write(self, params: Params) -> None:
        import torch

        from foedus.torch.batches import tensor

        with torch.no_grad():
            for place in self._places():
                place.tensor.copy_(tensor(params[place.name]))

    def gradients(self, spec: Spec) -> Params:
        """Of the trainable arrays; zeros where there is none."""
        from foedus.torch.arrays import as_array

        grads = {p.name: p.tensor.grad for p in self._places() if p.kind == "trainable"}
        if all(g is None for g in grads.values()):
            raise JobError("rnd.correct(model) found no gradient: call it between backward() and step()")
        made = {leaf.name: grads.get(leaf.name) for leaf in spec if leaf.kind == "trainable"}
        shapes = {leaf.name: leaf.shape for leaf in spec}
        return Params({n: np.zeros(shapes[n], np.float32) if g is None else as_array(g.detach().cpu().contiguous())
                       for n, g in made.items()})  # fmt: skip

    def set_gradients(self, grads: Params) -> None:
        from foedus.torch.batches import tensor

        for place in self._places():
            if place.name in grads:
                new = tensor(grads[place.name]).to(place.tensor)
                place.tensor.grad = new if place.tensor.grad is None else place.tensor.grad.copy_(new)

    def _places(self) -> list[Any]:
        from foedus.torch.arrays import found

        return [place for place in found(self.model)[0] if self.only(place.name)]


def _into(model: MutableMapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Changes the mapping's arrays in place where they can be."""
    for name, x in arrays.items():
        old = model.get(name)
        if isinstance(old, np.ndarray) and old.shape == x.shape and old.dtype == x.dtype and old.flags.writeable:
            old[...] = x
        else:
            model[name] = x


def same(params: Params, spec: Spec) -> Params:
    """The arrays in the order of `spec`. Raises JobError by name where they are others."""
    theirs, ours = ({x.name: (x.dtype, x.shape) for x in leaves} for leaves in (spec, params.spec))
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise JobError(
                f"array {name!r} is {_said(theirs.get(name))} in the global model and {_said(ours.get(name))} in the "
                "script's: give fd.rounds the same kind of model everywhere, and change its numbers alone"
            )
    kinds = {leaf.name: leaf.kind for leaf in spec}
    arrays = {leaf.name: params[leaf.name] for leaf in spec}
    return Params(arrays, kinds)


def _said(leaf: tuple[Any, ...] | None) -> str:
    return "missing" if leaf is None else f"{leaf[0]}{list(leaf[1])}"
