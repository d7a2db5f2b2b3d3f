"""Models that sites have of their own, against numbers worked out by hand from the methods' papers.

One full-batch step of size 1/2 goes half the way to a site's mean m. North has the mean (2, 0 | 4) and 2 examples,
south (8, 0 | -8) and 1: by examples the mean of the means is (4, 0 | 0), where sites count alike (5, 0 | -2).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

import foedus as fd
from foedus import frames
from foedus.algorithms.parts import chosen, last_layer, norms
from foedus.backends.local import Here
from foedus.backends.locals import Locals
from foedus.backends.simulation import Simulation
from foedus.errors import FoedusError, JobError, Paused
from foedus.journal import Journal, Memory
from foedus.numpy import NumpyLearner
from foedus.params import Params, digest, join
from foedus.run import Checkpoints, execute
from foedus.torch import TorchLearner
from foedus.work import Order
from test_algorithms_gains import DEVICES, SCARCE, Setting, measured
from tiny import NORTH, SOUTH, job, learner, played, points

TWO = {"north": NORTH, "south": SOUTH}
Plain = dict[str, Any]


def ended(made: fd.Job, sites: Mapping[str, Any] = TWO) -> tuple[Plain, dict[str, Plain]]:
    """The arrays of the global model in the end, and of each site's own, in `local`."""
    kept, states, bench = Journal(Memory()), Locals(), made.bench(0)
    runner = Simulation(Here(bench, sites), sorted(sites), kept, 0, locals=states)
    params = execute(made.plan(0), runner, kept, Checkpoints(None)).params
    assert bench.personal is not None
    own = {
        site: bench.own_model(params, {bench.personal.work: states.get(bench.personal.work, site)}) for site in sites
    }
    return lists(params), {site: lists(model) for site, model in own.items() if model is not None}


def lists(params: Mapping[str, Any]) -> Plain:
    return {name: x.tolist() for name, x in params.items()}


# Methods that share a part of the model.


def test_two_rounds_of_fedper() -> None:
    # w is shared, by examples: half of (4, 0), then 3/4 of it. Each b goes 3/4 of its own way, to 4 and to -8.
    world, own = ended(job(fd.fedper(personal="b")))
    assert own == {"north": {"w": [3, 0], "b": 3}, "south": {"w": [3, 0], "b": -6}}
    assert world == {"w": [3, 0], "b": 0}  # which never left the sites


def test_two_rounds_of_lg_fedavg() -> None:
    # The other way round: of b half, then 3/4 of 2 = (2 * 8 - 10) / 3; each w goes 3/4 of its own way.
    sites = {"north": points([[2, 0, 8]] * 2), "south": points([[8, 0, -10]])}
    world, own = ended(job(fd.lg_fedavg(personal=["w"])), sites)
    assert own == {"north": {"w": [1.5, 0], "b": 1.5}, "south": {"w": [6, 0], "b": 1.5}}
    assert world == {"w": [0, 0], "b": 1.5}


def product(p: Mapping[str, Any], x: Any, y: Any) -> tuple[Any, dict[str, Any]]:
    """Half the square of w b - y: each gradient has the other number in it."""
    error = p["w"] * p["b"] - y
    return error**2 / 2, {"w": error.mean() * p["b"], "b": error.mean() * p["w"]}


