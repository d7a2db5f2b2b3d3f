"""Algorithms for sites that differ, against numbers worked out by hand from their papers.

One full-batch step of size 1/2 goes half the way to a site's mean m, so that from w the difference is (m - w) / 2.
North has the mean (2, 0 | 4) and 2 examples, south (8, 0 | -8) and 1. Where sites count alike the mean of the means is
M = (5, 0 | -2), by examples it is (4, 0 | 0).
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foedus import Job, Split, afl, fedavg, feddyn, fedexp, fednova, key, moon, qffl, scaffold
from foedus.algorithms import rounds
from foedus.algorithms.afl import projection, weights_of
from foedus.algorithms.fednova import often
from foedus.algorithms.moon import similarity
from foedus.core import Algorithm, Fit, RoundContext, Task, Term, Total
from foedus.errors import Alone, Paused
from foedus.params import Params, join
from foedus.torch import TorchLearner
from foedus.work import Order
from tiny import NORTH, SITES, SOUTH, final, job, learner, played, points

TWO = {"north": NORTH, "south": SOUTH}


def w(a: float, c: float, b: float) -> Params:
    return Params({"w": np.float32([a, c]), "b": np.float32(b)})


def nearly(found: dict[str, Any], a: float, c: float, b: float) -> bool:
    return found["w"] == pytest.approx([a, c], abs=1e-5) and found["b"] == pytest.approx(b, abs=1e-5)


def stepped(made: Algorithm, state: Any, params: Params, count: int, roster: int) -> Any:
    """The state after a round in which `count` of `roster` sites were counted, whose mean is `params`."""
    names = [str(i) for i in range(roster)]
    steps = made.round(state, RoundContext(0, 0, names, names[:count]))
    assert isinstance(next(steps), Task)
    with pytest.raises(StopIteration) as end:
        steps.send(Total(params, float(count), count, {}, []))
    return end.value.value


# SCAFFOLD.


def test_two_rounds_of_scaffold_with_one_local_step() -> None:
    # Round 1: all controls are 0, the model is M / 2; c_i = (0 - m_i / 2) / (1/2) = -m_i, the gradient at 0; c = -M.
    # Round 2: the gradient x - m_i, less c_i = -m_i and with c = -M, is x - M at both sites: half the way to M.
    assert final(played(job(scaffold()), TWO)[0]) == {"w": [3.75, 0], "b": -1.5}


@pytest.mark.parametrize("option", [1, 2])
def test_two_rounds_of_scaffold_with_two_local_steps(option: Any) -> None:
    # Round 1: x = 3/4 M. Option 1: c_i = -m_i, so that each site then takes two steps towards M: 1 - 1/4 * 1/4 of it.
    # Option 2: c_i = -(3/4 m_i) / (2 * 1/2): each goes to m_i / 4 + 3/4 M, and the mean of these is M again.
    ended, _ = played(job(scaffold(option), learner=learner(epochs=2)), TWO)
    assert final(ended) == {"w": [4.6875, 0], "b": -1.875}


@pytest.mark.parametrize("option", [1, 2])
def test_what_a_site_of_scaffold_sends_and_keeps(option: Any) -> None:
    # South at x = 0 with c = (1, 0 | 2) and c_i = (2, 0 | 2): the gradient y - m becomes y - m - (1, 0 | 0), so that
    # two steps go 3/4 of the way to (9, 0 | -8): y = (6.75, 0 | -6).
    # Option 1: c_i is the gradient at 0, -m. Option 2: c_i - c - y / (2 * 1/2) = (1 - 6.75, 0 | 0 + 6).
    made = job(scaffold(option), learner=learner(epochs=2))
    payload, local = join(w=w(0, 0, 0), c=w(1, 0, 2)), w(2, 0, 2)
    kept, update = made.bench(0).perform(Order("train", payload, "south", 0, 0), local, SOUTH)
    expected = {1: w(-8, 0, 8), 2: w(-5.75, 0, 6)}[option]
    assert kept == expected and update.weight == 1
    assert update.params.part("w") == w(6.75, 0, -6) and update.params.part("c") == expected - local


def test_scaffold_moves_its_control_by_the_share_of_sites_that_were_there() -> None:
    # Two of four: c = c + 2/4 of their mean change; the model by all of the mean, times the server's rate.
    state = {"w": w(1, 1, 1), "c": w(4, 0, 0)}
    mean = join(w=w(2, 0, -2), c=w(2, 8, 0))
    assert stepped(scaffold(rate=0.5), state, mean, 2, 4) == {"w": w(2, 1, 0), "c": w(5, 4, 0)}


# FedNova.


def test_two_rounds_of_fednova_whose_sites_take_one_step_and_two() -> None:
    # Batches of one example: north takes 2 steps (3/4 of its way, path 1), south 1 (half, path 1/2); p = 2/3 and 1/3.
    # tau_eff = 2/3 * 1 + 1/3 * 1/2 = 5/6.
    # Round 1: 2/3 * 3/4 (2 | 4) + 1/3 * (1/2) / (1/2) (8 | -8) = (11/3 | -2/3), times 5/6: (55/18 | -5/9).
    # Round 2: w: 2/3 * 3/4 (2 - 55/18) + 1/3 (8 - 55/18) = 121/108, so 55/18 + 605/648 = 2585/648.
    #          b: 1/2 (4 + 5/9) + 1/3 (-8 + 5/9) = -11/54, so -5/9 - 55/324 = -235/324.
    one = learner()
    one.batch_size = 1
    assert nearly(final(played(job(fednova(), learner=one, rounds=1), TWO)[0]), 55 / 18, 0, -5 / 9)
    assert nearly(final(played(job(fednova(), learner=one), TWO)[0]), 2585 / 648, 0, -235 / 324)


def test_fednova_ends_where_the_objective_has_its_minimum_and_fedavg_does_not() -> None:
    # The minimum by examples is at 4. Steps of 1/20: north's two go 1 - 0.95^2 = 0.0975 of its way, south's one 0.05.
    # FedAvg rests where 2 * 0.0975 (2 - w) + 0.05 (8 - w) = 0: north pulls like 3.9 examples, 15.8 / 4.9 = 3.22.
    # FedNova divides by 0.1 and 0.05: 2 * 0.975 (2 - w) + (8 - w) = 0, 11.9 / 2.95 = 4.03, nearer with smaller steps.
    one = learner(lr=0.05)
    one.batch_size = 1
    nova, plain = (final(played(job(a, learner=one, rounds=300, evaluate=0), TWO)[0]) for a in (fednova(), fedavg()))
    assert nova["w"][0] == pytest.approx(11.9 / 2.95, abs=1e-4)
    assert plain["w"][0] == pytest.approx(15.8 / 4.9, abs=1e-4)


def test_fednova_with_equal_steps_is_fedavg() -> None:
    assert nearly(final(played(job(fednova()), SITES)[0]), 1.125, 1.875, 0)


def test_under_momentum_early_gradients_count_more_often() -> None:
    # Two steps, momentum 1/2: the first gradient moves the model by 1 and then by 1/2 more: (1.5 + 1) / 2 on average.
    fit = Fit(w(0, 0, 0), 1, 2, 2.0)
    assert often(fit, 0.5) == 1.25 and often(fit, 0.0) == 1


# FedDyn.


def test_two_rounds_of_feddyn() -> None:
    # alpha = 2. Round 1: nothing is known yet, and the pull is 0 at the start: differences m_i / 2, so g_i = -m_i,
    # h = -M, and the model is M / 2 + M / 2 = M.
    # Round 2: at M the gradient is M - m_i, less g_i: M at both sites, the differences -M / 2. h = -M + 2 M / 2 = 0,
    # and the model is M - M / 2 = (2.5, 0 | -1).
    assert final(played(job(feddyn(alpha=2.0), rounds=1), TWO)[0]) == {"w": [5, 0], "b": -2}
    assert final(played(job(feddyn(alpha=2.0)), TWO)[0]) == {"w": [2.5, 0], "b": -1}


def test_feddyn_pulls_each_local_step_to_the_model_of_the_round() -> None:
    # Round 1, alpha = 1, two steps: first m / 2; then the gradient -m / 2 and the pull m / 2 cancel. g_i = -m_i / 2,
    # h = -M / 2, the model M / 2 + M / 2.
    ended, _ = played(job(feddyn(alpha=1.0), rounds=1, learner=learner(epochs=2)), TWO)
    assert final(ended) == {"w": [5, 0], "b": -2}


def test_feddyn_counts_the_sites_that_were_not_there() -> None:
    # alpha = 2, 1 of 4 sites: h = h - 2 * 1/4 * d = (2, 0 | 0) - (1, 0 | 4) / 2, and w = w + d - h / 2.
    found = stepped(feddyn(alpha=2.0), {"w": w(1, 1, 1), "h": w(2, 0, 0)}, w(1, 0, 4), 1, 4)
    assert found == {"w": w(1 + 1 - 0.75, 1, 1 + 4 + 1), "h": w(1.5, 0, -2)}


# FedExP.


def test_two_rounds_of_fedexp_whose_sites_pull_at_right_angles() -> None:
    # Three sites with one example each. Round 1: each difference is 1 along an axis of its own: the mean of the squares
    # is 1, the mean's square 1/3, so the rate is 1 / (2/3) = 1.5, and w = 0.5 on each axis.
    # Round 2: a difference is 0.75 on its own axis and -0.25 on the others: square 0.6875. The mean is 1/12 on each:
    # square 1/48, the rate 0.6875 * 24 = 16.5, and w = 0.5 + 16.5 / 12 = 1.875. The model is the mean of the last two.
    sites = {"x": points([[2, 0, 0]]), "y": points([[0, 2, 0]]), "z": points([[0, 0, 2]])}
    assert nearly(final(played(job(fedexp(epsilon=0.0), rounds=1), sites)[0]), 0.25, 0.25, 0.25)
    assert nearly(final(played(job(fedexp(epsilon=0.0)), sites)[0]), 1.1875, 1.1875, 1.1875)


def test_fedexp_takes_no_smaller_step_than_fedavg_and_counts_by_examples() -> None:
    # The squares are 5, 32 and 4 with 2, 1 and 5 examples: 7.75 on average; the mean (0.75, 1.25 | 0) has 2.125.
    # epsilon = 2.125: 7.75 / 8.5 is less than 1.  epsilon = 0: 31/17.
    assert final(played(job(fedexp(epsilon=2.125), rounds=1), SITES)[0]) == {"w": [0.375, 0.625], "b": 0}
    assert nearly(final(played(job(fedexp(epsilon=0.0), rounds=1), SITES)[0]), 0.375 * 31 / 17, 0.625 * 31 / 17, 0)


# q-FFL.


def test_two_rounds_of_qffl() -> None:
    # q = 1 and L = 1 / (1/2) = 2. A site at distance D^2 = |m - w|^2 has the loss F = D^2 / 2, d = L (w - w_i) = w - m,
    # so that it sends F d, and h = |d|^2 + 2 F = 2 D^2.
    # Round 1: D^2 = 20 and 128: sum p F d = -(2 * 10 (2 | 4) + 64 (8 | -8)) / 3, sum p h = (2 * 40 + 256) / 3.
    #          w = (552 | -432) / 336 = (23/14 | -9/7).
    # Round 2: north is away by (5/14 | 37/7), D^2 = 5501/196; south by (89/14 | -47/7), D^2 = 16757/196.
    #          w + (5501 (5/14 | 37/7) + 16757/2 (89/14 | -47/7)) / (4 * 5501 + 2 * 16757)
    assert nearly(final(played(job(qffl(q=1.0), rounds=1), TWO)[0]), 23 / 14, 0, -9 / 7)
    rest = 4 * 5501 + 2 * 16757
    a = 23 / 14 + (5501 * 5 / 14 + 16757 / 2 * 89 / 14) / rest
    b = -9 / 7 + (5501 * 37 / 7 - 16757 / 2 * 47 / 7) / rest
    assert nearly(final(played(job(qffl(q=1.0)), TWO)[0]), a, 0, b)


def test_qffl_with_q_zero_is_fedavg() -> None:
    assert nearly(final(played(job(qffl(q=0.0)), SITES)[0]), 1.125, 1.875, 0)


def test_qffl_takes_the_papers_constant_where_it_is_given() -> None:
    # L = 4, q = 1, north alone: F = 10, d = 4 (w - w_i) = -4 (1 | 2), h = 16 * 5 + 4 * 10 = 120: w = 40 (1 | 2) / 120.
    ended, _ = played(job(qffl(q=1.0, lipschitz=4.0), rounds=1), {"north": NORTH})
    assert nearly(final(ended), 1 / 3, 0, 2 / 3)


def test_qffl_stands_a_loss_of_nothing() -> None:
    home = {"a": points([[0, 0, 0]]), "b": points([[0, 0, 0]])}
    assert final(played(job(qffl(q=0.5)), home)[0]) == {"w": [0, 0], "b": 0}


# AFL.


def test_two_rounds_of_afl() -> None:
    # Round 1: equal weights, w = ((1 | 2) + (4 | -4)) / 2. The losses at 0 are 10 and 64; with the rate 1/108 the
    # weights 1/2 + 10/108 and 1/2 + 64/108 differ by 1/2, and on the simplex they are 1/4 and 3/4.
    # Round 2: from (2.5 | -1) the differences are (-1/4 | 5/2) and (11/4 | -7/2), and their weighted sum is (2 | -2).
    assert nearly(final(played(job(afl(rate=1 / 108), rounds=1), TWO)[0]), 2.5, 0, -1)
    assert nearly(final(played(job(afl(rate=1 / 108)), TWO)[0]), 4.5, 0, -3)


@pytest.mark.parametrize(
    ("x", "nearest"),
    [
        ([0.25, 0.75], [0.25, 0.75]),
        ([2, 0], [1, 0]),
        ([1, 1, 1], [1 / 3] * 3),
        ([1, 0.9, -5], [0.55, 0.45, 0]),
        ([-3], [1]),
    ],
)
def test_the_nearest_point_of_the_simplex(x: list[float], nearest: list[float]) -> None:
    assert projection(x) == pytest.approx(nearest)


def test_weights_of_afl_when_sites_come_and_go() -> None:
    assert weights_of({}, ["a", "b"]) == {"a": 0.5, "b": 0.5}
    assert weights_of({"a": 0.25, "b": 0.75}, ["b"]) == {"b": 1.0}
    assert weights_of({"a": 0.5, "b": 0.5}, ["a", "b", "c", "d"]) == pytest.approx(
        {"a": 1 / 3, "b": 1 / 3, "c": 1 / 6, "d": 1 / 6}
    )
    assert weights_of({"a": 1.0, "b": 0.0}, ["b"]) == {"b": 1.0}


# MOON.


class Two(nn.Module):
    """Logits and representations."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        z = self.body(x)
        return self.head(z), z


