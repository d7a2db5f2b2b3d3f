"""Learners in PyTorch: declared in one call, or one's own training loop with a line for the algorithm's correction.
The public names are TorchLearner and layer; torch comes in here and is an extra."""

from __future__ import annotations

from foedus.errors import Missing

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise Missing("torch", "torch") from error

from foedus.torch.layers import layer
from foedus.torch.learner import TorchLearner

__all__ = ["TorchLearner", "layer"]
