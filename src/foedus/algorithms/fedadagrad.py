"""FedAdagrad: Adaptive Federated Optimization, Reddi et al. 2021, algorithm 2: v = v + d^2.
Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.algorithms.fedopt import ServerOptimizer, adaptive, fedopt
from foedus.algorithms.rounds import Rate
from foedus.core import Algorithm


def adagrad(beta1: float = 0.0, tau: float = 1e-3) -> ServerOptimizer:
    """As `adam`, but v is the sum of all d^2."""
    return adaptive(lambda v, square: v + square, beta1, tau)


def fedadagrad(rate: Rate = 0.1, beta1: float = 0.0, tau: float = 1e-3, **task: Any) -> Algorithm:
    """FedAvg whose server steps as Adagrad does; beta1 and tau are those of the paper's experiments."""
    return fedopt(adagrad(beta1, tau), rate, **task)
