"""FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, Li et al. 2021, algorithm 1.
Only the contract may come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foedus.algorithms.parts import chosen, norms, shared
from foedus.algorithms.rounds import Rate
from foedus.core import Algorithm


def fedbn(personal: str | Sequence[str] | None = None, rate: Rate = 1.0, **task: Any) -> Algorithm:
    """FedAvg of all but the normalisations, whose scales, shifts and running averages are each site's own.

    `personal`: patterns of names, such as `["bn*.*"]`; by default the arrays of every module that has running averages,
    or whose name ends in norm, bn or ln, and a number. Only the sites' own models are measured, with names in
    `personal_`.
    """
    return shared(chosen(personal, norms, "fedbn"), rate=rate, **task)
