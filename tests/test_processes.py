"""The backend `processes`: the bits and the journal of `local` from any number of workers, whatever becomes of them."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foedus import Decline, Split, Update, build, fedavg, fixed, jobfile, launch, mean, median, runs, stall
from foedus.aggregators import Folding
from foedus.backends import processes
from foedus.backends.processes.channel import APART, Channel, pack
from foedus.backends.simulation import Done, Simulation
from foedus.core import Deadline, Task
from foedus.errors import FoedusError, JobError, Paused
from foedus.job import Job
from foedus.journal import Journal, Memory
from foedus.params import Params, digest
from foedus.progress import progress
from foedus.run import Checkpoints, Ended, execute
from foedus.work import Order
from tiny import job, many, played, working
from torch_models import Rich, images
from torch_models import learner as torch_learner
from toys import JOB, calls, make_sites

pytestmark = pytest.mark.processes

EIGHT = many(8)


def crewed(
    made: Job, sites: Mapping[str, Any], workers: int | None = 2, start: Any = None, note: Any = lambda why: None
) -> tuple[Ended, Journal]:
    """What the Job ends with in worker processes, and its journal."""
    kept = Journal(Memory())
    with build.exactly(), processes.crew(made, sites, 0, workers, note, start) as hands:
        runner = Simulation(hands, sorted(sites), kept, 0, made.min_sites)
        return execute(made.plan(0), runner, kept, Checkpoints(None)), kept


def shown(ended: Ended, journal: Journal) -> tuple[Any, ...]:
    """All that must not depend on the backend."""
    history = [{name: x for name, x in line.items() if name != "seconds"} for line in ended.history]
    return digest(ended.params), history, [dict(row) for row in journal.all("close")]


def same(made: Job, sites: Mapping[str, Any] = EIGHT, workers: int = 2, start: Any = None) -> tuple[Ended, Journal]:
    """The run in worker processes, which was that of `local`."""
    found = crewed(made, sites, workers, start)
    with build.exactly():
        assert shown(*found) == shown(*played(made, sites))
    return found


def folded_once(hands: Any, made: Job, sites: Mapping[str, Any]) -> list[Done]:
    """What becomes of the first Task."""
    task = Task("train", made.first(0), list(sites), mean())
    orders = [Order("train", task.payload, site, 0, 0) for site in sites]
    found: list[Done] = hands.fold(task, orders, {}, Folding(mean(), task.payload.spec, len(sites)))
    return found


def children(pid: int | str = "self") -> set[int]:
    """Its child processes, without the one that Python itself keeps beside those that are spawned."""
    found = {p for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()}
    return {int(p) for p in found if b"resource_tracker" not in Path(f"/proc/{p}/cmdline").read_bytes()}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.01)
    raise AssertionError(f"it did not happen within {seconds} s")


# The same bits.


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_toy_job_ends_with_the_bits_of_local(workers, tmp_path):
    sites = make_sites(tmp_path / "data", [f"s{i}" for i in range(8)])
    made = jobfile.load(JOB).job
    here = launch.run(made, sites, backend="local", folder=tmp_path / "local")
    there = launch.run(made, sites, backend="processes", workers=workers, folder=tmp_path / "processes")
    assert there.digest == here.digest
    assert there.per_site == here.per_site
    assert launch.verify(there.folder, made, sites)["same"]
    assert (there.backend, there.exact) == ("processes", True)


@pytest.mark.parametrize(
    "rules", [{"quorum": 3}, {"quorum": 3, "over_select": 1.5, "cohort": 4}, {"quorum": 2, "late": "keep"}], ids=str
)
def test_rounds_that_do_not_wait_for_all_have_the_bits_of_local(rules):
    same(job(rounds=4, **rules))


def remembering(payload: Params, local: Any, site: Any, usual: Any) -> Any:
    """Each site adds to its update what it remembers of the rounds before."""
    _, update = usual()
    past = payload.zeros() if local is None else local["past"]
    return {"past": past + update.params, "rounds": 1}, update._replace(params=update.params + 0.5 * past)


def test_sites_keep_their_own_state():
    ended, _ = same(job(working(remembering), rounds=3))
    without, _ = crewed(job(rounds=3), EIGHT)
    assert digest(ended.params) != digest(without.params)


AGGREGATORS = {
    "median": median,
    "fixed": lambda: mean(arithmetic=fixed(64.0, 1024)),
    "discount": lambda: mean(discount=lambda age: 0.5**age),
}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_other_aggregators_have_the_bits_of_local(name):
    same(job(fedavg(aggregator=AGGREGATORS[name]()), rounds=3))


def test_a_sum_that_cannot_be_sent_is_folded_here():
    lock = threading.Lock()

    def fold(acc: Any, part: Any, weight: float) -> Any:
        with lock:
            return mean().fold(acc, part, weight)

    ended, _ = same(job(fedavg(aggregator=mean()._replace(fold=fold))), start="fork")
    assert digest(ended.params) == digest(played(job(), EIGHT)[0].params)


def mixed(payload: Params, local: Any, site: Any, usual: Any) -> Any:
    """An update of every kind of array; the numbers are the site's own."""
    rng = site.key("mixed").numpy()
    arrays = {name: (x + 10 * rng.normal(size=x.shape)).astype(x.dtype) for name, x in payload.items()}
    return None, Update(Params(arrays, payload.kinds), float(rng.integers(1, 99)), {"train_x": rng.random(3)})


