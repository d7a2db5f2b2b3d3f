"""A run's Log over a Store: rows go in under the lease that this process holds.
A Store comes in as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foedus.store import Store


class StoreLog:
    """The rows of one run; `append` raises Fenced when another process has taken the run over."""

    def __init__(self, store: Store, run: str, epoch: int) -> None:
        self.store, self.run, self.epoch = store, run, epoch

    def append(self, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self.store.append(self.run, rows, self.epoch)

    def rows(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        return [(row.kind, row.body) for row in self.store.rows(self.run)]
