"""A local training that is cut off goes on from what it kept, to the same bits, and begins anew where it has to."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foedus import midway
from foedus.core import Fit, Private
from foedus.data import Pairs, Split
from foedus.errors import JobError
from foedus.keys import key
from foedus.params import digest
from foedus.torch import TorchLearner
from foedus.torch import learner as learners

HERE = key(0, 3, 0, "north", "train")
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=0.01)


class Cut(Exception):
    """In the place of `kill -9`: nothing of what the training knows outlives it."""


class Images:
    """A dataset that counts what is taken, and draws from the generators of Python, numpy and torch."""

    def __init__(self, n: int) -> None:
        self.n, self.taken = n, list[int]()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        self.taken.append(i)
        x = torch.full((4,), i / self.n) + 0.1 * torch.randn(4)
        return x + random.random() + float(np.random.rand()), i % 2


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


def plain(n: int = 40) -> Split:
    draw = np.random.default_rng(0)
    return Split(train=Pairs(draw.normal(size=(n, 4)).astype(np.float32), draw.integers(0, 2, n)))


def pictures(n: int = 40) -> Split:
    return Split(train=Images(n))


def own(model: nn.Module, split: Any, ctx: Any) -> dict[str, float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    for _ in ctx.resumable(range(8), optimizer, schedule):
        order = torch.randperm(len(split.train), generator=ctx.generator)[:10].tolist()
        x, y = zip(*[split.train[i] for i in order], strict=True)
        loss = nn.functional.cross_entropy(model(torch.stack([torch.as_tensor(one) for one in x])), torch.tensor(y))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        ctx.correct(model, lr=0.01)
        optimizer.step()
        schedule.step()
    return {"loss": float(loss.detach())}


def stepping(optimizer: Any) -> TorchLearner:
    return TorchLearner(net, nn.CrossEntropyLoss(), optimizer, epochs=2, batch_size=10, device="cpu")


def looping() -> TorchLearner:
    return TorchLearner(net, train=own, device="cpu")


def private() -> TorchLearner:
    net = partial(nn.Sequential, nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return TorchLearner(net, nn.CrossEntropyLoss(), ADAM, epochs=2, batch_size=10, device="cpu")


CASES = {
    "momentum, pairs": (partial(stepping, SGD), plain),
    "adam, a dataset": (partial(stepping, ADAM), pictures),
    "one's own loop": (looping, pictures),
    "dp-sgd": (private, plain),
}
CORRECTS = {"dp-sgd": Private(1.0, 0.7, key(1, "secret"))}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file after each step."""
    monkeypatch.setattr(midway, "EVERY", 0.0)
    monkeypatch.setattr(midway, "SHARE", 0)


def cut_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends training once so many steps are written."""
    writes, wrote = midway.Midway.write, [0]

    def write(self: midway.Midway, save: Any) -> None:
        writes(self, save)
        wrote[0] += 1
        if wrote[0] == steps:
            raise Cut

    monkeypatch.setattr(midway.Midway, "write", write)


def same(one: Fit, other: Fit) -> bool:
    sums = {name: x.tolist() for name, x in one.metrics.items()}
    assert sums == {name: x.tolist() for name, x in other.metrics.items()}
    assert one[1:4] == other[1:4]
    return digest(one.params) == digest(other.params)


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
@pytest.mark.parametrize("case", CASES)
def test_a_training_that_is_cut_off_goes_on_to_the_same_bits(
    case: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, data = CASES[case]
    start, correct = make().init(key(0)), CORRECTS.get(case)
    calm = make().train(start, data(), HERE, correct)
    with midway.at(tmp_path / "midway"):
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_after(steps, patch)
            make().train(start, data(), HERE, correct)
        assert len(list((tmp_path / "midway").iterdir())) == 1
        split = data()
        again = make().train(start, split, HERE, correct)
    assert same(calm, again)
    if isinstance(split.train, Images):
        assert len(split.train.taken) == 10 * (8 - steps)  # and no example of a step that was kept
    assert not (tmp_path / "midway").exists()


def test_what_ended_is_there_at_once_until_its_round_is_over(tmp_path: Path) -> None:
    make, data = CASES["adam, a dataset"]
    start = make().init(key(0))
    with midway.at(tmp_path / "midway"):
        first, split = make().train(start, data(), HERE, None), data()
        assert same(first, make().train(start, split, HERE, None))
        assert split.train.taken == []


@pytest.mark.parametrize("other", ["model", "rows", "key"])
def test_what_was_kept_of_another_start_is_not_used(other: str, tmp_path: Path) -> None:
    make, data = CASES["momentum, pairs"]
    start, here, n = make().init(key(0)), HERE, 40
    with midway.at(tmp_path / "midway"):
        make().train(start, data(), here, None)
        start = 2.0 * start if other == "model" else start
        here, n = HERE("second") if other == "key" else here, 50 if other == "rows" else n
        found = make().train(start, data(n), here, None)
    assert same(make().train(start, data(n), here, None), found)


@pytest.mark.parametrize("damage", ["half", "nothing", "other bytes"])
def test_a_damaged_file_costs_the_training_and_nothing_else(damage: str, tmp_path: Path) -> None:
    make, data = CASES["momentum, pairs"]
    start = make().init(key(0))
    with midway.at(tmp_path / "midway"):
        calm = make().train(start, data(), HERE, None)
        (path,) = (tmp_path / "midway").iterdir()
        whole = path.read_bytes()
        path.write_bytes(
            {"half": whole[: len(whole) // 2], "nothing": b"", "other bytes": whole[:32] + b"?" * 99}[damage]
        )
        assert same(calm, make().train(start, data(), HERE, None))


def test_a_disk_that_takes_nothing_is_told_and_the_training_goes_on(tmp_path: Path) -> None:
    make, data = CASES["momentum, pairs"]
    start = make().init(key(0))
    calm = make().train(start, data(), HERE, None)
    (tmp_path / "midway").write_text("a file where the folder should be")
    with midway.at(tmp_path / "midway"), pytest.warns(UserWarning, match="cannot be resumed midway") as told:
        assert same(calm, make().train(start, data(), HERE, None))
    assert len(told) == 1


def test_what_is_short_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(midway, "EVERY", 30.0)
    make, data = CASES["momentum, pairs"]
    with midway.at(tmp_path / "midway"):
        make().train(make().init(key(0)), data(), HERE, None)
        assert not (tmp_path / "midway").exists()


def test_a_loop_says_what_it_cannot_resume(tmp_path: Path) -> None:
    def twice(model: Any, split: Any, ctx: Any) -> None:
        list(ctx.resumable(range(2)))
        list(ctx.resumable(range(2)))

    def stateless(model: Any, split: Any, ctx: Any) -> None:
        ctx.resumable(range(2), object())

    for loop, said in ((twice, "called once"), (stateless, "object has no state_dict")):
        made = TorchLearner(net, train=loop, device="cpu")
        with pytest.raises(JobError, match=said):
            made.train(made.init(key(0)), plain(), HERE, None)


def test_losses_on_a_device_join_those_from_before() -> None:
    assert learners._numbers([0.5, 1.5, torch.tensor(2.5)]) == [0.5, 1.5, 2.5]
