"""The sum of masked words and what takes the masks off it become a Total in a file.
Files of the run's folder and descriptors of words come in, in the run worker."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foedus import frames
from foedus.aggregators import Folding
from foedus.core import Outcome, Task
from foedus.files import write_atomic
from foedus.params import Array
from foedus.privacy import masking
from foedus.privacy.masking import figures, server


def unsealed(task: Task, seal: Mapping[str, Any], fds: Sequence[int], outcomes: Sequence[Outcome], path: Path) -> None:
    """Writes the Total of a sealed Task to `path`, durable, as `fold_files` does. Raises Paused for false shares."""
    kept = {stage: json.loads((path.parent / name).read_bytes()) for stage, name in seal["files"].items()}
    run, round, number, attempt, roster, *rest = seal["terms"]
    given = masking.Terms(run, round, number, attempt, tuple(roster), *rest)
    total = None
    for fd in fds:
        total = server.fold(total, words_of(fd))
    assert total is not None and task.aggregator is not None and task.returns is not None
    take_off(given, kept, total)
    layout = figures.read_layout(kept["keys"]["figures"])
    cut = total.size - figures.size(layout)
    folding = Folding(task.aggregator, task.returns, len(roster))
    dtypes = {leaf.group: leaf.dtype for leaf in task.returns}
    counts = dict.fromkeys(dtypes, 0)
    for leaf in task.returns:
        counts[leaf.group] += leaf.size
    acc, weight = masking.decode(folding.aggregator, {g: (dtypes[g], n) for g, n in counts.items()}, total[:cut])
    folding.take(acc, weight, len(fds), figures.sums(layout, total[cut:]))
    made = folding.total(outcomes)
    tree = {"weight": str(weight), "count": made.count, "metrics": made.metrics, "params": made.params}
    write_atomic(path, frames.pack({**tree, "outcomes": [list(o) for o in outcomes]}))


def take_off(given: masking.Terms, kept: Mapping[str, Any], total: Array) -> None:
    """Takes the masks off the sum, in place, by what sites had said."""
    texts = {stage: {site: bytes.fromhex(x) for site, x in kept[stage].items()} for stage in ("shares", "reveals")}
    adverts = {site: _advert(given, site, bytes.fromhex(text)) for site, text in kept["keys"]["adverts"].items()}
    shares = {site: server.read_shares(given, adverts, site, message) for site, message in texts["shares"].items()}
    reveals = {site: server.read_reveal(given, shares, site, x) for site, x in texts["reveals"].items()}
    alive = frozenset(kept["survivors"]["alive"])
    server.unmask(given, server.Sealed(adverts, shares, alive), reveals, total)


def words_of(fd: int) -> Array:
    """The words in the file behind a descriptor, which is closed."""
    try:
        return np.frombuffer(mmap.mmap(fd, 0, access=mmap.ACCESS_READ), "<u4")
    finally:
        os.close(fd)


def _advert(given: masking.Terms, site: str, message: bytes) -> bytes:
    """The keys of an advertisement whose signature the server has checked."""
    return server.advert_of(given, site, message)
