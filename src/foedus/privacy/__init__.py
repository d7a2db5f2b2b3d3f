"""How what leaves a site is protected: secure aggregation, homomorphic encryption, relays, differential privacy.
Arithmetic and the contract may come in; nothing here knows a network, a journal or a disk."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foedus.privacy import accounting as accounting
    from foedus.privacy import masking as masking
    from foedus.privacy import shamir as shamir
    from foedus.privacy.accounting import analytic_gaussian_sigma as analytic_gaussian_sigma
    from foedus.privacy.accounting import epsilon as epsilon
    from foedus.privacy.accounting import noise_multiplier as noise_multiplier
    from foedus.privacy.accounting import split_noise as split_noise

_NUMBERS = ("analytic_gaussian_sigma", "epsilon", "noise_multiplier", "split_noise")
_MODULES = ("accounting", "masking", "shamir")

__all__ = ["accounting", "analytic_gaussian_sigma", "epsilon", "masking", "noise_multiplier", "shamir", "split_noise"]


def __getattr__(name: str) -> Any:
    if name in _NUMBERS:
        return getattr(import_module("foedus.privacy.accounting"), name)
    if name in _MODULES:
        return import_module(f"foedus.privacy.{name}")
    raise AttributeError(f"foedus.privacy has no {name!r}")
