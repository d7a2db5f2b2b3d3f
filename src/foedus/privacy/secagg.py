"""Secure aggregation as a Job asks for it: each Task of updates becomes a sum of integers that masks may cover.
The contract and aggregators may come in; the protocol that masks lies in `masking`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from foedus.aggregators import mean
from foedus.aggregators.fixed import Fixed, fixed
from foedus.aggregators.folding import bound
from foedus.core import Algorithm, Local, Outcome, RoundContext, SiteContext, State, Sum, Task, Update
from foedus.errors import Incompatible, JobError
from foedus.params import Leaf, Params
from foedus.play import each

BOUND = 8.0  # of a number of an update where nothing clips it
ROOM = 1 + 2.0**-7  # a clip's rounding to any dtype stays within it
LEAST = 3  # sites of a sum: of two, each would learn the other's update
ROWS = "rows"  # the work that tells how many training rows a site has
TOLD = (Leaf("rows", (), "int64", "integer"),)
TRAIT = "clip "  # an algorithm's trait "clip C": no trainable array of an update has a norm above C


class Secagg(NamedTuple):
    """What a Job says of secure aggregation; see `secagg`."""

    bound: float | None = None
    wmax: float | None = None
    threshold: int | None = None
    masks: bool = True
    shown: bool = False  # of a study, which is a simulation and reads what each site measures

    def needed(self, asked: int) -> int:
        """How many of so many sites must go to the end with a sealed Task."""
        return max(self.threshold or majority(asked), LEAST)

    def largest(self, traits: Sequence[str]) -> float:
        """The bound of a number: as given, else from the algorithm's clip, else 8."""
        clips = [float(trait.removeprefix(TRAIT)) for trait in traits if trait.startswith(TRAIT)]
        return self.bound or (min(clips) * ROOM if clips else BOUND)

    @property
    def word(self) -> str:
        """What a submission signs; without masks nothing is protected."""
        return "secagg" if self.masks else ""

    def said(self, traits: Sequence[str]) -> str:
        """What is told of it when a run begins."""
        source = "bound=…" if self.bound else "its clip" if self.largest(traits) != BOUND else "the default of bound=…"
        heaviest = "the most rows of a site" if self.wmax is None else f"{self.wmax:g}"
        word = "secagg" if self.masks else "secagg without masks, which hides nothing"
        if "exact" in traits:
            return f"{word}: numbers are summed exactly, whatever their size; what is shown is of all sites together"
        return (
            f"{word}: an update's numbers lie within {self.largest(traits):g} ({source}), its weight is at most "
            f"{heaviest} (wmax=…), and an update beyond is refused; metrics are known of all sites together"
        )


class Seal(NamedTuple):
    """What a sealed Task has in `Task.seal`: how many sites must go to the end, whether masks are added, the ring."""

    threshold: int
    masks: bool
    bound: float
    wmax: float


def secagg(
    bound: float | None = None, wmax: float | None = None, threshold: int | None = None, masks: bool = True
) -> Secagg:
    """Secure aggregation: the server sees only the sum of the sites' updates (Bonawitz et al. 2017).

    `bound`: the largest absolute value of an update's number (None: from `fd.clip`, else 8). `wmax`: the largest weight
    (None: the largest count of training rows that sites announce, rounded up to a power of two). `threshold`: how many
    sites must go to the end (None: ⌊2n/3⌋+1 of n asked). `masks=False`: the same arithmetic and bits, in the clear.
    """
    for name, value in (("bound", bound), ("wmax", wmax)):
        if value is not None and not 0 < value < math.inf:
            raise JobError(f"secagg({name}={value!r}): it must be positive and finite")
    if threshold is not None and (type(threshold) is not int or threshold < LEAST):
        raise JobError(f"secagg(threshold={threshold!r}): a whole number of sites, {LEAST} or more")
    if type(masks) is not bool:
        raise JobError(f"secagg(masks={masks!r}): it is True or False")
    return Secagg(bound and float(bound), wmax and float(wmax), threshold, masks)


def announced(roster: Sequence[str], wmax: float, known: Collection[str]) -> Any:
    """Asks those whom nobody has asked yet for their rows: the largest weight now, and who is known."""
    new = [site for site in roster if site not in known]
    total = yield Task(ROWS, Params({}), new, quorum=0, late="drop", returns=TOLD, least=0 if wmax else None)
    told = {outcome.site for outcome in total.outcomes if outcome.status == "counted"}
    return max(wmax, float(total.params["rows"]) if total.count else 0.0), {*known, *told}


def majority(count: int) -> int:
    """⌊2n/3⌋+1: of two groups of so many, more than a third is in both, so an honest site is, if fewer collude."""
    return 2 * count // 3 + 1


