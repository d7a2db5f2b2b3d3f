"""The journal: a decision is written once, agreed with ever after, and read back from any log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foedus.core import Origin, Task
from foedus.errors import JournalError
from foedus.journal import ONCE, Journal, Log, Memory, task_digest
from foedus.params import Params, digest
from foedus.store import verify_chain
from foedus.store.lease import this_process
from foedus.store.log import Patient, StoreLog
from foedus.store.sqlite import SqliteStore


@pytest.fixture(params=["memory", "sqlite"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    if request.param == "memory":
        yield Memory()
        return
    store = SqliteStore(tmp_path / "run.db", durable=False)
    yield StoreLog(store, "run", store.acquire("run", this_process(), 60))
    store.close()


def test_rows_are_found_by_their_place(log: Log) -> None:
    journal = Journal(log)
    assert journal.add("close", round=1, task=0, counted=[["a", 1, 0]])
    assert journal.add("accepted", round=1, task=0, site="a", attempt=2, weight=1.5)
    for found in (journal, Journal(log)):
        assert found.find("close", 1, 0) == {"round": 1, "task": 0, "counted": [["a", 1, 0]]}
        assert found.find("accepted", 1, 0, "a", 2)["weight"] == 1.5  # type: ignore[index]
        assert found.find("accepted", 1, 0, "a") is None and found.find("close", 2, 0) is None
        assert [row["round"] for row in found.all("close")] == [1]


def test_a_decision_that_agrees_is_no_second_row(log: Log) -> None:
    journal = Journal(log)
    assert journal.add("close", round=0, task=0, counted=[["a", 0, 0]], outcomes=[])
    assert not journal.add("close", round=0, task=0, counted=[("a", 0, 0)], outcomes=["told otherwise"])
    assert not Journal(log).add("close", round=0, task=0, counted=[["a", 0, 0]], outcomes=[])
    assert len(log.rows()) == 1


ROWS: dict[str, dict[str, Any]] = {
    "open": {"job": "a", "seed": 0},
    "roster": {"round": 0, "sites": ["a"]},
    "round": {"round": 0, "roster": 0, "cohort": None},
    "task": {"round": 0, "task": 0, "digest": "a"},
    "close": {"round": 0, "task": 0, "counted": [["a", 0, 0]]},
    "total": {"round": 0, "task": 0, "digest": "a"},
    "step": {"round": 0, "digest": "a"},
    "end": {"digest": "a"},
}


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, fields in ONCE.items() for field in fields])
def test_a_decision_that_contradicts_an_earlier_one_is_an_error_and_no_row(kind: str, field: str) -> None:
    journal = Journal(Memory())
    journal.add(kind, **ROWS[kind])
    with pytest.raises(JournalError, match=rf"the journal's '{kind}' row .*says {field} = .*, now it is \"other\""):
        journal.add(kind, **{**ROWS[kind], field: "other"})
    assert len(journal.log.rows()) == 1


def test_several_rows_are_written_together_or_not_at_all() -> None:
    journal = Journal(Memory())
    journal.add("end", digest="a")
    with pytest.raises(JournalError):
        journal.add_all([("step", {"round": 0, "digest": "a"}), ("end", {"digest": "b"})])
    assert journal.find("step", 0) is None and len(journal.log.rows()) == 1


def test_a_roster_is_written_only_when_it_changes(log: Log) -> None:
    journal = Journal(log)
    for round, sites in enumerate(["ab", "ab", "abc", "abc", "ab"]):
        since = journal.roster_of(round, list(sites))
        journal.add("round", round=round, roster=since, cohort=None)
    assert [row["round"] for row in journal.all("roster")] == [0, 2, 4]
    again = Journal(log)
    assert [again.roster_of(round, ["other"]) for round in range(5)] == [0, 0, 2, 2, 4]
    assert again.roster_of(5, ["a", "b"]) == 4


def test_the_counted_set_has_its_ages() -> None:
    journal = Journal(Memory())
    journal.add("close", round=3, task=1, counted=[["a", 1, 0], ["b", 3, 1]])
    assert journal.counted(3, 1) == [Origin("a", 1, 0, 2), Origin("b", 3, 1, 0)]
    assert journal.counted(3, 0) is None
    assert journal.origins() == {(1, 0): ["a"], (3, 1): ["b"]}


def test_events_are_kept_in_their_order(log: Log) -> None:
    journal = Journal(log)
    for what in ("joined", "left", "joined"):
        assert journal.add("event", what=what)
    assert [event["what"] for event in Journal(log).events] == ["joined", "left", "joined"]


def test_the_digest_of_a_task_sees_all_that_is_asked() -> None:
    task = Task("train", Params({"w": np.float32([1])}), ["a", "b"])
    others = [
        task._replace(work="other"),
        task._replace(payload=Params({"w": np.float32([2])})),
        task._replace(payload=Params({"v": np.float32([1])})),
        task._replace(sites=["b", "a"]),
        task._replace(quorum=1),
        task._replace(late="keep"),
        task._replace(busy=3),
        task._replace(returns=()),
    ]
    found = {task_digest(t, digest(t.payload)) for t in [task, *others]}
    assert len(found) == len(others) + 1
    assert task_digest(task, "p") == task_digest(task._replace(returns=task.payload.spec), "p")


def test_rows_that_wait_are_written_with_the_next_one_in_order(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "run.db", durable=False)
    try:
        journal = Journal(Patient(StoreLog(store, "run", store.acquire("run", this_process(), 60)), ("round", "close")))
        on_disk = lambda: [row.kind for row in store.rows("run")]  # noqa: E731
        journal.add("open", **ROWS["open"])
        journal.add("round", **ROWS["round"])
        assert on_disk() == ["open"] and journal.find("round", 0) is not None
        assert not journal.add("round", **ROWS["round"])
        journal.add("task", **ROWS["task"])
        assert on_disk() == ["open", "round", "task"]
        journal.add("close", **ROWS["close"])
        assert [kind for kind, _ in journal.log.rows()] == ["open", "round", "task", "close"]
        journal.add("step", **ROWS["step"])
        assert on_disk() == ["open", "round", "task", "close", "step"]
        verify_chain(store.rows("run"))
    finally:
        store.close()
