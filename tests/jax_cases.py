"""Cases of test_learners_jax.py: they load jax, and so run in a process of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import foedus
from foedus import Job, Split, apfl, fedavg, fedbn, fedprox, key, launch, midway, moon, scaffold
from foedus.errors import Incompatible, JobError, Paused
from foedus.jax import JaxLearner
from foedus.journal import Journal, Memory
from foedus.numpy import NumpyLearner
from foedus.params import Params
from tiny import played

RNG = np.random.default_rng(3)
X = RNG.normal(size=(80, 3)).astype(np.float32)
Y = (X @ [1.0, -2.0, 0.5] + RNG.normal(size=80) / 10).astype(np.float32)
PARTS = {"north": slice(0, 37), "south": slice(37, 79), "tiny": slice(79, 80)}  # last batches of 5, 10 and 1 of 32
START = {"w": np.float32([0.1, 0.2, 0.3]), "b": np.float32(0)}


def held(x: Any = X, y: Any = Y) -> dict[str, Split]:
    return {name: Split(train=(x[rows], y[rows]), valid=(x[rows], y[rows])) for name, rows in PARTS.items()}


def slope(p: Mapping[str, Any], x: Any, y: Any) -> tuple[Any, dict[str, Any]]:
    """Of squared errors."""
    error = x @ p["w"] + p["b"] - y
    return error**2, {"w": 2 * x.T @ error / len(x), "b": 2 * error.mean()}


def line(p: Any, x: Any) -> Any:
    return x @ p["w"] + p["b"]


def begun(rng: Any) -> Any:
    return {name: jnp.asarray(x) for name, x in START.items()}


def numpys() -> NumpyLearner:
    return NumpyLearner(START, slope, line, lr=0.05, epochs=2, metrics=["rmse"])


def jaxs(**more: Any) -> JaxLearner:
    made = {"optimizer": optax.sgd(0.05), "epochs": 2, "lr": 0.05, "metrics": ["rmse"], **more}
    return JaxLearner((begun, line), optax.squared_error, **made)


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("corrected", [False, True])
def test_a_training_that_is_cut_off_goes_on_to_the_same_bits(
    steps: int, corrected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(midway, "EVERY", 0.0)
    monkeypatch.setattr(midway, "SHARE", 0)
    correct = (lambda grads, params: 0.5 * grads) if corrected else None
    split, here, made = Split(train=(X, Y)), key(0, 0, 0, "a", "train"), jaxs(optimizer=optax.adam(0.05))
    start = made.init(key(0))
    calm = made.train(start, split, here, correct)
    taken, batch = [], JaxLearner._batch

    def failing(*args: Any) -> Any:
        taken.append(len(args[3]))
        if len(taken) == steps + 1:
            raise OSError("the share went away")
        return batch(*args)

    monkeypatch.setattr(JaxLearner, "_batch", failing)
    with midway.at(tmp_path / "midway"):
        with pytest.raises(OSError, match="went away"):
            made.train(start, split, here, correct)
        again = jaxs(optimizer=optax.adam(0.05)).train(start, split, here, correct)
    assert len(taken) == calm.steps + 1 == 7
    assert {n: x.tolist() for n, x in again.params.items()} == {n: x.tolist() for n, x in calm.params.items()}
    assert again.metrics["train_loss"].tolist() == calm.metrics["train_loss"].tolist()


WAYS = {
    "fedavg": fedavg(),
    "fedprox": fedprox(0.5),
    "scaffold": scaffold(),
    "at first": scaffold(option=1),
    "apfl": apfl(),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_line_is_that_of_plain_numpy(way: Any) -> None:
    """The same batches, steps, corrections and metrics, in float32; sites whose last batches are filled up."""
    ours, plain = (played(Job(way, learner, rounds=3), held())[0] for learner in (jaxs(), numpys()))
    for name in START:
        np.testing.assert_allclose(ours.params[name], plain.params[name], rtol=1e-5, atol=1e-6)
    assert ours.history[-1] | {"seconds": 0} == pytest.approx(plain.history[-1] | {"seconds": 0}, rel=1e-5)


def test_the_mean_gradient_is_that_of_all_rows_at_once() -> None:
    found = jaxs().mean_gradient(Params(START), Split(train=(X, Y)).train, key(0))
    for name, x in slope(START, X, Y)[1].items():
        np.testing.assert_allclose(found[name], x, rtol=1e-5)


def test_a_tree_has_flat_names_and_losses_are_means_over_an_examples_numbers() -> None:
    def init(rng: Any) -> Any:
        return {"body": {"w": jax.random.normal(rng, (3, 2))}, "heads": [jnp.zeros(2), jnp.int32(7)]}

    learner = JaxLearner(
        (init, lambda p, x: x @ p["body"]["w"] + p["heads"][0]), optax.squared_error, optimizer=optax.sgd(1)
    )
    made = learner.init(key(1))
    assert made.kinds == {"body.w": "trainable", "heads.0": "trainable", "heads.1": "integer"}
    assert learner.init(key(1)) == made != learner.init(key(2))
    data = Split(train=(X[:5], np.zeros((5, 2), np.float32))).train
    squares = np.square(X[:5] @ made["body.w"]).mean(axis=1)
    found = learner.evaluate(made, data, ["loss"])["loss"]
    np.testing.assert_allclose(found, [squares.sum(), 5, np.square(squares).sum()], rtol=1e-5)


class Net(nn.Module):
    drop: float = 0.5

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.75)(x)
        x = nn.Dropout(self.drop, deterministic=not train)(nn.relu(nn.Dense(16)(x)))
        return nn.Dense(3)(x)


C = np.digitize(Y, [-1, 1])


def flaxs(drop: float = 0.5, **more: Any) -> JaxLearner:
    made = {"optimizer": optax.adam(1e-2), "inputs": 3, "metrics": ["accuracy"], **more}
    return JaxLearner(Net(drop), optax.softmax_cross_entropy_with_integer_labels, **made)


def test_batch_statistics_are_buffers_and_see_no_row_that_is_not_there() -> None:
    """Momentum 3/4: after a step a quarter of the batch's mean and variance, and 3/4 of 0 and 1."""
    learner, split = flaxs(batch_size=100), Split(train=(X[:37], C[:37]))
    made = learner.init(key(0))
    assert {name for name, kind in made.kinds.items() if kind == "buffer"} == {
        "batch_stats.BatchNorm_0.mean",
        "batch_stats.BatchNorm_0.var",
    }
    after = learner.train(made, split, key(0), None).params
    np.testing.assert_allclose(after["batch_stats.BatchNorm_0.mean"], X[:37].mean(0) / 4, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["batch_stats.BatchNorm_0.var"], 0.75 + X[:37].var(0) / 4, rtol=1e-4)