def test_buffers_integers_and_half_precision_have_the_bits_of_local():
    kinds = {"steps": np.int64, "flags": np.uint8, "half": np.float16, "brain": ml_dtypes.bfloat16, "wide": np.float64}
    arrays = {name: np.zeros(n, dtype) for n, (name, dtype) in enumerate(kinds.items(), 3)}
    start = Params({**arrays, "big": np.zeros(APART, np.float32), "seen": np.zeros(5, np.float32)}, {"seen": "buffer"})
    ended, _ = same(job(working(mixed), start=start, evaluate=0))
    assert ended.params.kinds == start.kinds and ended.params["steps"].max() > 0


def cnn(**more: Any) -> Job:
    made = torch_learner(Rich, lr=0.05, batch_size=5, metrics=["accuracy"])
    return job(learner=made, rounds=2, **more)


PICTURES = {f"s{i}": Split(train=images(10 + 3 * i, i), valid=images(6, 50 + i)) for i in range(5)}


@pytest.mark.parametrize(("workers", "start"), [(1, None), (2, None), (2, "spawn")])
def test_a_cnn_with_batch_statistics_and_dropout_has_the_bits_of_local(workers, start):
    same(cnn(), PICTURES, workers, start)


JOB_FILE = """
from functools import partial
import numpy as np, torch
from torch import nn
import foedus as fd
from foedus.torch import TorchLearner

(torch.ones(900, 900) @ torch.ones(900, 900)).sum()  # where there are two threads, OpenMP now has a pool of them

def load(site):
    rng = np.random.default_rng(site.data)
    x = rng.normal(size=(24, 1, 20, 20)).astype(np.float32)
    return fd.Split(train=(x, rng.integers(0, 3, 24)))

def Net():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
                         nn.Linear(8 * 18 * 18, 64), nn.ReLU(), nn.Linear(64, 3))

def fit(model, split, ctx):
    torch.set_num_threads(2)
    x, y = (torch.from_numpy(a) for a in split.train[:])
    (torch.ones(900, 900) @ torch.ones(900, 900)).sum()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    nn.functional.cross_entropy(model(x), y).backward()
    ctx.correct(model, lr=0.05)
    optimizer.step()
    torch.set_num_threads(1)

def job(own=False):
    steps = dict(loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.SGD, lr=0.05), batch_size=8)
    return fd.Job(fd.fedavg(), TorchLearner(Net, **(dict(train=fit) if own else steps)), load, rounds=2)
"""


def command(place: Path, *args: str) -> list[str]:
    """`foedus run` of the job.py in a folder, on worker processes."""
    fixed = ["--backend", "processes", "--json", "--home", str(place / "home")]
    return [sys.executable, "-m", "foedus", "run", str(place / "job.py"), *args, *fixed]


