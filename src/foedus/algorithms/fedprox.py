"""FedProx: Federated Optimization in Heterogeneous Networks, Li et al. 2020, equation 2.
Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.algorithms.fedavg import fedavg
from foedus.algorithms.rounds import Rate
from foedus.core import Algorithm


def fedprox(mu: float, rate: Rate = 1.0, **task: Any) -> Algorithm:
    """FedAvg with each local gradient pulled towards the round's model: g + mu (w - w_round)."""
    return fedavg(rate, lambda start: lambda grads, params: grads + mu * (params - start), **task)
