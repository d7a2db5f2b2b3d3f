"""Some sites of a federation only: the others take no part in training, and are measured as before.
Only the contract may come in."""

from __future__ import annotations

from collections.abc import Sequence

from foedus.core import Algorithm, Round, RoundContext, State
from foedus.errors import JobError
from foedus.keys import key


def among(algorithm: Algorithm, sites: Sequence[str] | None = None, without: Sequence[str] = ()) -> Algorithm:
    """The algorithm as if only `sites` were there (None: all), `without` some: for leaving a site out, or all but one.

    Evaluation still asks the whole roster, so that a site which was left out says what the model is worth there. A
    cohort of which nobody takes part is one of those who do, drawn by key. Raises JobError where nobody is left.
    """
    chosen, away = None if sites is None else sorted({*sites}), sorted({*without})

    def some(names: Sequence[str]) -> list[str]:
        return [name for name in names if (chosen is None or name in chosen) and name not in away]

    def round(state: State, context: RoundContext) -> Round:
        roster, cohort = some(context.roster), some(context.cohort)
        if not roster:
            raise JobError(f"among({chosen}, without={away}): none of these sites is on the roster of {context.round}")
        if not cohort:
            cohort = [roster[key(context.seed, context.round, 0, "server", "among").number() % len(roster)]]
        return algorithm.round(state, context._replace(roster=roster, cohort=cohort))

    return algorithm._replace(round=round)
