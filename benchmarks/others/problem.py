"""The problem that every framework is given: sites' examples, a model's first parameters, rounds. Read in each one's
own environment, so only numpy, and torch where a model is asked for, may come in."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LR, BATCH = 0.05, 10
Arrays = dict[str, np.ndarray]


class Problem(NamedTuple):
    """`sites`: one (x, y) each; `start`: name -> array; `held`: examples that no site trains on."""

    model: str
    rounds: int
    cohort: int
    sites: list[tuple[np.ndarray, np.ndarray]]
    held: tuple[np.ndarray, np.ndarray]
    start: Arrays


def read(path: str) -> Problem:
    with np.load(path) as file:
        about = json.loads(str(file["about"]))
        start = {name.removeprefix("start:"): file[name] for name in file.files if name.startswith("start:")}
        cuts = file["cuts"][1:-1]
        sites = list(zip(np.split(file["x"], cuts), np.split(file["y"], cuts), strict=True))
        held = (file["held_x"], file["held_y"])
    return Problem(about["model"], about["rounds"], about["cohort"], sites, held, start)


def write(path: Path, problem: Problem) -> None:
    x, y = (np.concatenate(part) for part in zip(*problem.sites, strict=True))
    cuts = np.cumsum([0, *(len(part[1]) for part in problem.sites)])
    about = {"model": problem.model, "rounds": problem.rounds, "cohort": problem.cohort}
    start = {f"start:{name}": value for name, value in problem.start.items()}
    held = {"held_x": problem.held[0], "held_y": problem.held[1]}
    np.savez(path, about=json.dumps(about), x=x, y=y, cuts=cuts, **held, **start)


def network(name: str) -> Any:
    """A new torch module of that name."""
    import networks

    return getattr(networks, name)()


def started(problem: Problem) -> Any:
    """The torch module with the problem's first parameters."""
    import torch

    model = network(problem.model)
    model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in problem.start.items()})
    return model


def trained(model: Any, x: Any, y: Any, generator: Any = None) -> float:
    """One epoch of plain SGD on tensors, in place; the mean loss."""
    import torch
    import torch.nn.functional as F

    optimizer, losses = torch.optim.SGD(model.parameters(), lr=LR), 0.0
    for rows in torch.randperm(len(x), generator=generator).split(BATCH):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        losses += float(loss) * len(rows)
    return losses / len(x)


def accuracy(problem: Problem, arrays: Arrays) -> float:
    """The share of the held examples that the model gets right."""
    import torch

    model = network(problem.model)
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})
    with torch.no_grad():
        found = model(torch.from_numpy(problem.held[0])).argmax(1).numpy()
    return float((found == problem.held[1]).mean())


class Told:
    """What a script tells the benchmark: when each round ended, and at last the model, on a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def round(self) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"at": time.time()}) + "\n")

    def model(self, arrays: Arrays) -> None:
        np.savez(self.path.with_suffix(".npz"), **arrays)
