"""Pools far larger than memory: nobody lists them, data is made when it is asked for, and states lie on disk."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foedus as fd
from foedus import launch, runs
from foedus.algorithms import scaffold
from foedus.backends import locals as states
from foedus.backends.locals import Locals
from foedus.backends.simulation import Candidates
from foedus.data import Rows, Split
from foedus.errors import FoedusError, JobError
from foedus.journal import Journal, Memory
from foedus.numpy import NumpyLearner
from foedus.pool import Names, Pool, among, counted, heard, named, told
from foedus.run import Plan, draw, panel
from foedus.torch import TorchLearner
from tiny import SITES, job, learner, many, points, working

MILLION = 1_000_000


# Names and pools.


@pytest.mark.parametrize("size", [1, 9, 10, 11, 1000, 1001])
def test_names_of_a_count_are_what_a_list_of_them_would_be(size: int) -> None:
    names, width = Names(size), len(str(size - 1))
    plain = [f"site-{i:0{width}}" for i in range(size)]
    assert plain == sorted(plain) == list(names) == [names[i] for i in range(size)] and names == plain
    assert names[-1] == plain[-1] and names[2:5] == plain[2:5] and len(names) == size
    assert [names.index(name) for name in plain] == list(range(size)) and all(name in names for name in plain)
    strangers = (f"site-{size:0{width}}", "site-", "site-00000", "site--1", "north", "", 3)
    assert not any(name in names for name in strangers)
    with pytest.raises(ValueError, match="'north' is none of"):
        names.index("north")


def test_a_journal_tells_names_as_a_list_or_as_a_count() -> None:
    assert told(Names(1000)) == list(Names(1000)) and told(["b", "a"]) == ["b", "a"]
    assert told(Names(MILLION, 8)) == {"count": MILLION, "width": 8}
    assert heard(told(Names(MILLION, 8))) == Names(MILLION, 8) and heard(told(["a"])) == ["a"]


def test_a_pool_makes_what_is_asked_for_and_keeps_nothing() -> None:
    asked = []
    pool = counted(MILLION, lambda i: asked.append(i) or i * i)  # type: ignore[func-returns-value]
    assert len(pool) == MILLION and "site-000003" in pool and "site-3" not in pool and asked == []
    assert [pool["site-000003"], pool["site-000003"]] == [9, 9] and asked == [3, 3]
    with pytest.raises(KeyError):
        pool["north"]
    assert dict(named(["b", "a"], str.upper)) == {"a": "A", "b": "B"}
    assert among(["a", "c"], "c") and not among(["a", "c"], "b") and not among([], "a")


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a", ""], [1]])
def test_a_pool_needs_names_that_differ(names: Any) -> None:
    with pytest.raises(FoedusError, match="name"):
        named(names, str)


def test_lazy_sites_are_sites() -> None:
    lazy = fd.Sites.lazy(3, lambda i: ([[i], [i]], [0, 1]))
    assert list(lazy) == ["site-000", "site-001", "site-002"] == list(lazy.names)
    assert isinstance(lazy["site-001"], Split) and lazy["site-001"].train.x.tolist() == [[1], [1]]
    eager = fd.Sites({name: lazy[name] for name in lazy})
    assert lazy.digest == eager.digest and lazy.table() == eager.table()
    with pytest.raises(FoedusError, match="a count of at least 1"):
        fd.Sites.lazy(0, int)


class Noted(Mapping[Any, Any]):
    """A mapping of a user's own, that notes which values were taken."""

    def __init__(self, data: Mapping[Any, Any]) -> None:
        self.data, self.taken = data, set[Any]()

    def __getitem__(self, name: Any) -> Any:
        self.taken.add(name)
        return self.data[name]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


