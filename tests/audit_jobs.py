"""Networks by hand whose gradients are known, and sites whose records attacks look for."""

from __future__ import annotations

from typing import Any

import numpy as np

import foedus as fd
from foedus.numpy import NumpyLearner

INPUTS, HIDDEN, CLASSES = 12, 20, 4


def forward(p: Any, x: Any) -> tuple[Any, Any]:
    hidden = np.maximum(x @ p["w1"].T + p["b1"], 0)
    return hidden, hidden @ p["w2"].T + p["b2"]


def gradient(p: Any, x: Any, y: Any) -> tuple[Any, dict[str, Any]]:
    """Cross-entropy of a dense ReLU network, its slopes written out."""
    hidden, z = forward(p, x)
    e = np.exp(z - z.max(1, keepdims=True))
    q = e / e.sum(1, keepdims=True)
    at = np.arange(len(y)), y
    losses, d = -np.log(np.maximum(q[at], 1e-300)), q.copy()
    d[at] -= 1
    d /= len(y)
    below = (d @ p["w2"]) * (hidden > 0)
    return losses, {"w1": below.T @ x, "b1": below.sum(0), "w2": d.T @ hidden, "b2": d.sum(0)}


def network(rng: np.random.Generator) -> dict[str, Any]:
    shapes = {"w1": (HIDDEN, INPUTS), "b1": (HIDDEN,), "w2": (CLASSES, HIDDEN), "b2": (CLASSES,)}
    return {name: rng.normal(0, 0.3, shape) for name, shape in shapes.items()}


def learner(lr: float = 0.1, epochs: int = 1, **more: Any) -> NumpyLearner:
    return NumpyLearner(network, gradient, lambda p, x: forward(p, x)[1], lr=lr, epochs=epochs, batch_size=None, **more)


def site(seed: int, train: int = 30, other: int = 20) -> fd.Split:
    """Uniform records, labelled by their largest of the first numbers; valid is given, so that nothing is drawn."""
    rng = np.random.default_rng(seed)
    parts = [rng.uniform(0, 1, (n, INPUTS)) for n in (train, other, other)]
    return fd.Split(*((x, x[:, :CLASSES].argmax(1)) for x in parts))


def job(algorithm: Any = None, rounds: int = 1, **more: Any) -> fd.Job:
    return fd.Job(algorithm or fd.fedavg(), more.pop("learner", learner()), rounds=rounds, **more)


SITES = {name: site(i) for i, name in enumerate(["east", "north", "south", "west"])}
