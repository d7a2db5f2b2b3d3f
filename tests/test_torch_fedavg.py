"""Federated training in PyTorch against plain loops written here, on scikit-learn's digits."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.optim import SGD

import foedus as fd
from foedus.torch import TorchLearner

SITES, ROUNDS, SEED, LR, BATCH, EPOCHS = 100, 3, 5, 0.1, 10, 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x):
        return self.last(F.relu(self.first(x)))


@pytest.fixture(scope="module")
def sites():
    x, y = load_digits(return_X_y=True)
    return fd.partition.dirichlet(x / 16, y, sites=SITES, alpha=0.5, seed=1)


def plain_fedavg(sites, mu=0.0):
    """McMahan et al. 2017, algorithm 1, with everything spelled out; `mu` adds FedProx's term to each gradient."""
    torch.manual_seed(fd.key(SEED, 0, 0, "server", "init").number())
    world = Net()
    for round in range(ROUNDS):
        total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in world.named_parameters()}
        examples = 0
        for name, split in sites.items():
            model = copy.deepcopy(world)
            optimizer = SGD(model.parameters(), lr=LR)
            drawn = fd.key(SEED, round, 0, name, "train", "order")
            x, y = torch.from_numpy(split.train.x).float(), torch.from_numpy(split.train.y)
            for epoch in range(EPOCHS):
                for rows in torch.from_numpy(drawn.order(len(x), epoch)).split(BATCH):
                    optimizer.zero_grad()
                    F.cross_entropy(model(x[rows]), y[rows]).backward()
                    for p, start in zip(model.parameters(), world.parameters(), strict=True):
                        p.grad += mu * (p - start).detach()
                    optimizer.step()
            for key, p in model.named_parameters():
                total[key] += len(x) * p.detach().double()
            examples += len(x)
        world.load_state_dict({key: (t / examples).float() for key, t in total.items()})
    return {name: p.detach().numpy() for name, p in world.named_parameters()}


@pytest.mark.parametrize(("algorithm", "mu"), [(fd.fedavg(), 0.0), (fd.fedprox(0.5), 0.5)], ids=["fedavg", "fedprox"])
def test_a_hundred_sites_train_as_in_a_plain_loop(sites, home, algorithm, mu):
    learner = TorchLearner(Net, F.cross_entropy, partial(SGD, lr=LR), EPOCHS, BATCH)
    result = fd.Job(algorithm, learner, rounds=ROUNDS).run(sites, seed=SEED)
    expected = plain_fedavg(sites, mu)
    assert list(result.params) == list(expected)
    for name, x in expected.items():
        assert abs(result.params[name] - x).max() < 1e-6, name


def test_the_correction_of_fedprox_makes_a_difference(sites):
    """Otherwise the test above shows nothing."""
    free, held = plain_fedavg(sites), plain_fedavg(sites, mu=0.5)
    assert max(abs(free[name] - held[name]).max() for name in free) > 1e-3
