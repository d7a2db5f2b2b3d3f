"""Hospitals learn to find brain tumours in MR slices: a small U-Net and FedAvg.
`foedus run job.py --site A=FOLDER --site B=FOLDER` simulates it, `foedus submit job.py` runs it for real."""

from functools import partial
from itertools import chain, pairwise
from math import cos, pi

import numpy as np
import torch
from data import PARTS, read
from torch import nn
from torch.nn.functional import cross_entropy, max_pool2d, one_hot

import foedus as fd
from foedus.torch import TorchLearner


def block(a, b):
    twice = [(nn.Conv2d(n, b, 3, padding=1, bias=False), nn.InstanceNorm2d(b, affine=True), nn.ReLU()) for n in (a, b)]
    return nn.Sequential(*chain(*twice))


class UNet(nn.Module):
    """Two channels in, four classes out; 121,132 parameters (Ronneberger et al. 2015)."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList(block(a, b) for a, b in pairwise((2, 8, 16, 32, 64)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, 2) for n in (32, 16, 8))
        self.merge = nn.ModuleList(block(2 * n, n) for n in (32, 16, 8))
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        found = []
        for down in self.down:
            x = down(max_pool2d(x, 2) if found else x)
            found.append(x)
        for up, merge, same in zip(self.up, self.merge, found[-2::-1], strict=True):
            x = merge(torch.cat([same, up(x)], 1))
        return self.last(x)


def loss(outputs, truth):
    """Cross-entropy and soft Dice of the lesion's classes (Milletari et al. 2016)."""
    p, t = outputs.softmax(1)[:, 1:], one_hot(truth, 4).movedim(-1, 1)[:, 1:]
    dice = (2 * (p * t).sum((0, 2, 3)) + 1) / (p.sum((0, 2, 3)) + t.sum((0, 2, 3)) + 1)
    return cross_entropy(outputs, truth, torch.tensor([1.0, 8.0, 8.0, 8.0])) + 1 - dice.mean()


def overlap(outputs, truth):
    found, true = outputs.argmax(1) > 0, truth > 0
    return np.array([2 * (found & true).sum(), found.sum() + true.sum()])


def load(site):
    return fd.Split(*(read(site.data, part) for part in PARTS))


def job(rounds=30, first=0, start="", evaluate=1):
    """`first` of the rounds are done already, and `start` is the file of the model that they gave."""
    dice = fd.Metric("dice", overlap, lambda sums: sums[0] / max(sums[1], 1), "max")  # of the whole tumour
    learner = TorchLearner(UNet, loss, partial(torch.optim.Adam, lr=1e-2), epochs=4, batch_size=4, metrics=[dice],
                           schedule=lambda round: (1 + cos(pi * (first + round) / rounds)) / 2)  # fmt: skip
    return fd.Job(fd.fedavg(), learner, load, rounds=rounds - first, start=start or None, evaluate=evaluate)
