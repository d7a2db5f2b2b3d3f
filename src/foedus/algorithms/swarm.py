"""Swarm learning: Swarm Learning for decentralized and confidential clinical machine learning. Warnat-Herresthal et al.
2021. Each round another site combines; the server hands on what it cannot read. Only relays may come in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from foedus.aggregators import Folding, each, mean
from foedus.algorithms import relayed
from foedus.algorithms.exchange import COUNTED, counting, note_of
from foedus.algorithms.fedavg import fedavg
from foedus.algorithms.mixing import stateful
from foedus.algorithms.relayed import heard, letter, letter_spec, named, packed, packed_size, unpacked, written
from foedus.core import (
    Algorithm,
    Decline,
    Local,
    Origin,
    Personal,
    RoundContext,
    SiteContext,
    State,
    Task,
    Total,
    Update,
)
from foedus.errors import JobError, Paused, Refused
from foedus.params import Params, Spec, join


def swarm(base: Algorithm | None = None, **task: Any) -> Algorithm:
    """`base` (fedavg, fedprox, moon) without a server that sees models: sites combine in turn and write to one another.

    A key draws who combines in each round; where that site is gone, the next one of the cohort does. Updates are
    encrypted for it, and the model that it makes of them for everybody. What a run ends with is at the sites alone, as
    their own models, which are all the same. Who combines reads the others' updates of its round.
    """
    method = fedavg() if base is None else base
    based = ["personal base"] if method.personal else []

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update | Decline]:
        said = payload.part("said")
        note = note_of(said)
        return DO[note["do"]](Asked(method, said, note, payload.part("start")), local, site)

    def round(state: State, context: RoundContext) -> Any:
        start, keys = state["start"], (yield from relayed.introductions(state["keys"], context.roster))
        there, cohort = ([site for site in sites if site in keys] for sites in (context.roster, context.cohort))
        relay = Relay(context, keys, relayed.spec_of(state["spec"]))
        if state["begun"]:
            holders = [site for site in there if site in state["holders"]]
            lacking = [site for site in cohort if site not in holders]
            welcome = yield from relay.welcomed(holders, lacking)
            start, cohort = None, [site for site in cohort if site in {*holders, *welcome}]
            there = [site for site in there if site not in lacking or site in welcome]
        if not cohort:
            raise Paused(f"round {context.round}: no site that has the model is there; resume the run when one is back")
        holders = yield from relay.combined(cohort, there, start, task)
        return {"begun": True, "keys": keys, "holders": holders, "start": Params({}), "spec": state["spec"]}

    def init(params: Params) -> State:
        start = params.widen()
        return {"begun": False, "keys": {}, "holders": [], "start": start, "spec": [list(leaf) for leaf in start.spec]}

    return Algorithm(
        init,
        round,
        {"train": work, relayed.INTRODUCE: relayed.introducing},
        lambda state: Params({}),
        ("swarm", *relayed.TRAITS, *method.traits, *stateful(method), *based),
        Personal(lambda nothing, local: local["model"].narrow(), alone=True),
    )


class Relay(NamedTuple):
    """The server's part in a round: who is asked for what, and whose letters go where."""

    context: RoundContext
    keys: relayed.Keys
    spec: Spec

    def combined(self, cohort: Sequence[str], there: Sequence[str], start: Params | None, task: Any) -> Any:
        """Who has the new model: trained by the cohort, combined by one of it, and sent to all who are there."""
        order = relayed.turns(self.context, cohort)
        begin = {} if start is None else {"start": start.narrow()}
        narrow = tuple(leaf._replace(dtype=leaf.sent or leaf.dtype, sent="") for leaf in self.spec)
        returns, to = letter_spec(packed_size(narrow), 1), order[0]
        first = join(said=self._said({"do": "train", "to": to}, [to]), **begin)
        total = yield Task("train", first, cohort, each(), returns=returns, **task)
        sent, gone = total.apart, {outcome.site for outcome in total.outcomes if outcome.status == "lost"}
        there = [site for site in there if site not in gone]  # nobody waits for them twice
        for one in [site for site in order if site in sent]:
            if one != to:
                again = join(said=self._said({"do": "seal", "to": one}, [one]))
                sent = (yield Task("train", again, sorted(sent), each(), quorum=0, returns=returns, least=0)).apart
            if one in sent:
                letters = {site: letter(wrote, 0) for site, wrote in sent.items()}
                payload = join(said=self._said({"do": "combine", "to": there}, {*sent, *there}, letters))
                if wrote := (yield from self._wrote(payload, one, len(there))):
                    return (yield from self._received("model", there, one, wrote))
            to = one
        raise Paused(f"round {self.context.round}: no site combined the updates; resume the run when they are back")

    def welcomed(self, holders: Sequence[str], lacking: Sequence[str]) -> Any:
        """Those of the newcomers to whom one who has the model gave it."""
        for one in relayed.turns(self.context, holders) if lacking else ():
            payload = join(said=self._said({"do": "welcome", "to": lacking}, lacking))
            if wrote := (yield from self._wrote(payload, one, len(lacking))):
                return (yield from self._received("welcome", lacking, one, wrote))
        return []

    def _wrote(self, payload: Params, site: str, readers: int) -> Any:
        returns = letter_spec(packed_size(self.spec), readers)
        total = yield Task("train", payload, [site], each(), returns=returns, late="drop", least=0)
        return total.apart.get(site)

    def _received(self, matter: str, readers: Sequence[str], sender: str, wrote: Params) -> Any:
        """Those who have what a site wrote to them."""
        note = {"do": "receive", "matter": matter, "spec": [list(leaf) for leaf in self.spec]}
        said = {site: self._said(note, [sender], {sender: letter(wrote, i)}) for i, site in enumerate(readers)}
        how: dict[str, Any] = {"quorum": 0, "late": "drop", "least": 0, "returns": COUNTED}
        letters = {site: join(said=x) for site, x in said.items()}
        total = yield Task("train", letters[readers[0]], readers, each(), letters=letters, **how)
        return sorted(total.apart)

    def _said(
        self, note: Mapping[str, Any], names: Iterable[str], letters: Mapping[str, Params] | None = None
    ) -> Params:
        keys = {name: self.keys[name] for name in sorted(names)}
        return relayed.told({**note, "round": self.context.round}, keys, letters or {})


