"""One's own PyTorch loop under foedus: the ten lines that it gains, and what happens without them."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader

import foedus as fd
from foedus import jobfile
from foedus.errors import JobError, Paused
from foedus.torch import TorchLearner
from torch_models import KEY, learner, linear, table

MYLAB = """
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))

    def forward(self, x):
        return self.layers(x)


class Folder(torch.utils.data.Dataset):
    def __init__(self, path):
        self.rows = sorted(path.glob("*.npy"))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        row = np.load(self.rows[i])
        return torch.from_numpy(row[:-1]), int(row[-1])


def read_folder(path):
    return Folder(path)
"""

JOB = """
import torch, torch.nn.functional as F
from torch.utils.data import DataLoader
from mylab import Net, read_folder
import foedus as fd                                                                    # +
from foedus.torch import TorchLearner                                                  # +

def fit(model, split, ctx):                         # the old function, one argument more
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for x, y in DataLoader(split.train, batch_size=32, shuffle=True, generator=ctx.generator):    # +
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        ctx.correct(model, lr=1e-3)                 # FedProx, SCAFFOLD, Ditto act here  # +
        opt.step()
    return {"loss": loss.item()}

def load(site): return fd.Split(train=read_folder(site.data / "train"), test=read_folder(site.data / "test"))       # +
job = fd.Job(fd.fedprox(mu=0.01), TorchLearner(model=Net, train=fit, metrics=["accuracy", "auc"]), load,            # +
             rounds=20, stop=fd.plateau("loss", patience=3))                           # +
