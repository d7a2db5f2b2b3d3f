"""Hospitals learn to find brain tumours in MR slices: a small U-Net, plain FedAvg.
`foedus run job.py --site A=FOLDER --site B=FOLDER` simulates it, `foedus submit job.py` runs it for real."""

from functools import partial
from itertools import pairwise
from math import cos, pi

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, max_pool2d, one_hot

import foedus as fd
from foedus.torch import TorchLearner

WEIGHT = torch.tensor([1.0, 8.0, 8.0, 8.0])  # lesions are small


def block(a, b):
    def layers(n):
        return nn.Conv2d(n, b, 3, padding=1, bias=False), nn.InstanceNorm2d(b, affine=True), nn.ReLU()

    return nn.Sequential(*layers(a), *layers(b))


class UNet(nn.Module):
    """Two channels in, four classes out; 121,132 parameters (Ronneberger et al. 2015)."""

    def __init__(self, widths=(8, 16, 32, 64)):
        super().__init__()
        self.down = nn.ModuleList(block(a, b) for a, b in pairwise((2, *widths)))
        steps = list(pairwise(widths))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in steps)
        self.merge = nn.ModuleList(block(2 * a, a) for a, _ in steps)
        self.last = nn.Conv2d(widths[0], 4, 1)

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
    return cross_entropy(outputs, truth, WEIGHT) + 1 - dice.mean()


def load(site):
    def part(name):
        """All slices of a part in this folder (and those in it): (n, 2, 64, 64) and (n, 64, 64)."""
        files = [np.load(path) for path in sorted(site.data.rglob(f"{name}-*.npz"))]
        return np.stack([f["image"] for f in files]), np.stack([f["truth"] for f in files]).astype(np.int64)

    return fd.Split(train=part("train"), valid=part("valid"), test=part("test"))


def job(rounds=30, first=0):
    """`first`: rounds that were done before, where a model is trained on."""
    learner = TorchLearner(model=UNet, loss=loss, optimizer=partial(torch.optim.Adam, lr=1e-2), epochs=4, batch_size=4,
                           metrics=["dice"], schedule=lambda round: (1 + cos(pi * (first + round) / rounds)) / 2)  # fmt: skip
    return fd.Job(fd.fedavg(), learner, load, rounds=rounds)
