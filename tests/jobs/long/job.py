"""A training that writes down each image that it takes, keeps where it stands after every step, and may kill itself."""

import os
from functools import partial
from pathlib import Path

import torch
from torch import nn

import foedus as fd
from foedus import midway
from foedus.torch import TorchLearner

midway.EVERY, midway.SHARE = 0.0, 0
IMAGES, EPOCHS, BATCH = 40, 3, 10
STEPS = EPOCHS * IMAGES // BATCH


class Images:
    """The file `taken` has a line an image; where there is a file `kill`, this process dies at its N-th, once."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __len__(self):
        return IMAGES

    def __getitem__(self, i):
        with open(self.folder / "taken", "a") as file:
            file.write(f"{i}\n")
        kill, taken = self.folder / "kill", (self.folder / "taken").read_text().count("\n")
        if kill.exists() and taken == int(kill.read_text()):
            kill.unlink()
            os.kill(os.getpid(), 9)
        return torch.randn(3) + i / IMAGES, i % 2


def load(site):
    return fd.Split(train=Images(site.data), valid=Images(site.data))


def job(rounds=1):
    net = partial(nn.Linear, 3, 2)
    steps = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    learner = TorchLearner(net, nn.CrossEntropyLoss(), steps, epochs=EPOCHS, batch_size=BATCH, device="cpu")
    return fd.Job(fd.fedavg(), learner, load, rounds=rounds, evaluate=0)