def test_binding_takes_no_value_and_names_become_text() -> None:
    noted = Noted({2: "two", 10: "ten"})
    bound = launch.bind(noted)
    assert list(bound) == ["10", "2"] and "2" in bound and noted.taken == set()
    assert bound["2"] == "two" and noted.taken == {2}
    assert list(launch.bind(lambda: SITES)) == ["north", "south", "west"]
    assert dict(launch.bind(3)) == {"site-0": 0, "site-1": 1, "site-2": 2}
    with pytest.raises(JobError, match="give a count, a mapping"):
        launch.bind(0)


# Runs over a pool.


def test_only_the_data_of_the_cohorts_is_taken(home: Path) -> None:
    noted = Noted(many(60))
    found = job(rounds=3, cohort=2, evaluate=0).run(noted, backend="local")
    rows = runs.journal(found.folder).all("round")
    assert noted.taken == {site for row in rows for site in row["cohort"]} and 2 <= len(noted.taken) <= 6
    assert found.digest == job(rounds=3, cohort=2, evaluate=0).run(many(60), backend="local").digest


@pytest.mark.parametrize("backend", ["auto", "vectorized"])
def test_a_site_whose_data_cannot_be_made_is_a_failure_that_a_run_survives(backend: str, home: Path) -> None:
    def data(i: int) -> Split:
        if i == 1:
            raise OSError("the disk is gone")
        return points([[i, i, i]])

    found = job(rounds=1).run(fd.Sites.lazy(3, data), backend=backend)
    (row, *_) = runs.journal(found.folder).all("close")
    assert row["outcomes"][1][:2] == ["site-001", "declined"]
    assert row["outcomes"][1][2].startswith("loading its data: OSError: the disk is gone (test_pools.py, line")


def test_processes_make_the_data_of_lazy_sites_themselves(home: Path) -> None:
    lazy = fd.Sites.lazy(5000, lambda i: points([[i, -i, i % 7]]))
    found = [job(rounds=2, cohort=6, panel=3).run(lazy, backend=b, workers=2).digest for b in ("local", "processes")]
    assert found[0] == found[1]


def test_a_million_sites_leave_no_list_of_themselves(home: Path) -> None:
    """Names, roster, cohort, journal: after a warm-up, a run over a million allocates no more than 8 MB at any time."""
    lazy = fd.Sites.lazy(MILLION, lambda i: points([[i % 3, 1, i % 5]]))
    made = job(rounds=1, cohort=20)
    made.run(many(30), backend="local")
    tracemalloc.start()
    try:
        found = made.run(lazy, backend="local")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6  # a list of a million names takes more than 60
    assert (found.folder / "run.db").stat().st_size < 2e6
    journal = runs.journal(found.folder)
    assert journal.all("roster")[0]["sites"] == {"count": MILLION, "width": 6}
    assert len(journal.all("close")[1]["outcomes"]) == 1000  # evaluation, on the panel
    assert any("on 1,000 of 1,000,000 sites" in event["why"] for event in journal.events)
    assert launch.verify(found.folder, made, lazy)["same"]
    assert found.report().stat().st_size < 2e6


def test_an_asynchronous_run_over_a_million_sites_asks_only_those_it_needs(home: Path) -> None:
    asked = set()
    lazy = fd.Sites.lazy(MILLION, lambda i: asked.add(i) or points([[i % 3, 1, i % 5]]))  # type: ignore[func-returns-value]
    found = job(fd.fedavg(busy=5), rounds=3, quorum=3, late="keep", evaluate=0).run(lazy, backend="local")
    assert found.rounds == 3 and 5 <= len(asked) <= 14 and max(asked) < 14  # at most 5 at first and 9 that follow


def test_who_was_on_its_way_is_looked_at_again_in_its_turn() -> None:
    left = Candidates(["a", "b", "c", "d", "e"])
    assert left.take(2, {"a"}) == ["b", "c"]
    assert left.take(1, {"b"}) == ["a"]
    assert left.take(9, {"d"}) == ["e"]
    assert left.take(9, {"d"}) == [] and left.take(9, set()) == ["d"] and left.take(9, set()) == []