def environment(threads: str | None = None) -> dict[str, str]:
    """This one, with so many threads for each library; without, as many as they like."""
    plain = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    return plain | {"PYTHONPATH": os.pathsep.join(sys.path)} | ({} if threads is None else {"OMP_NUM_THREADS": threads})


def printed(place: Path, *args: str, threads: str | None = None) -> dict[str, Any]:
    """What `foedus run` prints."""
    ran = subprocess.run(command(place, *args), env=environment(threads), capture_output=True, check=True, timeout=60)
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


@pytest.fixture
def threaded(tmp_path: Path) -> Path:
    (tmp_path / "job.py").write_text(JOB_FILE)
    return tmp_path


def test_the_number_of_threads_that_the_user_set_changes_no_bit(threaded):
    made = jobfile.load(threaded / "job.py").job
    sites = launch.bind(4)
    local, there = (digest(run(made, sites)[0].params) for run in (played, crewed))  # conftest sets it to 1
    assert {printed(threaded, "--sites", "4", threads=n)["digest"] for n in (None, "2")} == {local} == {there}


def test_a_training_loop_may_use_threads_of_its_own_after_the_fork(threaded):
    assert printed(threaded, "own=true", "--sites", "4", threads="2")["rounds"] == 2


# What workers do, and what they do not.


def test_each_worker_ships_one_sum_and_no_update(monkeypatch):
    merged, added = [], []
    merge, add = Folding.merge, Folding.add
    monkeypatch.setattr(Folding, "merge", lambda self, other: merged.append(other.count) or merge(self, other))
    monkeypatch.setattr(Folding, "add", lambda self, *update: added.append(os.getpid()) or add(self, *update))
    crewed(job(rounds=1, evaluate=0), many(40))
    assert len(merged) <= 2 and sum(merged) == 40
    assert not added  # here; the workers' own lists are theirs


def heavy(payload: Params, local: Any, site: Any, usual: Any) -> Any:
    """An update of 4 MB, and how much memory this process has now, in MB."""
    mb = int(Path("/proc/self/statm").read_text().split()[1]) / 256
    update = Params({"x": site.key("x").numpy().random(1 << 20, np.float32)})
    return None, Update(update, 1.0, {"train_mb": np.array([mb, 1.0, 0.0])})


def test_the_memory_of_a_worker_does_not_grow_with_its_sites():
    made = job(working(heavy), start={"x": np.zeros(1 << 20, np.float32)})
    with processes.crew(made, many(40), 0, 1) as hands:
        seen = [float(done.outcome.metrics["train_mb"][0]) for done in folded_once(hands, made, many(40))]
    assert max(seen[5:]) - min(seen[5:]) < 40 < 35 * 4  # MB; a list of updates would be 35 of 4 MB larger


def test_a_worker_has_one_thread_a_library():
    def threads(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        from threadpoolctl import threadpool_info

        most = max([torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())])
        return None, usual()[1]._replace(metrics={"train_x": np.array([most, 1.0, most])})

    torch.set_num_threads(2)
    try:
        with processes.crew(job(working(threads)), EIGHT, 0, 2) as hands:
            found = folded_once(hands, job(), EIGHT)
    finally:
        torch.set_num_threads(1)
    assert [done.outcome.metrics["train_x"][0] for done in found] == [1] * 8


class Slow:
    """Data whose loading and training take the seconds they are told, and leave a line in a file."""

    def __init__(self, book: Path, loading: float, training: Mapping[str, float]) -> None:
        self.book, self.loading, self.training = book, loading, training

    def load(self, site: Any) -> Split:
        time.sleep(self.loading)
        with self.book.open("a") as file:
            file.write(f"{site.name} {os.getpid()}\n")
        found: Split = site.data
        return found

    def train(self, payload: Params, local: Any, site: Any, usual: Any) -> Any:
        time.sleep(self.training[site.name])
        return usual()

    def lines(self) -> list[str]:
        return self.book.read_text().splitlines()


