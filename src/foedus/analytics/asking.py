"""How an analysis asks sites for sums: one Task each, every site counted, or the run pauses and names who is missing.
Only the contract and what a site holds may come in."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from foedus.analytics.held import Held
from foedus.core import Local, SiteContext, Task, Total, Update, Work
from foedus.errors import JobError
from foedus.params import Array, Params

FIRST_SIZE, MOST_SIZE = 2048, 3_000_000  # bytes of what a site lists
T = TypeVar("T")
Asking = Generator[Task, Total, T]
Shape = tuple[int, ...]


class Sent(NamedTuple):
    """What a site answers: arrays that are added up, whole numbers of which the largest counts, and what it shows."""

    sums: Mapping[str, Any]
    most: Mapping[str, Any] = {}
    shown: Mapping[str, Any] = {}  # of this site, in clear: rows, or a list that no sum can hold


class Sums(NamedTuple):
    """What all sites answered: sums, the largest whole numbers, and what each showed: under a seal, nothing."""

    of: Mapping[str, Array]
    most: Mapping[str, Array]
    shown: Mapping[str, Mapping[str, Array]]
    sites: Sequence[str]  # who answered


Answering = Callable[[Held, Mapping[str, Array]], Sent]  # (table, payload) -> what the site answers


def work(answer: Answering) -> Work:
    """A work from what a site answers; all sites weigh the same, so that a mean is a sum over their number."""
    return partial(_answered, answer)


def _answered(answer: Answering, payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    sent = answer(site.split.train, payload)
    floats = {name: np.asarray(x, np.float64) for name, x in sent.sums.items()}
    for name, x in floats.items():
        if not np.isfinite(x).all():
            raise JobError(f"the sums {name!r} are beyond float64: scale the columns, or take out extreme values")
    whole = {name: np.asarray(x, np.int64) for name, x in sent.most.items()}
    shown = {} if site.seal else {name: np.asarray(x) for name, x in sent.shown.items()}
    return local, Update(Params(floats | whole), 1.0, shown)


def ask(
    name: str,
    sites: Sequence[str],
    payload: Mapping[str, Any],
    sums: Mapping[str, Shape] = {},
    most: Mapping[str, Shape] = {},
    every: bool = True,
) -> Asking[Sums]:
    """The sums of what these sites answer to `payload`: of every one of them, or of those who do answer."""
    spec = Params({n: np.zeros(s) for n, s in sums.items()} | {n: np.zeros(s, np.int64) for n, s in most.items()}).spec
    total = yield Task(name, Params(payload), sites, quorum=len(sites) if every else None, late="drop", returns=spec)
    there = sorted(o.site for o in total.outcomes if o.status == "counted")
    shown = {o.site: o.metrics for o in total.outcomes if o.site in there and o.metrics}
    added = {n: total.count * np.asarray(total.params[n]) for n in sums}
    return Sums(added, {n: np.asarray(total.params[n]) for n in most}, shown, there)


def whole(x: Any) -> Any:
    """Counts, which a mean of counts only comes within rounding of."""
    return np.rint(x).astype(np.int64)


def packed(value: Any) -> Array:
    """Plain data as bytes that travel beside arrays."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def unpacked(x: Any) -> Any:
    """The plain data that `packed` made bytes of."""
    return json.loads(bytes(np.asarray(x).astype(np.uint8)))


def listing(answer: Callable[[Held, Mapping[str, Array]], Any]) -> Work:
    """A work that lists what no sum can hold, as plain data: for `collect`."""
    return work(partial(_listed, answer))


def _listed(answer: Callable[[Held, Mapping[str, Array]], Any], table: Held, payload: Mapping[str, Array]) -> Sent:
    text, size = json.dumps(answer(table, payload)).encode(), int(payload["size"])
    fits = text if len(text) <= size else b""
    return Sent({}, {"size": len(text)}, {"list": np.frombuffer(fits.ljust(size), np.uint8)})


def collect(
    name: str, sites: Sequence[str], payload: Mapping[str, Any], remedy: str, every: bool = True
) -> Asking[dict[str, Any]]:
    """site -> what it lists; all lists have one length, the longest's. Raises JobError for lists beyond measure."""
    size = FIRST_SIZE
    while True:
        total = yield from ask(name, sites, {**payload, "size": np.int64(size)}, most={"size": ()}, every=every)
        need = int(total.most["size"])
        if not total.shown:
            raise JobError(f"under secagg no site lists its {name}: {remedy}")
        if need <= size:
            return {site: unpacked(shown["list"]) for site, shown in sorted(total.shown.items())}
        if need > MOST_SIZE:
            raise JobError(f"a site would list {need:,} bytes in {name!r}, above {MOST_SIZE:,}: {remedy}")
        size = need
