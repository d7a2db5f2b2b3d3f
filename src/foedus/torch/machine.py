"""One model for all sites of a process: its arrays are views of flat buffers, so that a site's turn is a few copies.
Only torch and the rooms of arrays and params may come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foedus.core import Correct
from foedus.errors import JobError
from foedus.params import Params
from foedus.torch import batches
from foedus.torch.arrays import Buffers, Place, as_array, fitting, found, snapshot


class Machine:
    """A model whose arrays live in flat buffers: `load` Params, work with `model`, `read` Params.

    What the model keeps outside of its parameters and buffers stays as the last site left it. `apart`: the buffers are
    not numpy's own memory, as it is anywhere but on the CPU.
    """

    def __init__(self, model: nn.Module, device: torch.device, apart: bool | None = None) -> None:
        self.model, self.device = model.to(device), device
        self.arrays = Buffers(snapshot(model), device, device.type != "cpu" if apart is None else apart)
        self.places, rest = found(model)
        self.rest = [(place, place.tensor.clone()) for place in rest]
        self.flags = [(place.tensor, place.tensor.requires_grad) for place in self.places]
        self.trained = [p.tensor for p in self.places if p.kind == "trainable"]
        self.dtype = next((p.tensor.dtype for p in self.places if p.tensor.is_floating_point()), torch.float32)
        self.modules = list(model.modules())
        self.here = self.arrays.params.trainable()  # the same memory
        self.grads: Buffers | None = None
        self.others: dict[int, tuple[Params, dict[str, Tensor]]] = {}  # of this Task, on the device
        for place, view in zip(self.places, self.arrays.views, strict=True):
            place.tensor.data = view

    def load(self, params: Params) -> None:
        """Makes these the model's arrays. Raises JobError where names, shapes, dtypes or kinds are not the model's."""
        self.arrays.put(fitting(params, self.arrays.params.spec))
        self.others.clear()
        for place, extra in self.rest:
            setattr(place.module, place.attribute, extra.clone())
        for tensor, flag in self.flags:
            tensor.requires_grad_(flag)

    def read(self) -> Params:
        """The model's arrays, copied; what a forward call or a training loop moved elsewhere comes back first.

        Raises JobError for an array that was taken away or has a new shape.
        """
        return self._settled().copy()

    def numbers(self) -> dict[str, Tensor]:
        """The model's arrays, one flat tensor a group, in memory that changes with the model."""
        self._settled()
        return self.arrays.host

    def renew(self, numbers: Mapping[str, Tensor]) -> None:
        """Makes these, which `numbers` gave, the model's arrays; which of them are frozen stays as it is."""
        self._settled()
        flats = {g: as_array(numbers[g]) for g in self.arrays.host}
        self.arrays.put(Params.of(self.arrays.params.spec, flats))

    def mode(self, training: bool) -> None:
        """As the model's own `train(training)`, which takes a while."""
        if any(module.training is not training for module in self.modules):
            self.model.train(training)

    def check(self) -> None:
        """Raises JobError where another module stands in the place of one that held an array."""
        now = dict(self.model.named_modules())
        for place in self.places:
            if now.get(place.name.rpartition(".")[0]) is not place.module:
                raise _replaced(place)

    def clear(self) -> None:
        """Forgets the gradients."""
        for p in self.trained:
            p.grad = None

    def outputs(self, params: Params, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """What the model would return with other arrays, as in evaluation; no gradient flows there."""
        if id(params) not in self.others:
            self.others[id(params)] = params, {name: batches.tensor(x).to(self.device) for name, x in params.items()}
        self.mode(training=False)
        with torch.no_grad():
            made = torch.func.functional_call(self.model, self.others[id(params)][1], tuple(args), dict(named))
        self.mode(training=True)
        return made

    def elsewhere(self, params: Params, args: Sequence[Any], named: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
        """What the model would return in training with other trainable arrays, and these, for a gradient."""
        leaves = {name: batches.tensor(x).to(self.device, copy=True).requires_grad_() for name, x in params.items()}
        kept = {name: x.clone() for name, x in self.model.named_buffers()}
        return torch.func.functional_call(self.model, {**kept, **leaves}, tuple(args), dict(named)), leaves

    def correct(self, correction: Correct) -> None:
        """Has the algorithm change the gradients, in memory that is used again."""
        grads = self.gradients()
        self._settled()
        grads.put(correction(grads.get(), self.here))
        for p, view in zip(self.trained, grads.views, strict=True):
            p.grad = view

    def gradients(self) -> Buffers:
        """The gradients, in memory that is used again; an array without one has zeros."""
        if self.grads is None:
            self.grads = Buffers(self.here.zeros(), self.device, self.arrays.apart)
        for p, view in zip(self.trained, self.grads.views, strict=True):
            if p.grad is None:
                view.zero_()
            elif p.grad is not view:
                view.copy_(p.grad)
        return self.grads

    def _settled(self) -> Params:
        """The model's arrays, all of them in their buffers."""
        for place, view in zip(self.places, self.arrays.views, strict=True):
            now = getattr(place.module, place.attribute, None)
            if now is not place.tensor or now.data_ptr() != view.data_ptr():
                _return(place, view, now)
        return self.arrays.get()


def _return(place: Place, view: Tensor, now: Tensor | None) -> None:
    if not isinstance(now, Tensor) or now.shape != view.shape:
        raise _replaced(place)
    view.copy_(now.detach())
    place.tensor.data = view
    setattr(place.module, place.attribute, place.tensor)


def _replaced(place: Place) -> JobError:
    return JobError(f"training replaced the model's {place.name!r}: change its numbers and leave it where it is")
