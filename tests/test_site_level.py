"""Privacy of whole sites: what the noise is, what it costs in epsilon, what is refused, that a replay has it again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from foedus import launch
from foedus.core import Total, Update
from foedus.errors import FoedusError, Incompatible, JobError
from foedus.keys import key
from foedus.numpy import NumpyLearner
from foedus.params import DTYPES, Params
from foedus.privacy import accounting
from foedus.privacy.site_level import _central, _noisy, clipped, noise_of, spent
from foedus.transforms.clip import norm


def gradient(p: Any, x: Any, y: Any) -> Any:
    error = x @ p["w"] - y
    return error**2, {"w": 2 * x.T @ error / len(x)}


def rows(seed: int) -> fd.Split:
    x = np.random.default_rng(seed).normal(size=(40, 3))
    return fd.Split(train=(x, x @ [1.0, 2.0, 3.0]))


SITES = {f"s{i}": rows(i) for i in range(5)}


def job(privacy: Any, algorithm: Any = None, rounds: int | None = 3, **more: Any) -> fd.Job:
    learner = NumpyLearner({"w": np.zeros(3)}, gradient, lambda p, x: x @ p["w"], lr=0.05)
    return fd.Job(algorithm or fd.fedavg(), learner, rounds=rounds, privacy=privacy, **more)


# ---- how much noise --------------------------------------------------------------------------------------------------


def test_one_local_release_has_the_noise_of_the_analytic_gaussian_mechanism() -> None:
    """sigma(1, 1e-5) = 3.7306316348 for sensitivity 1 (Balle and Wang 2018); two clipped updates are 2 clip apart."""
    how = fd.local_dp(clip=1.0, epsilon=1.0, delta=1e-5)
    assert noise_of(how, 1) == pytest.approx(3.7306316348, abs=2e-4)
    assert noise_of(how, 1) >= 3.7306


@pytest.mark.parametrize(("n", "count", "z"), [(100, 5.0, 1.005037815259212), (20, 1.0, 1.1547005383792515)])
def test_adaptive_clipping_splits_the_noise_as_published(n: int, count: float, z: float) -> None:
    """Andrew et al. 2021, theorem 1, by the paper's default of n / 20 for the count."""
    assert accounting.split_noise(1.0, n / 20) == pytest.approx(z, rel=1e-15) and n / 20 == count


def test_the_noise_of_the_mean_is_that_of_a_clipped_sum_over_its_number_of_sites() -> None:
    zeros, n = Params({"w": np.zeros(200_000), "b": np.zeros(())}), 8
    transform = _central(fd.central_dp(clip=0.5, noise_multiplier=1.2), 1)
    got, _ = transform.decode(Total(zeros, float(n), n, {}, ()), transform.init(), key(3)("decode"))
    assert got.params["w"].std() == pytest.approx(1.2 * 0.5 / n, rel=0.01)
    assert abs(got.params["w"].mean()) < 4 * 1.2 * 0.5 / n / math.sqrt(200_000) and got.params["b"] != 0
    other, _ = transform.decode(Total(zeros, float(n), n, {}, ()), transform.init(), key(4)("decode"))
    assert (got.params["w"] != other.params["w"]).all()


def test_a_site_s_noise_is_that_of_two_clips() -> None:
    drawn = _noisy(Params({"w": np.zeros(100_000, np.float32)}), 2 * 0.1 * 3.0, key(1)("x"))["w"]
    assert drawn.dtype == np.float32 and drawn.std() == pytest.approx(0.6, rel=0.01)


@pytest.mark.parametrize("array", [np.zeros(4), np.full(4, 1e30), np.ones(()), np.full(3, np.nan), np.array([np.inf])])
def test_no_update_is_longer_than_its_clip(array: Any) -> None:
    params = Params({"w": np.asarray(array, np.float32)})
    found = clipped(params, 0.3)
    assert norm(found) <= 0.3 and found["w"].shape == np.shape(array)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_to_half_precision_makes_no_update_longer_than_its_clip(dtype: str) -> None:
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=300).astype(DTYPES[dtype])
        assert 0.29 < norm(clipped(Params({"w": x}), 0.3)) <= 0.3


def test_the_clip_follows_the_quantile_by_the_papers_equation() -> None:
    """Three of four updates are within: C exp(-0.2 (0.75 - 0.5)), where the count has no noise to speak of."""
    transform = _central(fd.central_dp(clip=2.0, noise_multiplier=0.0, quantile=0.5), 9)
    state = transform.init()
    sent = [
        transform.encode(
            Update(Params({"w": np.float64([x])}), 7.0, {"train_loss": np.ones(3)}), None, state, key(0, 0, 0)
        )[0]
        for x in (1.0, 1.9, 0.0, 5.0)
    ]
    assert [float(u.params["b/within"]) for u in sent] == [1, 1, 1, 0]
    assert [u.weight for u in sent] == [1.0] * 4 and not any(u.metrics for u in sent)
    mean = Params({name: np.mean([u.params[name] for u in sent], 0) for name in sent[0].params})
    total, after = transform.decode(Total(mean, 4.0, 4, {}, ()), state, key(0)("d"))
    assert after["clip"] == pytest.approx(2 * math.exp(-0.2 * 0.25)) and list(total.params) == ["w"]
    assert total.params["w"] == pytest.approx([(1.0 + 1.9 + 0.0 + 2.0) / 4], abs=1e-5)
    assert transform.public(after) == {"clip": after["clip"]}


