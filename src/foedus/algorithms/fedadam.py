"""FedAdam: Adaptive Federated Optimization, Reddi et al. 2021, algorithm 2: v = beta2 v + (1 - beta2) d^2.
Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.algorithms.fedopt import ServerOptimizer, adaptive, fedopt
from foedus.algorithms.rounds import Rate
from foedus.core import Algorithm


def adam(beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> ServerOptimizer:
    """m = beta1 m + (1 - beta1) d, v = beta2 v + (1 - beta2) d^2; the way is m / (sqrt(v) + tau)."""
    return adaptive(lambda v, square: beta2 * v + (1 - beta2) * square, beta1, tau)


def fedadam(rate: Rate = 0.1, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3, **task: Any) -> Algorithm:
    """FedAvg whose server steps as Adam does, without its correction of bias; betas and tau are the paper's."""
    return fedopt(adam(beta1, beta2, tau), rate, **task)
