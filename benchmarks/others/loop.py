"""The problem as a plain PyTorch loop, in one process or several: python loop.py PROBLEM TOLD PROCESSES.

It is as lean as a loop gets: one model is loaded again and again, no data loader, no copies."""

import multiprocessing
import os
import sys

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import torch
from problem import Told, read, started, trained

PROBLEM = read(sys.argv[1])
SITES = [tuple(map(torch.from_numpy, part)) for part in PROBLEM.sites]


def local(model, state, sites):
    """The sum of the sites' models, weighted by examples."""
    total = {name: torch.zeros_like(x) for name, x in state.items()}
    for i in sites:
        model.load_state_dict(state)
        trained(model, *SITES[i])
        for name, p in model.state_dict().items():
            total[name] += len(SITES[i][0]) * p
    return total


def serve(pipe):
    torch.set_num_threads(1)
    model = started(PROBLEM)
    while (order := pipe.recv()) is not None:
        state = {name: torch.from_numpy(x) for name, x in order[0].items()}
        pipe.send({name: x.numpy() for name, x in local(model, state, order[1]).items()})


def main():
    torch.set_num_threads(1)
    count, told, model = int(sys.argv[3]), Told(sys.argv[2]), started(PROBLEM)
    state = {name: x.clone() for name, x in model.state_dict().items()}
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe() for _ in range(count if count > 1 else 0)]
    hands = [fork.Process(target=serve, args=(theirs,)) for _, theirs in pipes]
    for hand in hands:
        hand.start()
    for _ in range(PROBLEM.rounds):
        cohort = torch.randperm(len(SITES))[: PROBLEM.cohort].tolist()
        cohort.sort(key=lambda i: -len(SITES[i][0]))
        plain = {name: x.numpy() for name, x in state.items()}
        for i, (mine, _) in enumerate(pipes):
            mine.send((plain, cohort[i::count]))
        found = [{name: torch.from_numpy(x) for name, x in mine.recv().items()} for mine, _ in pipes]
        found = found or [local(model, state, cohort)]
        examples = sum(len(SITES[i][0]) for i in cohort)
        state = {name: sum(part[name] for part in found) / examples for name in state}
        told.round()
    for (mine, _), hand in zip(pipes, hands, strict=True):
        mine.send(None)
        hand.join()
    told.model({name: x.numpy() for name, x in state.items()})


if __name__ == "__main__":
    main()
