"""The order that docs/design.md calls law, as it was in a real run: each fsync, rename and row of its processes.
A kill cannot show this, for what was written outlives its process without any fsync; a power cut would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from federations import started, submit

pytestmark = pytest.mark.processes

WITNESS = Path(__file__).parent / "witness"
SITES, ROUNDS = ("north", "south"), 3
TASKS = [(round, task) for round in range(ROUNDS) for task in (0, 1)]  # each round trains, then evaluates
UPDATES = [(*at, site) for at in TASKS for site in SITES]
Event = dict[str, Any]


class Witness:
    """What was noted, in its order; methods return places in it, and fail where nothing of the kind was noted."""

    def __init__(self, file: Path) -> None:
        self.events: list[Event] = [json.loads(line) for line in file.read_text().splitlines()]

    def all(self, what: str, **facts: Any) -> list[int]:
        found = [at for at, e in enumerate(self.events) if e["what"] == what and all(e[k] == facts[k] for k in facts)]
        assert found, f"nobody noted {what} {facts}"
        return found

    def next(self, after: int, what: str, **facts: Any) -> int:
        later = [at for at in self.all(what, **facts) if at > after]
        assert later, f"no {what} {facts} after event {after}: {self.events[after]}"
        return later[0]

    def rows(self, what: str, kind: str) -> dict[tuple[Any, ...], int]:
        """(round, task, site) -> where the row was begun (what: append) or was durable (committed)."""
        return {place(self.events[at]["body"]): at for at in self.all(what, kind=kind)}

    def body(self, kind: str, at: tuple[Any, ...]) -> Event:
        return dict(self.events[self.rows("append", kind)[at]]["body"])

    def on_disk(self, path: Path, before: int) -> bool:
        """Whether this file was on disk by then, in the order that lasts: its bytes, its name, its folder."""
        named = [at for at in self.all("rename", path=str(path)) if at < before]
        synced = self.all("fsync", path=self.events[named[-1]]["source"]) if named else []
        folder = [at for at in self.all("fsync", path=str(path.parent)) if named and named[-1] < at < before]
        return bool(synced and synced[0] < named[-1] and folder)


def place(body: Event) -> tuple[Any, ...]:
    return tuple(body[name] for name in ("round", "task", "site") if name in body)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a federation of two sites, whose work keeps local state, was watched from its start to its end."""
    folder = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(WITNESS))
        patch.setenv("FOEDUS_WITNESS", str(folder / "events"))
        with started(folder, list(SITES)) as (made, _):
            result = submit(made, rounds=ROUNDS, stateful=1).wait()
    assert result.rounds == ROUNDS
    return folder


@pytest.fixture(scope="module")
def seen(home: Path) -> Witness:
    return Witness(home / "events")


def blob(home: Path, site: str, digest: str) -> Path:
    return home / "home" / "server" / "updates" / site / digest[:2] / digest[2:4] / digest


def scratch(home: Path) -> Path:
    (folder,) = (home / "home" / "server" / "runs").iterdir()
    return folder


@pytest.mark.parametrize("part", ["digest", "metrics"])
def test_an_updates_bytes_are_on_disk_before_its_acceptance_is_written(home: Path, seen: Witness, part: str) -> None:
    begun = seen.rows("append", "accepted")
    assert sorted(begun) == UPDATES
    for at in UPDATES:
        assert seen.on_disk(blob(home, at[-1], seen.body("accepted", at)[part]), begun[at]), at


def test_an_acceptance_is_durable_before_its_receipt_is_made(seen: Witness) -> None:
    committed = seen.rows("committed", "accepted")
    receipts = {place(seen.events[at]["body"]): at for at in seen.all("receipt", status="accepted")}
    assert sorted(receipts) == UPDATES
    assert all(committed[at] < receipts[at] for at in UPDATES)


def test_a_close_row_is_durable_before_the_run_worker_hears_of_it_and_folds(home: Path, seen: Witness) -> None:
    committed, told = seen.rows("committed", "close"), seen.all("tell", keys=["close", "outcomes", "task"])
    assert sorted(committed) == TASKS and len(told) == len(TASKS)
    for at, tell in zip(TASKS, told, strict=True):
        (fold,) = seen.all("fold", path=str(scratch(home) / "total-{}-{}.safetensors".format(*at)))
        assert committed[at] < tell < fold


def test_a_total_is_on_disk_before_its_row_is_written(home: Path, seen: Witness) -> None:
    begun = seen.rows("append", "total")
    assert sorted(begun) == TASKS
    assert all(seen.on_disk(scratch(home) / seen.body("total", at)["file"], begun[at]) for at in TASKS)


def test_a_totals_row_is_durable_before_the_run_goes_on_and_publishes_the_next_task(seen: Witness) -> None:
    committed, published, totals = (
        seen.rows("committed", "total"),
        seen.rows("append", "task"),
        seen.all("hear", do="total"),
    )
    for at, following, heard in zip(TASKS, [*TASKS[1:], None], totals, strict=True):
        assert heard < committed[at] < seen.next(heard, "tell", keys=[])
        assert following is None or committed[at] < published[following]


def test_a_state_is_on_disk_before_the_step_of_its_round_is_written(home: Path, seen: Witness) -> None:
    begun = seen.rows("append", "step")
    assert sorted(begun) == [(round,) for round in range(ROUNDS)]
    assert all(seen.on_disk(scratch(home) / seen.body("step", at)["checkpoint"], begun[at]) for at in begun)


def test_a_site_has_update_local_state_and_pending_row_on_disk_before_the_first_byte_is_sent(
    home: Path, seen: Witness
) -> None:
    (run,) = (path.name for path in (home / "home" / "server" / "runs").iterdir())
    for round, task, site in UPDATES:
        kept = home / "home" / "homes" / site / "sites" / site / "work" / run / "kept"
        pid = seen.events[seen.all("fsync", path=str(kept / "0-0-0.update"))[0]]["pid"]
        files = [kept / f"{round}-{task}-0.{kind}" for kind in (("update", "local") if task == 0 else ("update",))]
        (row,) = seen.all("put", pid=pid, table="pending", key=f"{run}/{round}/{task}/0")
        synced = [seen.all("fsync", path=str(file))[0] for file in files]
        assert max(synced) < seen.next(max(synced), "fsync", path=str(kept)) < row
        (stored,) = seen.all("stored", pid=pid, table="pending", key=f"{run}/{round}/{task}/0")
        assert stored < seen.all("send", pid=pid, path=f"/v1/uploads/{run}/{round}/{task}/0")[0]
