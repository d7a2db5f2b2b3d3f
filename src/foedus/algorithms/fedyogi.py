"""FedYogi: Adaptive Federated Optimization, Reddi et al. 2021, algorithm 2: v = v - (1 - beta2) d^2 sign(v - d^2).
Only the contract may come in."""

from __future__ import annotations

from typing import Any

import numpy as np

from foedus.algorithms.fedopt import ServerOptimizer, adaptive, fedopt
from foedus.algorithms.rounds import Rate
from foedus.core import Algorithm


def yogi(beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> ServerOptimizer:
    """As `adam`, but v goes towards d^2 by (1 - beta2) d^2, so that it never falls fast."""
    return adaptive(lambda v, square: v - (1 - beta2) * square * np.sign(v - square), beta1, tau)


def fedyogi(rate: Rate = 0.1, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3, **task: Any) -> Algorithm:
    """FedAvg whose server steps as Yogi does; betas and tau are the paper's."""
    return fedopt(yogi(beta1, beta2, tau), rate, **task)
