"""Many sites measured in one pass: each site's sums are those it has alone, or a reason why not."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import foedus as fd
from foedus import build
from foedus.data import Pairs
from foedus.errors import Alone
from foedus.keys import key
from foedus.torch import TorchLearner, measuring
from test_vectorized import digits, ended, job
from tiny import played

METRICS = ["loss", "accuracy", "f1", "auc"]


def learner(model: Any = None, loss: Any = None, **more: Any) -> TorchLearner:
    model = model or partial(nn.Linear, 3, 2)
    return TorchLearner(model, loss or nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.1), **more)


def pairs(n: int, seed: int = 0) -> Pairs:
    draw = np.random.default_rng([n, seed])
    return Pairs(draw.normal(size=(n, 3)).astype(np.float32), draw.integers(0, 2, n))


def same(made: TorchLearner, calls: list[Any]) -> None:
    for found, call in zip(made.evaluate_together(calls), calls, strict=True):
        alone = made.evaluate(*call)
        assert list(found) == list(alone)
        for name, sums in alone.items():
            assert found[name].dtype == sums.dtype
            np.testing.assert_allclose(found[name], sums, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("most", [1024, 5])
def test_each_site_has_the_sums_that_it_has_alone(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "measured_at_once", lambda data: most)
    made = learner()
    one, other = made.init(key(0)), made.init(key(1))
    same(made, [(one if i < 6 else other, pairs(n), METRICS) for i, n in enumerate([4, 1, 3, 9, 2, 2, 7, 1])])


def test_sites_whose_examples_are_of_another_kind_are_measured_by_themselves() -> None:
    made = learner(partial(nn.Linear, 3, 1), nn.MSELoss())
    params, metrics = made.init(key(0)), ["loss"]
    parts = [Pairs(p.x, p.x[:, :1]) for p in map(pairs, (4, 3, 2))]
    parts[1] = Pairs(torch.from_numpy(parts[1].x), torch.from_numpy(parts[1].y))
    same(made, [(params, part, metrics) for part in [*parts, list(zip(parts[0].x, parts[0].y, strict=True))]])


class Centred(nn.Module):
    """What it makes of an example depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x - x.mean(0))


def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("made", "why"),
    [(learner(Centred), "depends on the others of its batch"), (learner(loss=mean_loss), "knows no reduction")],
    ids=["batch", "loss"],
)
def test_what_cannot_be_measured_together_says_why(made: TorchLearner, why: str) -> None:
    params = made.init(key(0))
    with pytest.raises(Alone, match=why):
        made.evaluate_together([(params, pairs(4), METRICS), (params, pairs(5), METRICS)])


def test_a_run_measures_all_its_sites_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    sites, made = digits(6), job(rounds=1)
    with build.exactly():
        alone, journal = played(made, sites)
    monkeypatch.setattr(TorchLearner, "evaluate", None)  # nobody is measured alone
    many, other, notes = ended(made, sites)
    assert notes == [] and many.history[0]["accuracy"] == pytest.approx(alone.history[0]["accuracy"], abs=0.01)
    assert other.all("step")[0]["per_site"].keys() == journal.all("step")[0]["per_site"].keys()


def test_a_run_whose_sites_are_measured_one_by_one_says_why() -> None:
    model = lambda: nn.Sequential(Centred(), nn.Linear(2, 2))  # noqa: E731
    sites = {f"s{i}": fd.Split(train=(p.x, p.y), valid=(p.x, p.y)) for i, p in enumerate(map(pairs, (4, 6, 5)))}
    made = fd.Job(fd.fedavg(), learner(model, metrics=["accuracy"]), rounds=1)
    _, journal, notes = ended(made, sites)
    assert len(notes) == 2 and notes[1].startswith("sites are measured one after another: what its model returns")
    assert [len(row["counted"]) for row in journal.all("close")] == [3, 3]


def test_a_site_whose_data_cannot_be_measured_is_named_and_the_others_count() -> None:
    sites = dict(digits(4))
    bad = min(sites)
    sites[bad] = fd.Split(train=sites[bad].train, valid=(sites[bad].valid.x[:, :5], sites[bad].valid.y))
    _, journal, _ = ended(job(rounds=1), sites)
    training, measured = journal.all("close")
    assert len(training["counted"]) == 4
    assert [site for site, _, _ in measured["counted"]] == sorted(sites)[1:]
    assert next(why for site, _, why, _ in measured["outcomes"] if site == bad).startswith("evaluate: RuntimeError")
