"""A small CNN with BatchNorm and dropout on 8 x 8 pictures, with sites that wait."""

from functools import partial

import numpy as np
import torch
from torch import nn
from waits import waiting

import foedus as fd
from foedus.torch import TorchLearner


def net():
    body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten())
    return nn.Sequential(body, nn.Linear(288, 10))


def load(site):
    with np.load(site.data) as found:
        return fd.Split(train=(found["x"], found["y"]))


def job(rounds=20, order=0, most=0.0):
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    learner = TorchLearner(net, nn.CrossEntropyLoss(), sgd, batch_size=16, metrics=["accuracy"])
    made = fd.Job(fd.fedavg(), learner, load, rounds=rounds, evaluate=rounds, privacy="none")
    return waiting(made, order, most)