def contrast(z: Any, world: Any, own: Any) -> Any:
    """Equation 3 by the library's cross-entropy over two similarities, the first of which should be the larger."""
    both = torch.stack([F.cosine_similarity(z, world), F.cosine_similarity(z, own)], dim=1)
    return F.cross_entropy(both / 0.5, torch.zeros(len(z), dtype=torch.long))


def classes(seed: int) -> Split:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(7, 3)).astype(np.float32) + seed
    return Split(train=(x, (x[:, 0] > seed).astype(np.int64)), valid=(x, (x[:, 0] > seed).astype(np.int64)))


CLASSES = {"a": classes(0), "b": classes(1)}


def moon_learner() -> TorchLearner:
    return TorchLearner(
        Two,
        lambda made, y: F.cross_entropy(made[0], y),
        partial(torch.optim.SGD, lr=0.5),
        2,
        3,
        outputs=lambda made: made[0],
    )


def plain_moon(count: int, mu: float) -> dict[str, Any]:
    """Algorithm 1 of Li et al. 2021, with everything spelled out."""
    torch.manual_seed(key(0, 0, 0, "server", "init").number())
    world = Two()
    last: dict[str, Any] = {}
    for round in range(count):
        made = {}
        for name, split in CLASSES.items():
            model = copy.deepcopy(world)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            drawn = key(0, round, 0, name, "train", "order")
            x, y = torch.from_numpy(split.train.x), torch.from_numpy(split.train.y)
            for epoch in range(2):
                for rows in torch.from_numpy(drawn.order(7, epoch)).split(3):
                    optimizer.zero_grad()
                    logits, z = model(x[rows])
                    loss = F.cross_entropy(logits, y[rows])
                    if name in last:
                        with torch.no_grad():
                            others = world(x[rows])[1], last[name](x[rows])[1]
                        loss = loss + mu * contrast(z, *others)
                    loss.backward()
                    optimizer.step()
            made[name] = last[name] = model
        states = [m.state_dict() for m in made.values()]
        world = copy.deepcopy(world)
        world.load_state_dict({k: (states[0][k] + states[1][k]) / 2 for k in states[0]})
    return {k: x.numpy() for k, x in world.state_dict().items()}