# Cohorts and panels.


def plan(**more: Any) -> Plan:
    return job(**more).plan(0)


def test_a_cohort_of_those_who_are_there_is_drawn_without_asking_all() -> None:
    asked = []
    found = draw(plan(cohort=10), 3, Names(MILLION), lambda site: asked.append(site) or int(site[-1]) % 2 == 0)  # type: ignore[func-returns-value]
    assert len(set(found)) == 10 and list(found) == sorted(found) and all(int(site[-1]) % 2 == 0 for site in found)
    assert 10 <= len(asked) < 60 and found == draw(plan(cohort=10), 3, Names(MILLION), set(found).__contains__)


def test_every_site_is_drawn_as_often_as_every_other() -> None:
    """3 of 10 in 2000 rounds: 600 each, with a deviation of 20."""
    rounds = [draw(plan(cohort=3), r, Names(10), lambda site: True) for r in range(2000)]
    counts = [sum(name in cohort for cohort in rounds) for name in Names(10)]
    assert all(len(set(cohort)) == 3 for cohort in rounds) and all(520 < count < 680 for count in counts)
    assert list(draw(plan(cohort=3), 0, Names(10), {"site-1", "site-4"}.__contains__)) == ["site-1", "site-4"]


def test_the_panel_is_everybody_or_the_same_few_each_time(home: Path) -> None:
    names = [f"s{i:02}" for i in range(20)]
    assert panel(plan(), names) is names and len(panel(plan(panel=0.25), names)) == 5
    assert len(panel(plan(), Names(10_000))) == 10_000 and len(panel(plan(), Names(10_001))) == 1_000
    found = job(rounds=3, panel=4).run(many(20), backend="local")
    measured = [row for row in runs.journal(found.folder).all("close") if row["task"] == 1]
    assert len({tuple(o[0] for o in row["outcomes"]) for row in measured}) == 1 and len(measured[0]["outcomes"]) == 4
    with pytest.raises(JobError, match="panel=0"):
        job(panel=0)


# Rosters in the journal.


def test_a_large_roster_that_changes_is_told_by_its_changes() -> None:
    log = Memory()
    journal = Journal(log)
    first = [f"s{i:05}" for i in range(3000)]
    second = sorted([*first[5:], "new"])
    for round, sites in enumerate([first, first, second, second, Names(2000), first]):
        since = journal.roster_of(round, sites)
        journal.add("round", round=round, roster=since, cohort=["s00007"])
    rows = [body for kind, body in log.rows() if kind == "roster"]
    assert [row["round"] for row in rows] == [0, 2, 4, 5] and len(json.dumps(rows[1])) < 200
    assert rows[1] == {"round": 2, "since": 0, "came": ["new"], "gone": first[:5]}
    again = Journal(log)
    assert list(again.roster(2)) == second and list(again.roster(5)) == first and again.roster(4) == Names(2000)
    assert list(again.roster(0)) == first and list(again.roster(2)) == second
    assert [again.roster_of(round, ["other"]) for round in range(6)] == [0, 0, 2, 2, 4, 5]


# The sites' own states.


def test_a_state_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    kept = Locals(tmp_path)
    assert kept.get("train", "a") is None and not (tmp_path / states.FILE).exists()
    kept.put("train", "a", {"n": 1, "x": fd.Params({"w": np.arange(3.0)})})
    kept.put("train", "b", None)
    assert kept.get("train", "a")["x"]["w"].tolist() == [0, 1, 2] and kept.get("other", "a") is None
    own = kept.of("train")
    assert own.get("b") is None and list(own) == ["a"] and len(own) == 1 and own["a"]["n"] == 1