# ---- at a site -------------------------------------------------------------------------------------------------------
class Asked(NamedTuple):
    """What a site was asked for."""

    base: Algorithm
    payload: Params
    note: Mapping[str, Any]
    start: Params

    def about(self, what: str) -> str:
        return f"{what} {self.note['round']}"

    def keys(self) -> dict[str, bytes]:
        return named(self.payload, self.note)

    def heard(self, site: SiteContext, sender: str, what: str) -> bytes:
        return heard(site, self.payload, self.note, sender, self.about(what))

    def alone(self, site: SiteContext, model: Params, names: Sequence[str]) -> Any:
        """A round of the base algorithm, as its server would begin it with these sites."""
        return self.base.round(model, RoundContext(int(site.key.names[0]), self.note["round"], names, names))


def _train(asked: Asked, local: Local, site: SiteContext) -> tuple[Local, Update | Decline]:
    """Trains, keeps its update until the round is over, and writes it to the one who combines."""
    known = local or {"model": asked.start.widen(), "base": None}
    task = next(asked.alone(site, known["model"], [site.name]))
    kept, update = asked.base.works[task.work](task.payload, known["base"], relayed.first(site))
    if isinstance(update, Decline):
        return local, update
    mine = {"model": known["model"], "base": kept, "update": update.params, "weight": float(update.weight)}
    return mine, Update(_for_one(asked, mine, site), 1.0, update.metrics)


def _seal(asked: Asked, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """Writes the update that it keeps to another one."""
    return local, Update(_for_one(asked, local, site))


def _for_one(asked: Asked, mine: Local, site: SiteContext) -> Params:
    to = asked.note["to"]
    return written(site, {to: asked.keys()[to]}, asked.about("update"), packed(mine["update"], mine["weight"]))


def _combine(asked: Asked, local: Local, site: SiteContext) -> tuple[Local, Update | Decline]:
    """The step of the base with the mean of all updates that can be opened, written to everybody."""
    senders, keys = asked.note["senders"], asked.keys()
    steps = asked.alone(site, local["model"], senders)
    task = next(steps)
    folding = Folding(task.aggregator or mean(), task.payload.spec, len(senders))
    for sender in senders:
        try:
            update, weight = unpacked(task.payload.spec, asked.heard(site, sender, "update"))
            folding.add(Update(update, weight), Origin(sender, asked.note["round"], 0))
        except (Refused, ValueError):
            continue
    if not folding.count:
        return local, Decline("none of the updates that it was sent can be opened")
    found = folding.total()
    model = _ended(steps, Total(found.params, found.weight, found.count, {}, []))
    wrote = written(site, {name: keys[name] for name in asked.note["to"]}, asked.about("model"), packed(model))
    return local, Update(wrote, 1.0, relayed.left_out(len(senders), folding.count))


def _receive(asked: Asked, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """Takes over the model that another site wrote."""
    (sender,) = asked.note["senders"]
    model, _ = unpacked(relayed.spec_of(asked.note["spec"]), asked.heard(site, sender, asked.note["matter"]))
    return {"model": model, "base": (local or {}).get("base")}, Update(counting(1))


def _welcome(asked: Asked, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """Writes the model to those who have none, or an old one."""
    return local, Update(written(site, asked.keys(), asked.about("welcome"), packed(local["model"])))


def _ended(steps: Any, total: Total) -> Params:
    try:
        steps.send(total)
    except StopIteration as end:
        model: Params = end.value
        return model
    raise JobError("this algorithm asks sites more than once a round: wrap fedavg, fedprox or moon")


Do = Callable[[Asked, Local, SiteContext], tuple[Local, Update | Decline]]
DO: Mapping[str, Do] = {"train": _train, "seal": _seal, "combine": _combine, "receive": _receive, "welcome": _welcome}