def sealed(algorithm: Algorithm, how: Secagg, least: int = 1, quorum: int | None = None) -> Algorithm:
    """The same algorithm, every Task of its works sealed; `least` and `quorum` are the Job's.

    Where the largest weight is not given, sites tell how many rows they have, rounded up to a power of two, in a Task
    of its own before the first round, and newcomers before theirs.
    """
    largest = how.largest(algorithm.traits)

    def round(state: State, context: RoundContext) -> Any:
        inner, wmax, known = state["inner"], state["wmax"], set(state["known"])
        if how.wmax is None and not known.issuperset(context.roster):
            wmax, known = yield from announced(context.roster, wmax, known)
        ring = fixed(largest, wmax)
        inner = yield from each(algorithm.round(inner, context), lambda task: seal(task, how, ring, least, quorum))
        return {"inner": inner, "wmax": wmax, "known": sorted(known)}

    return algorithm._replace(
        init=lambda params: {"inner": algorithm.init(params), "wmax": how.wmax or 0.0, "known": []},
        round=round,
        works={**algorithm.works, ROWS: announcing},
        params=lambda state: algorithm.params(state["inner"]),
        measure=algorithm.measure and partial(_measured, algorithm.measure, measuring(how, least)),
    )


def visible(privacy: Sequence[Any]) -> list[Any]:
    """The same protections, of which what sites measure is seen site by site; the model has the same bits."""
    return [part._replace(shown=True) if isinstance(part, Secagg) else part for part in privacy]


def _measured(measure: Any, change: Callable[[Task], Task], state: State, context: RoundContext) -> Any:
    """How the algorithm measures itself, every Task sealed; its Totals are all that is made of it."""
    return each(measure(state["inner"], context), change)


def announcing(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """The work that tells how many training rows there are, rounded up to a power of two."""
    rows = max(1, len(site.split.train))
    return local, Update(Params({"rows": np.int64(1 << (rows - 1).bit_length())}))


def seal(task: Task, how: Secagg, ring: Fixed, least: int = 1, quorum: int | None = None) -> Task:
    """The Task with its seal and the arithmetic that it needs. Raises Incompatible, JobError."""
    check_task(task)
    asked, quorum = len(task.sites), (task.quorum if task.quorum is not None else quorum) or None
    needed = how.needed(asked)
    if asked < needed:
        raise JobError(f"task {task.work!r} asks {asked} sites, and a sealed one needs {needed}: let more take part")
    if needed < majority(asked):
        raise JobError(f"threshold {needed} of {asked} sites: take {majority(asked)} or more, or threshold=None")
    if quorum is not None and quorum < needed:
        raise JobError(
            f"task {task.work!r} would close at {quorum} of {asked} updates, and a sealed one needs {needed}: "
            "raise quorum"
        )
    own = task.aggregator if isinstance(task.aggregator, Sum) and task.aggregator.bind else None
    rule = own or mean(arithmetic=ring)
    ours, _ = bound(rule, asked).ring
    fewest = max(needed, min(task.least if task.least is not None else least, asked))
    return task._replace(aggregator=rule, seal=Seal(needed, how.masks, *ours), least=fewest)


def ring_of(largest: float, wmax: float, sites: int) -> Sum:
    """The arithmetic of a sealed Task that so many sites are asked for."""
    found: Sum = bound(mean(arithmetic=fixed(largest, wmax)), sites)
    return found


def measuring(how: Secagg, least: int = 1) -> Callable[[Task], Task]:
    """What seals a Task that only measures: it has no arrays, and its weights have all the room that there is."""
    return lambda task: task if how.shown else seal(task, how, fixed(1.0, 2.0**64), least)


def masked(task: Task) -> bool:
    """Whether the Task's updates are masked between real sites."""
    return task.seal is not None and bool(task.seal.masks)


def hidden(task: Task, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes as they are known under the Task's seal, if it has one: nobody's weight, nobody's metrics."""
    if task.seal is None:
        return list(outcomes)
    return [outcome._replace(weight=0.0, metrics={}) for outcome in outcomes]


def check_task(task: Task) -> None:
    """Raises Incompatible for a Task whose updates are no words that can be added up."""
    rule, name = task.aggregator, f"task {task.work!r}"
    if task.letters:
        raise Incompatible(f"secagg and {name} do not go together: it sends sites different models")
    if rule is not None and rule.opened is not None:
        raise Incompatible(f"secagg and a compression do not go together: {name}'s updates are read one by one")
    if rule is not None and not _added(rule):
        raise Incompatible(f"secagg and the aggregator of {name} do not go together: leave out aggregator=…")
    whole = [
        leaf.name for leaf in (task.payload.spec if task.returns is None else task.returns) if leaf.kind == "integer"
    ]
    if whole:
        remedy = "take layers without counters (GroupNorm, or BatchNorm with track_running_stats=False)"
        raise Incompatible(f"secagg and the integer array {whole[0]!r} of {name} do not go together: {remedy}")


def _added(rule: Any) -> bool:
    """Whether it is a plain mean, in the arithmetic of all others or in fixed."""
    if not isinstance(rule, Sum) or rule.weigh is not mean().weigh:
        return False
    return rule == mean() or (rule.bind is not None and rule.bind(LEAST).ring is not None)
