"""Noise that sites add together: its law, the grid that it lies on, what the sum has of it, what it costs, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from foedus import jobfile
from foedus.core import RoundContext
from foedus.errors import FoedusError, Incompatible, JobError
from foedus.keys import key
from foedus.numpy import NumpyLearner
from foedus.privacy import keystream
from foedus.privacy.distributed import grid
from foedus.privacy.keystream import _edges, discrete_normals
from foedus.privacy.site_level import noise_of, spent
from foedus.work import ordered

SITES = {f"s{i}": fd.Split(train=(np.full((4, 1), float(i)), np.zeros(4))) for i in range(10)}


def still(p: Any, x: Any, y: Any) -> Any:
    """A loss that moves nothing: what is left of a round is noise."""
    return (x[:, 0] * 0), {name: np.zeros_like(array) for name, array in p.items()}


def pull(p: Any, x: Any, y: Any) -> Any:
    return (x[:, 0] * 0), {name: np.full_like(array, x[0, 0]) for name, array in p.items()}


def job(how: Any, gradient: Any = still, size: int = 3, dtype: str = "float32", **more: Any) -> fd.Job:
    learner = NumpyLearner({"w": np.zeros(size, dtype)}, gradient, lambda p, x: x[:, 0] * 0, lr=1.0, batch_size=None)
    return fd.Job(fd.fedavg(), learner, privacy=[how, fd.secagg()], **{"rounds": 1, "evaluate": 0} | more)


# ---- the law ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.25])
def test_numbers_come_as_often_as_the_law_says(sigma: float) -> None:
    """exp(-k² / 2σ²) over its sum, each within five standard deviations of its count."""
    n, found = 200_000, discrete_normals(key(1)("x"), 200_000, sigma)
    ks = np.arange(-60, 61)
    law = np.exp(-(ks**2) / (2 * sigma**2))
    law /= law.sum()
    counts = np.array([(found == k).sum() for k in ks])
    assert counts.sum() == n
    assert (np.abs(counts - n * law) <= 5 * np.sqrt(n * law) + 3).all()


def test_wide_ones_have_the_variance_of_their_sigma_and_no_mean() -> None:
    found = discrete_normals(key(2)("x"), 400_000, 700.0)
    assert found.dtype == np.int64 and np.abs(found).max() <= 12 * 700
    assert found.std() == pytest.approx(700, rel=0.005)
    assert abs(found.mean()) < 4 * 700 / math.sqrt(400_000)


@pytest.mark.parametrize("sigma", [0.5, 600.3])
def test_the_table_is_symmetric_to_its_last_bits(sigma: float) -> None:
    """P[X <= k] + P[X <= -k - 1] = 1."""
    whole = [(int(h) << 64) + int(x) for h, x in zip(*_edges(sigma), strict=True)]
    assert whole == sorted(whole)
    assert all(0 <= 2**128 - (a + b) <= 2 for a, b in zip(whole, whole[::-1], strict=True))


def test_where_upper_halves_are_equal_the_lower_ones_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    high, low = np.array([1, 1, 5], "u8"), np.array([3, 9, 0], "u8")
    asked = [(0, 7), (1, 2), (1, 3), (1, 8), (1, 9), (4, 0), (5, 0), (9, 0)]
    monkeypatch.setattr(keystream, "words", lambda name, count: np.array(asked, "u8").T.ravel())
    assert keystream._looked_up(key(0), len(asked), high, low).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


# ---- the sum ---------------------------------------------------------------------------------------------------------
def test_the_sum_has_the_noise_of_all_and_more_than_was_asked_for() -> None:
    """Of ten sites seven go to the end and three may collude: four shares are z clip, so a site's is half of that."""
    z, clip, n = 1.3, 0.5, 10
    result = job(fd.distributed_dp(clip, z), size=50_000).run(SITES)
    assert result.params["w"].std() == pytest.approx(z * clip / 2 * math.sqrt(n) / n, rel=0.02)
    trusted = job(fd.distributed_dp(clip, z, colluding=0), size=50_000).run(SITES)
    assert trusted.params["w"].std() == pytest.approx(z * clip / math.sqrt(7) * math.sqrt(n) / n, rel=0.02)


def test_what_leaves_is_whole_steps_and_the_ring_has_the_same_ones() -> None:
    how = fd.distributed_dp(0.5, 1.0)
    made = job(how, pull, size=100)
    context = RoundContext(0, 0, list(SITES), list(SITES))
    (task,) = next(made.method.round(made.method.init(made.first(0)), context))  # at once: nobody tells its rows
    assert task.work == "train" and task.seal.wmax == 1.0
    found = grid(how, 1.0, 10, 7)
    assert found.step == 2.0**-11 and found.sigma == 512.0  # a share of 0.25: 512 steps at least
    assert task.aggregator.bind(10).ring[0].step(10) == found.step
    _, update = made.bench(0).perform(*ordered(task, ["s3"], 0, 0), None, SITES["s3"])
    whole = update.params["w"].astype(np.float64) / found.step
    assert (whole == np.rint(whole)).all() and update.weight == 1.0
    assert set(update.metrics) == {"train_epsilon"}
    assert np.abs(update.params["w"]).max() <= task.seal.bound


