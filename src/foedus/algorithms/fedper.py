"""FedPer: Federated Learning with Personalization Layers, Arivazhagan et al. 2019, algorithms 1 and 2.
Only the contract may come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foedus.algorithms.parts import chosen, last_layer, shared
from foedus.algorithms.rounds import Rate
from foedus.core import Algorithm


def fedper(personal: str | Sequence[str] | None = None, rate: Rate = 1.0, **task: Any) -> Algorithm:
    """FedAvg of the lower layers; each site has upper ones of its own, trained together with the shared ones.

    `personal`: patterns of names, such as `["head.*"]`; by default the last layer. Only the sites' own models are
    measured, with names in `personal_`.
    """
    return shared(chosen(personal, last_layer, "fedper"), rate=rate, **task)
