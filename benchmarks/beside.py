"""Simulations of foedus beside a plain PyTorch loop, stacked kernels by hand, and other frameworks, on one problem.
Prints JSON: python benchmarks/beside.py [--rounds 12] [--repeats 3] [--only ours-auto,loop-1,…] [A B C D].

The frameworks run in environments of their own, which `make bench-peers` fills; one that is not there is left out.
Each run is a process of its own, which tells when each round ended. CPU and memory are those of all its processes,
found by a mark in their environment, several times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits

import foedus as fd

sys.path.insert(0, str(Path(__file__).parent / "others"))
from problem import Problem, accuracy, network, write  # as each framework's script has it

HERE = Path(__file__).parent
PEERS = Path(os.environ.get("FOEDUS_PEERS", HERE.parent / ".venv-peers"))
MARK, TICK, MOST = "FOEDUS_BENCH", 0.25, 600.0  # seconds
ROUNDS = {"nvflare": 4}  # a round takes seconds


class Scenario(NamedTuple):
    model: str
    sites: int
    cohort: int


SCENARIOS = {"A": Scenario("MLP", 10, 10), "B": Scenario("MLP", 100, 100), "C": Scenario("MLP", 1000, 100),
             "D": Scenario("CNN", 10, 10)}  # fmt: skip
WAYS = {
    "ours-auto": ("ours.py", "", ["auto"]), "ours-vectorized": ("ours.py", "", ["vectorized"]),
    "ours-processes": ("ours.py", "", ["processes"]), "ours-local": ("ours.py", "", ["local"]),
    "loop-1": ("loop.py", "", ["1"]), "loop-2": ("loop.py", "", ["2"]), "by-hand": ("by_hand.py", "", []),
    "flower": ("flower.py", "flower", []), "pfl": ("pfl_run.py", "pfl", []),
    "fedjax": ("fedjax_run.py", "fedjax", []), "nvflare": ("nvflare_run.py", "nvflare", []),
}  # fmt: skip
LEFT_OUT = {("by-hand", "D"), ("fedjax", "D"), ("nvflare", "B"), ("nvflare", "C")}


def problem(name: str, rounds: int) -> Problem:
    """Digits of scikit-learn, divided by Dirichlet(0.5); for D as 28 x 28 pixels. A fifth is held back."""
    scenario = SCENARIOS[name]
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int64)
    held = np.arange(len(x)) % 5 == 0
    if scenario.model == "CNN":
        wide = torch.nn.functional.interpolate(torch.from_numpy(x).view(-1, 1, 8, 8), size=(28, 28))
        x = wide.view(len(x), -1).numpy()
    less = {"valid": 0.0, "test": 0.0}
    sites = fd.partition.dirichlet(x[~held], y[~held], sites=scenario.sites, alpha=0.5, seed=0, **less)
    parts = [(np.asarray(split.train.x), np.asarray(split.train.y)) for split in sites.values()]
    torch.manual_seed(0)
    start = {key: value.numpy() for key, value in network(scenario.model).state_dict().items()}
    return Problem(scenario.model, rounds, scenario.cohort, parts, (x[held], y[held]), start)


class Watched(NamedTuple):
    """All processes of a run: seconds of CPU, and the most bytes at once (shared pages divided among them)."""

    cpu: float
    most: int


def watched(process: subprocess.Popen[Any], mark: str) -> Watched:
    cpu, most, until = dict[int, float](), 0, time.monotonic() + MOST
    while process.poll() is None and time.monotonic() < until:
        pids = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _marked(pid, mark)]
        cpu |= {pid: _cpu(pid) for pid in pids}
        most = max(most, sum(map(_bytes, pids)))
        time.sleep(TICK)
    process.kill()
    process.wait()
    return Watched(sum(cpu.values()), most)


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def _marked(pid: int, mark: str) -> bool:
    return f"{MARK}={mark}" in _read(pid, "environ")


def _cpu(pid: int) -> float:
    parts = _read(pid, "stat").rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK") if parts else 0.0


def _bytes(pid: int) -> int:
    lines = [line.split() for line in _read(pid, "smaps_rollup").splitlines() if line.startswith("Pss:")]
    return int(lines[0][1]) << 10 if lines else 0


def run(way: str, made: Problem, folder: Path) -> dict[str, Any] | None:
    """One run; None where the framework is not installed or told nothing."""
    script, peer, words = WAYS[way]
    python = PEERS / peer / "bin" / "python" if peer else Path(sys.executable)
    if not python.exists():
        return None
    told, given, mark = folder / f"{way}.told", folder / f"{way}.problem.npz", secrets.token_hex(8)
    told.unlink(missing_ok=True)
    write(given, made._replace(rounds=min(made.rounds, ROUNDS.get(way, made.rounds))))
    began = time.time()
    with (folder / f"{way}.log").open("wb") as log:
        command = [python, HERE / "others" / script, given, told, *words]
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, MARK: mark})
        seen = watched(process, mark)
    ends = [json.loads(line)["at"] for line in told.read_text().splitlines()] if told.exists() else []
    if len(ends) < 2:
        print(f"{way}: {(folder / f'{way}.log').read_text()[-2000:]}", file=sys.stderr)
        return None
    with np.load(told.with_suffix(".npz")) as model:
        found = accuracy(made, dict(model))
    rounds = [b - a for a, b in pairwise(ends)]
    return {"round": median(rounds), "first": ends[0] - began, "whole": time.time() - began, "cpu": seen.cpu,
            "mb": seen.most / 1e6, "accuracy": found, "rounds": len(ends)}  # fmt: skip


def measured(name: str, rounds: int, repeats: int, ways: list[str], folder: Path) -> dict[str, Any]:
    """way -> medians over the repeats, taken in turns."""
    made, found = problem(name, rounds), dict[str, list[dict[str, Any]]]()
    for i in range(repeats):
        for way in ways:
            slow = way in ("nvflare", "flower") and i
            if (way, name) not in LEFT_OUT and not slow and (one := run(way, made, folder)):
                found.setdefault(way, []).append(one)
                print(
                    f"{name} {way}: {one['round'] * 1e3:.1f} ms a round, accuracy {one['accuracy']:.3f}",
                    file=sys.stderr,
                )
    return {way: {k: round(median(one[k] for one in all), 4) for k in all[0]} for way, all in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default=",".join(WAYS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = {
            s: measured(s, options.rounds, options.repeats, options.only.split(","), Path(name))
            for s in options.scenarios or SCENARIOS
        }
    print(json.dumps({"rounds": options.rounds, "repeats": options.repeats, **report}, indent=2))


if __name__ == "__main__":
    main()