# ---- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_what_a_run_spends_is_counted_without_assuming_a_sample() -> None:
    how = fd.central_dp(clip=1.0, noise_multiplier=2.0)
    assert spent(how, 10, 10) == pytest.approx(accounting.epsilon(2.0, 1.0, 10, 1e-5, "rdp"))
    goal = fd.central_dp(clip=1.0, epsilon=3.0)
    told = [spent(goal, 10, done) for done in range(1, 11)]
    assert told == sorted(told) and told[-1] == 3.0
    assert accounting.epsilon(noise_of(goal, 10), 1.0, 10, 1e-5) <= 3.0


@pytest.mark.parametrize(
    "privacy",
    [
        fd.central_dp(1.0, 2.0),
        fd.local_dp(1.0, 2.0),
        pytest.param(fd.central_dp(1.0, epsilon=8.0), marks=pytest.mark.long),
        pytest.param(fd.local_dp(1.0, epsilon=8.0), marks=pytest.mark.long),
    ],
    ids=["central", "local", "central by epsilon", "local by epsilon"],
)
def test_a_run_tells_what_it_has_spent_and_never_more_than_was_asked_for(privacy: Any) -> None:
    result = job(privacy).run(SITES)
    assert 0 < result.metrics["train_epsilon"] <= 8 and "train_loss" not in result.metrics
    assert result.digest == job(privacy).run(SITES).digest != job(privacy).run(SITES, seed=1).digest


def test_without_noise_it_is_a_mean_of_clipped_updates() -> None:
    """One round from zero: the mean over sites, each alike, of its own update at norm 0.1 at most."""
    result = job(fd.central_dp(clip=0.1, noise_multiplier=0.0), rounds=1).run(SITES)
    moves = [job("none", rounds=1).run({name: split}).params["w"] for name, split in SITES.items()]
    plain = np.mean([w * min(1, 0.1 / np.linalg.norm(w)) for w in moves], 0)
    assert result.params["w"] == pytest.approx(plain, abs=1e-6)
    assert math.isinf(spent(fd.central_dp(clip=0.1, noise_multiplier=0.0), 1, 1))


def test_adaptive_clipping_and_secagg_go_together_with_it() -> None:
    adaptive = fd.central_dp(clip=0.1, noise_multiplier=0.8, quantile=0.5)
    masked, bare = (job([adaptive, fd.secagg(bound=2.0, wmax=1, masks=m)]).run(SITES) for m in (True, False))
    assert masked.digest == bare.digest and masked.metrics["train_epsilon"] > 0


def test_a_replay_has_the_noise_of_its_run(tmp_path: Path) -> None:
    private = job(fd.central_dp(1.0, 1.0, quantile=0.5), rounds=4)
    whole = launch.run(private, SITES, folder=tmp_path / "whole")
    assert private.run(SITES, replay=whole).digest == whole.digest


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: fd.central_dp(1.0), "give noise_multiplier=…, or epsilon=…"),
        (lambda: fd.central_dp(0.0, 1.0), r"central_dp\(clip=0.0\)"),
        (lambda: fd.central_dp(1.0, 1.0, quantile=1.5), "it must be above 0 and below 1"),
        (lambda: fd.local_dp(1.0, 1.0, delta=2.0), r"it must be in \(0, 1\)"),
        (lambda: job([fd.central_dp(1.0, 1.0), fd.local_dp(1.0, 1.0)]), "a list of one of each kind"),
    ],
)
def test_numbers_that_protect_nobody_are_refused(make: Any, why: str) -> None:
    with pytest.raises(JobError, match=why):
        make()


@pytest.mark.parametrize(
    "more",
    [
        {"algorithm": fd.scaffold()},
        {"algorithm": fd.fednova()},
        {"algorithm": fd.fedavg(aggregator=fd.median())},
        {"algorithm": fd.gossip(fd.fedavg(), fd.ring(sorted(SITES)))},
        {"algorithm": fd.fedbuff(2)},
        {"compress": fd.int8()},
        {"rounds": None, "stop": fd.plateau("loss", patience=2)},
    ],
    ids=["scaffold", "fednova", "median", "gossip", "fedbuff", "int8", "no rounds"],
)
def test_parts_whose_sum_is_not_that_of_clipped_updates_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(Incompatible, match="do not go together"):
        job(fd.central_dp(1.0, epsilon=2.0), **more)


def test_buffers_and_counters_are_refused_by_name() -> None:
    model = {"w": np.zeros(3), "running": np.zeros(3), "seen": np.zeros((), np.int64)}
    start = Params(model, {"running": "buffer"})
    with pytest.raises(FoedusError, match="array 'running' is buffer"):
        fd.Job(fd.fedavg(), job("none").learner, rounds=1, privacy=fd.local_dp(1.0, 1.0), start=start).run(SITES)


def test_one_site_alone_has_the_noise_of_a_sum_of_one() -> None:
    result = job(fd.central_dp(1.0, 50.0), rounds=1).run({"alone": rows(0)})
    assert np.linalg.norm(result.params["w"]) > 10
