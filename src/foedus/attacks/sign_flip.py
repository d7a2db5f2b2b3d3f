"""Sign flipping: RSA, Li et al. 2019, section 5.1. Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.attacks.attacked import Attack
from foedus.core import Update
from foedus.errors import JobError
from foedus.keys import Key


def sign_flip(scale: float = 1.0) -> Attack:
    """Sends -scale times the honest update."""
    if not scale > 0:
        raise JobError(f"sign_flip({scale}): the scale must be positive")

    def send(update: Update, seen: Any, key: Key) -> Update:
        return update._replace(params=update.params.map(lambda x: x * x.dtype.type(-scale)))

    return Attack(send)
