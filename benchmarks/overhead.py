"""What a site costs the framework: an empty federation, whose sites return at once, with the fold and without.
Prints JSON: python benchmarks/overhead.py [SITES [ROUNDS]]. Microseconds a site in `local`, medians over the rounds."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from statistics import median
from typing import Any

import numpy as np

import foedus as fd
from foedus.numpy import NumpyLearner

ARRAYS = {"a": (64, 64), "b": (64,), "c": (13, 60), "d": (60,)}  # 5,000 parameters
LIMITS = {"without_fold": 50, "with_fold": 120}


def empty(fold: bool) -> fd.Algorithm:
    """Sites return what they got, or no arrays at all."""

    def work(payload: Any, local: Any, site: Any) -> Any:
        return local, fd.Update(payload if fold else fd.Params({}), 3.0)

    def round(state: Any, context: Any) -> Any:
        total = yield fd.Task("train", state, context.cohort, returns=None if fold else ())
        return state if not fold else total.params

    return fd.Algorithm(lambda params: params, round, {"train": work})


def microseconds(fold: bool, sites: int, rounds: int) -> float:
    rng = np.random.default_rng(0)
    model = {name: rng.normal(size=shape).astype(np.float32) for name, shape in ARRAYS.items()}
    learner = NumpyLearner(model, lambda p, x, y: (y, {}))
    held = fd.Split((np.zeros((2, 1)), np.zeros(2)))
    job = fd.Job(empty(fold), learner, rounds=rounds, evaluate=0)
    result = job.run(sites={f"s{i}": held for i in range(sites)}, backend="local")
    return float(f"{1e6 * median(line['seconds'] for line in result.history[1:]) / sites:.1f}")


def main() -> None:
    sites, rounds = map(int, [*sys.argv[1:], *("1000", "7")[len(sys.argv) - 1 :]])
    with tempfile.TemporaryDirectory() as home:
        os.environ["FOEDUS_HOME"] = home
        found = {"without_fold": microseconds(False, sites, rounds), "with_fold": microseconds(True, sites, rounds)}
    print(json.dumps({"sites": sites, "rounds": rounds, "microseconds_a_site": found, "limits": LIMITS}, indent=2))


if __name__ == "__main__":
    main()