def test_a_site_of_fedrep_moves_its_head_first_and_then_the_body_under_it() -> None:
    # From w = b = 1 towards y = 5: the head goes 1 - (1 - 5) / 2 = 3, then the body 1 - (3 - 5) * 3 / 2 = 4. (Together
    # they would be 3 and 3.) Towards y = 3: b = 2, w = 1 - (2 - 3) * 2 / 2 = 2. Sites count alike: w = 3.
    # Round 2: b = 3 - (9 - 5) * 3 / 2 = -3, w = 3 - (-9 - 5) * -3 / 2 = -18; b = 2 - (6 - 3) * 3 / 2 = -2.5,
    # w = 3 - (-7.5 - 3) * -2.5 / 2 = -10.125. The mean is -14.0625.
    def site(y: float, n: int) -> fd.Split:
        data = np.zeros((n, 1), np.float32), np.full(n, y, np.float32)
        return fd.Split(train=data, valid=data)

    start = {"w": np.float32(1), "b": np.float32(1)}
    own = NumpyLearner(start, product, lr=0.5, batch_size=None)
    sites = {"north": site(5, 2), "south": site(3, 1)}
    assert ended(job(fd.fedrep(personal="b"), learner=own, rounds=1), sites)[1] == {
        "north": {"w": 3, "b": 3},
        "south": {"w": 3, "b": 2},
    }
    world, models = ended(job(fd.fedrep(personal="b"), learner=own), sites)
    assert models == {"north": {"w": -14.0625, "b": -3}, "south": {"w": -14.0625, "b": -2.5}}
    assert world == {"w": -14.0625, "b": 1}


def test_fedrep_may_train_its_head_more_often() -> None:
    # Twice a round: b is 15/16 of its way after two rounds; w half of 5, then half of what is left.
    assert ended(job(fd.fedrep(personal="b", heads=2)))[1] == {
        "north": {"w": [3.75, 0], "b": 3.75},
        "south": {"w": [3.75, 0], "b": -7.5},
    }