def test_moon_trains_as_in_a_plain_loop_and_not_as_fedavg() -> None:
    ended, _ = played(Job(moon(mu=2.0), moon_learner(), rounds=3), CLASSES)
    expected, without = plain_moon(3, 2.0), plain_moon(3, 0.0)
    assert all(np.abs(ended.params[name] - x).max() < 1e-6 for name, x in expected.items())
    assert max(np.abs(without[name] - x).max() for name, x in expected.items()) > 1e-3


def test_the_term_of_moon_by_hand() -> None:
    # The global model's representation is at a right angle, the own last one is the same: log(1 + exp((1 - 0) / 0.5)).
    z = torch.tensor([[2.0, 0.0]])
    assert similarity(z, torch.tensor([[0.0, 3.0]])).item() == 0 and similarity(z, z).item() == 1
    assert contrast(z, torch.tensor([[0.0, 3.0]]), z).item() == pytest.approx(math.log1p(math.exp(2)))


def test_moon_keeps_running_averages_of_its_own_site_alone() -> None:
    """The other two models look on as in evaluation: BatchNorm sees each batch once, dropout draws once."""

    class Normed(Two):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    with_norm = moon_learner()
    with_norm.model, with_norm.batch_size = Normed, 4
    ended, _ = played(Job(moon(mu=0.0), with_norm, rounds=2), CLASSES)
    plain, _ = played(Job(fedavg(), with_norm, rounds=2), CLASSES)
    assert ended.params["body.1.num_batches_tracked"] == 2 * 2 * 2
    assert all(np.array_equal(ended.params[name], x) for name, x in plain.params.items())


