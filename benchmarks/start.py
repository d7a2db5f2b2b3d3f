"""How long foedus takes to start: its import beside numpy's, the command line, and from nothing to the first round.
Prints JSON: python benchmarks/start.py [RUNS]. Medians of whole processes, in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from statistics import median
from time import perf_counter

JOB = """
import numpy as np, foedus as fd
from foedus.numpy import NumpyLearner
learner = NumpyLearner({"w": np.zeros(3)}, lambda p, x, y: ((x @ p["w"] - y) ** 2, {"w": x.T @ (x @ p["w"] - y)}))
x = np.ones((20, 3))
fd.Job(fd.fedavg(), learner, rounds=1, evaluate=0).run(sites={"a": fd.Split((x, x[:, 0])), "b": fd.Split((x, x[:, 1]))})
"""
COMMANDS = {
    "import_numpy": ["-c", "import numpy"],
    "import_foedus": ["-c", "import foedus"],
    "import_foedus_torch": ["-c", "import foedus.torch"],
    "import_torch": ["-c", "import torch"],
    "command_line": ["-m", "foedus", "--version"],
    "first_round": ["-c", JOB],
}


def seconds(command: list[str], runs: int) -> float:
    """The median of whole processes, the first not counted."""
    found = []
    for _ in range(runs + 1):
        began = perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        found.append(perf_counter() - began)
    return round(median(found[1:]), 4)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as home:
        os.environ["FOEDUS_HOME"] = home
        found = {name: seconds(command, runs) for name, command in COMMANDS.items()}
    found["foedus_over_torch"] = round(found["import_foedus_torch"] - found["import_torch"], 4)
    print(json.dumps({"runs": runs, "limit_import_foedus": 0.3, **found}, indent=2))


if __name__ == "__main__":
    main()