def test_states_that_were_not_checkpointed_are_gone(tmp_path: Path) -> None:
    """What a resumed run sees is what the checkpoint saw that its journal names, and that may be the last but one."""
    kept = Locals(tmp_path)
    for round in range(4):  # site 0 in all rounds, site i + 1 in round i
        kept.round = round
        kept.put("train", "s0", round)
        kept.put("train", f"s{round + 1}", round)
        if round in (1, 2):
            assert kept.checkpoint() == round
    del kept  # as a killed process does
    for back, seen in ((2, [2, 0, 1, 2, None]), (1, [1, 0, 1, None, None]), (-1, [None] * 5)):
        again = Locals(tmp_path)
        again.back(back)
        assert [again.get("train", f"s{i}") for i in range(5)] == seen, back
        again._do("ROLLBACK")


def test_only_two_checkpoints_are_kept_and_memory_holds_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "MOST_BYTES", 40_000)
    monkeypatch.setattr(states, "PIECE", 1000)  # each state takes nine rows or so
    kept = Locals(tmp_path)
    for round in range(6):
        kept.round = round
        for i in range(30):
            kept.put("train", f"s{i}", np.full(1000, 100.0 * round + i))
            assert kept.bytes <= 40_000 and len(kept.cache) <= 5
        kept.checkpoint()
    assert [kept.get("train", f"s{i}")[0] for i in range(30)] == [500.0 + i for i in range(30)]
    versions = kept._do("SELECT site, count(DISTINCT round) FROM state GROUP BY site").fetchall()
    assert len(versions) == 30 and {count for _, count in versions} == {2}


def test_a_checkpoint_of_an_older_version_is_read(tmp_path: Path) -> None:
    kept = Locals(tmp_path)
    kept.back(-1, {"train": {"a": {"n": 1}}})
    assert kept.get("train", "a") == {"n": 1}


def counting(payload: Any, local: Any, site: Any, usual: Any) -> Any:
    """A work whose result depends on how often this site was counted."""
    times = (local or {"times": 0})["times"] + 1
    return {"times": times, "x": np.full(500, times)}, usual()[1]._replace(weight=float(times))


@pytest.mark.parametrize("after", [0, 2, 3])
def test_a_run_of_stateful_sites_that_was_cut_has_the_same_bits(
    after: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints come after rounds 1 and 2 only; memory holds a state or two."""
    monkeypatch.setattr(states, "MOST_BYTES", 5_000)
    monkeypatch.setattr("foedus.run.Checkpoints.due", lambda self: self.folder.name == "cut" and due())
    rounds = iter([False, True, True, False, False, False, False, False, False])
    due = lambda: next(rounds)  # noqa: E731
    made = job(working(counting), rounds=5, cohort=4)
    calm = made.run(many(12), backend="local")

    def stop(line: Any) -> None:
        if line["round"] == after:
            raise KeyboardInterrupt

    folder = home / "runs" / "cut"
    with pytest.raises(KeyboardInterrupt):
        launch.run(made, many(12), backend="local", folder=folder, told=stop)
    assert launch.run(made, many(12), backend="local", folder=folder).digest == calm.digest


def test_states_of_many_sites_take_no_memory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 sites keep 0.4 MB each (SCAFFOLD, 80 MB in all), of which 4 MB and those of 16 sites may be in memory."""
    monkeypatch.setattr(states, "MOST_BYTES", 4 << 20)
    monkeypatch.setattr("foedus.backends.simulation.STATES", 4 << 20)
    model = {"w": np.zeros(100_000, np.float32)}

    def gradient(p: Any, x: Any, y: Any) -> tuple[Any, dict[str, Any]]:
        return x[:, 0] * 0, {"w": p["w"] - 1}

    lazy = fd.Sites.lazy(200, lambda i: ([[i]], [i]))
    made = fd.Job(scaffold(), NumpyLearner(model, gradient, lr=0.1), rounds=1, evaluate=0)
    tracemalloc.start()
    try:
        made.run(lazy, backend="local")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6


# A site with more examples than memory.


class OnDisk:
    """Images in one file, read by their number; none is kept."""

    def __init__(self, path: Path, count: int, side: int) -> None:
        self.path, self.count, self.side = path, count, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Any, int]:
        size = self.side * self.side
        with self.path.open("rb") as file:
            found = os.pread(file.fileno(), size, i * size)
        return torch.frombuffer(bytearray(found), dtype=torch.uint8).float(), i % 2


