"""Private set intersection between sites, after Meadows 1986 and Huberman, Franklin and Hogg 1999; the server relays.
The curve is that of `foedus.linkage`; only the contract may come in beside it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from foedus import linkage
from foedus.algorithms.exchange import COUNTED, count_of, counting, rows
from foedus.core import Algorithm, Local, Personal, RoundContext, SiteContext, State, Task, Total, Update
from foedus.errors import JobError
from foedus.params import Array, Leaf, Params

KEEP = "link"  # the work that keeps what was found


def link() -> Algorithm:
    """Who is known to every site: each keeps the positions of these people, sorted by id; everybody learns how many.

    Sites hold `fd.Records(ids, x)`. The model in the end is `common` and `union`, counts of people. The server sees
    blinded points, from which it learns how many people any group of sites has in common, and no id.
    """

    def round(state: State, context: RoundContext) -> Any:
        found = yield from linking(context.roster)
        yield [Task(KEEP, places(own), [site], returns=COUNTED) for site, own in found.positions.items()]
        return Params({"common": np.int64(found.common), "union": np.int64(found.union)})

    def keep(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        kept = linked(payload["positions"], site)
        return {"rows": kept}, Update(counting(len(kept)))

    own = Personal(lambda params, local: Params({"rows": local["rows"]}), KEEP)
    return Algorithm(lambda params: Params({}), round, {**WORKS, KEEP: keep}, traits=TRAITS, personal=own)


def linking(sites: Sequence[str]) -> Generator[Any, Any, linkage.Linked]:
    """Tasks to these sites, one after the other to as many as there are, until every set was blinded by every site."""
    counts = yield [Task("link.count", Params({}), [site], returns=COUNTED) for site in sites]
    specs = {site: table(count_of(total)) for site, total in zip(sites, counts, strict=True)}
    asked = [Task("link.begin", Params({}), [site], returns=specs[site]) for site in sites]
    sets = _points(sites, (yield asked))
    for step in range(1, len(sites)):
        asked = [
            Task("link.blind", sets[begun], [linkage.turn(sites, begun, step)], returns=specs[begun]) for begun in sites
        ]
        sets = _points(sites, (yield asked))
    return linkage.matched({site: rows(points["points"]) for site, points in sets.items()})


def linked(positions: Array, site: SiteContext) -> Array:
    """The rows of the people at these positions of what the site sent, sorted by id: the same order at every site."""
    found, ids = _order(site)[positions], _ids(site)
    return np.array(sorted(found.tolist(), key=lambda row: ids[row]), np.int64)


def places(positions: Sequence[int]) -> Params:
    return Params({"positions": np.array(positions, np.int64)})


def table(count: int) -> tuple[Leaf, ...]:
    return (Leaf("points", (count, linkage.POINT), "uint8", "integer"),)


def _points(sites: Sequence[str], totals: Sequence[Total]) -> Mapping[str, Params]:
    return {site: total.params for site, total in zip(sites, totals, strict=True)}


def _count(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    return local, Update(counting(len(_ids(site))))


def _begin(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """This site's own people, blinded once, in an order that only this site knows."""
    ids = _ids(site)
    return local, _blinded([linkage.hashed(ids[i]) for i in _order(site)], site)


def _blind(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """Another site's people, blinded once more."""
    return local, _blinded(rows(payload["points"]), site)


def _blinded(points: Sequence[bytes], site: SiteContext) -> Update:
    found = linkage.blinded(points, linkage.scalar(site.secret("link").digest()))
    return Update(Params({"points": np.frombuffer(b"".join(found), np.uint8).reshape(-1, linkage.POINT)}))


def _order(site: SiteContext) -> Array:
    return site.secret("link", "order").numpy().permutation(len(site.split.train))


def _ids(site: SiteContext) -> list[bytes]:
    """The site's people. Raises JobError where it has none, or one of them twice."""
    ids = getattr(site.split.train, "ids", None)
    if ids is None:
        raise JobError("this site's train says of nobody who it is: load fd.Split(train=fd.Records(ids, x))")
    found = [linkage.identifier(x) for x in ids]
    if len(set(found)) < len(found):
        raise JobError(f"{len(found) - len(set(found))} ids stand there more than once: keep one row for each person")
    return found


WORKS = {"link.count": _count, "link.begin": _begin, "link.blind": _blind}
TRAITS = ("columns", "exchange")
