"""What is computed: one method a file, each a few pure functions given to `rounds`.
Aggregators and the contract may come in; no backend, journal or network."""

from foedus.algorithms.fedavg import fedavg
from foedus.algorithms.fedprox import fedprox
from foedus.algorithms.rounds import delta, rounds

__all__ = ["delta", "fedavg", "fedprox", "rounds"]
