"""Layers that can be cut, against numbers by hand, differences of the loss, and torch; and the learner made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import foedus as fd
from foedus.errors import JobError
from foedus.keys import key
from foedus.layers import LayeredLearner, Loss, checked, dense, linear, logistic, relu, shift, softmax, squared, tanh
from foedus.params import Params
from foedus.torch import layer

X = np.random.default_rng(0).normal(size=(6, 3))
NETS = {
    "dense-tanh": [dense(4), tanh(), dense(2)],
    "linear-shift-relu": [linear(4), shift(), relu(), dense(2)],
    "torch": [layer(nn.Linear(3, 4)), tanh(), layer(nn.Sequential(nn.ELU(), nn.Linear(4, 2)))],
}


@pytest.mark.parametrize("name", NETS)
def test_the_way_back_is_the_derivative_of_the_way_forward(name: str) -> None:
    """Of the sum of outputs times fixed numbers, by differences of 1e-6 in every number of arrays and inputs."""
    stack, factors = checked(NETS[name]), np.random.default_rng(1).normal(size=(6, 2))
    params = stack.init(key(0), X)

    def value(arrays: Any, x: Any) -> float:
        return float((stack.forward(Params(arrays), x, None) * factors).sum())

    grads, slope = stack.backward(params, X, factors, None)
    arrays = {n: np.array(x) for n, x in params.items()}
    for found, moved in ((grads[n], arrays[n]) for n in arrays):
        _compare(found, moved, lambda: value(arrays, X))
    inputs = X.copy()
    _compare(slope, inputs, lambda: value(arrays, inputs))


def _compare(found: Any, moved: Any, value: Any) -> None:
    for at in np.ndindex(moved.shape):
        moved[at] += 1e-6
        up = value()
        moved[at] -= 2e-6
        assert found[at] == pytest.approx((up - value()) / 2e-6, abs=1e-7)
        moved[at] += 1e-6


@pytest.mark.parametrize("loss", [squared(), logistic(), softmax()])
def test_the_slope_of_a_loss_is_its_derivative(loss: Loss) -> None:
    z = np.random.default_rng(2).normal(size=(5, 3 if loss.target else 1))
    y = np.array([0, 1, 1, 0, 1], loss.target or "float64")
    _compare(loss.slope(z, y), z, lambda: float(loss.each(z, y).mean()))


def test_losses_by_hand() -> None:
    assert squared().each(np.array([[3.0]]), np.array([1.0])).tolist() == [4]  # (3 - 1)^2
    assert logistic().each(np.zeros((1, 1)), np.array([1.0])) == pytest.approx(np.log(2))
    assert softmax().each(np.zeros((1, 4)), np.array([2])) == pytest.approx(np.log(4))
    assert logistic().each(np.array([[-1e4]]), np.array([0.0])).tolist() == [0]  # nothing overflows


def test_one_step_of_the_learner_by_hand() -> None:
    # z = w x + b = 0 for x = 1, 3 with y = 1, 2; slopes of the mean of (z - y)^2: -2 * 1/2 and -2 * 2/2, so -1 and -2:
    # dw = -1 * 1 - 2 * 3 = -7, db = -3, and a step of 1/2 gives 3.5 and 1.5.
    learner = LayeredLearner([dense(1, scale=0)], 1, "squared", lr=0.5, batch_size=None, dtype="float64")
    fit = learner.train(learner.init(key(0)), fd.Split(train=([[1.0], [3.0]], [1.0, 2.0])), key(0), None)
    assert {name: x.tolist() for name, x in fit.params.items()} == {"0.w": [[3.5]], "0.b": [1.5]}
    assert (fit.examples, fit.steps, fit.path) == (2, 1, 0.5)
    assert fit.metrics["train_loss"].tolist()[:2] == [5, 2]  # 1 + 4 over two examples


def test_it_trains_as_torch_does_on_the_same_batches() -> None:
    ours = LayeredLearner([dense(4), tanh(), dense(2)], 3, "softmax", lr=0.3, epochs=3, batch_size=2, dtype="float64")
    y, start = np.array([0, 1, 1, 0, 1, 0]), ours.init(key(1))
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    for part, i in ((net[0], 0), (net[2], 2)):
        part.weight.data, part.bias.data = torch.tensor(start[f"{i}.w"].T.copy()), torch.tensor(start[f"{i}.b"])
    step = torch.optim.SGD(net.parameters(), lr=0.3)
    for rows in ours.batches(6, key(2)):
        step.zero_grad()
        nn.functional.cross_entropy(net(torch.tensor(X[rows])), torch.tensor(y[rows])).backward()
        step.step()
    fit = ours.train(start, fd.Split(train=(X, y)), key(2), None)
    for part, i in ((net[0], 0), (net[2], 2)):
        np.testing.assert_allclose(fit.params[f"{i}.w"], part.weight.detach().numpy().T, rtol=1e-12)


def test_a_torch_layer_draws_dropout_by_its_key() -> None:
    stack = checked([layer(nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5)))])
    params = stack.init(key(0), X)
    one, again, other = (stack.forward(params, X, key(k)) for k in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert (stack.forward(params, X, None) != 0).all()
    # the way back drops the same outputs: where one was dropped for every row, its bias has no slope
    grads, _ = stack.backward(params, X, np.ones((6, 50)), key(1))
    assert grads["0.0.bias"].tolist() == (2.0 * (one != 0).sum(0)).tolist()


def test_what_cannot_be_cut_is_refused_with_the_remedy() -> None:
    with pytest.raises(JobError, match=r"running_mean.*take GroupNorm or LayerNorm"):
        layer(nn.BatchNorm1d(3))
    with pytest.raises(JobError, match=r"Linear is no layer: take one of foedus\.layers, or foedus\.torch\.layer"):
        LayeredLearner([nn.Linear(1, 1)], 1, "squared")  # type: ignore[list-item]
    with pytest.raises(JobError, match="'squared', 'logistic', 'softmax'"):
        LayeredLearner([dense(1)], 1, "hinge")
    learner = LayeredLearner([dense(1)], 3, "squared")
    with pytest.raises(JobError, match=r"shape \(2,\), the learner's inputs=\(3,\)"):
        learner.train(learner.init(key(0)), fd.Split(train=([[1.0, 2.0]], [1.0])), key(0), None)
