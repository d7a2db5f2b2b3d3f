"""Homomorphic encryption: the bits of secure aggregation, of ciphertexts that the server adds and cannot read."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from federations import finished, joined
from foedus import jobfile, launch
from foedus.core import Total, Update
from foedus.errors import FoedusError, Incompatible, JobError, Paused
from foedus.numpy import NumpyLearner
from foedus.params import Params
from foedus.privacy import ckks, he
from foedus.work import Order

RNG = np.random.default_rng(0)
SITES = {
    f"s{i}": fd.Split((RNG.normal(size=(n, 3)), RNG.normal(size=n)), (np.eye(3), np.ones(3)))
    for i, n in enumerate((5, 40, 17, 9))
}


def gradient(params: Params, x: Any, y: Any) -> Any:
    error = x @ params["w"] + params["b"] - y
    return error**2 / 2, {"w": x.T @ error / len(y), "b": error.mean()}


LINE = NumpyLearner({"w": np.zeros(3), "b": np.float64(0)}, gradient, lambda p, x: x @ p["w"] + p["b"], lr=0.1)


def test_words_are_exact_through_encryption_addition_and_rounding() -> None:
    """The largest words that the ring has, of 33 sites, and numbers that fill more than one ciphertext."""
    key, sites, size = ckks.new_key(), 33, ckks.SLOTS + 7
    most = (2**31 - 1) // sites
    words = RNG.integers(-most, most + 1, (sites, size))
    words[:, :2] = [most, -most]
    texts = [ckks.encrypted(key, row.astype("<i4").view("<u4")) for row in words]
    assert [x.shape for x in texts[:2]] == [(2, ckks.ROOM)] * 2
    total = ckks.decrypted(key, ckks.added(texts), size)
    assert (total.view("<i4") == words.sum(0)).all()


def test_another_key_opens_nothing_and_nonsense_is_told() -> None:
    words = np.arange(100, dtype="<u4")
    text = ckks.encrypted(ckks.new_key(), words)
    assert (ckks.decrypted(ckks.new_key(), text, 100) != words).mean() > 0.99
    with pytest.raises(FoedusError, match="no ciphertext"):
        ckks.added([np.full((1, ckks.ROOM), 7, np.uint8)])
    assert not np.array_equal(text, ckks.encrypted(ckks.new_key(), words))


@pytest.mark.parametrize("algorithm", [fd.fedavg(), fd.scaffold(), fd.fedadam()], ids=["fedavg", "scaffold", "fedadam"])
def test_a_run_has_the_bits_of_secure_aggregation_without_masks(algorithm: fd.Algorithm) -> None:
    run = partial(fd.Job, algorithm, LINE, rounds=3)
    open_, closed = run(privacy=fd.secagg(masks=False)).run(sites=SITES), run(privacy="he").run(sites=SITES)
    assert closed.digest == open_.digest and closed.metrics["loss"] == open_.metrics["loss"]


@pytest.mark.parametrize(
    "noise", [fd.central_dp(1.0, 0.5), fd.dp_sgd(1.0, noise_multiplier=1.0)], ids=["site", "record"]
)
def test_noise_goes_together_with_it(noise: Any) -> None:
    run = partial(fd.Job, fd.fedavg(), LINE, rounds=2)
    open_ = run(privacy=[noise, fd.secagg(masks=False)]).run(sites=SITES)
    assert run(privacy=[noise, fd.he()]).run(sites=SITES).digest == open_.digest


def test_the_server_gets_ciphertexts_alone_and_no_weight_of_a_site() -> None:
    seen: list[Total] = []
    method = fd.Job(fd.fedavg(), LINE, rounds=1, privacy="he").method
    from foedus.core import RoundContext
    from foedus.work import ordered

    bench = fd.Job(fd.fedavg(), LINE, rounds=1, privacy="he").bench(0)
    assert bench.works.keys() >= {"train", he.MAKE, he.OPEN, he.INTRODUCE}
    context = RoundContext(0, 0, sorted(SITES), sorted(SITES))
    steps = method.round(method.init(LINE.init(None)), context)  # type: ignore[arg-type]
    answer: Any = None
    from foedus.aggregators import Folding, mean
    from foedus.backends.local import perform
    from foedus.core import Origin

    number = 0
    while True:
        try:
            task = steps.send(answer)
        except StopIteration:
            break
        orders = ordered(task, task.sites, 0, number)
        done = [perform(bench, order, None, SITES) for order in orders]
        folding = Folding(task.aggregator or mean(), task.returns, len(orders))
        for order, found in zip(orders, done, strict=True):
            assert found.update is not None, found.outcome
            if task.work == "train":
                assert set(found.update.params) == {"he"} and found.update.weight == 1 and not found.update.metrics
            folding.add(found.update, Origin(order.site, 0, number))
        answer = folding.total([found.outcome for found in done])
        seen.append(answer)
        number += 1
    assert len(seen) == 5  # rows, introductions, key, updates, the sum
    assert isinstance(orders[0], Order) and isinstance(found.update, Update)


def test_a_number_beyond_the_bound_is_refused_at_its_site() -> None:
    with pytest.raises((JobError, Paused), match=r"is above bound=0\.001"):
        fd.Job(fd.fedavg(), LINE, rounds=1, privacy=fd.he(bound=0.001)).run(sites=SITES)


def test_what_does_not_go_together_is_refused() -> None:
    run = partial(fd.Job, learner=LINE, rounds=1)
    with pytest.raises(Incompatible, match="take secagg alone"):
        run(fd.fedavg(), privacy=[fd.he(), fd.secagg()])
    with pytest.raises(Incompatible, match="ask at least 3 in a round"):
        run(fd.fedavg(), privacy="he", cohort=2)
    with pytest.raises(Incompatible, match="round numbers"):
        run(fd.fedavg(), privacy="he", compress=fd.top_k(0.1))
    with pytest.raises(JobError, match=r"he\(bound=-1\): it must be positive"):
        fd.he(bound=-1)
    with pytest.raises(Paused, match="2 of the 3 sites needed are there"):
        run(fd.fedavg(), privacy="he").run(sites={name: SITES[name] for name in ("s0", "s1")})


FILE = """
import numpy as np
import foedus as fd
from foedus.numpy import NumpyLearner


def load(site):
    table = np.loadtxt(site.data, delimiter=",")
    return fd.Split(train=(table[:, :3], table[:, 3]), valid=(table[:2, :3], table[:2, 3]))


def gradient(params, x, y):
    error = x @ params["w"] - y
    return error**2 / 2, {"w": x.T @ error / len(y)}


learner = NumpyLearner({"w": np.zeros(3)}, gradient, lambda p, x: x @ p["w"], lr=0.1)
job = fd.Job(fd.fedavg(), learner, load, rounds=2, privacy="he")
"""


@pytest.mark.long
@pytest.mark.processes
def test_real_sites_have_the_bits_of_a_simulation(tmp_path: Path) -> None:
    places = {}
    for name, split in SITES.items():
        places[name] = tmp_path / "data" / f"{name}.csv"
        places[name].parent.mkdir(exist_ok=True)
        np.savetxt(places[name], np.column_stack([split.train.x, split.train.y]), delimiter=",")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.py").write_text(FILE)
    with joined(tmp_path / "home", places) as made:
        real = finished(made.remote().submit(tmp_path / "job" / "job.py"))
    job = jobfile.load(tmp_path / "job" / "job.py").job
    assert real.digest == launch.run(job, dict(places), folder=tmp_path / "simulated").digest
