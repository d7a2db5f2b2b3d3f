"""The global generators of torch, numpy and Python, seeded by a key for a while and given back as they were.
Only keys and torch may come in."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from foedus.keys import Key


@contextmanager
def named(key: Key, device: torch.device, everything: bool = False) -> Iterator[None]:
    """Seeds torch's global generators by `key` inside the block; `everything` also does Python's and numpy's."""
    generators = _generators(device)
    states = [generator.get_state() for generator in generators]
    reseed(key, device)
    try:
        with _others(key) if everything else nullcontext():
            yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def state(device: torch.device) -> list[Any]:
    """Where the global generators of torch, Python and numpy stand, for `restore`."""
    name, numbers, *rest = np.random.get_state(legacy=True)
    others = [random.getstate(), [name, torch.from_numpy(np.asarray(numbers, np.int64)), *rest]]
    return [[generator.get_state() for generator in _generators(device)], *others]


def restore(state: Sequence[Any], device: torch.device) -> None:
    """Puts the global generators where they stood, for good: call it inside of `named` only."""
    own, python, (name, numbers, *rest) = state
    for generator, where in zip(_generators(device), own, strict=True):
        generator.set_state(where)
    random.setstate(python)
    np.random.set_state((name, numbers.numpy().astype(np.uint32), *rest))


@contextmanager
def _others(key: Key) -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    random.seed(key.digest())
    np.random.seed(key.number() % 2**32)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def reseed(key: Key, device: torch.device) -> None:
    """Seeds torch's global generators by `key`, for good: call it inside of `named` only."""
    number = key.number()
    for generator in _generators(device):
        generator.manual_seed(number)


def _generators(device: torch.device) -> list[torch.Generator]:
    if device.type == "cuda":
        return [torch.default_generator, torch.cuda.default_generators[device.index]]
    if device.type == "mps":
        return [torch.default_generator, torch.mps._get_default_mps_generator()]
    return [torch.default_generator]
