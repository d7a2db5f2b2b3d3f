"""What the server does with the mean difference, against numbers worked out by hand.

The steps are fed with numbers first. The runs are those of test_algorithms.py: from w a site's difference is
(m - w) / 2, and the pooled mean of the three sites is (1.5, 2.5 | 0).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foedus import fedadagrad, fedadam, fedavg, fedavgm, fedopt, fedprox, fedyogi
from foedus.algorithms import ServerOptimizer, adagrad, adam, momentum, yogi
from foedus.algorithms.optimizers import of_torch
from foedus.errors import JobError
from foedus.params import Params
from tiny import SITES, final, job, learner, played, points


def params(*numbers: float) -> Params:
    return Params({"w": np.float32(numbers)})


def ways(server: ServerOptimizer, *means: Params) -> list[list[float]]:
    """The ways of one step after the other; the model is nowhere near the numbers, for it must not count."""
    state, found = server.init(params(*[100.0] * means[0].size)), []
    for mean in means:
        state, way = server.step(state, mean)
        found.append(way["w"].tolist())
    return found


def test_momentum_adds_up_differences_each_lighter_than_the_next() -> None:
    # v = d1 = (4, -2);  v = v / 2 + d2 = (2 + 1, -1 + 0)
    assert ways(momentum(0.5), params(4, -2), params(1, 0)) == [[4, -2], [3, -1]]


def test_adagrad_divides_by_the_root_of_the_sum_of_squares() -> None:
    # tau = 3, so v begins at 9. d = 4: v = 9 + 16 = 25, 4 / (5 + 3).  d = 12: v = 25 + 144 = 169, 12 / (13 + 3).
    # d = 0 first: v = 9, the way 0; then 4: v = 25.
    assert ways(adagrad(tau=3.0), params(4, 0), params(12, 4)) == [[0.5, 0], [0.75, 0.5]]


def test_adagrad_has_a_first_moment_where_it_is_asked_for() -> None:
    # m = 4 / 2 = 2, over 5 + 3;  m = 2 / 2 + 12 / 2 = 7, over 13 + 3
    assert ways(adagrad(beta1=0.5, tau=3.0), params(4), params(12)) == [[0.25], [7 / 16]]


def test_adam_without_correction_of_bias() -> None:
    # beta1 = beta2 = 1/2 and tau = 1, so v begins at 1. d = 7: m = 3.5, v = 1/2 + 49/2 = 25, 3.5 / (5 + 1).
    # d = 5: m = 3.5/2 + 5/2 = 4.25, v = 25/2 + 25/2 = 25.  The other: d = -1: m = -0.5, v = 1; d = 1: m = 0.25, v = 1.
    found = ways(adam(0.5, 0.5, 1.0), params(7, -1), params(5, 1))
    assert found == [pytest.approx([3.5 / 6, -0.25]), pytest.approx([4.25 / 6, 0.125])]


def test_adam_as_published() -> None:
    # m = 0.1 d; v = 0.99 * 1e-6 + 0.01 d^2. With correction of bias the first way would be the sign of d, nearly.
    (found,) = ways(adam(), params(1, -0.01))
    first, second = 0.1 / (sqrt(0.99e-6 + 0.01) + 1e-3), -0.001 / (sqrt(0.99e-6 + 1e-6) + 1e-3)
    assert found == pytest.approx([first, second], rel=1e-5)


def test_yogi_moves_v_towards_the_square_by_a_share_of_the_square() -> None:
    # beta1 = 0, beta2 = 1/2, tau = 1. d = 4: 1 < 16, so v = 1 + 16/2 = 9, 4 / (3 + 1).
    # d = 2: 9 > 4, so v = 9 - 4/2 = 7.  The other: d = 1 = v: v stays 1, 1 / 2; d = 1/2: v = 1 - 1/8.
    found = ways(yogi(0.0, 0.5, 1.0), params(4, 1), params(2, 0.5))
    assert found == [[1.0, 0.5], pytest.approx([2 / (sqrt(7) + 1), 0.5 / (sqrt(0.875) + 1)])]


def test_two_rounds_of_fedavgm() -> None:
    # d = (0.75, 1.25), v = d, w = d; then d = (0.375, 0.625), v = d1 / 2 + d2 = (0.75, 1.25), w = (1.5, 2.5)
    assert final(played(job(fedavgm(beta=0.5)), SITES)[0]) == {"w": [1.5, 2.5], "b": 0.0}


def test_two_rounds_of_fedadagrad_with_three_sites() -> None:
    # tau = 3; the means are (4, 0), (4, 0) and (12, 16), with 3, 3 and 2 examples: (6, 4)
    sites = {"north": points([[4, 0, 0]] * 3), "south": points([[4, 0, 0]] * 3), "west": points([[12, 16, 0]] * 2)}
    # round 1: d = (3, 2), v = 9 + (9, 4) = (18, 13), way d / (sqrt(v) + 3), rate 2
    first = [2 * 3 / (sqrt(18) + 3), 2 * 2 / (sqrt(13) + 3)]
    # round 2: d = (means (6, 4) less w) / 2
    d = [(6 - first[0]) / 2, (4 - first[1]) / 2]
    second = [first[0] + 2 * d[0] / (sqrt(18 + d[0] ** 2) + 3), first[1] + 2 * d[1] / (sqrt(13 + d[1] ** 2) + 3)]
    assert final(played(job(fedadagrad(rate=2.0, tau=3.0)), sites)[0])["w"] == pytest.approx(second)


@pytest.mark.parametrize(("made", "second"), [
    (fedadam(rate=2.0, beta1=0.5, beta2=0.5, tau=1.0), lambda v, d: v / 2 + d * d / 2),
    (fedyogi(rate=2.0, beta1=0.5, beta2=0.5, tau=1.0), lambda v, d: v - d * d / 2 * np.sign(v - d * d)),
], ids=["fedadam", "fedyogi"])  # fmt: skip
def test_two_rounds_of_fedadam_and_fedyogi(made: Any, second: Callable[[float, float], float]) -> None:
    # Spelled out for one coordinate at a time, from w = 0 towards the pooled means 1.5 and 2.5: d = (mean - w) / 2.
    expected = []
    for mean in (1.5, 2.5):
        d1 = mean / 2
        m1, v1 = d1 / 2, second(1.0, d1)
        w1 = 2 * m1 / (sqrt(v1) + 1)
        d2 = (mean - w1) / 2
        m2, v2 = m1 / 2 + d2 / 2, second(v1, d2)
        expected.append(w1 + 2 * m2 / (sqrt(v2) + 1))
    assert final(played(job(made), SITES)[0])["w"] == pytest.approx(expected)


def test_a_rate_may_be_a_schedule() -> None:
    # round 0: all of (0.75, 1.25); round 1: half of (0.375, 0.625)
    halves = {"w": [0.9375, 1.5625], "b": 0.0}
    assert final(played(job(fedavg(rate=lambda round: 0.5**round)), SITES)[0]) == halves
    assert final(played(job(fedprox(0.0, rate=lambda round: 0.5**round)), SITES)[0]) == halves
    assert final(played(job(fedavgm(beta=0.0, rate=lambda round: 0.5**round)), SITES)[0]) == halves


def test_a_server_optimizer_goes_with_what_changes_local_training() -> None:
    # As FedProx in test_algorithms.py, where mu = 1 stops half of the way: one step or two make the same difference.
    one, _ = played(job(fedavgm(beta=0.5)), SITES)
    two, _ = played(
        job(fedavgm(beta=0.5, correct=lambda start: lambda g, w: g + 1.0 * (w - start)), learner=learner(epochs=2)),
        SITES,
    )
    assert final(two) == final(one)


def test_buffers_take_the_mean_whatever_the_step_size() -> None:
    def fit(arrays: Mapping[str, Any], split: Any, ctx: Any) -> None:
        arrays["w"][:] += 1
        arrays["mean"][:] = 8
        arrays["steps"][...] += 5

    model = Params({"w": np.float32([0]), "mean": np.float32([0]), "steps": np.int64(0)}, {"mean": "buffer"})
    own = learner(model=model, train=fit)
    for made, w in ((fedavg(rate=16.0), 16.0), (fedadagrad(rate=16.0, tau=0.0), 16.0), (fedavgm(rate=0.5), 0.5)):
        ended, _ = played(job(made, rounds=1, learner=own, evaluate=0), SITES)
        assert final(ended) == {"w": [w], "mean": [8.0], "steps": 5}


# Optimizers of other libraries.


def test_torch_sgd_with_momentum_is_fedavgm_to_the_number() -> None:
    sgd = partial(torch.optim.SGD, lr=1.0, momentum=0.5)
    assert final(played(job(fedopt(sgd), rounds=3), SITES)[0]) == final(played(job(fedavgm(0.5), rounds=3), SITES)[0])


MEANS = [params(1, -2, 0.5), params(0.5, 1, 0.25), params(-3, 0, 0.125)]
START = params(1, 2, 3)


def stepped(both: Any) -> list[float]:
    """Where (init, step) of an optimizer comes to with MEANS."""
    init, step = both
    state, model = init(START), START
    for mean in MEANS:
        state, way = step(state, mean, model)
        model = model + way
    found: list[float] = model["w"].tolist()
    return found


@pytest.mark.parametrize(
    "factory",
    [
        partial(torch.optim.Adam, lr=0.1, betas=(0.5, 0.9)),
        partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5, amsgrad=True),
        partial(torch.optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
        partial(torch.optim.Rprop, lr=0.01),
    ],
    ids=lambda factory: factory.func.__name__,
)
def test_a_torch_optimizer_keeps_its_state_between_rounds(factory: Any) -> None:
    """Beside one that lives on, and is given minus the means as gradients."""
    point = torch.nn.Parameter(torch.tensor(START["w"]))
    living = factory([point])
    for mean in MEANS:
        point.grad = torch.tensor(-mean["w"])
        living.step()
    assert stepped(of_torch(factory)) == pytest.approx(point.detach().tolist(), rel=1e-6)


def test_an_optimizer_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(JobError, match=r"fedopt\('adam'\): give a torch optimizer as partial"):
        fedopt("adam")


@pytest.mark.processes
def test_optax_works_as_a_servers_optimizer() -> None:
    """In a process of its own: jax has threads, and what is loaded beside it may not fork any more."""
    cases = Path(__file__).with_name("optax_cases.py")
    found = subprocess.run([sys.executable, "-m", "pytest", "-q", cases], capture_output=True, text=True, check=False)
    assert found.returncode == 0 and "5 passed" in found.stdout, found.stdout