def test_dropout_has_a_name_and_is_left_out_where_the_model_is_measured() -> None:
    learner, split = flaxs(batch_size=80), Split(train=(X, C))
    made = learner.init(key(0))
    one, same, other = (learner.train(made, split, key(n), None).params for n in (1, 1, 2))
    assert one == same != other
    without = flaxs(drop=0.0, batch_size=80)
    assert learner.train(made, split, key(1), None).params != without.train(made, split, key(1), None).params
    ours, theirs = (x.evaluate(one, split.train, ["loss", "accuracy"]) for x in (learner, without))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    outputs = np.asarray(Net().apply(tree(one), X, train=False))
    assert ours["accuracy"].tolist() == [(outputs.argmax(1) == C).sum(), 80]


def tree(params: Params) -> dict[str, Any]:
    """Nested again."""
    found: dict[str, Any] = {}
    for name, x in params.items():
        *way, leaf = name.split(".")
        here = found
        for word in way:
            here = here.setdefault(word, {})
        here[leaf] = x
    return found


class Stop(BaseException):
    """What ends a run in the middle."""


def test_a_run_that_goes_on_after_a_crash_has_the_bits_of_a_calm_one(tmp_path: Path) -> None:
    def stop(row: Mapping[str, Any]) -> None:
        if row["round"] == 1:
            raise Stop

    job, log = Job(fedprox(0.01), jaxs(optimizer=optax.adam(0.1)), rounds=4), Memory()
    calm = played(job, held())[0]
    with pytest.raises(Stop):
        played(job, held(), journal=Journal(log), folder=tmp_path, told=stop)
    ended, _ = played(job, held(), journal=Journal(log), folder=tmp_path)
    assert foedus.digest(ended.params) == foedus.digest(calm.params)


