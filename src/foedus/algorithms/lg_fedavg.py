"""LG-FedAvg: Think Locally, Act Globally, Liang et al. 2020, algorithm 1.
Only the contract may come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foedus.algorithms.parts import all_but_last, chosen, shared
from foedus.algorithms.rounds import Rate
from foedus.core import Algorithm


def lg_fedavg(personal: str | Sequence[str] | None = None, rate: Rate = 1.0, **task: Any) -> Algorithm:
    """FedAvg of the head alone; each site has a representation of its own, trained together with the shared head.

    `personal`: patterns of names, such as `["body.*"]`; by default all but the last layer. Only the sites' own models
    are measured, with names in `personal_`.
    """
    return shared(chosen(personal, all_but_last, "lg_fedavg"), rate=rate, **task)
