"""What record-level privacy costs in accuracy: DP-SGD under secagg at epsilon 2, 4, 8 beside none, and each site alone.
Prints JSON: python benchmarks/dp_sgd.py [SEEDS].

`digits`: scikit-learn's 1,797 digits divided among ten sites alike, softmax regression. `heart`: the tables of four
hospitals (examples/heart), logistic regression. Accuracy on all test rows, mean and standard deviation over seeds of
division and run. Each row has settings of its own (`CHOSEN`), picked once by `python benchmarks/dp_sgd.py tune` for
accuracy on the validation parts, over a grid; that choice spends privacy which no accountant here counts.
"""

from __future__ import annotations

import itertools
import json
import sys
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import foedus as fd
from foedus.torch import TorchLearner

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "heart"))
import data as heart_data

DELTA, CLIP = 1e-5, 1.0
GOALS = (None, 8.0, 4.0, 2.0)
GRID: dict[str, dict[str, Any]] = {
    "digits": {"lr": (2.0, 4.0, 8.0), "rounds": (10, 20, 40), "batch": (64, 256)},
    "heart": {"lr": (0.3, 1.0, 3.0), "rounds": (10, 40), "batch": (32, 256)},
}
CHOSEN: dict[tuple[str, float | None], dict[str, Any]] = {
    ("digits", None): {"lr": 4.0, "rounds": 40, "batch": 64},
    ("digits", 8.0): {"lr": 4.0, "rounds": 20, "batch": 64},
    ("digits", 4.0): {"lr": 4.0, "rounds": 40, "batch": 256},
    ("digits", 2.0): {"lr": 4.0, "rounds": 40, "batch": 256},
    ("heart", None): {"lr": 1.0, "rounds": 40, "batch": 32},
    ("heart", 8.0): {"lr": 3.0, "rounds": 40, "batch": 32},
    ("heart", 4.0): {"lr": 3.0, "rounds": 40, "batch": 32},
    ("heart", 2.0): {"lr": 1.0, "rounds": 10, "batch": 32},
}


def zeros(columns: int, outputs: int) -> nn.Module:
    """A linear model that begins at zero, as every site knows it may."""
    model = nn.Linear(columns, outputs)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def digits(seed: int) -> dict[str, fd.Split]:
    x, y = load_digits(return_X_y=True)
    parts = fd.partition.iid((x / 16).astype(np.float32), y, sites=10, seed=seed)
    return {name: parts[name] for name in parts}


def heart(seed: int) -> dict[str, fd.Split]:
    found = {}
    for name, path in heart_data.tables().items():
        x, y = heart_data.examples(heart_data.rows(path))
        found[name] = heart_data.split(x.astype(np.float32), y, fd.key(seed, name, "split").numpy())
    return found


DATA = {"digits": (digits, 64, 10), "heart": (heart, 14, 2)}


def job(name: str, goal: float | None, lr: float, rounds: int, batch: int) -> fd.Job:
    _, columns, outputs = DATA[name]
    learner = TorchLearner(
        partial(zeros, columns, outputs),
        nn.functional.cross_entropy,
        partial(torch.optim.SGD, lr=lr),
        batch_size=batch,
        metrics=["accuracy"],
    )
    private = None if goal is None else [fd.dp_sgd(CLIP, epsilon=goal, delta=DELTA), "secagg"]
    return fd.Job(fd.fedavg(), learner, rounds=rounds, evaluate=rounds, privacy=private)


def measured(name: str, goal: float | None, seed: int, sites: Any = None, **how: Any) -> dict[str, float]:
    result = job(name, goal, **how).run(sites or DATA[name][0](seed), seed=seed, backend="vectorized", workers=1)
    return dict(result.metrics)


def tune(seeds: int) -> dict[str, Any]:
    """The settings with the best accuracy on the validation parts."""
    found = {}
    for name, goal in itertools.product(DATA, GOALS):
        ways = [dict(zip(GRID[name], values, strict=True)) for values in itertools.product(*GRID[name].values())]
        scores = [mean(measured(name, goal, 100 + s, **way)["accuracy"] for s in range(seeds)) for way in ways]
        found[f"{name} {goal}"] = ways[int(np.argmax(scores))] | {"accuracy": round(max(scores), 4)}
    return found


def main(seeds: int) -> dict[str, Any]:
    rows = []
    for (name, goal), way in CHOSEN.items():
        runs = [measured(name, goal, seed, **way) for seed in range(seeds)]
        told = [run["test_accuracy"] for run in runs]
        row = {"data": name, "epsilon": goal, "accuracy": round(mean(told), 4), "spread": round(stdev(told), 4), **way}
        rows.append(row | {"told": round(max(run.get("train_epsilon", 0.0) for run in runs), 4)})
    for name, (made, *_) in DATA.items():
        way, told = CHOSEN[name, None], []
        for seed in range(seeds):
            alone = [(measured(name, None, seed, {s: x}, **way), len(x.test)) for s, x in made(seed).items() if x.test]
            told.append(sum(m["test_accuracy"] * n for m, n in alone) / sum(n for _, n in alone))
        rows.append(
            {"data": name, "epsilon": "each alone", "accuracy": round(mean(told), 4), "spread": round(stdev(told), 4)}
        )
    return {"seeds": seeds, "delta": DELTA, "clip": CLIP, "rows": rows}


if __name__ == "__main__":
    tuning = sys.argv[1:2] == ["tune"]
    print(json.dumps(tune(3) if tuning else main(int(sys.argv[1]) if sys.argv[1:] else 10), indent=1))