def test_moon_trains_one_site_after_another_where_others_train_together() -> None:
    made, term = moon_learner(), Term(lambda made, outputs: made[1].sum())
    start = made.init(key(1))
    with pytest.raises(Alone, match="adds a term to the loss"):
        made.together([(start, CLASSES["a"], key(2), term), (start, CLASSES["b"], key(3), None)])


# What learners are asked for.


def test_the_mean_gradient_of_a_torch_learner_counts_every_example_once() -> None:
    made, split = (
        TorchLearner(Two, lambda made, y: F.cross_entropy(made[0], y), torch.optim.SGD, batch_size=3),
        CLASSES["a"],
    )
    start = made.init(key(1))
    model = made.machine.model
    found = made.mean_gradient(start, split.train, key(2))
    made.machine.load(start)
    F.cross_entropy(model(torch.from_numpy(split.train.x))[0], torch.from_numpy(split.train.y)).backward()
    assert list(found) == list(start)
    for name, p in model.named_parameters():
        assert np.allclose(found[name], p.grad, atol=1e-6), name


def test_a_model_without_a_gradient_somewhere_has_zeros_there() -> None:
    made = TorchLearner(Two, lambda made, y: made[1].sum(), torch.optim.SGD)
    found = made.mean_gradient(made.init(key(1)), CLASSES["a"].train, key(2))
    assert not found["head.weight"].any() and found["body.0.weight"].any()


