"""Gossip whose messages the server cannot read: sites train, write to their neighbours, and average what they hear.
Only relays and aggregators may come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foedus.aggregators import each
from foedus.algorithms import relayed
from foedus.algorithms.exchange import COUNTED, counting, note_of
from foedus.algorithms.graphs import Graph, metropolis
from foedus.algorithms.mixing import by_itself, mixed, stateful
from foedus.algorithms.relayed import heard, letter, letter_spec, named, packed, packed_size, unpacked, written
from foedus.core import Algorithm, Decline, Local, Personal, RoundContext, SiteContext, State, Task, Update
from foedus.errors import Paused, Refused
from foedus.keys import key
from foedus.params import Params, join


def sealed_gossip(method: Algorithm, drawn: Graph, task: Mapping[str, Any]) -> Algorithm:
    """As `gossip`, with a step more in each round: models are averaged in it, and no mean of all is known."""
    based = ["personal base"] if method.personal else []

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update | Decline]:
        said = payload.part("said")
        note = note_of(said)
        matter = f"gossip {note['round']}"
        if note["do"] == "average":
            return _averaged(local, said, note, matter, site)
        known = local or {"model": payload.part("start").widen(), "base": None}
        kept, update, model = by_itself(method, known["model"], known["base"], relayed.first(site))
        if isinstance(update, Decline):
            return local, update
        wrote = written(site, named(said, note), matter, packed(model.narrow()), room=note["room"])
        return {"model": model, "base": kept}, Update(wrote, 1.0, update.metrics)

    def round(state: State, context: RoundContext) -> Any:
        at, keys = context.round, (yield from relayed.introductions(state["keys"], context.roster))
        cohort, start = [site for site in context.cohort if site in keys], state["start"].narrow()
        if not cohort:
            raise Paused(f"round {at}: no site has told its key for messages; resume the run when one is back")
        rows = metropolis(drawn(cohort, key(context.seed, at, 0, "server", "graph")), cohort)
        near = {site: [other for other in row if other != site] for site, row in rows.items()}
        room = max(1, *map(len, near.values()))

        note = {"do": "train", "round": at, "room": room}
        said = {site: relayed.told(note, {other: keys[other] for other in near[site]}, {}) for site in cohort}
        first = {"start": start}
        letters = {site: join(said=x, **({} if site in state["begun"] else first)) for site, x in said.items()}
        returns = letter_spec(packed_size(start.spec), room)
        total = yield Task("train", letters[cohort[0]], cohort, each(), returns=returns, letters=letters, **task)
        wrote = {site: Params(found) for site, found in total.apart.items()}
        replies = {site: _reply(site, rows[site], near, keys, wrote, at) for site in wrote}
        how: dict[str, Any] = {"quorum": 0, "late": "drop", "least": 0, "returns": COUNTED}
        yield Task("train", replies[min(replies)], sorted(replies), each(), letters=replies, **how)
        return {"keys": keys, "begun": sorted({*state["begun"], *wrote}), "start": state["start"]}

    return Algorithm(
        lambda params: {"keys": {}, "begun": [], "start": params.widen()},
        round,
        {"train": work, relayed.INTRODUCE: relayed.introducing},
        lambda state: Params({}),
        ("gossip", *relayed.TRAITS, *method.traits, *stateful(method), *based),
        Personal(lambda nothing, local: local["model"].narrow(), alone=True),
    )


def _reply(
    site: str,
    row: Mapping[str, float],
    near: Mapping[str, list[str]],
    keys: relayed.Keys,
    wrote: Mapping[str, Params],
    at: int,
) -> Params:
    """What a site's neighbours wrote to it, and how much each weighs."""
    senders = [other for other in near[site] if other in wrote]
    letters = {other: letter(wrote[other], near[other].index(site)) for other in senders}
    note = {"do": "average", "round": at, "shares": [row[other] for other in senders]}
    return join(said=relayed.told(note, {other: keys[other] for other in senders}, letters))


def _averaged(
    local: Local, said: Params, note: Mapping[str, Any], matter: str, site: SiteContext
) -> tuple[Local, Update]:
    """The mean with the neighbours' models; the share of one that cannot be opened falls to the site's own."""
    own, models, shares = local["model"], [], []
    for sender, share in zip(note["senders"], note["shares"], strict=True):
        try:
            model, _ = unpacked(own.narrow().spec, heard(site, said, note, sender, matter))
        except (Refused, ValueError):
            continue
        models.append(model.widen())
        shares.append(share)
    told = relayed.left_out(len(note["senders"]), len(models))
    return {**local, "model": mixed([own, *models], [1 - sum(shares), *shares])}, Update(counting(1), 1.0, told)