def torch_job(side: int) -> fd.Job:
    made = TorchLearner(
        lambda: torch.nn.Linear(side * side, 2),
        torch.nn.CrossEntropyLoss(),
        lambda p: torch.optim.SGD(p, lr=1e-4),
        batch_size=64,
        metrics=["accuracy"],
    )
    return fd.Job(fd.fedavg(), made, rounds=1)


def peak_of(work: Any) -> float:
    """MB by which the process grew at its largest, while `work` was done; the peak is the system's own."""
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    work()
    return (status("VmHWM") - before) / 1024


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def test_a_dataset_on_disk_is_read_example_by_example(home: Path, tmp_path: Path) -> None:
    """1,500 images of 40 kB are 60 MB of bytes, and 240 MB as the float32 that a model sees."""
    side, count = 200, 1500
    path = tmp_path / "images"
    with path.open("wb") as file:
        file.truncate(count * side * side)
    torch_job(side).run({"a": Split(train=OnDisk(path, 300, side))}, backend="local")  # what is loaded once
    assert peak_of(lambda: torch_job(side).run({"a": Split(train=OnDisk(path, count, side))}, backend="local")) < 80


def test_a_memory_mapped_array_stays_on_disk_and_gives_the_same_bits(home: Path, tmp_path: Path) -> None:
    side, count = 40, 5000  # 32 MB
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (count, side * side))
    mapped[:] = np.random.default_rng(0).normal(size=(count, 1))
    mapped.flush()
    labels = np.arange(count) % 2
    plain = torch_job(side).run({"a": (np.array(mapped), labels)}, backend="local")
    tracemalloc.start()
    try:
        found = torch_job(side).run({"a": (np.load(tmp_path / "x.npy", mmap_mode="r"), labels)}, backend="local")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.digest == plain.digest and found.metrics["accuracy"] == plain.metrics["accuracy"]
    assert peak < 16e6  # a batch or two, and the order


def test_rows_of_a_memory_map_are_an_array(tmp_path: Path) -> None:
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (6, 2))
    mapped[:] = np.arange(12).reshape(6, 2)
    split = Split(train=(mapped, np.arange(6))).with_valid(fd.key(0))
    assert isinstance(split.train.x, Rows) and split.train.x.shape == (5, 2) and split.train.x.nbytes == 40
    rows = Rows(mapped, np.array([4, 1]))
    assert np.asarray(rows).tolist() == [[8, 9], [2, 3]] and rows[1].tolist() == [2, 3] and len(rows) == 2
    assert rows[np.array([1, 0])].tolist() == [[2, 3], [8, 9]] and rows[:1].tolist() == [[8, 9]]
    both = job(learner=learner(model={"w": np.zeros(2, np.float32), "b": np.zeros((), np.float32)}), rounds=1)
    assert both.run({"a": Split(train=(mapped, np.arange(6.0)))}, backend="local").rounds == 1
    assert isinstance(Pool(["a"], str)["a"], str)


@pytest.mark.parametrize("sites", [0, -1, 2.5, "abc", True, [1, 2], None], ids=str)
def test_a_pool_of_what_is_no_count_is_refused(sites: Any) -> None:
    with pytest.raises(FoedusError, match="give a count of at least 1, or a list of names"):
        fd.Sites.lazy(sites, lambda i: i)
    with pytest.raises(FoedusError, match="give a function of the site's number"):
        fd.Sites.lazy(3, [1, 2, 3])  # type: ignore[arg-type]