"""


def lab(folder: Path) -> tuple[fd.Job, dict[str, Path]]:
    (folder / "mylab.py").write_text(MYLAB)
    (folder / "job.py").write_text(JOB)
    sites, rng = {}, np.random.default_rng(0)
    for name, count in (("north", 90), ("south", 60)):
        for part, n in (("train", count), ("test", 20)):
            place = folder / name / part
            place.mkdir(parents=True)
            for i in range(n):
                x = rng.normal(size=5).astype(np.float32)
                np.save(place / f"{i:03}.npy", np.append(x, np.float32(x[:2].sum() > 0)))
        sites[name] = folder / name
    return jobfile.load(folder / "job.py").job, sites


def test_the_script_of_a_lab_runs_with_ten_lines_more(tmp_path, home):
    job, sites = lab(tmp_path)
    result = job.run(sites)
    first, last = result.history[0], result.history[-1]
    assert {"loss", "accuracy", "auc", "test_loss", "test_accuracy", "test_auc", "train_loss"} <= last.keys()
    assert last["test_loss"] < first["test_loss"] and last["test_auc"] > 0.6
    torch.manual_seed(5)
    assert job.run(sites).digest == result.digest
    assert len([line for line in JOB.splitlines() if line.endswith("# +")]) <= 10


def steps(model, split, ctx, lr=0.1):
    for rows in torch.randperm(len(split.train), generator=ctx.generator).split(8):
        x, y = split.train[rows.numpy()]
        model.zero_grad()
        F.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        ctx.correct(model, lr)
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.1 * p.grad)


SPLIT = fd.Split(train=table())


def own(fit, correct=None, key=KEY, model=None):
    made = TorchLearner(model or linear(), train=fit)
    return made.train(made.init(fd.key(0)), SPLIT, key, correct)


def test_an_own_loop_gives_what_plain_pytorch_gives():
    model, rng = nn.Linear(3, 2), KEY("order").torch()
    model.load_state_dict({k: torch.from_numpy(x.copy()) for k, x in learner().init(fd.key(0)).items()})
    optimizer = SGD(model.parameters(), lr=0.1)
    x, y = (torch.from_numpy(v) for v in table())
    start = [p.detach().clone() for p in model.parameters()]
    for rows in torch.randperm(20, generator=rng).split(8):
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        for p, s in zip(model.parameters(), start, strict=True):
            p.grad += 0.5 * (p - s).detach()
        optimizer.step()
    began = learner().init(fd.key(0))
    fit = own(steps, lambda grads, params: grads + 0.5 * (params - began))
    assert np.allclose(fit.params["weight"], model.weight.detach().numpy(), atol=1e-6)
    assert (fit.examples, fit.steps, fit.path) == (20, 3, pytest.approx(0.3))
    assert abs(own(steps).params["weight"] - fit.params["weight"]).max() > 1e-4


def test_steps_without_a_size_have_no_path():
    assert np.isnan(own(partial(steps, lr=None)).path)


def test_a_loop_may_return_metrics_and_a_weight():
    assert own(lambda model, split, ctx: ({"loss": 2.0}, 7)).examples == 7
    fit = own(lambda model, split, ctx: {"loss": torch.tensor(2.0)})
    assert fit.examples == 20 and fit.metrics["train_loss"].tolist() == [40, 20, 80]
    assert own(lambda model, split, ctx: None).metrics == {}


def test_the_context_tells_device_and_round_and_names_all_randomness():
    seen = []

    def fit(model, split, ctx):
        ctx.progress()
        draws = torch.rand((), generator=ctx.generator), torch.rand(()), np.random.rand(), random.random()
        seen.append((ctx.device.type, ctx.round, model.training, *map(float, draws)))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    own(fit, key=fd.key(0, 4, 0, "north", "train"))
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    own(fit, key=fd.key(0, 4, 0, "north", "train"))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[:2]
    assert torch.equal(torch.get_rng_state(), state[2])
    own(fit, key=fd.key(0, 4, 0, "south", "train"))
    assert seen[0] == seen[1] and seen[0][1:3] == (4, True)
    assert not set(seen[0][3:]) & set(seen[2][3:])


def forgets(model, split, ctx):
    with torch.no_grad():
        model.weight += 1


def test_a_loop_that_ignores_the_correction_is_an_error_after_its_first_round(home):
    made = TorchLearner(linear(), train=forgets)
    with pytest.raises(Paused, match=r"never called ctx\.correct"):
        fd.Job(fd.fedprox(0.1), made, rounds=2).run({"north": SPLIT})
    assert len(fd.Job(fd.fedavg(), made, rounds=2).run({"north": SPLIT}).history) == 2


def test_a_correction_before_backward_is_an_error():
    with pytest.raises(JobError, match=r"found no gradient.*between backward\(\) and step\(\)"):
        own(lambda model, split, ctx: ctx.correct(model))


def test_gradients_of_one_site_do_not_reach_the_next():
    def adds(model, split, ctx):
        x, y = (torch.from_numpy(v) for v in table())
        F.cross_entropy(model(x), y).backward()
        ctx.correct(model, 0.1)
        with torch.no_grad():
            model.weight -= model.weight.grad
        model.weight.requires_grad_(False)

    made = TorchLearner(linear(), train=adds)
    for correct in (None, lambda grads, params: 2.0 * grads):
        first, again = (made.train(made.init(fd.key(0)), SPLIT, KEY, correct).params for _ in range(2))
        assert first == again


def test_what_the_loop_moved_elsewhere_comes_back():
    def moves(model, split, ctx):
        with torch.no_grad():
            model.weight += 1
        model.double()
        model.weight.data = model.weight.data * 2

    made = TorchLearner(linear(), train=moves)
    start = made.init(fd.key(0))
    for _ in range(2):
        fit = made.train(start, SPLIT, KEY, None)
        assert np.allclose(fit.params["weight"], 2 * (start["weight"] + 1)) and fit.params.spec == start.spec


def grows(model, split, ctx):
    model.weight = nn.Parameter(torch.zeros(5, 3))


def swaps(model, split, ctx):
    model[0] = nn.Linear(3, 2)


@pytest.mark.parametrize(("fit", "model"), [(grows, linear()), (swaps, lambda: nn.Sequential(nn.Linear(3, 2)))])
def test_a_loop_that_replaces_an_array_is_an_error(fit, model):
    with pytest.raises(JobError, match=r"training replaced the model's '(0\.)?(weight|bias)'"):
        own(fit, model=model)


def test_workers_of_a_data_loader_are_named_too():
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return torch.rand(3)

    def fit(model, split, ctx):
        with torch.no_grad():
            for x in DataLoader(Noisy(), 4, shuffle=True, generator=ctx.generator, num_workers=1):
                model.weight += x.sum()

    torch.manual_seed(1)
    one = own(fit).params
    torch.manual_seed(2)
    assert own(fit).params == one


def test_the_loss_of_a_loop_without_one_is_cross_entropy_or_squared_error():
    x, y = table(40)
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    made = partial(TorchLearner, train=steps)
    cases = [
        (logits, torch.arange(40) % 3, F.cross_entropy(logits, torch.arange(40) % 3)),
        (
            logits[:, :1],
            torch.arange(40) % 2,
            F.binary_cross_entropy_with_logits(logits[:, 0], (torch.arange(40) % 2).float()),
        ),
        (logits[:, :1], logits[:, 1], F.mse_loss(logits[:, 0], logits[:, 1])),
    ]
    for outputs, targets, loss in cases:
        keeps = made(lambda: nn.Sequential(nn.Identity(), nn.Linear(1, 1).requires_grad_(False))[:1])
        sums = keeps.evaluate(keeps.init(fd.key(0)), fd.Split((outputs, targets)).train, ["loss"])["loss"]
        assert sums[0] / sums[1] == pytest.approx(loss.item(), rel=1e-6)
    probabilities = made(linear(), reads="probabilities")
    assert "loss" not in probabilities.evaluate(learner().init(fd.key(0)), fd.Split((abs(x), y)).train, ["loss"])
    with pytest.raises(JobError, match=r"no natural loss of outputs \(40, 2\)"):
        made(linear()).evaluate(learner().init(fd.key(0)), fd.Split((x, x[:, :3] > 0)).train, ["loss"])