@pytest.mark.long
def test_a_flax_net_learns_and_fedbn_finds_its_norms_by_their_names() -> None:
    learner = flaxs(drop=0.1, epochs=4)
    ended, _ = played(Job(fedprox(0.01), learner, rounds=4), held(X, C))
    assert ended.history[-1]["accuracy"] > 0.8
    ended, _ = played(Job(fedbn(), learner, rounds=2), held(X, C))
    assert ended.history[-1]["personal_accuracy"] > 0.5


@pytest.mark.long
@pytest.mark.processes
def test_processes_have_the_bits_of_local(tmp_path: Path) -> None:
    job = Job(fedavg(), flaxs(), rounds=2)
    here = launch.run(job, held(X, C), backend="local", folder=tmp_path / "local")
    there = launch.run(job, held(X, C), backend="processes", workers=2, folder=tmp_path / "there")
    assert there.digest == here.digest and there.per_site == here.per_site


FLAX = flaxs()
GAPS = np.where(np.arange(42 * 3).reshape(42, 3) % 6 == 1, np.nan, X[37:79])


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (GAPS, C[37:79], "column 1 of x holds NaN or Inf in 21 rows: fill them in"),
        (X[37:79, :2], C[37:79], r"an example has shape \(2,\), the learner inputs=\(3,\): load the same columns"),
        (X[37:79], C[37:79] + 1, r"y holds 3 in \d+ of 42 rows, and the model has 3 outputs: code the labels"),
        (X[37:79] * 1e38, C[37:79], r"the loss of step 1 of 2 is nan; lower the learning rate"),
    ],
    ids=["NaN", "columns", "class", "huge"],
)
def test_bad_data_is_told_with_the_site_and_the_remedy(x: Any, y: Any, why: str) -> None:
    sites = {**held(X, C), "south": Split(train=(x, y), valid=(X[:5], C[:5]))}
    with pytest.raises(Paused, match=rf"south: (declined|refused) \(.*{why}"):
        played(Job(fedavg(), FLAX, rounds=1, min_sites=3), sites)


def test_what_is_no_model_is_told() -> None:
    with pytest.raises(JobError, match=r"a Flax module needs inputs=…"):
        flaxs(inputs=None)
    with pytest.raises(JobError, match=r"JaxLearner\(int\): give a Flax linen module, or \(init, apply\)"):
        JaxLearner(3, optax.squared_error, optimizer=optax.sgd(1))
    with pytest.raises(JobError, match="give one of optax"):
        jaxs(optimizer="sgd")
    with pytest.raises(JobError, match="epochs=0"):
        jaxs(epochs=0)
    whole = JaxLearner((begun, line), lambda a, b: jnp.square(a - b).mean(), optimizer=optax.sgd(1))
    with pytest.raises(JobError, match="gives one number for the batch: give one an example"):
        whole.train(Params(START), Split(train=(X, Y)), key(0), None)
    with pytest.raises(Incompatible, match="moon"):
        Job(moon(), jaxs(), rounds=1)
    with pytest.raises(Paused, match=r"scaffold.* needs the size of each local step"):
        played(Job(scaffold(), jaxs(lr=None), rounds=1), held())


def test_jobs_that_differ_say_so() -> None:
    assert flaxs().describe() == flaxs().describe() != flaxs(drop=0.25).describe()
    assert jaxs().describe() != jaxs(optimizer=optax.sgd(0.1)).describe()
