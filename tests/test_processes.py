"""The backend `processes`: the bits and the journal of `local` from any number of workers, whatever becomes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from foedus import Split, Update, build, fedavg, fixed, jobfile, launch, mean, median
from foedus.backends import processes
from foedus.backends.processes.channel import APART
from foedus.backends.simulation import Simulation
from foedus.job import Job
from foedus.journal import Journal, Memory
from foedus.params import Params, digest
from foedus.run import Checkpoints, Ended, execute
from tiny import job, many, played, working
from torch_models import Rich, images
from torch_models import learner as torch_learner
from toys import JOB, make_sites

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


def children() -> set[int]:
    return {int(pid) for t in Path("/proc/self/task").iterdir() for pid in (t / "children").read_text().split()}


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

    ended, _ = same(job(fedavg(aggregator=mean()._replace(fold=fold))))
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


JOB_FILE = '''
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
    how = dict(train=fit) if own else dict(loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.SGD, lr=0.05), batch_size=8)
    return fd.Job(fd.fedavg(), TorchLearner(Net, **how), load, rounds=2)
'''


def printed(place: Path, *args: str, threads: str | None = None, seconds: float = 60.0) -> dict[str, Any]:
    """What `foedus run` prints."""
    env = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    env |= {"PYTHONPATH": os.pathsep.join(sys.path)} | ({} if threads is None else {"OMP_NUM_THREADS": threads})
    line = [sys.executable, "-m", "foedus", "run", str(place / "job.py"), *args, "--json", "--home", str(place / "home")]
    ran = subprocess.run(line, env=env, capture_output=True, text=True, timeout=seconds)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_the_number_of_threads_that_the_user_set_changes_no_bit(tmp_path):
    (tmp_path / "job.py").write_text(JOB_FILE)
    found = [
        printed(tmp_path, "--sites", "4", "--backend", backend, threads=threads)["digest"]
        for backend, threads in [("local", None), ("processes", None), ("processes", "1"), ("processes", "2")]
    ]
    assert len(set(found)) == 1


def test_a_training_loop_may_use_threads_of_its_own_after_the_fork(tmp_path):
    (tmp_path / "job.py").write_text(JOB_FILE)
    assert printed(tmp_path, "own=true", "--sites", "4", "--backend", "processes", threads="2")["rounds"] == 2