def test_a_site_stays_with_the_worker_that_loaded_its_data(tmp_path):
    slow = Slow(tmp_path / "book", 0.3, dict.fromkeys(EIGHT, 0.01))
    crewed(job(working(slow.train), rounds=4, data=slow.load), EIGHT)
    assert sorted(line.split()[0] for line in slow.lines()) == sorted(EIGHT)
    assert len({line.split()[1] for line in slow.lines()}) == 2


def test_long_sites_begin_first_and_short_ones_fill_the_gaps(tmp_path):
    slow = Slow(tmp_path / "book", 0.0, {site: 0.05 for site in EIGHT} | {"s07": 0.35})  # 0.7 s in all
    ended, _ = crewed(job(working(slow.train), rounds=3, data=slow.load, evaluate=0), EIGHT)
    assert min(line["seconds"] for line in ended.history[1:]) < 0.5  # 0.35 is the least, in turn it would be 0.6


@pytest.mark.parametrize(("loading", "homes"), [(0.0, {0, 1}), (9.0, {0})])
def test_a_worker_with_nothing_left_takes_over_what_would_be_done_later_elsewhere(loading, homes, tmp_path):
    slow = Slow(tmp_path / "book", 0.0, dict.fromkeys(EIGHT, 0.1))
    made = job(working(slow.train), data=slow.load)
    with processes.crew(made, EIGHT, 0, 2) as hands:
        hands.balance.home = dict.fromkeys(EIGHT, 0)  # worker 1 has nothing of its own
        hands.balance.seconds = {("train", site): 0.1 for site in EIGHT}
        hands.balance.loading = dict.fromkeys(EIGHT, loading)
        folded_once(hands, made, EIGHT)
        assert set(hands.balance.home.values()) == homes


@pytest.mark.parametrize(("workers", "count"), [(5, 2), (1, 1), (None, min(2, len(os.sched_getaffinity(0))))])
def test_there_are_never_more_workers_than_sites(workers, count):
    with processes.crew(job(), many(2), 0, workers):
        assert len(children()) == count
    assert not children()


# Errors.


def test_no_worker_is_no_answer():
    with (
        pytest.raises(JobError, match="workers=0: give a whole number of at least 1"),
        processes.crew(job(), EIGHT, 0, 0),
    ):
        pass


def picky(payload: Params, local: Any, site: Any, usual: Any) -> Any:
    """Some sites raise, decline, send nonsense or more than can be added."""
    if site.name == "s01":
        raise ValueError("no scanner today")
    if site.name == "s02":
        return None, Decline("not now")
    if site.name == "s03":
        return None, "nonsense"
    _, update = usual()
    return None, update if site.name != "s04" else update._replace(params=update.params.map(lambda x: x * np.nan))


def test_sites_that_fail_settle_as_in_local():
    _, journal = same(job(working(picky)))
    outcomes = {site: (status, why) for site, status, why, _ in journal.all("close")[0]["outcomes"]}
    assert outcomes["s01"][0] == "declined"
    assert "ValueError: no scanner today (test_processes.py, line" in outcomes["s01"][1]
    assert [outcomes[f"s0{i}"][0] for i in (2, 3, 4, 5)] == ["declined", "refused", "refused", "counted"]


def test_the_error_that_stopped_a_run_has_the_traceback_of_the_worker():
    def load(site: Any) -> Split:
        raise OSError("disk gone")

    with pytest.raises(Paused, match=r"s00: declined \(loading its data: OSError: disk gone") as caught:
        crewed(job(data=load), many(2))
    assert "in load" in str(caught.value.__cause__.__cause__)  # type: ignore[union-attr]


def test_what_is_wrong_with_the_job_stops_the_run_as_in_local():
    made = job(fedavg(aggregator=mean(discount=lambda age: -1.0)))
    with pytest.raises(JobError, match="the discount makes -") as here:
        played(made, EIGHT)
    with pytest.raises(JobError, match="the discount makes -") as there:
        crewed(made, EIGHT)
    assert str(here.value).partition(" of ")[2:] != "" and type(there.value) is type(here.value)


def test_a_worker_that_fails_by_itself_says_where():
    def fold(acc: Any, part: Any, weight: float) -> Any:
        raise RuntimeError("no room")

    with pytest.raises(FoedusError, match=r"a worker process failed: RuntimeError: no room \(test_processes.py, line"):
        crewed(job(fedavg(aggregator=mean()._replace(fold=fold))), EIGHT)


