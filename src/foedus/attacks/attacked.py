"""An algorithm some of whose sites lie. Attacks come in as values; honest sites do what they always do.
The contract, the mean and the saved form may come in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from foedus import frames
from foedus.aggregators import mean
from foedus.core import Algorithm, Decline, Local, RoundContext, SiteContext, State, Task, Update, Work
from foedus.errors import JobError
from foedus.keys import Key, key
from foedus.params import Params, Spec, join
from foedus.play import played

HONEST = "honest"  # the work of attackers who look at what they would send if they were honest


class Seen(NamedTuple):
    """What a Task's attackers know together: the honest updates of their own data, and how many sites were asked."""

    mean: Params  # float64, of trainable arrays
    deviation: Params
    attackers: int
    asked: int


class Attack(NamedTuple):
    """What a lying site does: it learns from other data, sends something else, or both."""

    send: Callable[[Update, Any, Key], Update] = lambda update, seen, key: update  # (honest update, Seen | None, key)
    learn: Callable[[Any, Key], Any] = lambda split, key: split  # (split, key) -> split, the same in every round
    colludes: bool = False  # whether it needs to know what the other attackers would send


def attacked(
    algorithm: Algorithm,
    attacks: Mapping[str, Attack] | None = None,
    *,
    share: float | None = None,
    attack: Attack | None = None,
) -> Algorithm:
    """The same algorithm, some of whose sites lie: `{site: attack}`, or a `share` of the roster, drawn by key.

    Attackers who collude are asked twice: first, in a Task of their own, what they would send honestly (compressed, if
    the Job is). They know nothing of honest sites, the weakest of the published assumptions (Baruch et al. 2019), so
    this runs anywhere.
    """
    named = dict(attacks or {})
    if bool(named) == (share is not None) or (share is None) != (attack is None):
        raise JobError("attacked(algorithm, {site: attack}), or attacked(algorithm, share=0.2, attack=…)")
    if share is not None and not 0 < share <= 1:
        raise JobError(f"attacked(share={share}): a share of the sites, in (0, 1]")
    colluding = any(a.colludes for a in (attack, *named.values()) if a is not None)

    def liars(context: RoundContext) -> dict[str, Attack]:
        if attack is None or share is None:
            strangers = sorted(set(named) - set(context.roster)) if context.round == 0 else []
            if strangers:
                raise JobError(f"attacked: there is no site {strangers[0]!r} in round 0: {', '.join(context.roster)}")
            return named
        return dict.fromkeys(drawn(context.seed, share, context.roster), attack)

    def round(state: State, context: RoundContext) -> Any:
        lying = liars(context)

        def ask(tasks: list[Task]) -> Any:
            told = []
            for task in tasks:
                told.append((yield from _informed(task, lying)) if task.work in algorithm.works else task)
            return (yield told)

        return played(algorithm.round(state, context), ask)

    works = {name: _lying(work, named, attack) for name, work in algorithm.works.items()}
    honest = {f"{name}/{HONEST}": _looking(work) for name, work in algorithm.works.items()} if colluding else {}
    traits = (*algorithm.traits, *(["colludes"] if colluding else []))
    return algorithm._replace(round=round, works=works | honest, traits=traits)


def drawn(seed: int, share: float, roster: Sequence[str]) -> list[str]:
    """The attackers of a roster, at least one; a site that joins or leaves changes few of the others."""
    order = sorted(roster, key=lambda site: key(seed, "attack", 0, site).number())
    return sorted(order[: max(1, math.floor(share * len(roster)))])


def _informed(task: Task, lying: Mapping[str, Attack]) -> Any:
    """The Task as sites are sent it: with the names of its liars, and what those who collude have seen."""
    liars = [site for site in task.sites if site in lying]
    spies = [site for site in liars if lying[site].colludes]
    returns = task.payload.spec if task.returns is None else task.returns
    seen = None
    if spies:
        looks = task._replace(
            work=f"{task.work}/{HONEST}",
            **_noted(task, spies, None),
            sites=spies,
            aggregator=mean(),
            quorum=None,
            late="drop",
            busy=None,
            returns=_squared(returns),
        )
        (total,) = yield [looks]
        seen = [total.params, len(spies), len(task.sites)]
    return task._replace(**_noted(task, liars, seen), returns=returns)


def _noted(task: Task, liars: Sequence[str], seen: Any) -> dict[str, Any]:
    note = Params({"note": np.frombuffer(frames.pack({"liars": list(liars), "seen": seen}).bytes(), np.uint8)})
    letters = {site: join(w=letter, a=note) for site, letter in task.letters.items()}
    return {"payload": join(w=task.payload, a=note), "letters": letters}


def _lying(work: Work, named: Mapping[str, Attack], shared: Attack | None) -> Work:
    def lying(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update | Decline]:
        note = frames.unpack(payload["a/note"].tobytes())
        attack = named.get(site.name, shared) if site.name in note["liars"] else None
        if attack is None:
            return work(payload.part("w"), local, site)
        split = attack.learn(site.split, key(site.key.names[0], "attack", 0, site.name))  # type: ignore[arg-type]
        local, update = work(payload.part("w"), local, site._replace(split=split))
        if isinstance(update, Decline):
            return local, update
        seen = None if note["seen"] is None else _seen(*note["seen"])
        return local, attack.send(update, seen, site.key("attack"))

    return lying


def _looking(work: Work) -> Work:
    """Work that returns an honest update and its square, which nobody counts."""

    def looking(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update | Decline]:
        local, update = work(payload.part("w"), local, site)
        if isinstance(update, Decline):
            return local, update
        x = {name: a.astype(np.float64) for name, a in update.params.trainable().items()}
        return local, Update(join(x=Params(x), xx=Params({name: a * a for name, a in x.items()})))

    return looking


def _squared(spec: Spec) -> Spec:
    """What `_looking` returns where the work returns arrays of `spec`."""
    leaves = [leaf._replace(dtype="float64", sent="") for leaf in spec if leaf.kind == "trainable"]
    return tuple(leaf._replace(name=f"{tag}/{leaf.name}") for tag in ("x", "xx") for leaf in leaves)


def _seen(moments: Params, attackers: int, asked: int) -> Seen:
    average = moments.part("x")
    spread = average.map(lambda x, xx: np.sqrt(np.maximum(0, xx - x * x)), moments.part("xx"))
    return Seen(average, spread, attackers, asked)


def replaced(update: Update, trainable: Mapping[str, Any]) -> Update:
    """The update with these arrays in place of its trainable ones, in their dtypes."""
    arrays = {name: trainable[name].astype(x.dtype) if name in trainable else x for name, x in update.params.items()}
    return update._replace(params=Params(arrays, update.params.kinds))
