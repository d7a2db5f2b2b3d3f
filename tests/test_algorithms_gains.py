"""Where a method's paper claims a gain over FedAvg on sites that differ, it is there on digits: in pairs, eight seeds.

`python tests/test_algorithms_gains.py [personal]` prints the figures of docs/algorithms.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import foedus as fd
from foedus import build
from foedus.backends.simulation import Simulation
from foedus.backends.vectorized import Many
from foedus.core import Algorithm
from foedus.journal import Journal, Memory
from foedus.run import Checkpoints, execute
from foedus.torch import TorchLearner

pytestmark = pytest.mark.long
SEEDS = range(8)
STUDENT = 2.365  # the 97.5 % quantile with 7 degrees of freedom


class Setting(NamedTuple):
    """Sites, a model and how it is trained; all but what is compared."""

    sites: Callable[[int], Mapping[str, Any]]
    model: Callable[[], nn.Module]
    rounds: int
    epochs: int
    lr: float = 0.1


def digits() -> tuple[Any, Any]:
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


def two_labels(seed: int) -> fd.Sites:
    """Ten sites with two labels each."""
    return fd.partition.pathological(*digits(), sites=10, classes=2, seed=seed)


def skewed(seed: int) -> fd.Sites:
    """Ten sites of unequal sizes and labels."""
    return fd.partition.dirichlet(*digits(), sites=10, alpha=0.1, seed=seed)


def mirrored(seed: int) -> dict[str, fd.Split]:
    """Ten sites alike, but the first one's pictures are upside down and mirrored: a small model cannot please all."""
    sites = dict(fd.partition.iid(*digits(), sites=10, seed=seed))
    first = min(sites)
    parts = (sites[first].train, sites[first].valid, sites[first].test)
    return {**sites, first: fd.Split(*((part.x[:, ::-1].copy(), part.y) for part in parts if part is not None))}


def many_skewed(alpha: float, sites: int, seed: int) -> fd.Sites:
    """So many sites of unequal labels."""
    return fd.partition.dirichlet(*digits(), sites=sites, alpha=alpha, seed=seed)


def changed(seed: int, change: Callable[[int, Any], Any]) -> dict[str, fd.Split]:
    """Ten sites alike, but for what `change(number, pictures)` makes of each one's pictures."""
    sites = sorted(dict(fd.partition.iid(*digits(), sites=10, seed=seed)).items())
    parts = {name: (split.train, split.valid, split.test) for name, split in sites}
    return {
        name: fd.Split(*((change(i, part.x), part.y) for part in parts[name] if part is not None))
        for i, (name, _) in enumerate(sites)
    }


def devices(seed: int) -> dict[str, fd.Split]:
    """Each site has a device of its own: another gain, and another offset of each pixel."""

    def seen(i: int, x: Any) -> Any:
        rng = np.random.default_rng(i)
        return (rng.uniform(0.2, 2) * x + rng.normal(size=64)).astype(np.float32)

    return changed(seed, seen)


def two_kinds(seed: int) -> dict[str, fd.Split]:
    """Every second site's pictures are upside down and mirrored."""
    return changed(seed, lambda i, x: x[:, ::-1].copy() if i % 2 else x)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def hidden() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def linear() -> nn.Module:
    return nn.Linear(64, 10)


FAR = Setting(two_labels, hidden, rounds=15, epochs=5)  # much local work
NEAR = FAR._replace(epochs=1)
UNEQUAL = FAR._replace(sites=skewed)
BOLD = FAR._replace(epochs=3, lr=0.3, rounds=20)  # the best of 0.03, 0.1 and 0.3 for FedAvg and for FedExP
SCARCE = Setting(partial(many_skewed, 0.1, 40), hidden, rounds=15, epochs=2)
SOFTER = Setting(partial(many_skewed, 0.3, 40), hidden, rounds=20, epochs=2)
LARGER = Setting(partial(many_skewed, 0.3, 20), hidden, rounds=15, epochs=5)
DEVICES = Setting(devices, normed, rounds=15, epochs=1)
KINDS = Setting(two_kinds, linear, rounds=40, epochs=1, lr=0.2)
HALVES = {"even": [f"site-{i:03}" for i in range(0, 10, 2)], "odd": [f"site-{i:03}" for i in range(1, 10, 2)]}
UNFAIR = Setting(mirrored, linear, rounds=100, epochs=1, lr=0.2)


def accuracy(pooled: float, each: Any) -> float:
    return pooled


def worst(pooled: float, each: Any) -> float:
    return float(min(each))


def evenness(pooled: float, each: Any) -> float:
    """Minus the standard deviation over the sites."""
    return -float(np.std(each))


GAINS: dict[str, tuple[Algorithm, Setting, Callable[[float, Any], float]]] = {
    "fedavgm": (fd.fedavgm(beta=0.9), NEAR, accuracy),
    "fedadam": (fd.fedadam(rate=0.03), NEAR, accuracy),
    "fedyogi": (fd.fedyogi(rate=0.03), NEAR, accuracy),
    "fedadagrad": (fd.fedadagrad(rate=0.1), FAR, accuracy),
    "scaffold": (fd.scaffold(), FAR, accuracy),
    "scaffold(option=1)": (fd.scaffold(option=1), NEAR, accuracy),
    "fednova": (fd.fednova(), UNEQUAL, accuracy),
    "cyclic": (fd.cyclic(), NEAR, accuracy),
    "cyclic(shuffle=True)": (fd.cyclic(shuffle=True), UNEQUAL._replace(epochs=1), accuracy),
    "hierarchical": (fd.hierarchical(HALVES), NEAR, accuracy),
    "hierarchical(rounds=5)": (fd.hierarchical(HALVES, rounds=5), UNEQUAL._replace(epochs=1), accuracy),
    "feddyn": (fd.feddyn(alpha=0.1), FAR, accuracy),
    "fedexp": (fd.fedexp(), BOLD, accuracy),
    "qffl": (fd.qffl(q=1.0), UNFAIR, evenness),
    "afl": (fd.afl(rate=0.02), UNFAIR, worst),
}


