"""Law 1 in the large: one digest in every backend, whatever order sites finish in, under any number of threads."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from federations import joined
from foedus import runs
from foedus.loopback import environment
from toys import JOB

BITS = JOB.parents[1] / "bits"
HEART = JOB.parents[3] / "examples" / "heart"
SITES = 8
ORDERS = 20
MOST = 0.3  # seconds that a site waits
THREADS = (None, "1", "2")


def hearts(folder):
    """(job file, site -> data): the tables of four hospitals, each in two halves."""
    code = folder / "code"
    shutil.copytree(BITS, code)
    shutil.copy(HEART / "job.py", code / "heart.py")
    shutil.copy(HEART / "data.py", code)
    sites = {}
    for table in sorted(Path(os.environ["FOEDUS_DATA"], "heart").glob("*.csv")):
        lines = table.read_text().splitlines(keepends=True)
        for half in (0, 1):
            path = folder / f"{table.stem}-{half}.csv"
            path.write_text("".join(lines[half::2]))
            sites[path.stem] = path
    return code / "hearts.py", sites


def pictures(folder):
    """(job file, site -> data): scikit-learn's digits, dealt out."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    sites = {}
    for i in range(SITES):
        path = folder / f"s{i}.npz"
        np.savez(path, x=(x[i::40].reshape(-1, 1, 8, 8) / 16).astype(np.float32), y=y[i::40])
        sites[path.stem] = path
    return BITS / "cnn.py", sites


heart = pytest.param(hearts, 20, marks=pytest.mark.data, id="heart")
cnn = pytest.param(pictures, 3, marks=pytest.mark.processes, id="cnn")
cnn_whole = pytest.param(pictures, 6, marks=[pytest.mark.processes, pytest.mark.long], id="cnn whole")


@contextmanager
def threads(count):
    """The environment of somebody who set so many threads, or never thought of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.endswith("_NUM_THREADS")]:
            patch.delenv(name)
        if count is not None:
            patch.setenv("OMP_NUM_THREADS", count)
        yield


def foedus(home, *words):
    """The folder of the run that a verb of the command line brought about."""
    command = [sys.executable, "-m", "foedus", *map(str, words), "--home", str(home), "--json"]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, check=True)
    return home / "runs" / json.loads(done.stdout)["run"]


def simulated(home, job, sites, backend, workers, count, **options):
    """The folder of a run on this machine, under `count` threads."""
    given = [text for name, path in sites.items() for text in ("--site", f"{name}={path}")]
    more = [*given, "--backend", backend, *(["--workers", workers] if workers else [])]
    with threads(count):
        return foedus(home, "run", job, *pairs(options), *more)


def pairs(options):
    return [f"{name}={value}" for name, value in options.items()]


def states(folder):
    """The digest of the state after each round, and of the model in the end."""
    journal = runs.journal(folder)
    return [*(row["digest"] for row in journal.all("step")), journal.find("end")["digest"]]


def arrivals(folder):
    """The order in which the sites' updates came, round by round."""
    found = {}
    for row in runs.journal(folder).all("accepted"):
        if row["task"] == 0:
            found.setdefault(row["round"], []).append(row["site"])
    return [tuple(sites) for sites in found.values()]


@pytest.mark.parametrize(("prepare", "rounds"), [heart, cnn, cnn_whole])
def test_every_backend_has_the_same_bits_round_by_round_in_whatever_order_sites_finish(prepare, rounds, tmp_path):
    """Each round has an order of its own. The simulations run beside the federation, whose sites mostly wait."""
    job, sites = prepare(tmp_path)
    simulations = [("local", None, "2", rounds, 0.0), ("processes", 1, "1", 1, MOST), ("processes", 2, None, 2, MOST)]
    with threads("2"), joined(tmp_path / "network", sites) as made, ThreadPoolExecutor(1) as beside:
        network = beside.submit(
            foedus, made.home, "submit", job, "--privacy", "none", *pairs({"rounds": rounds, "most": MOST})
        )
        first = states(simulated(tmp_path, job, sites, "local", None, None, rounds=rounds))
        for backend, workers, count, played, most in simulations:
            folder = simulated(tmp_path, job, sites, backend, workers, count, rounds=played, most=most)
            assert states(folder)[:played] == first[:played], (backend, workers, count)
        assert states(network.result()) == first
    orders = arrivals(network.result())
    assert len(first) == rounds + 1 == len(orders) + 1
    assert all(sorted(order) == sorted(sites) for order in orders)
    assert len(set(orders)) > rounds / 2, "the sites came in the same order again and again"


@pytest.mark.long
@pytest.mark.parametrize(("prepare", "rounds"), [heart, cnn])
def test_twenty_orders_in_every_backend_end_with_one_digest(prepare, rounds, tmp_path):
    """All of it: each backend, each number of threads, each order a run of its own."""
    job, sites = prepare(tmp_path)
    found = {}
    for count, order in product(THREADS, range(ORDERS)):
        options = {"rounds": 3, "order": order, "most": MOST}
        for backend, workers in (("local", None), ("processes", 1), ("processes", 2)):
            found[count, backend, workers, order] = states(
                simulated(tmp_path, job, sites, backend, workers, count, **options)
            )
    for count in THREADS:
        with threads(count), joined(tmp_path / f"network-{count}", sites) as made:
            for order in range(ORDERS):
                options = {"rounds": 3, "order": order, "most": MOST}
                found[count, "network", None, order] = states(
                    foedus(made.home, "submit", job, "--privacy", "none", *pairs(options))
                )
    first = found[None, "local", None, 0]
    assert [names for names, bits in found.items() if bits != first] == []
