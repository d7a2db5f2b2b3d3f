"""Rounds of TorchLearner in `local` beside a plain PyTorch loop in one process and in two, one thread each.
Prints JSON: python benchmarks/learner.py [--rounds 10] [--repeats 3] [A B C D]."""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import argparse
import copy
import json
import multiprocessing
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD

import foedus as fd
from foedus.torch import TorchLearner

LR, BATCH = 0.05, 10
Examples = Mapping[str, tuple[Tensor, Tensor]]
State = Mapping[str, Tensor]


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.first(x).relu())


class CNN(nn.Module):
    """1.2 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.wide, self.last = nn.Linear(1024, 1136), nn.Linear(1136, 10)

    def forward(self, x: Tensor) -> Any:
        x = self.two(self.one(x.view(-1, 1, 8, 8)).relu()).relu()
        return self.last(self.wide(F.max_pool2d(x, 2).flatten(1)).relu())


class Scenario(NamedTuple):
    model: type[nn.Module]
    sites: int
    cohort: int


SCENARIOS = {
    "A": Scenario(MLP, 10, 10),
    "B": Scenario(MLP, 100, 100),
    "C": Scenario(MLP, 1000, 100),
    "D": Scenario(CNN, 10, 10),
}


def site_data(count: int) -> fd.Sites:
    x, y = load_digits(return_X_y=True)
    least = {"test": 0.0, "valid": 0.0} if count > 100 else {}
    return fd.partition.dirichlet(x.astype("float32") / 16, y, sites=count, alpha=0.5, **least)


def ours(scenario: Scenario, sites: fd.Sites, rounds: int, evaluate: int) -> list[float]:
    """Seconds of each round but the first."""
    learner = TorchLearner(scenario.model, F.cross_entropy, partial(SGD, lr=LR), batch_size=BATCH, metrics=["accuracy"])
    job = fd.Job(fd.fedavg(), learner, rounds=rounds + 1, cohort=scenario.cohort, evaluate=evaluate)
    return [line["seconds"] for line in job.run(sites, backend="local").history[1:]]


def local_sgd(model: nn.Module, start: State, examples: Examples, names: list[str]) -> State:
    """The sum of the sites' models, weighted by examples."""
    total = {name: torch.zeros_like(x) for name, x in start.items()}
    for site in names:
        x, y = examples[site]
        model.load_state_dict(start)
        optimizer = SGD(model.parameters(), lr=LR)
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        for name, p in model.state_dict().items():
            total[name] += len(x) * p
    return total


def averaged(totals: list[State], examples: int) -> State:
    return {name: torch.stack([t[name] for t in totals]).sum(0) / examples for name in totals[0]}


def cohorts(scenario: Scenario, examples: Examples, rounds: int) -> Iterator[list[str]]:
    for _ in range(rounds):
        chosen = torch.randperm(len(examples))[: scenario.cohort].tolist()
        yield [list(examples)[i] for i in chosen]


def plain(scenario: Scenario, examples: Examples, rounds: int) -> list[float]:
    model, times = scenario.model(), []
    state: State = copy.deepcopy(model.state_dict())
    for names in cohorts(scenario, examples, rounds + 1):
        began = perf_counter()
        total = local_sgd(model, state, examples, names)
        state = averaged([total], sum(len(examples[s][0]) for s in names))
        times.append(perf_counter() - began)
    return times[1:]


def serve(pipe: Connection, scenario: Scenario, examples: Examples) -> None:
    torch.set_num_threads(1)
    model = scenario.model()
    while (order := pipe.recv()) is not None:
        state = {name: torch.from_numpy(x) for name, x in order[0].items()}
        total = local_sgd(model, state, examples, order[1])
        pipe.send({name: x.numpy() for name, x in total.items()})


@contextmanager
def hands(scenario: Scenario, examples: Examples, count: int) -> Iterator[list[Connection]]:
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe() for _ in range(count)]
    made = [fork.Process(target=serve, args=(theirs, scenario, examples)) for _, theirs in pipes]
    for process in made:
        process.start()
    yield [mine for mine, _ in pipes]
    for (mine, _), process in zip(pipes, made, strict=True):
        mine.send(None)
        process.join()


def plain_in_two(scenario: Scenario, examples: Examples, rounds: int) -> list[float]:
    """The same with two processes, each with every second of the sites from the largest on."""
    state, times = {k: x.clone() for k, x in scenario.model().state_dict().items()}, []
    with hands(scenario, examples, 2) as pipes:
        for names in cohorts(scenario, examples, rounds + 1):
            began = perf_counter()
            names.sort(key=lambda site: -len(examples[site][0]))
            for i, pipe in enumerate(pipes):
                pipe.send(({k: x.numpy() for k, x in state.items()}, names[i::2]))
            totals = [{k: torch.from_numpy(x) for k, x in pipe.recv().items()} for pipe in pipes]
            state = dict(averaged(totals, sum(len(examples[s][0]) for s in names)))
            times.append(perf_counter() - began)
    return times[1:]


def measured(name: str, rounds: int, repeats: int) -> dict[str, float]:
    """Median milliseconds a round of each, taken in turns."""
    scenario = SCENARIOS[name]
    sites = site_data(scenario.sites)
    held = {site: split.with_valid(fd.key(0, "load", 0, site, "valid")) for site, split in sites.items()}
    examples = {s: (torch.from_numpy(d.train.x), torch.from_numpy(d.train.y)) for s, d in held.items()}
    times: dict[str, list[float]] = {"ours": [], "ours_evaluated": [], "plain": [], "plain_2": []}
    for _ in range(repeats):
        times["plain"] += plain(scenario, examples, rounds)
        times["ours"] += ours(scenario, sites, rounds, 0)
        times["plain_2"] += plain_in_two(scenario, examples, rounds)
        times["ours_evaluated"] += ours(scenario, sites, rounds, 1)
    found = {f"{key}_ms": 1e3 * median(x) for key, x in times.items()}
    found["ratio"] = found["ours_ms"] / found["plain_ms"]
    found["ratio_to_2"] = found["ours_ms"] / found["plain_2_ms"]
    return {key: round(x, 3) for key, x in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as home:
        os.environ["FOEDUS_HOME"] = home
        report = {name: measured(name, options.rounds, options.repeats) for name in options.scenarios or ["A", "D"]}
    print(json.dumps({"rounds": options.rounds, "repeats": options.repeats, **report}, indent=2))


if __name__ == "__main__":
    main()
