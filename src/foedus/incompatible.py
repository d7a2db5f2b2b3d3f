"""Parts that do not go together, in one table; a Job that joins two of them is refused when it is built.
Only the Job's own fields are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from foedus.errors import Incompatible
from foedus.run import times


class Row(NamedTuple):
    """Two parts that exclude one another, and what to do instead."""

    one: str
    other: str
    clash: Callable[[Any], bool]
    remedy: str


TABLE = (
    Row(
        "quorum",
        "cohort",
        lambda j: (
            j.quorum is not None
            and isinstance(j.cohort, int)
            and j.late == "drop"
            and j.quorum > times(j.over_select, j.cohort)
        ),
        "ask at least as many sites as the quorum needs: raise cohort or over_select",
    ),
    Row(
        "quorum",
        "min_sites",
        lambda j: j.quorum is not None and j.quorum < j.min_sites,
        "a round that closes at quorum updates cannot count min_sites: raise quorum or lower min_sites",
    ),
    Row(
        "late='keep'",
        "quorum=None",
        lambda j: j.late == "keep" and j.quorum is None,
        "late updates are kept only where a round may close without them: give quorum=K",
    ),
    Row(
        "over_select",
        "quorum=None",
        lambda j: j.over_select > 1 and j.quorum is None,
        "over-selection asks more sites than it needs: say how many it needs with quorum=K",
    ),
    Row(
        "best",
        "evaluate=0",
        lambda j: j.best is not None and j.evaluate == 0,
        "the best model is chosen by evaluation: let evaluate be 1 or more",
    ),
    Row(
        "stop",
        "evaluate=0",
        lambda j: j.stop is not None and j.evaluate == 0 and "wall" not in j.stop.name,
        "this stop rule reads a metric: let evaluate be 1 or more",
    ),
    Row(
        "learner=None",
        "metrics",
        lambda j: j.learner is None and bool(j.metrics),
        "metrics are measured by a learner: give one as the Job's second argument",
    ),
)


def check_parts(job: Any) -> None:
    """Raises Incompatible, by the names of both parts and with the remedy."""
    for row in TABLE:
        if row.clash(job):
            raise Incompatible(f"{row.one} and {row.other} do not go together: {row.remedy}")