@pytest.mark.parametrize("where", ["job", "data"])
def test_a_job_that_cannot_be_sent_is_refused_with_the_remedy(where):
    lock = threading.Lock()
    made = job(data=lambda site: (lock, site.data)[1] if where == "job" else site.data)
    sites = {"north": lock} if where == "data" else EIGHT
    with pytest.raises(JobError, match=r"cannot be sent to worker processes \(.*lock.* or use backend='local'"):
        crewed(made, sites, start="spawn")


class Unreadable:
    """What becomes an error when it is unpickled."""

    def __reduce__(self) -> Any:
        return int, ("x",)


def test_a_job_that_a_new_process_cannot_read_is_refused_with_the_remedy():
    why = r"cannot be read in another process \(ValueError: invalid literal.* or use backend='local'"
    with pytest.raises(JobError, match=why):
        crewed(job(), {"north": Unreadable()}, start="spawn")


SCRIPT = """
import sys
sys.path[:0] = {path!r}
from tiny import job, many
from foedus import mean
from foedus.aggregators import Folding
from foedus.backends import processes
from foedus.core import Task
from foedus.work import Order

with processes.crew(job(), many(1), 0, 1, start="spawn") as hands:
    task = Task("train", job().first(0), ["s00"], mean())
    hands.fold(task, [Order("train", task.payload, "s00", 0, 0)], {{}}, Folding(mean(), task.payload.spec, 1))
"""