# Loops of one's own.


def loop(arrays: Any, split: Any, ctx: Any, lr: float | None = None) -> None:
    grads = ctx.correct({"w": np.float32([1, 1]), "b": np.float32(1)}, arrays, lr=lr)
    for name in grads:
        arrays[name][...] -= 0.5 * grads[name]


@pytest.mark.parametrize("made", [scaffold(), fednova()], ids=["scaffold", "fednova"])
def test_a_loop_that_tells_no_step_size_is_an_error_with_the_remedy(made: Algorithm) -> None:
    why = r"JobError: .* needs the size of each local step, and this training loop gave none: call ctx\.correct"
    with pytest.raises(Paused, match=why):
        played(job(made, learner=learner(train=loop), evaluate=0), TWO)
    played(job(made, learner=learner(train=partial(loop, lr=0.5)), evaluate=0), TWO)


def test_qffl_needs_no_step_size_where_it_has_the_papers_constant() -> None:
    own = learner(train=loop)
    played(job(qffl(lipschitz=2.0), learner=own), TWO)
    with pytest.raises(Paused, match=r"qffl without lipschitz=… needs the size of each local step"):
        played(job(qffl(), learner=own), TWO)


def test_a_learner_that_lacks_what_an_algorithm_asks_for_is_an_error_by_name() -> None:
    class Bare:
        metrics = ()

        def init(self, key: Any) -> Params:
            return w(0, 0, 0)

        def train(self, params: Params, data: Any, key: Any, correct: Any) -> Fit:
            return Fit(params, 1, 1, 1.0)

        def evaluate(self, params: Params, data: Any, metrics: Any) -> dict[str, Any]:
            return {}

    with pytest.raises(Paused, match="asks the learner for mean_gradient, which it does not have"):
        played(Job(scaffold(option=1), Bare(), rounds=1), TWO)
    with pytest.raises(Paused, match="the loss of each site is read here, and this learner has none"):
        played(Job(qffl(), Bare(), rounds=1), TWO)


def test_a_term_of_the_loss_is_never_silently_left_out() -> None:
    """Whatever trains without knowing of it calls it as a correction."""
    unmarked = rounds(lambda s: s, moon().works["train"], lambda s, total, _: s)
    local = w(1, 1, 1)
    made = job(unmarked)
    with pytest.raises(Exception, match=r"NotImplementedError: this algorithm adds to the loss: take a TorchLearner"):
        made.bench(0).perform(Order("train", w(0, 0, 0), "north", 0, 0), local, NORTH)
