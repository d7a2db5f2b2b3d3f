"""Inner-product manipulation: Fall of Empires, Xie et al. 2020, section 4. Only the contract may come in."""

from __future__ import annotations

from foedus.attacks.attacked import Attack, Seen, replaced
from foedus.core import Update
from foedus.errors import JobError
from foedus.keys import Key


def inner_product(epsilon: float = 0.5) -> Attack:
    """All attackers send -epsilon times the mean of their own honest updates, so that the total points backwards.

    The paper's attackers know the honest sites' updates, these only their own. A small epsilon passes where distances
    are compared (Krum), a large one turns a mean.
    """
    if not epsilon > 0:
        raise JobError(f"inner_product({epsilon}): epsilon must be positive")

    def send(update: Update, seen: Seen, key: Key) -> Update:
        return replaced(update, {name: -epsilon * x for name, x in seen.mean.items()})

    return Attack(send, colludes=True)
