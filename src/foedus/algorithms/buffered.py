"""What asynchronous algorithms share: a Task whose round closes when a buffer is full, while slower sites go on.
Only the contract may come in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from foedus.core import Algorithm, Decline, Local, RoundContext, SiteContext, Update, Work
from foedus.errors import JobError
from foedus.keys import key
from foedus.params import Params


def buffered(buffer: int, busy: int | None) -> dict[str, Any]:
    """What such a Task says: `buffer` updates close it, and `busy` sites are at work (None: all of the cohort)."""
    for name, value in {"buffer": buffer, "busy": busy}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise JobError(f"{name}={value!r}: a whole number from 1")
    return {"quorum": buffer, "late": "keep", "busy": busy}


def size(traits: Sequence[str]) -> int:
    """How many updates fill the buffer, by the traits of an algorithm; 0 if it has none."""
    return max((int(trait.removeprefix("buffer ")) for trait in traits if trait.startswith("buffer ")), default=0)


def in_turn(context: RoundContext) -> RoundContext:
    """The same round, whose cohort is in an order drawn by key: that in which its sites begin, when others are done.

    The roster's own order would have its first sites at work again and again.
    """
    order = key(context.seed, context.round, 0, "server", "turn").numpy().permutation(len(context.cohort))
    return context._replace(cohort=[context.cohort[i] for i in order])


def alike(algorithm: Algorithm) -> Algorithm:
    """The same algorithm, each site's update weighing 1, whatever its number of examples."""
    return changed(algorithm, lambda payload, update: update._replace(weight=1.0))


def whole(payload: Params, update: Update) -> Update:
    """The update with its buffers as the site has them: how far old averages moved is no step for new ones."""
    return update._replace(params=with_buffers(update.params, lambda: payload + update.params))


def with_buffers(params: Params, other: Callable[[], Params]) -> Params:
    """The same Params with the buffers that `other` has."""
    if not any(group.endswith(":buffer") for group in params.flats):
        return params
    found = other().flats
    return Params.of(params.spec, {g: found[g] if g.endswith(":buffer") else x for g, x in params.flats.items()})


def changed(algorithm: Algorithm, change: Callable[[Params, Update], Update]) -> Algorithm:
    """The same algorithm with `change(payload, update)` in the place of each update."""

    def changing(work: Work) -> Work:
        def changed_work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update | Decline]:
            local, update = work(payload, local, site)
            return local, change(payload, update) if isinstance(update, Update) else update

        return changed_work

    return algorithm._replace(works={name: changing(work) for name, work in algorithm.works.items()})
