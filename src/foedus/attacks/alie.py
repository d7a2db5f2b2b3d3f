"""ALIE: A Little Is Enough, Baruch et al. 2019, algorithm 3. Only the contract may come in."""

from __future__ import annotations

from statistics import NormalDist

from foedus.attacks.attacked import Attack, Seen, replaced
from foedus.core import Update
from foedus.keys import Key


def alie(z: float | None = None) -> Attack:
    """All attackers send mean - z * deviation of their own honest updates: too little to stand out, and enough.

    z by default is as large as the paper lets it be, so that enough honest updates are further from the mean. Few
    attackers among few sites give 0, the mean itself; one alone knows no deviation, and sends what it has.
    """

    def send(update: Update, seen: Seen, key: Key) -> Update:
        far = largest(seen.asked, seen.attackers) if z is None else z
        return replaced(update, {name: x - far * seen.deviation[name] for name, x in seen.mean.items()})

    return Attack(send, colludes=True)


def largest(sites: int, attackers: int) -> float:
    """z_max: with s = floor(n / 2 + 1) - m supporters to win, the largest z with phi(z) < (n - m - s) / (n - m)."""
    honest = sites - attackers
    supporters = max(1, sites // 2 + 1 - attackers)
    return max(0.0, NormalDist().inv_cdf((honest - supporters) / honest)) if honest > supporters else 0.0
