"""Where and how a learner's model is made: seeded by a key, on a device, in a dtype.
Only torch, keys and the rooms of arrays may come in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from foedus import build as here
from foedus.errors import JobError
from foedus.keys import Key
from foedus.torch.randomness import named

CPU = torch.device("cpu")


def built(model: nn.Module | Callable[[], nn.Module], key: Key, dtype: torch.dtype | None = None) -> nn.Module:
    """A new model: what a class or function makes with randomness from `key`, or a copy of a module."""
    with named(key, CPU, everything=True):
        made = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
    if not isinstance(made, nn.Module):
        raise JobError(f"model={model!r} gave {type(made).__name__}: give a module, its class or a function making one")
    return made.to(dtype) if dtype else made


def floating(dtype: Any) -> torch.dtype | None:
    """torch's dtype for "bfloat16", torch.bfloat16 or None. Raises JobError for what is no floating dtype."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found is not None and isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    if dtype is None:
        return None
    raise JobError(f"dtype={dtype!r}: it is 'float32', 'bfloat16', 'float16' or 'float64'")


def device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one, of several this worker's. Raises JobError."""
    if name == "auto":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        name = f"cuda:{here.place % gpus}" if gpus else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.device(name)
        if found.type == "cuda" and found.index is None:
            found = torch.device("cuda", torch.cuda.current_device())
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        gpus = torch.cuda.device_count()
        there = "cpu" + "".join(f", cuda:{i}" for i in range(gpus)) + ", mps" * torch.backends.mps.is_available()
        raise JobError(f"device={name!r} is not on this machine, which has {there}: device='auto' takes one") from error
    return found
