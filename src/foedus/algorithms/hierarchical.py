"""Hierarchical averaging: Client-Edge-Cloud Hierarchical Federated Learning, Liu et al. 2020, algorithm 1 (HierFAVG).
Aggregators and the contract may come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from foedus.algorithms.fedavg import fedavg
from foedus.algorithms.mixing import mixed, side_by_side, stateful
from foedus.core import Algorithm, RoundContext, State
from foedus.errors import JobError


def hierarchical(groups: Mapping[str, Sequence[str]], rounds: int = 2, base: Algorithm | None = None) -> Algorithm:
    """Each group has so many rounds of `base` on its own, then their models are averaged by what they trained on.

    `groups`: {edge: its sites}; who is in none is one of its own. A group that nobody is left of is passed by. With one
    round a group only folds, and a tree of exact folds has the bits of `base`: so it is what comes back.
    """
    method = fedavg() if base is None else base
    twice = [site for site, n in Counter(site for sites in groups.values() for site in sites).items() if n > 1]
    if twice or not isinstance(rounds, int) or rounds < 1:
        raise JobError(
            f"hierarchical(rounds={rounds!r}): a whole number, at least 1"
            if not twice
            else f"hierarchical: site {twice[0]!r} is in two groups; keep it in one"
        )

    def round(state: State, context: RoundContext) -> Any:
        inside = [context._replace(roster=sites, cohort=sites) for sites in divided(groups, context.cohort)]
        states: dict[int, State] = dict.fromkeys(range(len(inside)), state)
        weights: dict[int, float] = {}
        for _ in range(rounds):
            found = yield from side_by_side({i: method.round(states[i], here) for i, here in enumerate(inside)})
            states |= {i: new for i, (new, _) in found.items()}
            weights |= {i: weight for i, (_, weight) in found.items()}
        if not weights:  # asks as any Task does: the run pauses, and says why
            return (yield from method.round(state, context))
        return mixed([states[i] for i in weights], list(weights.values()))

    return method if rounds == 1 else method._replace(round=round, traits=("edges", *method.traits, *stateful(method)))


def divided(groups: Mapping[str, Sequence[str]], sites: Sequence[str]) -> list[list[str]]:
    """These sites by group, in the order of the groups, and each of the others alone."""
    known = {site for members in groups.values() for site in members}
    found = [[site for site in sites if site in members] for members in map(set, groups.values())]
    return [members for members in [*found, *([site] for site in sites if site not in known)] if members]