def test_a_script_that_starts_itself_over_and_over_is_stopped_with_the_remedy(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(SCRIPT.format(path=sys.path))
    ran = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert "worker processes end as soon as they start (exit code 1): put what starts the run under `if" in ran.stderr


# Deaths.


def once(book: Path) -> bool:
    """Whether this is the first call with this file."""
    try:
        os.close(os.open(book, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@pytest.mark.kills
@pytest.mark.parametrize("rules", [{}, {"quorum": 6}, {"quorum": 2, "late": "keep"}], ids=str)
@pytest.mark.parametrize("site", ["s00", "s05"])
def test_a_worker_killed_while_it_trains_changes_no_bit(site, rules, tmp_path):
    def work(payload: Params, local: Any, here: Any, usual: Any) -> Any:
        if here.name == site and os.getpid() != parent and once(tmp_path / "killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return remembering(payload, local, here, usual)

    parent, notes = os.getpid(), list[str]()
    made = job(working(work), rounds=3, **rules)
    found = crewed(made, EIGHT, note=notes.append)
    assert shown(*found) == shown(*played(made, EIGHT))
    assert len(notes) == 1 and "died (signal 9)" in notes[0] and site in notes[0]


@pytest.mark.kills
def test_a_kill_at_any_moment_of_each_round_changes_no_bit(tmp_path):
    sites = make_sites(tmp_path / "data", [f"s{i}" for i in range(8)], slow=0.02)
    made = jobfile.load(JOB, {"rounds": "6"}).job
    moments = np.random.default_rng(0).uniform(0, 0.06, 6)
    killers: list[threading.Timer] = []

    def kill() -> None:
        with suppress(ProcessLookupError, IndexError):
            os.kill(sorted(children())[len(killers) % 2], signal.SIGKILL)

    def told(row: Mapping[str, Any]) -> None:
        killers.append(threading.Timer(moments[row["round"]], kill))
        killers[-1].start()

    there = launch.run(made, sites, backend="processes", workers=2, folder=tmp_path / "processes", told=told)
    for killer in killers:
        killer.join()
    assert min(calls(sites).values()) >= 6
    assert there.digest == launch.run(made, sites, backend="local", folder=tmp_path / "local").digest
    assert {row["what"] for row in runs.journal(there.folder).events} == {"worker died"}


@pytest.mark.kills
@pytest.mark.parametrize(
    ("end", "cause"), [(partial(signal.raise_signal, 9), "signal 9"), (partial(os._exit, 3), "exit code 3")]
)
def test_a_site_that_kills_every_worker_is_declined_and_the_others_count(end, cause):
    def work(payload: Params, local: Any, here: Any, usual: Any) -> Any:
        if here.name == "s03":
            end()
        return usual()

    notes: list[str] = []
    ended, journal = crewed(job(working(work), rounds=1, evaluate=0), EIGHT, note=notes.append)
    rest = {name: split for name, split in EIGHT.items() if name != "s03"}
    assert digest(ended.params) == digest(played(job(rounds=1, evaluate=0), rest)[0].params)
    outcomes = {row[0]: row[1:3] for row in journal.all("close")[0]["outcomes"]}
    assert outcomes.pop("s03") == ["declined", f"worker died: {cause}"]
    assert {status for status, _ in outcomes.values()} == {"counted"}
    assert len(notes) in (3, 4)  # the first may have been at more than this site


# A worker that does not get on.


@pytest.mark.kills
def test_a_worker_that_is_stopped_and_not_dead_is_replaced_and_changes_no_bit(tmp_path):
    def work(payload: Params, local: Any, here: Any, usual: Any) -> Any:
        if here.name == "s03" and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return usual()

    notes: list[str] = []
    made = job(working(work), rounds=2, deadline=Deadline(stall=4.0))
    began = time.monotonic()
    ended, journal = crewed(made, EIGHT, note=notes.append)
    assert time.monotonic() - began < 60
    assert digest(ended.params) == digest(played(job(rounds=2), EIGHT)[0].params)
    assert all(row[1] == "counted" for close in journal.all("close") for row in close["outcomes"])
    assert len(notes) == 1 and "was ended (no progress for 4 s) at work for" in notes[0] and "s03" in notes[0]


@pytest.mark.kills
def test_a_site_that_waits_for_ever_is_declined_and_the_others_count():
    def work(payload: Params, local: Any, here: Any, usual: Any) -> Any:
        if here.name == "s03":
            threading.Event().wait()
        return usual()

    notes: list[str] = []
    made = job(working(work), rounds=1, evaluate=0, deadline=Deadline(stall=2.0))
    ended, journal = crewed(made, EIGHT, note=notes.append)
    rest = {name: split for name, split in EIGHT.items() if name != "s03"}
    assert digest(ended.params) == digest(played(job(rounds=1, evaluate=0), rest)[0].params)
    outcomes = {row[0]: row[1:3] for row in journal.all("close")[0]["outcomes"]}
    assert outcomes.pop("s03") == ["declined", "no progress for 2 s"]
    assert {status for status, _ in outcomes.values()} == {"counted"}
    assert len(notes) in (2, 3)  # the first may have been at more than this site


@pytest.mark.long
def test_what_tells_of_progress_may_take_its_time():
    def work(payload: Params, local: Any, here: Any, usual: Any) -> Any:
        for _ in range(25 if here.name == "s03" else 0):
            time.sleep(0.2)  # longer than is allowed without a word
            progress()
        return usual()

    notes: list[str] = []
    made = job(working(work), rounds=1, evaluate=0, deadline=Deadline(stall=4.0))
    _, journal = crewed(made, EIGHT, note=notes.append)
    assert {row[1] for row in journal.all("close")[0]["outcomes"]} == {"counted"} and notes == []


def test_time_in_which_nobody_looked_is_no_silence(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(stall, "monotonic", lambda: clock[0])
    still = stall.Still()
    for now, figure, quiet in [(1, "a", 0), (5, "a", 4), (6, "b", 0), (9, "b", 3), (9000, "b", 18), (9001, "b", 19)]:
        clock[0] = now
        assert still.seconds(figure) == quiet


def test_a_site_without_memory_settles_and_the_run_goes_on():
    def work(payload: Params, local: Any, here: Any, usual: Any) -> Any:
        return (None, Update(Params({"w": np.zeros(1 << 50)}), 1.0)) if here.name == "s03" else usual()

    _, journal = same(job(working(work)))
    (row,) = [row for row in journal.all("close")[0]["outcomes"] if row[0] == "s03"]
    assert row[1] == "declined" and "MemoryError" in row[2]


# Nothing stays.


def descriptors() -> list[str]:
    return sorted(os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink())


@contextmanager
def tidy() -> Iterator[None]:
    """Fails if a process, a thread, a descriptor or shared memory is left after the block."""
    gc.collect()
    before = children(), threading.active_count(), descriptors(), sorted(os.listdir("/dev/shm"))
    yield
    gc.collect()
    assert (children(), threading.active_count(), descriptors(), sorted(os.listdir("/dev/shm"))) == before


LARGE = partial(job, working(mixed), start=Params({"x": np.zeros(4 * APART, np.float32)}), evaluate=0)


@pytest.mark.parametrize("aggregator", [mean, median])
def test_nothing_stays_after_a_run(aggregator):
    with tidy():
        crewed(LARGE().replace(algorithm=working(mixed, fedavg(aggregator=aggregator()))), EIGHT)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_stays_after_an_exception_in_the_middle(error):
    def told(row: Any) -> None:
        raise error

    made = LARGE()
    with tidy(), pytest.raises(error), processes.crew(made, EIGHT, 0, 2) as hands:
        runner = Simulation(hands, sorted(EIGHT), Journal(Memory()), 0)
        execute(made.plan(0), runner, Journal(Memory()), Checkpoints(None), told=told)


@contextmanager
def running(place: Path, names: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], set[int]]]:
    """`foedus run` of the toy job, in the middle of a training that would take a minute, and its workers."""
    sites = make_sites(place / "data", names, slow=60.0)
    chosen = [word for name, path in sites.items() for word in ("--site", f"{name}={path}")]
    (place / "job.py").symlink_to(JOB)
    with (place / "errors").open("wb") as errors:
        ran = subprocess.Popen(command(place, *chosen), env=environment(), process_group=0, stderr=errors)
    try:
        until(lambda: all(calls(sites, "begin").values()))
        yield ran, children(ran.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(ran.pid, signal.SIGKILL)
        ran.wait()


@pytest.mark.kills
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(how, tmp_path):
    with running(tmp_path, ["north", "south"]) as (ran, workers):
        assert len(workers) == 2
        (os.killpg if how == signal.SIGINT else os.kill)(ran.pid, how)  # Ctrl-C reaches the whole group
        ran.wait(10)
        until(lambda: not any(map(alive, workers)), 5.0)
    assert b"Traceback" not in (tmp_path / "errors").read_bytes()


def test_ctrl_c_is_for_the_parent_to_answer():
    def work(payload: Params, local: Any, here: Any, usual: Any) -> Any:
        if os.getpid() != parent:
            signal.raise_signal(signal.SIGINT)
        return usual()

    parent, notes = os.getpid(), list[str]()
    found = crewed(job(working(work)), EIGHT, note=notes.append)
    assert shown(*found) == shown(*played(job(working(work)), EIGHT)) and not notes


# Values on their way.


@given(st.lists(st.tuples(st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?"]), st.integers(0, 2 * APART)), max_size=5))
def test_arrays_of_any_size_arrive_as_they_were_sent(shapes):
    arrays = [np.arange(size // np.dtype(dtype).itemsize).astype(dtype) for dtype, size in shapes]
    one, other = map(Channel, Pipe())
    sender = threading.Thread(target=one.send, args=({"arrays": arrays, "n": len(arrays)},))
    sender.start()
    found = other.receive()
    sender.join()
    for sent, got in zip(arrays, found["arrays"], strict=True):
        assert got.dtype == sent.dtype and np.array_equal(got, sent)
        assert sent.nbytes < APART or not got.flags.writeable
    for end in (one, other):
        end.connection.close()


def test_params_travel_as_flat_arrays_and_no_array_twice():
    params = Params({"a": np.ones((APART, 2), np.float32), "b": np.zeros(3, ml_dtypes.bfloat16)}, {"a": "buffer"})
    assert len(params["a"]) == APART  # now there are views too
    packed = pack(params)
    assert len(packed.head) < 1000 and len(packed.starts) == 1
    one, other = map(Channel, Pipe())
    one.send_packed(packed)
    packed.close()
    found = other.receive()
    assert found == params and found.spec == params.spec and digest(found) == digest(params)
    for end in (one, other):
        end.connection.close()
