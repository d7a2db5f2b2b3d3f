"""The backend `ray`: sites on the machines of a Ray cluster, worked by actors, each of which folds its own; exact.
It differs from `processes` in how a worker is reached. Ray comes in when a crew begins, and where `cluster` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from foedus import midway
from foedus.backends.processes import Hands, check
from foedus.backends.ray import cluster
from foedus.job import Job

__all__ = ["crew"]


@contextmanager
def crew(
    job: Job,
    data: Mapping[str, Any],
    seed: int,
    workers: int | None = None,
    note: Callable[..., object] = lambda why, what="": None,
    address: str | None = None,
    resources: Mapping[str, float] | None = None,
) -> Iterator[Hands]:
    """A Crew of `workers` actors (None: as many as the cluster has room for), never more than there are sites.

    `address` is the cluster's, else RAY_ADDRESS; without either there is one on this machine, until the block ends.
    `resources` are what a site's work takes: {"cpu": 1, "gpu": 0.25, "memory": bytes, or a name of the cluster's own}.
    `note` hears of actors and nodes that died. Raises JobError for a Job that cannot be sent or a site that no node
    has room for, WireError where no cluster answers.
    """
    check(workers)
    needs = cluster.needed(resources)
    with cluster.joined(address, workers, needs):
        from foedus.backends.ray.actors import Actors, carried

        with carried():
            actors = Actors(
                (job, data, seed, midway.folder), min(workers or cluster.room(needs), len(data)), needs, note
            )
            try:
                actors.open()
                yield Hands(actors, note)
            finally:
                actors.close()