def test_without_noise_it_is_a_mean_of_clipped_updates() -> None:
    """Site i moves each of three numbers by -i, cut to a norm of 2: -min(i, 2 / √3)."""
    result = job(fd.distributed_dp(2.0, 0.0), pull).run(SITES)
    plain = -np.mean([min(i, 2 / math.sqrt(3)) for i in range(10)])
    assert result.params["w"] == pytest.approx([plain] * 3, abs=1e-5)


def test_a_run_is_the_same_wherever_it_runs_and_another_seed_is_another() -> None:
    made = job(fd.distributed_dp(1.0, 0.7), pull, rounds=2)
    alone = made.run(SITES, seed=4)
    assert made.run(SITES, seed=4, backend="processes", workers=1).digest == alone.digest
    assert made.run(SITES, seed=5).digest != alone.digest
    assert alone.metrics["train_epsilon"] == pytest.approx(spent(fd.distributed_dp(1.0, 0.7), 2, 2))


FILE = """
import numpy as np
import foedus as fd
from foedus.numpy import NumpyLearner

def pull(p, x, y):
    return x[:, 0] * 0, {"w": np.full_like(p["w"], x[0, 0])}

learner = NumpyLearner({"w": np.zeros(2000, "float32")}, pull, lambda p, x: x[:, 0] * 0, lr=1.0, batch_size=None)
privacy = [fd.distributed_dp(2.0, NOISE), fd.secagg()]
job = fd.Job(fd.fedavg(), learner, rounds=2, evaluate=0, privacy=privacy)
"""


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_real_sites_have_the_arithmetic_of_a_simulation_and_noise_of_their_own(tmp_path: Path, noise: float) -> None:
    (tmp_path / "job.py").write_text(FILE.replace("NOISE", str(noise)))
    made, few = jobfile.load(tmp_path / "job.py", {}).job, {name: SITES[name] for name in ("s1", "s2", "s3")}
    real, here = made.run(few, backend="network"), made.run(few)
    moved = -2 * 2 / math.sqrt(2000)  # each of two rounds moves by the clip
    if not noise:
        assert real.digest == here.digest and real.params["w"] == pytest.approx(np.full(2000, moved), rel=1e-3)
    else:  # named by the secret of each site, which no simulation has
        assert real.digest != here.digest
        assert real.params["w"].mean() == pytest.approx(moved, abs=0.1)
        assert real.params["w"].std() == pytest.approx(2.0 / 3 * math.sqrt(2), rel=0.1)  # three of three, twice


# ---- what it costs, and what is refused ------------------------------------------------------------------------------
def test_it_costs_what_gaussian_noise_costs_by_renyi_moments() -> None:
    """z = 1, one release, δ = 1e-5: 4.728507 (dp-accounting's RDP)."""
    assert spent(fd.distributed_dp(1.0, 1.0), 1, 1) == pytest.approx(4.728507, abs=1e-6)
    how = fd.distributed_dp(1.0, epsilon=3.0)
    assert spent(fd.distributed_dp(1.0, noise_of(how, 5)), 5, 5) <= 3.0


@pytest.mark.parametrize(
    ("how", "more", "why"),
    [
        (fd.distributed_dp(1.0, 1e-6), {}, "too small to be made of whole numbers"),
        (fd.distributed_dp(1.0, 1.0, colluding=7), {}, "nobody's noise counts"),
        (fd.distributed_dp(1.0, 1.0), {"dtype": "float16"}, "take float32"),
    ],
    ids=["too little noise", "too many collude", "half precision"],
)
def test_what_cannot_be_noised_is_refused_with_a_remedy(how: Any, more: Any, why: str) -> None:
    with pytest.raises(FoedusError, match=why):
        job(how, **more).run(SITES)


def test_more_sites_than_the_ring_has_room_for_are_refused() -> None:
    with pytest.raises(JobError, match="no room in 32 bits"):
        grid(fd.distributed_dp(1.0, 0.005), 0.005, 30_000, 20_001)


@pytest.mark.parametrize("words", [{"colluding": -1}, {"colluding": 1.5}, {"epsilon": 1.0}])
def test_a_wrong_word_is_refused(words: Any) -> None:
    with pytest.raises(JobError, match=r"distributed_dp"):
        fd.distributed_dp(1.0, 1.0, **words)


def test_it_is_under_a_seal_or_not_at_all() -> None:
    made = job(fd.distributed_dp(1.0, 1.0))
    with pytest.raises(Incompatible, match="no secagg"):
        made.replace(privacy=fd.distributed_dp(1.0, 1.0))
    bench = made.bench(0)
    (task,) = next(made.method.round(made.method.init(made.first(0)), RoundContext(0, 0, list(SITES), list(SITES))))
    (bare,) = ordered(task._replace(seal=None), ["s1"], 0, 0)
    with pytest.raises(FoedusError, match="has no seal"):
        bench.perform(bare, None, SITES["s1"])
