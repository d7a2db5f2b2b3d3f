"""`fd.participation`: who is asked in a round, a pure function of the round's roster, drawn by key.
The contract may come in; the round loop asks a rule, and journals what it drew before anybody is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from foedus import pool
from foedus.algorithms.rounds import losses
from foedus.core import Algorithm, Local, RoundContext, SiteContext, State, Task, Total, Update
from foedus.errors import JobError
from foedus.keys import Key, key
from foedus.params import Params

Rule = Callable[[RoundContext], Sequence[str]]  # its roster has the sites that can be asked, in order; no cohort yet
Of = Mapping[str, Any] | Callable[[str], Any]  # what is known of each site, by its name

CANDIDATES = "candidates"  # the work that tells a site's loss
TOLD = "train_candidates"  # what it is called in the history
MOST_MOMENTS = 1000  # that are looked at until enough sites are there


class Participation(NamedTuple):
    """A rule, and what a Job has to know of it."""

    draw: Rule
    trains: int | None = None  # how many sites train in a round, where that is known
    by_loss: bool = False  # whether these are the ones with the highest losses of all that are drawn
    turns: int = 1  # rounds from one time that a site takes part to the next, at least

    def __call__(self, context: RoundContext) -> Sequence[str]:
        return self.draw(context)


Cohort = int | float | Rule | Participation | None  # a count, a share, a rule, or everybody


def uniform(cohort: int | float) -> Participation:
    """So many of the roster (a count, or a share of it), each as likely as any other: what `Job(cohort=…)` does."""
    check("uniform", cohort)

    def draw(context: RoundContext) -> Sequence[str]:
        return picked(lots(context), context.roster, counted(cohort, len(context.roster)))

    return Participation(draw, _known(cohort))


def weighted(cohort: int | float, weights: Of) -> Participation:
    """So many of the roster, drawn one after another in proportion to their weights; a site of weight 0 never is.

    `weights`: site -> number, as a mapping or a function. Where these are numbers of examples, and updates count by
    examples too, large sites count twice: `foedus.algorithms.alike(algorithm)` counts all updates alike.
    """
    check("weighted", cohort)

    def draw(context: RoundContext) -> Sequence[str]:
        w = np.array([_weight(weights, site) for site in context.roster])
        count = min(counted(cohort, len(w)), int((w > 0).sum()))
        waits = lots(context).numpy().standard_exponential(len(w))  # who waits the shortest is drawn first
        at = np.argsort(np.divide(waits, w, out=np.full(len(w), np.inf), where=w > 0), kind="stable")
        return [context.roster[i] for i in sorted(at[:count])]

    return Participation(draw, _known(cohort))


def stratified(cohort: int | float | Mapping[Any, int | float], by: Of) -> Participation:
    """So many of each stratum: in proportion to its size, or, given a mapping stratum -> count or share, as that says.

    `by`: site -> stratum, as a mapping or a function. In proportion means by largest remainders: no stratum is more
    than one site off its share.
    """
    each = list(cohort.values()) if isinstance(cohort, Mapping) else [cohort]
    for one in each:
        check("stratified", one)

    def draw(context: RoundContext) -> Sequence[str]:
        strata: dict[Any, list[str]] = {}
        for site in context.roster:
            strata.setdefault(_of(by, site, "stratified(by=…)"), []).append(site)
        counts = _counts(cohort, {name: len(strata[name]) for name in sorted(strata, key=str)})
        drawn = [picked(lots(context)(str(name)), strata[name], count) for name, count in counts.items()]
        return sorted(site for sites in drawn for site in sites)

    whole = [one for one in each if isinstance(one, int)]
    return Participation(draw, sum(whole) if len(whole) == len(each) else None)


def in_turns(turns: int, of: Of | None = None) -> Participation:
    """Each site once in `turns` rounds, in a turn of its own: never sooner, whoever joins or leaves.

    `of`: site -> its turn, from 0, as a mapping or a function; without it a key says it, and where sites are few a turn
    may be nobody's.
    """
    if type(turns) is not int or turns < 1:
        raise JobError(f"in_turns({turns!r}): give a whole number of rounds, 1 or more")

    def draw(context: RoundContext) -> Sequence[str]:
        return [site for site in context.roster if _turn(of, site, turns, context.seed) == context.round % turns]

    return Participation(draw, turns=turns)


def _turn(of: Of | None, site: str, turns: int, seed: int) -> int:
    if of is None:
        return key(seed, 0, 0, site, "turn").number() % turns
    found = _of(of, site, "in_turns(of=…)")
    if not isinstance(found, int) or not 0 <= found < turns:
        raise JobError(f"in_turns(of=…): site {site!r} has turn {found!r}; give a whole number from 0 to {turns - 1}")
    return found


def available(
    there: float | Mapping[str, float] | Callable[..., float], cohort: Cohort = None, least: int = 1
) -> Participation:
    """The rule `cohort`, among the sites that are there in a round.

    `there`: the probability that a site is, for all, site -> number, or a function (site, round) -> number; so True and
    False of a function say it for sure. Where fewer than `least` are there, a later moment is looked at. In a
    simulation with a clock, `fd.clock(available=…)` says it by seconds.
    """
    inner = of(cohort)

    def draw(context: RoundContext) -> Sequence[str]:
        shares = [_share(there, site, context.round) for site in context.roster]
        for moment in range(MOST_MOMENTS):
            draws = (key(context.seed, context.round, moment, site, "there").number() for site in context.roster)
            here = [site for site, n, x in zip(context.roster, draws, shares, strict=True) if n / 2**63 < x]
            if len(here) >= least:
                return inner(context._replace(roster=here))
        return []

    return inner._replace(draw=draw)


def power_of_choice(candidates: int, chosen: int, weights: Of | None = None) -> Participation:
    """Those `chosen` with the highest loss of the round's model among `candidates` (Cho et al. 2020, pi_pow-d).

    Candidates are drawn by `weights` (the paper: the sites' shares of all examples), or alike; each tells its loss on
    its training part, in a Task of its own, before the algorithm's round begins.
    """
    for name, count in {"candidates": candidates, "chosen": chosen}.items():
        if not isinstance(count, int):
            raise JobError(f"power_of_choice({name}={count!r}): give a whole number of sites")
    if not 1 <= chosen <= candidates:
        raise JobError(f"power_of_choice({candidates}, {chosen}): at least one is chosen, and no more than candidates")
    drawn = uniform(candidates) if weights is None else weighted(candidates, weights)
    return Participation(drawn.draw, chosen, True)


def by_loss(algorithm: Algorithm, chosen: int) -> Algorithm:
    """The same algorithm, each round by those `chosen` of its cohort at which its model has the highest losses."""

    def round(state: State, context: RoundContext) -> Any:
        model = algorithm.params(state)
        total = yield Task(CANDIDATES, model, context.cohort, quorum=0, late="drop", returns=())
        return (yield from algorithm.round(state, context._replace(cohort=highest(total, chosen, context))))

    works = {**algorithm.works, CANDIDATES: telling}
    return algorithm._replace(round=round, works=works, traits=(*algorithm.traits, "loss", "chooses"))


def telling(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """The work that tells the loss of a model on a site's training part, and changes nothing."""
    return local, Update(Params({}), metrics={TOLD: losses(site, payload)})


def highest(total: Total, chosen: int, context: RoundContext) -> list[str]:
    """The sites with the highest mean losses, in order; among equals a key decides. What is no number is the lowest."""

    def place(site: str, sums: Any) -> tuple[float, int]:
        mean = float(sums[0] / sums[1])
        tie = key(context.seed, context.round, 0, site, "choice").number()
        return (math.inf if math.isnan(mean) else -mean), tie

    told = [(place(o.site, o.metrics[TOLD]), o.site) for o in total.outcomes if o.status == "counted"]
    return sorted(site for _, site in sorted(told)[:chosen])


def drawn(cohort: Cohort, context: RoundContext) -> Sequence[str]:
    """What a rule draws, in the order of the roster. Raises JobError for names that are not in it."""
    found = of(cohort).draw(context)
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise JobError(f"cohort=…: the rule returned {type(found).__name__}; return a list of the roster's names")
    strangers = [site for site in found if not isinstance(site, str) or not pool.among(context.roster, site)]
    if strangers:
        raise JobError(f"cohort=…: the rule returned {strangers[0]!r}, which is not in context.roster")
    if len(set(found)) < len(found):
        raise JobError("cohort=…: the rule returned a site twice; return each once")
    return sorted(found)


def of(cohort: Cohort) -> Participation:
    """The rule that a Job's `cohort` is."""
    if isinstance(cohort, Participation):
        return cohort
    if isinstance(cohort, (int, float)):
        return uniform(cohort)
    return Participation(cohort or (lambda context: context.roster))


def check(name: str, cohort: Any) -> None:
    """Raises JobError for what is neither a count nor a share of sites."""
    good = cohort >= 1 if isinstance(cohort, int) else isinstance(cohort, float) and 0 < cohort <= 1
    if isinstance(cohort, bool) or not good:
        raise JobError(f"{name}({cohort!r}): a whole number counts sites, a float in (0, 1] is a share")


def counted(cohort: int | float, sites: int) -> int:
    """How many of so many sites that is, before over-selection."""
    return min(sites, cohort if isinstance(cohort, int) else max(1, times(cohort, sites)))


def lots(context: RoundContext) -> Key:
    """The key of a round's cohort."""
    return key(context.seed, context.round, 0, "server", "cohort")


def picked(random: Key, roster: Sequence[str], count: int) -> Sequence[str]:
    """So many of the roster, in its order; a few out of a million cost what they cost out of a thousand."""
    if count >= len(roster):
        return roster
    return [roster[i] for i in np.sort(random.lent().choice(len(roster), count, replace=False)).tolist()]


def times(share: float, count: int) -> int:
    """`share` of `count`, rounded up; 1.1 of 10 is 11, although the float 1.1 is a little more than 11/10."""
    return count if share == 1 else math.ceil(Fraction(str(share)) * count)


def _counts(cohort: int | float | Mapping[Any, int | float], sizes: Mapping[Any, int]) -> dict[Any, int]:
    """stratum -> how many of it are drawn."""
    if isinstance(cohort, Mapping):
        return {name: counted(cohort[name], size) for name, size in sizes.items() if name in cohort}
    everybody = sum(sizes.values())
    count = counted(cohort, everybody)
    parts = {name: divmod(count * size, everybody) for name, size in sizes.items()}
    left = count - sum(whole for whole, _ in parts.values())
    more = sorted(parts, key=lambda name: -parts[name][1])[:left]
    return {name: whole + (name in more) for name, (whole, _) in parts.items()}


def _known(cohort: int | float) -> int | None:
    return cohort if isinstance(cohort, int) else None


def _of(known: Of, site: str, what: str) -> Any:
    if callable(known):
        return known(site)
    if site not in known:
        raise JobError(f"{what} does not name site {site!r}: name all sites of the roster, or give a function")
    return known[site]


def _weight(weights: Of, site: str) -> float:
    found = float(_of(weights, site, "weighted(weights=…)"))
    if not 0 <= found < math.inf:
        raise JobError(f"weighted(weights=…): site {site!r} has weight {found}; give a finite number of 0 or more")
    return found


def _share(there: Any, site: str, round: int) -> float:
    if callable(there):
        found = float(there(site, round))
    else:
        found = float(_of(there, site, "available(there=…)") if isinstance(there, Mapping) else there)
    if not 0 <= found <= 1:
        raise JobError(f"available(there=…): site {site!r} is there with probability {found}; give one from 0 to 1")
    return found