PERSONAL: dict[str, tuple[Algorithm, Setting]] = {
    "fedbn": (fd.fedbn(), DEVICES),
    "fedper": (fd.fedper(), SCARCE),
    "fedrep(heads=3)": (fd.fedrep(heads=3), SCARCE),
    "lg_fedavg": (fd.lg_fedavg(), SCARCE),
    "ditto(lam=0.1)": (fd.ditto(lam=0.1), LARGER),
    "apfl": (fd.apfl(), SCARCE),
    "pfedme(lam=1, eta=0.5, local=5)": (fd.pfedme(lam=1.0, eta=0.5, local=5), SOFTER),
    "fine_tuned(after=12)": (fd.fine_tuned(after=12), LARGER),
    "ifca(clusters=4)": (fd.ifca(clusters=4), KINDS),
}


def measured(algorithm: Algorithm, setting: Setting, seed: int) -> tuple[float, list[float]]:
    """Test accuracy: of all, and of each site; of the sites' own models, if there are any."""
    sgd = partial(torch.optim.SGD, lr=setting.lr)
    learner = TorchLearner(setting.model, nn.CrossEntropyLoss(), sgd, setting.epochs, 16, ["accuracy"])
    made = fd.Job(algorithm, learner, rounds=setting.rounds, evaluate=setting.rounds)
    sites, kept = setting.sites(seed), Journal(Memory())
    with build.exactly():
        runner = Simulation(Many(made, sites, seed, lambda why: None), sorted(sites), kept, seed)
        ended = execute(made.plan(seed), runner, kept, Checkpoints(None))
    step = kept.find("step", setting.rounds - 1)
    assert step is not None
    name = "personal_test_accuracy" if algorithm.personal else "test_accuracy"
    tested = [row[name] for row in step["per_site"].values() if name in row]  # a few have none
    return ended.history[-1][name], tested


@cache
def plain(setting: Setting, seed: int) -> tuple[float, list[float]]:
    return measured(fd.fedavg(), setting, seed)


@cache
def alone(setting: Setting, seed: int) -> float:
    """Where each site trains for itself, as long as it would with others."""
    return measured(fd.fine_tuned(), setting, seed)[0]


def interval(gain: Any) -> tuple[float, float]:
    """The 95 % interval of the mean of paired differences."""
    half = STUDENT * gain.std(ddof=1) / np.sqrt(len(gain))
    return float(gain.mean() - half), float(gain.mean() + half)


def own(name: str) -> tuple[Any, Any, Any]:
    """Test accuracy of each seed: FedAvg's model, each site for itself, the sites' own models by the method."""
    algorithm, setting = PERSONAL[name]
    found = [(plain(setting, s)[0], alone(setting, s), measured(algorithm, setting, s)[0]) for s in SEEDS]
    return tuple(np.array(found).T)  # type: ignore[return-value]


def compared(name: str) -> tuple[float, float, float, float]:
    """FedAvg, the method, and the 95 % interval of the paired difference."""
    algorithm, setting, measure = GAINS[name]
    ours = np.array([measure(*measured(algorithm, setting, seed)) for seed in SEEDS])
    others = np.array([measure(*plain(setting, seed)) for seed in SEEDS])
    gain = ours - others
    return float(others.mean()), float(ours.mean()), *interval(gain)


@pytest.mark.parametrize("name", list(GAINS))
def test_the_gain_that_the_paper_claims_is_there(name: str) -> None:
    fedavg, ours, low, high = compared(name)
    assert low > 0, f"FedAvg {fedavg:.3f}, {name} {ours:.3f}, difference {low:.3f} to {high:.3f}"


@pytest.mark.parametrize("name", list(PERSONAL))
def test_sites_own_models_are_better_at_home_than_the_one_for_all(name: str) -> None:
    fedavg, _, ours = own(name)
    low, high = interval(ours - fedavg)
    assert low > 0, f"FedAvg {fedavg.mean():.3f}, {name} {ours.mean():.3f}, difference {low:.3f} to {high:.3f}"


if __name__ == "__main__":
    for each in PERSONAL if sys.argv[1:] == ["personal"] else ():
        fedavg, single, ours = own(each)
        means = " | ".join(f"{x.mean():.3f}" for x in (fedavg, single, ours))
        low, high = interval(ours - fedavg)
        worse, better = interval(ours - single)
        print(f"| `{each}` | {means} | {low:+.3f} to {high:+.3f} | {worse:+.3f} to {better:+.3f} |", flush=True)
    if sys.argv[1:]:
        raise SystemExit
    for each in GAINS:
        fedavg, ours, low, high = compared(each)
        print(
            f"| `{each}` | {GAINS[each][2].__name__} | {fedavg:.3f} | {ours:.3f} | {low:+.3f} to {high:+.3f} |",
            flush=True,
        )
