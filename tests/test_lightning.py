"""Lightning modules: a round is a fit, what is sent is the state_dict, and the steps are those of a plain loop."""

from __future__ import annotations

from functools import partial

import lightning
import pytest
import torch
import torch.nn.functional as F

import foedus as fd
from foedus.errors import JobError
from foedus.lightning import LightningLearner
from foedus.torch import TorchLearner

pytestmark = pytest.mark.long


class Module(lightning.LightningModule):
    def __init__(self, lr=0.1):
        super().__init__()
        self.lr, self.net = (
            lr,
            torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)),
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_double", 2 * loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Module().net

    def forward(self, x):
        return self.net(x)


def loop(model, split, ctx, epochs=2):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = torch.utils.data.DataLoader(split.train, 10, shuffle=True, generator=ctx.generator)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            ctx.correct(model, lr=0.1)
            optimizer.step()


def rows(site):
    x = torch.randn(50, 4, generator=site.key("rows").torch())
    return fd.Split(train=torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long()))


@pytest.mark.parametrize("algorithm", [fd.fedavg(), fd.fedprox(0.5)], ids=["fedavg", "fedprox"])
def test_a_round_is_a_fit_with_the_bits_of_a_plain_loop(algorithm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learner = LightningLearner(Module, {"max_epochs": 2}, batch_size=10, metrics=["accuracy"])
    job = fd.Job(algorithm, learner, rows, rounds=2)
    result = job.run(sites=2, backend="local")
    plain = job.replace(learner=TorchLearner(Plain, train=loop, metrics=["accuracy"])).run(sites=2, backend="local")
    assert result.digest == plain.digest and result.metrics["accuracy"] == plain.metrics["accuracy"]
    assert result.metrics["train_double"] == pytest.approx(2 * result.metrics["train_loss"], rel=0.3)
    assert not list(tmp_path.iterdir())  # no checkpoints, no logs
    assert set(result.params) == set(Module().state_dict())


def test_own_loaders_callbacks_and_steps():
    class Count(lightning.Callback):
        ended = 0

        def on_train_end(self, trainer, module):
            Count.ended += 1

    def loaders(data, ctx):
        return torch.utils.data.DataLoader(data, 5, generator=ctx.generator, shuffle=True)

    trainer = {"max_steps": 3, "max_epochs": -1}
    learner = LightningLearner(partial(Module, lr=0.01), trainer, callbacks=lambda: [Count()], loaders=loaders)
    job = fd.Job(fd.fednova(), learner, rows, rounds=2, evaluate=0)  # which needs the number and size of steps
    job.run(sites=2, backend="local")
    assert Count.ended == 4
    assert job.describe()["learner"]["trainer"] == {"max_epochs": "-1", "max_steps": "3"}
    data = rows(fd.Site("a", 0, fd.key(0)))
    fit = learner.train(learner.init(fd.key(0)), data, fd.key(0, 0, 0, "a"), None)
    assert (fit.steps, fit.examples, fit.path) == (3, 50, pytest.approx(0.03))


def test_what_is_no_lightning_module_or_not_the_trainers_business_is_said():
    with pytest.raises(JobError, match="say callbacks=… or device=… instead"):
        LightningLearner(Module, {"callbacks": []})
    learner = LightningLearner(Plain)
    with pytest.raises(JobError, match="not Plain: take a TorchLearner"):
        learner.train(learner.init(fd.key(0)), rows(fd.Site("a", 0, fd.key(0))), fd.key(0, 0, 0, "a"), None)
