"""Split learning: Distributed learning of deep neural network over multiple agents, Gupta and Raskar 2018, algorithm 1;
labels at the sites and the U shape are figure 2 of Vepakomma et al. 2018; all sites at once is Thapa et al. 2022.
Layers and the contract may come in.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from foedus.algorithms import halves
from foedus.algorithms.exchange import COUNTED, count_of, like, noted
from foedus.algorithms.halves import Cut, named
from foedus.core import Algorithm, RoundContext, State, Task
from foedus.errors import JobError
from foedus.keys import Key, key
from foedus.layers import LayeredLearner, down, merged
from foedus.params import Array, Params

TRAITS = ("exchange", "cut")
Turn = Generator[Any, Any, Params]


def split_learning(
    learner: LayeredLearner,
    cut: int,
    head: int | None = None,
    *,
    labels: Literal["server", "site"] = "server",
    turns: bool = True,
) -> Algorithm:
    """The learner's first `cut` layers lie at the sites, the others at the server; what goes between is one batch.

    Activations go up and slopes come down. `labels` go up too, or stay ("site"): then outputs come down to the loss,
    and with `head` all layers from that one on lie at the sites (the U shape). Sites take turns, each handing its
    part on to the next, or all work at once (`turns=False`): their parts are averaged after the round. The Job takes
    the same learner, whose lr, epochs, batch_size and loss count.
    """
    layers = len(learner.stack.layers)
    last = layers if head is None else head
    if labels not in ("server", "site") or (labels == "server" and head is not None):
        raise JobError(
            f"split_learning(labels={labels!r}, head={head}): a head lies where the labels are: labels='site'"
        )
    if not 0 < cut < last <= layers:
        raise JobError(f"split_learning(cut={cut}, head={head}): some of the {layers} layers have to lie at the server")
    stack = learner.stack
    pieces = Cut(learner, stack.cut(0, cut), stack.cut(cut, last), stack.cut(last, layers), labels == "server")

    def round(state: State, context: RoundContext) -> Any:
        counts = yield from counted(state["counts"], context.cohort)
        w = state["w"]
        for sites in [[site] for site in context.cohort] if turns else [list(context.cohort)]:
            w = yield from turn(pieces, w, {site: counts[site] for site in sites}, context)
        return {"w": w, "counts": counts}

    return Algorithm(
        lambda params: {"w": params, "counts": {}},
        round,
        {"split": partial(halves.work, pieces)},
        lambda state: state["w"],
        TRAITS,
    )


def counted(known: Mapping[str, int], sites: Sequence[str]) -> Generator[Any, Any, dict[str, int]]:
    """How many examples sites have; who is new is asked."""
    new = [site for site in sites if site not in known]
    totals = (yield [Task("split", noted(do="count"), [site], returns=COUNTED) for site in new]) if new else []
    return {**known, **{site: count_of(total) for site, total in zip(new, totals, strict=True)}}


def turn(cut: Cut, model: Params, counts: Mapping[str, int], context: RoundContext) -> Turn:
    """The model after these sites worked at once, each on its batches, the server on all that go up together."""
    here = key(context.seed, context.round)
    batches = {site: [len(b) for b in cut.learner.batches(n, named(here, site))] for site, n in counts.items()}
    w, middle = cut.at_sites(model), cut.middle.own(model)
    down_next = {site: noted(w.tagged("w"), do="up", batch=0, begins=True) for site in batches}
    for i in range(max(map(len, batches.values()))):
        sizes = {site: own[i] for site, own in batches.items() if i < len(own)}
        totals = yield [Task("split", down_next[site], [site], returns=cut.sent(w, n)) for site, n in sizes.items()]
        sent = {site: total.params for site, total in zip(sizes, totals, strict=True)}
        middle, slopes = yield from passed(cut, middle, sent, i, named(here, "server", i))
        for site, slope in slopes.items():
            more = {"do": "up", "batch": i + 1} if i + 1 < len(batches[site]) else {"do": "end"}
            down_next[site] = noted(slope, before=i, **more)
    totals = yield [Task("split", down_next[site], [site], returns=w.spec) for site in batches]
    parts = [total.params for total in totals]
    return merged(model, Params({**middle, **averaged(parts, list(counts.values()))}))


def passed(
    cut: Cut, middle: Params, sent: Mapping[str, Params], i: int, seed: Key
) -> Generator[Any, Any, tuple[Params, dict[str, Params]]]:
    """The server's layers after a step on what these sites sent up, and for each the slope of its own mean loss."""
    sizes = [len(params["h"]) for params in sent.values()]
    ends, whole = np.cumsum(sizes)[:-1], sum(sizes)
    h = np.concatenate([params["h"] for params in sent.values()])
    z = cut.middle.forward(middle, h, seed)
    if cut.labels:
        slope = cut.learner.loss.slope(z, np.concatenate([params["y"] for params in sent.values()]))
    else:
        asked = [
            Task("split", noted(Params({"z": part}), do="finish", batch=i), [site], returns=(like("slope", part),))
            for site, part in zip(sent, np.split(z, ends), strict=True)
        ]
        own = [total.params["slope"] for total in (yield asked)]
        slope = np.concatenate([scaled(x, n / whole) for x, n in zip(own, sizes, strict=True)])
    grads, below = cut.middle.backward(middle, h, slope, seed)
    parts = zip(sent, np.split(below, ends), sizes, strict=True)
    return down(middle, grads, cut.learner.lr), {s: Params({"slope": scaled(x, whole / n)}) for s, x, n in parts}


def scaled(x: Array, factor: float) -> Array:
    return np.asarray(x * x.dtype.type(factor))


def averaged(parts: Sequence[Params], counts: Sequence[int]) -> Params:
    """The mean of the sites' parts by their examples; one part alone stays what it is."""
    mean = parts[0].zeros()
    for part, n in zip(parts, counts, strict=True):
        mean = mean + (n / sum(counts)) * part
    return mean
