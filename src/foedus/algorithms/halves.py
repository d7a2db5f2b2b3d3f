"""What a site does in split learning: the layers below the cut, and where labels stay with it, those above the head.
Layers and the contract may come in; `split_learning` says who is asked for what.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from foedus.algorithms.exchange import counting, like, note_of
from foedus.core import Local, SiteContext, Update
from foedus.keys import Key, key
from foedus.layers import LayeredLearner, Stack, down, measured, merged
from foedus.params import Array, Params, Spec


class Cut(NamedTuple):
    """A network in pieces: `bottom` and `head` lie at the sites, `middle` at the server."""

    learner: LayeredLearner
    bottom: Stack
    middle: Stack
    head: Stack
    labels: bool  # whether the server gets them

    def at_sites(self, params: Params) -> Params:
        """The sites' part of the model."""
        return Params({**self.bottom.own(params), **self.head.own(params)})

    def sent(self, params: Params, rows: int) -> Spec:
        """What a site sends up of so many rows: activations, and labels where the server gets them."""
        h = like("h", self.bottom.forward(params, self.learner.blank(rows), None))
        y = like("y", np.zeros(rows, self.learner.loss.target or self.learner.dtype))
        return (h, y) if self.labels else (h,)


def work(cut: Cut, payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """What the payload's note says, with the part of the model that came with it or was kept."""
    note, learner = note_of(payload), cut.learner
    if note["do"] == "count":
        return local, Update(counting(len(site.split.train)))
    begins = payload.part("w") if note.get("begins") else None
    w = local["w"] if begins is None else begins
    x, y = learner.arrays(site.split.train)
    rows = list(learner.batches(len(x), named(site.key, site.name)))
    if "slope" in payload:
        i = note["before"]
        grads, _ = cut.bottom.backward(cut.bottom.own(w), x[rows[i]], payload["slope"], named(site.key, site.name, i))
        w = merged(w, down(cut.bottom.own(w), grads, learner.lr))
    if note["do"] == "end":
        return {"w": w}, Update(w)
    here, i = rows[note["batch"]], note["batch"]
    if note["do"] == "up":
        h = cut.bottom.forward(w, x[here], named(site.key, site.name, i))
        return {"w": w}, Update(Params({"h": h, **({"y": y[here]} if cut.labels else {})}))
    w, update = finished(cut, w, payload["z"], y[here], named(site.key, site.name, i))
    return {"w": w}, update


def finished(cut: Cut, w: Params, z: Array, y: Array, seed: Key) -> tuple[Params, Update]:
    """The head's step at the site that has the labels, and the slope of the mean loss in what the server sent."""
    outputs = cut.head.forward(w, z, seed)
    grads, slope = cut.head.backward(cut.head.own(w), z, cut.learner.loss.slope(outputs, y), seed)
    sums = measured(cut.learner.loss, outputs, y, ["loss"])
    stepped = merged(w, down(cut.head.own(w), grads, cut.learner.lr))
    return stepped, Update(Params({"slope": slope}), 1.0, {"train_loss": sums["loss"]})


def named(here: Key, *names: Any) -> Key:
    """Randomness of a round that site and server name alike."""
    return key(*here.names[:2], "split", *names)  # type: ignore[arg-type]
