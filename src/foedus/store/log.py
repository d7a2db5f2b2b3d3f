"""A run's Log over a Store: rows go in under the lease that this process holds.
A Store comes in as a value."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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


class Patient:
    """A Log whose rows of the kinds that `wait` go in with the next row of another kind, in one transaction.

    For those that nothing outside of this process follows from: after a crash what was decided is decided again.
    """

    def __init__(self, log: StoreLog, wait: Collection[str]) -> None:
        self.log, self.wait = log, wait
        self.waiting: list[tuple[str, Mapping[str, Any]]] = []

    def append(self, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self.waiting += rows
        if any(kind not in self.wait for kind, _ in rows):
            self.log.append(self.waiting)
            self.waiting = []

    def rows(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        return [*self.log.rows(), *self.waiting]
