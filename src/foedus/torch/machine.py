"""One model for all sites of a process: its arrays are views of flat buffers, so that a site's turn is a few copies.
Only torch, numpy and params may come in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from foedus.core import Correct
from foedus.errors import FoedusError, JobError
from foedus.params import Array, Kind, Params, Spec, places


class Slot(NamedTuple):
    """An array of the model: where it is found, and its part of the flat buffer."""

    name: str
    module: nn.Module
    attribute: str
    tensor: Tensor
    view: Tensor


class Machine:
    """A model whose arrays live in flat buffers: `load` Params, work with `model`, `read` Params.

    On the CPU the buffers are numpy's own memory; elsewhere (`apart`) they are filled from it and copied back to it.
    What the model keeps outside of its parameters and buffers stays as the last site left it.
    """

    def __init__(self, model: nn.Module, device: torch.device, apart: bool | None = None) -> None:
        self.model, self.device = model.to(device), device
        self.params = snapshot(self.model)
        self.apart = device.type != "cpu" if apart is None else apart
        self.host = {g: as_tensor(x) for g, x in self.params.flats.items()}
        self.flats = {g: x.to(device, copy=True) for g, x in self.host.items()} if self.apart else self.host
        self.slots = [Slot(*found, view) for found, view in zip(_arrays(model), self._views(self.params.spec), strict=True)]
        self.extras = [(m, a, x.clone()) for _, m, a, x in _named_buffers(model, persistent=False)]
        self.trained = [s.tensor for s in self.slots if s.tensor.requires_grad]
        self.here = self.params.trainable()  # the same memory
        self.grads: Params | None = None
        self.dtype = next((p.dtype for p in self.trained if p.is_floating_point()), torch.float32)
        for slot in self.slots:
            slot.tensor.data = slot.view

    def load(self, params: Params) -> None:
        """Makes these the model's arrays. Raises JobError where names, shapes, dtypes or kinds are not the model's."""
        for g, x in fitting(params, self.params.spec).flats.items():
            np.copyto(self.params.flats[g], x)
        if self.apart:
            for g, flat in self.flats.items():
                flat.copy_(self.host[g])
        for module, attribute, x in self.extras:
            setattr(module, attribute, x.clone())

    def read(self) -> Params:
        """The model's arrays, copied."""
        for slot in self.slots:
            _settle(slot)
        if self.apart:
            for g, flat in self.flats.items():
                self.host[g].copy_(flat)
        return self.params.copy()

    def clear(self) -> None:
        """Forgets the gradients."""
        for p in self.trained:
            p.grad = None

    def correct(self, correction: Correct) -> None:
        """Has the algorithm change the gradients; where there was none, zeros are changed."""
        grads = self._gathered()
        if self.apart:
            for g, flat in self.flats.items():
                if g in self.here.flats:
                    self.host[g].copy_(flat)
        corrected = correction(grads, self.here)
        grads.map(_copied, corrected)
        for g, x in self.grad_host.items():
            if self.grad_flats[g] is not x:
                self.grad_flats[g].copy_(x)
        for p, view in zip(self.trained, self.grad_views, strict=True):
            p.grad = view

    def _gathered(self) -> Params:
        """The gradients as Params, in memory that is used again."""
        if self.grads is None:
            self.grads = self.here.zeros()
            self.grad_host = {g: as_tensor(x) for g, x in self.grads.flats.items()}
            self.grad_flats = {g: x.to(self.device, copy=True) for g, x in self.grad_host.items()} if self.apart else self.grad_host
            self.grad_views = list(_cut(self.grads.spec, self.grad_flats))
        for p, view in zip(self.trained, self.grad_views, strict=True):
            if p.grad is None:
                view.zero_()
            elif p.grad is not view:
                view.copy_(p.grad)
        if self.apart:
            for g, x in self.grad_host.items():
                x.copy_(self.grad_flats[g])
        return self.grads
