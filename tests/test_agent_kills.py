"""`kill -9` of agent and worker at each named point: one update a Task, and what is kept is never trained again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fake_server import FakeServer
from foedus.params import Params
from foedus.site.shelf import PENDING
from site_rig import SMALL, Rig

pytestmark = [pytest.mark.processes, pytest.mark.kills]

BEFORE = ["agent.before-work", "agent.after-work", "agent.before-pending"]  # nothing is kept yet: trained again
AFTER = ["agent.after-pending", "agent.mid-upload", "agent.after-upload", "agent.after-receipt"]
SETTLING = ["agent.before-base", "agent.after-base"]
WORKER = ["worker.after-load", "worker.before-train", "worker.before-reply"]
BIG = Params({"w": np.zeros(1 << 20, np.float32)})


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, FakeServer(tmp_path / "server"))
    yield made
    made.close()


@pytest.mark.parametrize("kill", BEFORE + AFTER + SETTLING)
def test_an_agent_killed_anywhere_ends_with_one_update_a_task_and_the_state_of_a_calm_run(rig: Rig, kill: str) -> None:
    server = rig.server
    agent = rig.start(kill)
    rig.submit()
    first = rig.task(BIG)
    if kill not in SETTLING:
        assert agent.wait(20) == -signal.SIGKILL
        kept = rig.place.store.items(PENDING)
        assert len(kept) == (kill in AFTER)
        rig.start()
    server.until(lambda: server.updates.get(first))
    server.settle(first, "counted")
    second = rig.task(BIG, 1, base={"round": 0, "task": 0})
    if kill in SETTLING:
        assert agent.wait(20) == -signal.SIGKILL
        assert (rig.place.store.get("base", f"{rig.run}/train") is None) == (kill == "agent.before-base")
        rig.start()
    server.until(lambda: server.updates.get(second))
    assert [len(server.updates[task]) for task in (first, second)] == [1, 1]
    assert len(rig.lines("trained.txt")) == (3 if kill in BEFORE[1:] else 2)
    assert rig.lines("rounds.txt")[-1] == "2"  # the local state that counted was gone on from
    assert all((server.params(task)["w"] == 1).all() for task in (first, second))
    if kill == "agent.mid-upload":  # a PUT that was cut, the question where to go on, and a PUT of the rest
        assert server.taken[first] == server.updates[first][0]["size"]
        assert server.asked["uploads"] == 4


@pytest.mark.parametrize("kill", WORKER)
def test_a_worker_killed_anywhere_is_replaced_without_a_word_to_the_server(rig: Rig, kill: str) -> None:
    rig.start(kill)
    rig.submit()
    task = rig.task()
    rig.server.until(lambda: rig.server.updates.get(task))
    assert [len(updates) for updates in rig.server.updates.values()] == [1]
    assert rig.server.declines == {} and [a["ready"] for a in rig.server.ready[rig.run]] == [True]
    assert len(rig.lines("loaded.txt")) == 2
    assert len(rig.lines("trained.txt")) == (2 if kill == "worker.before-reply" else 1)


def test_an_update_that_never_arrived_serves_the_next_attempt_without_training_again(rig: Rig) -> None:
    agent = rig.start("agent.after-pending")
    rig.submit()
    rig.task()
    assert agent.wait(20) == -signal.SIGKILL
    rig.server.tasks.clear()  # the server gave this attempt up, and asks anew
    again = rig.task(SMALL, attempt=1)
    rig.start()
    rig.server.until(lambda: rig.server.updates.get(again))
    assert len(rig.lines("trained.txt")) == 1
    assert [*rig.server.updates] == [again]


def test_files_that_a_crash_left_are_swept_and_kept_ones_stay(rig: Rig) -> None:
    agent = rig.start("agent.before-pending")
    rig.submit()
    task = rig.task()
    assert agent.wait(20) == -signal.SIGKILL
    folder = rig.place.folder / "work" / rig.run / "kept"
    (folder / "9-9-9.update").write_bytes(b"left over")
    rig.start()
    rig.server.until(lambda: rig.server.updates.get(task))
    assert sorted(path.name for path in folder.iterdir()) == ["0-0-0.local", "0-0-0.update"]
