"""DP-SGD: worked out by hand, beside a plain loop over examples, and by the statistics of its samples and noise."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import beta, kstest
from torch import nn
from torch.optim import SGD, Adam

import foedus as fd
from foedus import privacy
from foedus.core import Elsewhere, Private, Term
from foedus.errors import Incompatible, JobError
from foedus.keys import Key
from foedus.layers import LayeredLearner, dense
from foedus.numpy import NumpyLearner
from foedus.params import Params
from foedus.privacy.dp_sgd import spent
from foedus.privacy.keystream import normals, poisson, words
from foedus.study import references
from foedus.torch import TorchLearner
from foedus.work import Bench, Order

SECRET = fd.key(7, "nobody knows")
KEY = fd.key(0, 0, 0, "north", "train")
LARGE = 1e6


def square(p: Any, x: Any, y: Any) -> tuple[Any, dict[str, Any]]:
    error = x @ p["w"] - y
    return error**2, {"w": 2 * x.T @ error / len(x)}


def flat(columns: int = 2, batch: int = 2, **more: Any) -> NumpyLearner:
    return NumpyLearner({"w": np.zeros(columns)}, square, lr=1.0, batch_size=batch, **more)


def line(columns: int = 2, batch: int = 2, **more: Any) -> TorchLearner:
    more = {"optimizer": partial(SGD, lr=1.0), **more}
    return TorchLearner(
        partial(nn.Linear, columns, 1, bias=False), lambda z, y: F.mse_loss(z[:, 0], y), batch_size=batch, **more
    )


def table(n: int, columns: int = 6, classes: int = 3, seed: int = 0) -> fd.Split:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, columns)).astype(np.float32)
    return fd.Split(train=(x, rng.integers(0, classes, n)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


class Tied(nn.Module):
    """Tied, frozen and idle arrays, a normalisation in groups, and a way that torch.func cannot map."""

    def __init__(self, branch: bool) -> None:
        super().__init__()
        self.a, self.b, self.idle = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(2, 2)
        self.b.weight = self.a.weight
        self.norm, self.head = nn.GroupNorm(2, 6), nn.Linear(6, 3)
        self.a.bias.requires_grad_(False)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0, 1.0]))
        self.branch = branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.b(self.a(x).tanh()) * self.scale)
        if self.branch and float(x.detach().sum()) > 1e9:
            return self.head(-x)  # type: ignore[no-any-return]
        return self.head(x)  # type: ignore[no-any-return]


def net(model: Callable[[], nn.Module], optimizer: Any = None, **more: Any) -> TorchLearner:
    return TorchLearner(model, F.cross_entropy, optimizer or partial(SGD, lr=0.3), epochs=2, batch_size=8, **more)


def plain(learner: TorchLearner, params: Params, split: fd.Split, how: Private) -> dict[str, Any]:
    """Algorithm 1 of Abadi et al. 2016, an example at a time by autograd: the trainable arrays after it."""
    model = learner.model()
    model.load_state_dict({name: torch.tensor(x) for name, x in params.items()}, strict=False)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = learner.optimizer(list(trained.values()))
    n, size = len(split.train), min(learner.batch_size, len(split.train))
    for step in range(2 * math.ceil(n / learner.batch_size)):
        sums = {name: torch.zeros_like(p) for name, p in trained.items()}
        for i in poisson(how.secret("rows", step), n, learner.batch_size):
            x, y = (torch.as_tensor(part[i : i + 1]) for part in (split.train.x, split.train.y))
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained.items()}
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
            for name, g in grads.items():
                sums[name] += g * min(1.0, how.clip / norm)
        noise = normals(how.secret("noise", step), sum(p.numel() for p in trained.values())) * how.noise * how.clip
        for name, p in trained.items():
            own, noise = noise[: p.numel()], noise[p.numel() :]
            p.grad = (sums[name] + torch.tensor(own.reshape(p.shape))).float() / size
            if how.after is not None:
                p.grad += 0.5 * (p.detach() - start[name])
        optimizer.step()
    return {name: p.detach().numpy() for name, p in trained.items()}


def proximal(start: Params) -> Any:
    return lambda grads, params: grads + 0.5 * (params - start.trainable())


def test_the_keystream_is_that_of_aes_256_in_counter_mode() -> None:
    known: Any = SimpleNamespace(digest=lambda: bytes(range(32)))
    assert words(known, 2).view("<u4").tolist() == [3053490418, 3500099882, 1788539817, 2155294429]


def test_normals_are_normal_and_each_key_has_its_own() -> None:
    drawn = normals(SECRET("a"), 600_001)
    assert kstest(drawn, "norm").pvalue > 0.01
    assert abs(drawn.mean()) < 4 / math.sqrt(drawn.size)
    assert abs(drawn.std() - 1) < 4 / math.sqrt(2 * drawn.size)
    assert abs(np.corrcoef(drawn[:300_000], drawn[300_000:600_000])[0, 1]) < 4 / math.sqrt(300_000)
    assert abs(np.corrcoef(drawn, normals(SECRET("b"), 600_001))[0, 1]) < 4 / math.sqrt(600_000)
    assert np.array_equal(drawn, normals(SECRET("a"), 600_001))


def test_each_record_joins_a_sample_by_itself_with_the_stated_chance() -> None:
    samples = np.zeros((4000, 50))
    for i, row in enumerate(samples):
        row[poisson(SECRET(i), 50, 8)] = 1
    q, spread = 8 / 50, math.sqrt(0.16 * 0.84 / 4000)
    assert np.abs(samples.mean(0) - q).max() < 4.5 * spread  # every record
    sizes = samples.sum(1)
    assert abs(sizes.var() / (50 * q * (1 - q)) - 1) < 0.1  # sizes differ as they do where each decides alone
    together = (samples[:, :, None] * samples[:, None]).mean(0)[~np.eye(50, dtype=bool)]
    assert np.abs(together - q * q).max() < 5 * math.sqrt(q**2 * (1 - q**2) / 4000)  # no two of them go together
    assert poisson(SECRET, 5, 5).tolist() == [0, 1, 2, 3, 4] == poisson(SECRET, 5, 9).tolist()


@pytest.mark.parametrize("learner", [flat(), line()], ids=["numpy", "torch"])
def test_two_rows_are_clipped_each_by_itself(learner: Any) -> None:
    """Gradients 2 (w·x - y) x at w = 0: (3, 4) of norm 5 becomes (0.6, 0.8), and (0, 0.5) stays; half the sum."""
    data = np.array([[3.0, 4.0], [0.0, 1.0]]), np.array([-0.5, -0.25])
    start = Params({name: np.zeros(x.shape, x.dtype) for name, x in learner.init(KEY).items()})
    fit = learner.train(start, fd.Split(train=data), KEY, Private(1.0, 0.0, SECRET))
    assert np.allclose(next(iter(fit.params.values())).ravel(), [-0.3, -0.65], rtol=1e-5)
    assert (fit.examples, fit.steps, fit.path, fit.metrics) == (2, 1, 1.0, {})


@pytest.mark.parametrize(("clip", "noise"), [(0.5, 0.0), (0.5, 1.3), (LARGE, 0.0)], ids=["clipped", "noised", "whole"])
@pytest.mark.parametrize("n", [29, 5], ids=["sampled", "all"])
def test_a_training_is_that_of_a_plain_loop_over_examples(clip: float, noise: float, n: int) -> None:
    learner, split = net(mlp), table(n)
    start, how = learner.init(KEY), Private(clip, noise, SECRET)
    _same(learner.train(start, split, KEY, how).params, plain(learner, start, split, how))


MODELS = {
    "chain": (mlp, None),
    "adam": (mlp, partial(Adam, lr=0.01)),
    "momentum": (mlp, partial(SGD, lr=0.1, momentum=0.9)),
    "mapped": (partial(Tied, False), None),
    "one by one": (partial(Tied, True), None),
}


@pytest.mark.parametrize(("model", "optimizer"), MODELS.values(), ids=MODELS)
def test_models_and_optimizers_of_every_kind(model: Any, optimizer: Any) -> None:
    learner, split = net(model, optimizer), table(21)
    start = learner.init(KEY)
    how = Private(0.7, 0.4, SECRET, proximal(start))
    fit = learner.train(start, split, KEY, how)
    _same(fit.params, plain(learner, start, split, how))
    assert learner.slopes.mapped == ("branch" not in vars(learner.machine.model) or not learner.machine.model.branch)


def test_half_precision_is_clipped_and_noised_in_float32() -> None:
    learner, split = (
        line(2, 2, dtype="bfloat16"),
        fd.Split(train=(np.float32([[3, 4], [0, 1]]), np.float32([-0.5, -0.25]))),
    )
    start = Params({name: np.zeros(x.shape, x.dtype) for name, x in learner.init(KEY).items()})
    fit = learner.train(start, split, KEY, Private(1.0, 0.0, SECRET))
    found = fit.params["weight"].astype(np.float32).ravel()
    assert np.abs(found - [-0.3, -0.65]).max() <= 0.65 * 2**-8  # the model's own rounding


def _same(found: Params, expected: dict[str, Any]) -> None:
    for name, x in expected.items():
        assert np.allclose(found[name], x, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("learner", [flat(3, 8), line(3, 8)], ids=["numpy", "torch"])
def test_without_clip_and_noise_it_is_gradient_descent_on_the_same_batches(learner: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)).astype(np.float32), rng.normal(size=20).astype(np.float32)
    start = learner.init(KEY)
    w = next(iter(start.values())).ravel().astype(float)
    for step in range(3):
        rows = poisson(SECRET("rows", step), 20, 8)
        w = w - 2 * x[rows].T @ (x[rows] @ w - y[rows]) / 8
    fit = learner.train(start, fd.Split(train=(x, y)), KEY, Private(LARGE, 0.0, SECRET))
    assert np.allclose(next(iter(fit.params.values())).ravel(), w, rtol=1e-4)


@pytest.mark.parametrize("learner", [flat(4000, 5), line(4000, 5)], ids=["numpy", "torch"])
def test_the_noise_has_the_stated_spread_in_each_step(learner: Any) -> None:
    """Where all gradients are zero, a model moves by clip * noise / batch times a normal number a step."""
    data = fd.Split(train=(np.zeros((20, 4000), np.float32), np.zeros(20, np.float32)))
    start = learner.init(KEY)
    fit = learner.train(start, data, KEY, Private(3.0, 1.5, SECRET))
    moved = next(iter((fit.params - start).values())).ravel() / (3.0 * 1.5 / 5 * math.sqrt(4))  # 4 steps of 5 expected
    assert abs(moved.std() - 1) < 4 / math.sqrt(2 * 4000)
    assert abs(moved.mean()) < 4 / math.sqrt(4000)


@pytest.mark.parametrize("learner", [flat(2, 1), line(2, 1)], ids=["numpy", "torch"])
def test_an_empty_batch_is_a_step_of_noise_alone(learner: Any) -> None:
    data = fd.Split(train=(np.ones((9, 2), np.float32), np.ones(9, np.float32)))
    sizes = [len(poisson(SECRET("rows", step), 9, 1)) for step in range(9)]
    assert 0 in sizes and max(sizes) > 1
    start, far = learner.init(KEY), LARGE * LARGE
    calm, noised = (learner.train(start, data, KEY, Private(1e-9, noise, SECRET)).params for noise in (0.0, far))
    drawn = (
        sum(normals(SECRET("noise", step), 2) for step in range(9)) * 1e-9 * far
    )  # each step has noise, the empty too
    assert np.allclose(next(iter((noised - calm).values())).ravel(), -drawn, rtol=1e-3)


@pytest.mark.parametrize("learner", [flat(), line()], ids=["numpy", "torch"])
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_a_record_whose_gradient_is_no_number_spoils_nothing(learner: Any) -> None:
    data = np.array([[np.inf, 1.0], [0.0, 1.0]]), np.array([0.0, -0.25])
    start = Params({name: np.zeros(x.shape, x.dtype) for name, x in learner.init(KEY).items()})
    fit = learner.train(start, fd.Split(train=data), KEY, Private(1.0, 0.0, SECRET))
    assert np.allclose(next(iter(fit.params.values())).ravel(), [0, -0.25])


@pytest.mark.parametrize("noise", [0.0, 0.8], ids=["calm", "noised"])
@pytest.mark.parametrize("model", [mlp, partial(Tied, False)], ids=["chain", "mapped"])
def test_many_sites_at_once_come_to_what_each_comes_to_alone(model: Any, noise: float) -> None:
    learner, splits = net(model, partial(SGD, lr=0.1, momentum=0.9)), [table(n, seed=n) for n in (7, 30, 1, 12)]
    start = learner.init(KEY)
    hows = [Private(0.7, noise, SECRET(i), proximal(start) if i % 2 else None) for i in range(4)]
    calls = [(start, split, KEY(i), how) for i, (split, how) in enumerate(zip(splits, hows, strict=True))]
    for fit, call in zip(learner.together(calls), [learner.train(*call) for call in calls], strict=True):
        assert (fit.examples, fit.steps, fit.metrics) == (call.examples, call.steps, {})
        _same(fit.params, call.params)


@pytest.mark.parametrize("other", [Term(lambda *x: 0), Elsewhere(lambda *x: x[0])], ids=["term", "elsewhere"])
@pytest.mark.parametrize("learner", [flat(), line()], ids=["numpy", "torch"])
def test_a_correction_that_reads_examples_is_refused(learner: Any, other: Any) -> None:
    with pytest.raises(NotImplementedError, match="beside the noised gradient"):
        learner.train(learner.init(KEY), table(4, 2), KEY, Private(1.0, 1.0, SECRET, other))


def sites(count: int = 3, rows: int = 20) -> dict[str, fd.Split]:
    return {f"s{i}": table(rows, 6, 3, i) for i in range(count)}


def job(algorithm: Any = None, learner: Any = None, rounds: int = 2, **how: Any) -> fd.Job:
    private = fd.dp_sgd(1.0, **(how or {"noise_multiplier": 1.0}))
    return fd.Job(algorithm or fd.fedavg(), learner or net(mlp, metrics=["accuracy"]), rounds=rounds, privacy=private)


ALGORITHMS = {
    "fedavg": fd.fedavg(),
    "fedprox": fd.fedprox(0.1),
    "fedadam": fd.fedadam(),
    "fednova": fd.fednova(),
    "feddyn": fd.feddyn(0.1),
    "scaffold": fd.scaffold(),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_a_run_tells_epsilon_and_no_loss_of_training(algorithm: Any) -> None:
    result = job(algorithm).run(sites(), backend="local")
    assert {name for name in result.metrics if name.startswith("train_")} == {"train_epsilon"}
    for row in result.per_site.values():  # of 20 rows a tenth is set aside to measure
        assert row["train_epsilon"] == pytest.approx(spent(18, 8, 2, 2, 1.0, 1e-5), rel=1e-9)


def test_a_run_has_the_same_bits_again_and_others_with_another_seed() -> None:
    found = [
        job().run(sites(), backend=b, seed=s, workers=2).digest
        for b, s in (("local", 0), ("processes", 0), ("local", 1))
    ]
    assert found[0] == found[1] != found[2]


def test_under_secagg_sums_alone_are_told() -> None:
    both = [fd.dp_sgd(1.0, 1.0), fd.secagg(bound=8)]
    result = job().replace(privacy=both).run(sites(), backend="local")
    assert result.per_site == {}
    assert result.metrics["train_epsilon"] == pytest.approx(spent(18, 8, 2, 2, 1.0, 1e-5))


def test_a_comparison_trains_its_references_in_the_clear() -> None:
    for reference in (references.by_itself(job()), references.together(job())):
        assert reference.protections == [] and "train_loss" in reference.run(sites(2), backend="local").metrics


def test_the_report_names_the_site_that_has_spent_most(tmp_path: Any) -> None:
    rows = {f"s{n}": table(n) for n in (10, 40)}  # the fewer rows, the likelier is each of them in a step
    result = job(rounds=1).run(rows, backend="local")
    most = max(row["train_epsilon"] for row in result.per_site.values())
    assert most == result.per_site["s10"]["train_epsilon"] > result.per_site["s40"]["train_epsilon"]
    page = result.report(tmp_path / "page.html").read_text()
    told = re.sub(r"<[^>]+>", " ", page[page.index("train_epsilon") :])
    assert re.search(rf"{most:.3g}\S*\s+s10", told)


def test_epsilon_is_reached_and_not_passed() -> None:
    result = job(rounds=3, epsilon=4.0, accountant="rdp").run({"s": table(10)}, backend="local")
    assert [row["train_epsilon"] <= 4 for row in result.history] == [True] * 3
    noise = privacy.noise_multiplier(
        4.0, 8 / 9, 12, 1e-5, "rdp"
    )  # 9 rows: two steps an epoch, two epochs, three rounds
    assert spent(9, 8, 2, 3, noise, 1e-5, "rdp") == pytest.approx(4.0, abs=1e-3)


def test_what_is_spent_is_what_the_accountants_publish() -> None:
    assert spent(100, 1, 1, 100, 1.0, 1e-5) == pytest.approx(6.187745, abs=1e-5)
    assert spent(100, 1, 1, 100, 1.0, 1e-5, "rdp") == pytest.approx(6.712757, abs=1e-5)
    assert spent(5, 8, 1, 1, 1.0, 1e-5) == pytest.approx(4.377178, abs=1e-5)
    assert spent(100, 1, 0, 100, 1.0, 1e-5, steps=100) == spent(100, 1, 1, 100, 1.0, 1e-5)
    assert spent(100, 10, 1, 1, 0.0, 1e-5) == math.inf


def performed(secret: Key, payload: Params, round: int = 0, seed: int = 0) -> Any:
    """The noise alone: what a fresh worker returns where all gradients are zero."""
    method = fd.Job(fd.fedavg(), flat(3), rounds=2, privacy=fd.dp_sgd(1.0, 1.0)).method
    bench = Bench(method.works, flat(3), None, [], seed)
    bench.secret = secret
    data = fd.Split(train=(np.zeros((20, 3)), np.zeros(20)), valid=(np.zeros((1, 3)), np.zeros(1)))
    return bench.perform(Order("train", payload, "north", round, 0), None, data)[1].params["w"]


def test_noise_is_the_same_after_a_restart_and_never_used_for_another_model() -> None:
    zero, tiny = Params({"w": np.zeros(3)}), Params({"w": np.array([0, 0, 1e-300])})
    first = performed(SECRET, zero)
    assert np.array_equal(first, performed(SECRET, zero)) and np.abs(first).min() > 0
    others = [
        performed(SECRET("b"), zero),
        performed(SECRET, tiny),
        performed(SECRET, zero, 1),
        performed(SECRET, zero, 0, 1),
    ]
    for other in others:
        assert np.abs(other - first).min() > 1e-6


REFUSED = {
    "batch norm": (
        TorchLearner(lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), F.cross_entropy, SGD),
        "BatchNorm1d '1'.*GroupNorm",
    ),
    "running": (
        TorchLearner(lambda: nn.InstanceNorm1d(4, track_running_stats=True, affine=True), F.cross_entropy, SGD),
        "InstanceNorm1d.*GroupNorm",
    ),
    "mixed": (net(mlp, mixed=True), "mixed=True"),
    "own loop": (TorchLearner(mlp, train=print), "training loop of one's own"),
    "own numpy": (NumpyLearner({}, train=print), "training loop of one's own"),
    "layers": (LayeredLearner([dense(2)], 6, "softmax"), "LayeredLearner: take a TorchLearner"),
}


@pytest.mark.parametrize(("learner", "why"), REFUSED.values(), ids=REFUSED)
def test_a_learner_without_gradients_of_single_examples_is_refused(learner: Any, why: str) -> None:
    with pytest.raises(Incompatible, match=f"dp_sgd and this learner.*{why}"):
        job(learner=learner)


def test_a_loop_of_ones_own_that_gets_it_nevertheless_says_what_to_take() -> None:
    def fit(params: Any, split: Any, ctx: Any) -> None:
        ctx.correct({"w": params["w"]}, params, lr=0.1)

    learner = NumpyLearner({"w": np.zeros(2)}, train=fit)
    with pytest.raises(NotImplementedError, match="clips each example's gradient"):
        learner.train(learner.init(KEY), table(4, 2), KEY, Private(1.0, 1.0, SECRET))


WRONG = {
    "neither": ({}, "and not both"),
    "both": ({"noise_multiplier": 1.0, "epsilon": 1.0}, "and not both"),
    "clip": ({"clip": 0.0, "noise_multiplier": 1.0}, "clip=0.0"),
    "noise": ({"noise_multiplier": -1.0}, "noise_multiplier=-1.0"),
    "epsilon": ({"epsilon": math.inf}, "epsilon=inf"),
    "delta": ({"epsilon": 1.0, "delta": 0.0}, "delta=0.0"),
    "accountant": ({"epsilon": 1.0, "accountant": "moments"}, "'rdp' or 'pld'"),
}


@pytest.mark.parametrize(("given", "why"), WRONG.values(), ids=WRONG)
def test_wrong_numbers_are_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(JobError, match=why):
        fd.dp_sgd(**{"clip": 1.0, **given})


@pytest.mark.parametrize("given", ["strong", ["secagg", "secagg"], [fd.dp_sgd(1, 1), fd.dp_sgd(1, 1)]])
def test_a_job_names_each_protection_once(given: Any) -> None:
    with pytest.raises(JobError, match="a list of one of each kind"):
        job().replace(privacy=given)


def twice(payload: Any, local: Any, site: Any) -> Any:
    for _ in range(2):
        fit = site.train(payload, site.split, site.key("train"), None)
    return None, fd.Update(fit.params - payload, fit.examples)


def reads(payload: Any, local: Any, site: Any) -> Any:
    site.evaluate(payload, site.split.train, ["loss"])


def slope(payload: Any, local: Any, site: Any) -> Any:
    site.gradient(payload, site.split.train, site.key("gradient"))


@pytest.mark.parametrize(("work", "why"), [(twice, "one training"), (reads, "beside DP-SGD"), (slope, "beside DP-SGD")])
def test_a_work_that_reads_more_of_the_training_part_is_refused_at_the_site(work: Any, why: str) -> None:
    made = fd.fedavg()._replace(works={"train": work})
    with pytest.raises(fd.FoedusError, match=why):
        job(made).run(sites(1), backend="local")


def test_more_rounds_than_the_noise_was_found_for_are_refused_at_the_site() -> None:
    method = job(rounds=1, epsilon=9.0, accountant="rdp").method
    learner = net(mlp)
    bench, data = Bench(method.works, learner, None, [], 0), table(8)
    start = learner.init(KEY)
    bench.perform(Order("train", start, "north", 0, 0), None, data)
    with pytest.raises(fd.FoedusError, match=r"2 rounds of a Job whose.*for 1: say rounds"):
        bench.perform(Order("train", start, "north", 1, 0), None, data)


def bound(learner: Any, noise: float, rows: int, trials: int, delta: float) -> float:
    """A lower bound of epsilon, at 95 %, from updates with and without one record whose gradient is the clip."""
    zero = Params({"w": np.zeros(1)})
    told = np.zeros((2, trials))
    for there in (0, 1):
        x = np.zeros((rows, 1))
        x[0] = there
        split = fd.Split(train=(x, -np.ones(rows)))
        for i in range(trials):
            how = Private(1.0, noise, SECRET("audit", there, i))
            told[there, i] = -learner.train(zero, split, KEY, how).params["w"][0]
    found = 0.0
    for line in np.quantile(told, np.linspace(0.5, 1, 12)):
        hits, alarms = (told[1] > line).sum(), (told[0] > line).sum()
        low = (
            beta.ppf(0.025 / 12, hits, trials - hits + 1) if hits else 0.0
        )  # Clopper and Pearson, for all lines at once
        high = beta.ppf(1 - 0.025 / 12, alarms + 1, trials - alarms) if alarms < trials else 1.0
        found = max(found, math.log(max(low - delta, 1e-300) / high))
    return found


@pytest.mark.long
@pytest.mark.parametrize("batch", [20, 5], ids=["all", "sampled"])
def test_the_audited_epsilon_stays_below_the_claimed_one(batch: int) -> None:
    learner = NumpyLearner({"w": np.zeros(1)}, square, lr=1.0, batch_size=batch, epochs=2 if batch == 5 else 1)
    claimed = spent(20, batch, learner.epochs, 1, 1.0, 1e-5)
    assert 0 < bound(learner, 1.0, 20, 4_000, 1e-5) <= claimed
    assert bound(learner, 0.1, 20, 4_000, 1e-5) > claimed  # with a tenth of the noise the audit finds it