class Normed(nn.Module):
    """A normalisation, and a weight that starts at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.BatchNorm1d(1), nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.out.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.first(x))  # type: ignore[no-any-return]


def test_sites_of_fedbn_keep_their_normalisations() -> None:
    # Inputs m - 1 and m + 1 are -1 and 1 after it; the running mean is m / 10, then 19/100 m; the unbiased variance 2
    # makes 0.9 + 0.2 = 1.1, then 1.19. With targets -+t the loss is (s w - t)^2 / 2 for scale s: both go by
    # -(1 - t) / 2 from s = w = 1. Round 1, t = 2 and 0: s = 1.5 and 0.5, w = 1.5 and 0.5, of which the mean is 1.
    # Round 2: s = 1.5 - (1.5 - 2) / 2 = 1.75, w = 1 - (1.5 - 2) * 1.5 / 2 = 1.375; s = 0.5 - 0.5 / 2 = 0.25,
    # w = 1 - 0.5 * 0.5 / 2 = 0.875.
    def site(m: float, t: float) -> fd.Split:
        data = np.float32([[m - 1], [m + 1]]), np.float32([[-t], [t]])
        return fd.Split(train=data, valid=data)

    def half(made: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (made - y).square().mean() / 2

    own = TorchLearner(Normed, half, partial(torch.optim.SGD, lr=0.5))
    sites = {"north": site(10, 2), "south": site(20, 0)}
    world, models = ended(fd.Job(fd.fedbn(), own, rounds=2), sites)
    expected = {"north": (1.9, 1.75), "south": (3.8, 0.25)}
    for name, (mean, scale) in expected.items():
        assert models[name]["first.running_mean"] == pytest.approx([mean], abs=1e-5)
        assert models[name]["first.running_var"] == pytest.approx([1.19], abs=1e-5)
        assert models[name]["first.weight"] == pytest.approx([scale], abs=1e-4)
        assert models[name]["first.num_batches_tracked"] == 2
        assert models[name]["out.weight"] == [pytest.approx([1.125], abs=1e-4)]
    assert (
        world["first.running_mean"] == [0] and world["first.weight"] == [1] and world["first.num_batches_tracked"] == 0
    )


def test_what_a_method_shares_by_default() -> None:
    model = Params(dict.fromkeys(["body.0.weight", "body.1.running_mean", "body.1.weight", "head.weight", "head.bias"],
                                 np.zeros(1, np.float32)), {"body.1.running_mean": "buffer"})  # fmt: skip
    assert last_layer(model) == ["head.weight", "head.bias"]
    assert norms(model) == ["body.1.running_mean", "body.1.weight"]
    named = Params(
        dict.fromkeys(["ln_2.bias", "layer_norm.bias", "bn1.bias", "GroupNorm_0.bias", "own.bias"], np.zeros(1))
    )
    assert norms(named) == ["ln_2.bias", "layer_norm.bias", "bn1.bias", "GroupNorm_0.bias"]
    assert chosen(["body.*", "head.bias"], norms, "x")(model) == [name for name in model if name != "head.weight"]


@pytest.mark.parametrize(
    ("algorithm", "told"),
    [
        (
            fd.fedper(personal=["b", "hed.*"]),
            r"fedper\(personal=\['b', 'hed.\*'\]\): no array is 'hed.\*'; there are w, b",
        ),
        (fd.fedbn(), r"fedbn\(\): no array is a site's own; say which are, as personal=\['head.\*'\]; there are w, b"),
        (fd.lg_fedavg(personal="*"), r"lg_fedavg\(\): every array is a site's own"),
    ],
)
def test_a_pattern_that_divides_nothing_is_refused_before_anything_trains(algorithm: Any, told: str) -> None:
    with pytest.raises(JobError, match=told):
        played(job(algorithm), TWO)


# Methods with a whole model of each site's own.


def test_two_rounds_of_ditto() -> None:
    # With lam = 1, v = v - ((v - m) + (v - w)) / 2 = (m + w) / 2; w is 0, then half of (4, 0 | 0).
    # Round 1: m / 2. Round 2: (m + 2 | m) / 2.
    world, own = ended(job(fd.ditto(lam=1.0)))
    assert own == {"north": {"w": [2, 0], "b": 2}, "south": {"w": [5, 0], "b": -4}}
    assert world == {"w": [3, 0], "b": 0}


def test_the_global_model_of_ditto_is_that_of_fedavg_to_the_bit() -> None:
    ours = learner(lr=0.3, epochs=3)
    assert digest(played(job(fd.ditto(lam=0.7), learner=ours), TWO)[0].params) == digest(
        played(job(learner=ours), TWO)[0].params
    )


def test_two_rounds_of_apfl_with_two_local_steps() -> None:
    # alpha = 1/2; w goes half the way to m, v by a quarter of m - u. From 0: w = m/2, v = m/4, u = 3/8 m; then
    # w = 3/4 m, v = m/4 + 5/8 m / 4 = 13/32 m. Alike w = 3.75.
    # North: v = 0.8125, u = 2.28125; w = 2.875, v = 0.7421875, u = 1.80859375; w = 2.4375, v = 0.7900390625.
    # South: v = 3.25, u = 3.5; w = 5.875, v = 4.375, u = 5.125; w = 6.9375, v = 5.09375. Alike w = 4.6875.
    world, own = ended(job(fd.apfl(alpha=0.5, adaptive=False), learner=learner(epochs=2)))
    assert world["w"] == [4.6875, 0]
    assert own["north"]["w"] == [(0.7900390625 + 4.6875) / 2, 0] and own["south"]["w"] == [(5.09375 + 4.6875) / 2, 0]


@pytest.mark.parametrize(
    ("lr", "w", "north", "south"), [(0.25, 2.1875, 1.83245849609375, 2.1123683751), (0.5, 3.75, 3.75, 3.75)]
)
def test_two_rounds_of_apfl_whose_share_adapts(lr: float, w: float, north: float, south: float) -> None:
    # Steps of 1/4. Round 1: v = w, so alpha stays 1/2; w = m/4, v = m/8; alike w = 1.25.
    # North: v = 0.25, u = 0.75, alpha = 1/2 - 1/4 * (0.25 - 1.25) * (0.75 - 2) = 0.1875; then u = 1.0625,
    # v = 0.25 + 0.1875 * 0.9375 / 4 = 0.2939453125, w = 1.4375. South: v = 1, u = 1.125,
    # alpha = 1/2 - 0.25 * 6.875 / 4 = 0.0703125; u = 1.232421875, v = 1.1189613342, w = 2.9375. Alike w = 2.1875.
    # Steps of 1/2: alpha would be 1/2 - 2 * 0.5 / 2 = 0 and 1/2 - 0.5 * 5.75 / 2 < 0: all is w.
    sites = {"north": points([[2, 0, 0]] * 2), "south": points([[8, 0, 0]])}
    world, own = ended(job(fd.apfl(), learner=learner(lr=lr)), sites)
    assert world["w"] == [w, 0]
    assert own["north"]["w"] == pytest.approx([north, 0]) and own["south"]["w"] == pytest.approx([south, 0])


def test_apfl_of_a_torch_learner_is_a_plain_loop_over_both_models() -> None:
    rng, model = np.random.default_rng(0), partial(nn.Linear, 4, 3)
    data = rng.normal(size=(20, 4)).astype(np.float32), rng.integers(3, size=20)
    own = TorchLearner(model, nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.5), 2, 8)
    made, split = fd.Job(fd.apfl(alpha=0.25, adaptive=False), own, rounds=1), fd.Split(train=data, valid=data)
    local, update = made.bench(0).perform(Order("train", own.init(fd.key(1)), "s", 0, 0), None, split)
    assert isinstance(update, fd.Update)

    start = {name: torch.tensor(x) for name, x in own.init(fd.key(1)).items()}
    w, v = dict(start), dict(start)
    for rows in islice(own.order(20, fd.key(0, 0, 0, "s", "train")), 2):
        for batch in (rows[i : i + 8] for i in range(0, 20, 8)):
            u = {name: 0.25 * v[name] + 0.75 * w[name] for name in w}
            at_w, at_u = (slope(model(), p, data[0][batch], data[1][batch]) for p in (w, u))
            w = {name: w[name] - 0.5 * at_w[name] for name in w}
            v = {name: v[name] - 0.5 * 0.25 * at_u[name] for name in v}
    for name, x in start.items():
        assert update.params[name] == pytest.approx((w[name] - x).numpy(), abs=1e-5)
        assert local["v"][name] == pytest.approx(v[name].numpy(), abs=1e-5)


def slope(model: nn.Module, params: Any, x: Any, y: Any) -> Any:
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    made = torch.func.functional_call(model, leaves, torch.tensor(x))
    found = torch.autograd.grad(nn.functional.cross_entropy(made, torch.tensor(y)), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize(("beta", "w", "theta"), [(1.0, 3.41796875, 2.0703125), (2.0, 4.921875, 2.890625)])
def test_two_rounds_of_pfedme(beta: float, w: float, theta: float) -> None:
    # lam = 1, eta = 1/2, from w = 0: theta = m / 2, w = w - (w - theta) / 2 = m / 4; then
    # theta = m / 2 - ((m / 2 - m) + (m / 2 - m / 4)) / 2 = 5/8 m, w = 7/16 m. Alike the m are 5: w = beta 35/16 =: W.
    # The same again from there gives W + beta 7/16 (5 - W), and of north theta = W + 5/8 (2 - W).
    # beta = 1: W = 2.1875, 2.1875 + 7/16 * 2.8125; 2.1875 - 5/8 * 0.1875. beta = 2: W = 4.375, + 7/8 * 0.625.
    world, own = ended(job(fd.pfedme(lam=1.0, eta=0.5, local=2, beta=beta)))
    assert world["w"] == [w, 0] and own["north"]["w"] == [theta, 0]


def test_steps_with_which_pfedme_would_diverge_are_refused() -> None:
    with pytest.raises(Paused, match=r"swing past w; take some below 2 / lam, which is 0\.133333"):
        played(job(fd.pfedme()), TWO)


def test_fine_tuning_goes_on_from_the_last_global_model_at_each_site() -> None:
    # One round of FedAvg: (2, 0 | 0). Two of tuning: 3/4 of the way from there to each mean.
    world, own = ended(job(fd.fine_tuned(after=1), rounds=3))
    assert world == {"w": [2, 0], "b": 0}
    assert own == {"north": {"w": [2, 0], "b": 3}, "south": {"w": [6.5, 0], "b": -6}}


def test_a_model_that_is_there_already_is_tuned() -> None:
    start = {"w": np.float32([4, 2]), "b": np.float32(0)}
    world, own = ended(job(fd.fine_tuned(), rounds=1, start=start))
    assert world == lists(start) and own["south"] == {"w": [6, 1], "b": -4}


def test_a_base_with_models_of_the_sites_own_leaves_each_the_whole_of_its_own_to_tune() -> None:
    # A round of FedPer: (2, 0 | 2) and (2, 0 | -4). Two of tuning, of both parts: 3/4 of the way to each mean.
    world, own = ended(job(fd.fine_tuned(fd.fedper(personal="b"), after=1), rounds=3))
    assert world == {"w": [2, 0], "b": 0}
    assert own == {"north": {"w": [2, 0], "b": 3.5}, "south": {"w": [6.5, 0], "b": -7}}


@pytest.mark.parametrize("backend", ["local", "processes", "vectorized"])
def test_tuning_after_a_personal_base_is_the_same_wherever_it_runs(backend: str) -> None:
    made = job(fd.fine_tuned(fd.ditto(lam=1.0), after=1), rounds=2)
    result = made.run(TWO, backend=backend, workers=2)
    assert {site: lists(result.personal(site)) for site in TWO} == ended(made)[1]


def test_two_rounds_of_ifca() -> None:
    # Losses at (0, 0 | 0) and (8, 0 | -4): north 10 and 50, east 10 and 26, south 64 and 8. So north and east train the
    # first: the mean of halves of (2, 0 | 4) and (4, 0 | 2), sites alike, is (1.5, 0 | 1.5); then 3/4 of (3, 0 | 3).
    # South trains the second: (8, 0 | -6), (8, 0 | -7). Nobody trains the third, (100, 0 | 0).
    sites = {**TWO, "east": points([[4, 0, 2]] * 3)}
    models = [{"w": np.float32([a, 0]), "b": np.float32(b)} for a, b in ((0, 0), (8, -4), (100, 0))]
    start = join(**{str(k): Params(model) for k, model in enumerate(models)})
    world, own = ended(job(fd.ifca(clusters=3), start=start), sites)
    assert world == {"0/w": [2.25, 0], "0/b": 2.25, "1/w": [8, 0], "1/b": -7, "2/w": [100, 0], "2/b": 0}
    first, second = {"w": [2.25, 0], "b": 2.25}, {"w": [8, 0], "b": -7}
    assert own == {"north": first, "east": first, "south": second}


def test_the_first_models_of_ifca_have_the_same_numbers_in_another_order() -> None:
    model = Params({"w": np.arange(12, dtype=np.float32).reshape(3, 4), "n": np.int64(7)})
    first = fd.ifca(clusters=3).params(fd.ifca(clusters=3).init(model))
    one, two, three = (first.part(str(k)) for k in range(3))
    assert one == model and two["n"] == three["n"] == 7
    assert not np.array_equal(two["w"], one["w"]) and not np.array_equal(two["w"], three["w"])
    assert sorted(two["w"].flat) == sorted(three["w"].flat) == list(range(12))


MADE = {
    "fedper": partial(fd.fedper, personal="b"),
    "fedrep": partial(fd.fedrep, personal="b"),
    "ditto": fd.ditto,
    "apfl": fd.apfl,
    "pfedme": partial(fd.pfedme, lam=1.0, local=2),
    "fine_tuned": partial(fd.fine_tuned, after=1),
    "fine_tuned of fedper": lambda: fd.fine_tuned(fd.fedper(personal="b"), after=1),
    "ifca": fd.ifca,
}


@pytest.mark.parametrize("name", MADE)
def test_a_half_precision_model_has_its_own_dtype_at_the_sites(name: str) -> None:
    half = learner(model={"w": np.ones(2, ml_dtypes.bfloat16), "b": np.zeros((), ml_dtypes.bfloat16)})
    result = job(MADE[name](), learner=half).run(TWO, backend="local")
    for model in (result.params, *(result.personal(site) for site in TWO)):
        assert {x.dtype.name for x in model.values()} == {"bfloat16"}


@pytest.mark.parametrize("name", MADE)
def test_what_is_sent_may_be_compressed_and_the_sites_own_models_stay_whole(name: str) -> None:
    # Half precision keeps ten bits behind the first.
    made = job(MADE[name]())
    plain, small = (ended(j)[1] for j in (made, made.replace(compress=fd.fp16())))
    for site, model in plain.items():
        assert small[site]["b"] == pytest.approx(model["b"], rel=2**-9)
        assert small[site]["w"] == pytest.approx(model["w"], rel=2**-9)


# What is measured, kept and given back.


def test_sites_own_models_have_metrics_of_their_own_names() -> None:
    # FedPer as above: north's model (3, 0 | 3) is (1 + 1) / 2 from (2, 0 | 4); south's (3, 0 | -6) is (25 + 4) / 2.
    ended, journal = played(job(fd.fedper(personal="b")), TWO)
    assert ended.history[-1]["personal_loss"] == pytest.approx((2 * 1 + 14.5) / 3)
    assert {name for line in ended.history for name in line} == {"round", "seconds", "train_loss", "personal_loss"}
    step = journal.find("step", 1)
    assert step is not None and step["worst"]["personal_loss"] == "south"
    assert {site: row["personal_loss"] for site, row in step["per_site"].items()} == {"north": 1.0, "south": 14.5}


def test_both_models_are_measured_where_both_are_models_and_on_test_too() -> None:
    # Ditto as above: globally (3, 0 | 0); of north's own (2, 0 | 2) the test part (0, 0 | 0) is (4 + 4) / 2 away.
    site = points([[2, 0, 4]] * 2, test=[[0, 0, 0]])
    ended, _ = played(job(fd.ditto(lam=1.0)), {"north": site, "south": SOUTH})
    assert ended.history[-1]["test_loss"] == 4.5 and ended.history[-1]["personal_test_loss"] == 4.0
    assert {"loss", "personal_loss"} <= ended.history[-1].keys()


def test_who_was_never_counted_has_no_model_of_its_own_and_says_nothing_of_one() -> None:
    _, journal = played(job(fd.ditto(), cohort=1, rounds=1), TWO)
    step = journal.find("step", 0)
    assert step is not None
    assert sorted(len([n for n in row if n == "personal_loss"]) for row in step["per_site"].values()) == [0, 1]
    assert all("loss" in row for row in step["per_site"].values())


def test_the_report_has_them_of_each_site(tmp_path: Any) -> None:
    page = job(fd.ditto()).run(TWO, backend="local").report(tmp_path / "report.html").read_text()
    assert "personal valid" in page and page.count("personal-valid") >= 2


def test_a_stop_rule_may_watch_the_sites_own_models() -> None:
    made = job(fd.fedper(personal="b"), rounds=None, stop=fd.target("personal_loss", 5.5))
    assert len(played(made, TWO)[0].history) == 2  # as above


@pytest.mark.parametrize("backend", ["local", "processes", "vectorized"])
def test_a_result_gives_and_saves_the_sites_own_models(backend: str, tmp_path: Any) -> None:
    made = job(fd.fedper(personal="b"))
    result = made.run(TWO, backend=backend, workers=2)
    assert {site: lists(result.personal(site)) for site in TWO} == ended(made)[1]
    path = result.save_personal("north", tmp_path / "own.safetensors")
    assert frames.read_model(path) == result.personal("north")
    with pytest.raises(FoedusError, match="site 'nobody' has no model of its own"):
        result.personal("nobody")


@pytest.mark.parametrize(
    ("algorithm", "setting"), [(fd.fedbn(), DEVICES), (fd.fedper(), SCARCE)], ids=["fedbn", "fedper"]
)
def test_own_models_are_better_where_sites_differ(algorithm: Any, setting: Setting) -> None:
    """With one seed and few rounds; with eight, intervals and all methods in test_algorithms_gains.py."""
    short = setting._replace(rounds=6)
    assert measured(algorithm, short, 0)[0] > measured(fd.fedavg(), short, 0)[0] + 0.1
