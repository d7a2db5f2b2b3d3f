"""TorchLearner's declared training: what travels, what is random, what a step is, what is measured."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from torch import nn
from torch.optim import SGD, Adam, AdamW

import foedus as fd
from foedus import build as processes
from foedus import launch
from foedus import metrics as measures
from foedus.data import Subset
from foedus.errors import JobError, Paused, Refused
from foedus.torch import TorchLearner, build
from foedus.torch.machine import Machine
from foedus.torch.sgd import optimizer, plain
from torch_models import KEY, Rich, images, learner, linear, rich_job, rich_sites, table

SPLIT = fd.Split(train=table())


def trained(made: TorchLearner, split: fd.Split = SPLIT, key: fd.Key = KEY, correct=None):
    return made.train(made.init(fd.key(0)), split, key, correct)


def moved(made: TorchLearner, split: fd.Split = SPLIT, key: fd.Key = KEY, correct=None):
    return trained(made, split, key, correct).params - made.init(fd.key(0))


# What travels


def test_every_array_travels_once_under_its_first_name_with_its_kind():
    kinds = learner(Rich).init(fd.key(0)).kinds
    assert kinds == {
        "frozen": "buffer", "mask": "integer", "conv.weight": "trainable", "conv.bias": "trainable",
        "norm.weight": "trainable", "norm.bias": "trainable", "norm.running_mean": "buffer",
        "norm.running_var": "buffer", "norm.num_batches_tracked": "integer", "a.weight": "trainable",
        "head.weight": "trainable", "head.bias": "trainable",
    }  # fmt: skip


def test_the_first_model_depends_on_its_key_alone_and_no_global_generator_is_touched():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    one = learner(Rich).init(fd.key(3))
    trained(learner(Rich), fd.Split(images()))
    learner(Rich).evaluate(one, fd.Split(images()).train, ["loss"])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    torch.manual_seed(2)
    assert learner(Rich).init(fd.key(3)) == one != learner(Rich).init(fd.key(4))


def test_the_first_model_is_what_pytorch_draws_from_that_seed():
    torch.manual_seed(fd.key(7).number())
    expected = nn.Linear(3, 2)
    assert np.array_equal(learner().init(fd.key(7))["weight"], expected.weight.detach().numpy())


def test_a_module_is_copied_with_its_numbers_and_stays_as_it_is():
    given_model = nn.Linear(3, 2)
    start = given_model.weight.detach().clone()
    made = learner(given_model)
    assert np.array_equal(made.init(fd.key(0))["weight"], start.numpy())
    trained(made)
    assert torch.equal(given_model.weight, start)


def test_frozen_arrays_stay_what_they_are_over_rounds(home):
    result = rich_job(rounds=3).run(rich_sites())
    first = rich_job().first(0)
    assert np.array_equal(result.params["frozen"], first["frozen"])
    assert np.array_equal(result.params["mask"], [True, False, True, True])
    assert not np.array_equal(result.params["a.weight"], first["a.weight"])


def test_batch_statistics_are_averaged_and_counters_take_the_maximum(home):
    sites = rich_sites()
    result = rich_job(rounds=1).run(sites)
    made, start = rich_job().learner, rich_job().first(0)
    fits = []
    for name, held in sites.items():
        split = held.with_valid(fd.key(0, "load", 0, name, "valid"))
        fits.append(made.train(start, split, fd.key(0, 0, 0, name, "train"), None))
    weights = [fit.examples for fit in fits]
    mean = np.average([fit.params["norm.running_mean"] for fit in fits], axis=0, weights=weights)
    assert np.allclose(result.params["norm.running_mean"], mean, atol=1e-6) and abs(mean).max() > 1e-3
    steps = [-(-int(n) // 8) for n in weights]  # batches of 8
    assert len(set(steps)) > 1 and result.params["norm.num_batches_tracked"] == max(steps)


def test_two_runs_of_a_model_with_dropout_and_batch_statistics_give_the_same_bits(home):
    torch.manual_seed(1)
    one = rich_job().run(rich_sites())
    torch.manual_seed(2)
    assert rich_job().run(rich_sites()).digest == one.digest != rich_job().run(rich_sites(), seed=1).digest


def test_what_is_not_sent_starts_anew_at_each_site():
    made, split = learner(Rich), fd.Split(images())
    one = trained(made, split).params
    trained(made, fd.Split(images(40, 1)))
    assert trained(made, split).params == one


def test_the_result_has_memory_of_its_own():
    made = learner()
    start = made.init(fd.key(0))
    fit = made.train(start, SPLIT, KEY, None)
    kept, first = fit.params.copy(), start.copy()
    made.train(fit.params, fd.Split(table(seed=1)), KEY, None)
    made.evaluate(start, SPLIT.train, ["loss"])
    assert fit.params == kept and start == first


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64"])
def test_models_train_in_their_own_dtype(home, name):
    made = learner(dtype=name, lr=0.5, metrics=["accuracy"])
    result = fd.Job(fd.fedprox(0.01), made, rounds=4).run(
        {f"s{i}": fd.Split(table(seed=9), valid=table(seed=9)) for i in "ab"}
    )
    assert {x.dtype.name for x in result.params.values()} == {name}
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_a_step_in_mixed_precision_is_that_of_autocast_and_keeps_float32():
    made, plain = (learner(mixed=mixed, lr=0.5, steps=1, batch_size=20) for mixed in (True, False))
    model, start = nn.Linear(3, 2), made.init(fd.key(0))
    model.load_state_dict({k: torch.from_numpy(x.copy()) for k, x in start.items()})
    x, y = (torch.from_numpy(v) for v in table())
    order = torch.from_numpy(KEY("order").order(20))
    with torch.autocast("cpu", torch.bfloat16):
        F.cross_entropy(model(x[order]), y[order]).backward()
    SGD(model.parameters(), lr=0.5).step()
    found = torch.from_numpy(trained(made).params["weight"])
    assert found.dtype == torch.float32 and torch.equal(found, model.weight)
    assert 0 < (found - torch.from_numpy(trained(plain).params["weight"])).abs().max() < 0.01  # 8 bits, and 0.5 steps


def test_a_half_precision_step_is_that_of_a_model_converted_by_hand():
    made = learner(dtype=torch.bfloat16, lr=0.5, steps=1, batch_size=20)
    model = nn.Linear(3, 2)
    start = made.init(fd.key(0))
    model.load_state_dict({k: torch.from_numpy(x.astype(np.float32)) for k, x in start.items()})
    model.bfloat16()
    x, y = (torch.from_numpy(v) for v in table())
    order = torch.from_numpy(KEY("order").order(20))
    F.cross_entropy(model(x.bfloat16()[order]), y[order]).backward()
    SGD(model.parameters(), lr=0.5).step()
    assert torch.equal(torch.from_numpy(trained(made).params["weight"].astype(np.float32)), model.weight.float())


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: nn.LazyLinear(2), "'bias' cannot be sent: give lazy modules their sizes"),
        (lambda: nn.Linear(2, 2, dtype=torch.complex64), "cannot be sent"),
        (lambda: 3, "gave int"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_model_that_cannot_travel_is_refused_by_name(model, why):
    with pytest.raises(JobError, match=why):
        learner(model).init(fd.key(0))


def test_params_of_another_model_are_refused_by_name():
    why = r"'weight' is trainable float32\[2, 4\] in the global model, trainable float32\[2, 3\] in this learner's"
    with pytest.raises(JobError, match=why):
        learner().train(learner(linear(4)).init(fd.key(0)), SPLIT, KEY, None)


def test_a_buffer_that_forward_replaces_is_sent():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))
            self.line = nn.Linear(3, 2)

        def forward(self, x):
            self.count = self.count + 1
            return self.line(x)

    made = learner(Counting, batch_size=5)
    assert [trained(made).params["count"].item() for _ in range(2)] == [4, 4]


def test_a_correction_sees_parameters_that_forward_moved_elsewhere():
    """As recurrent layers do on a GPU."""

    class Moving(nn.Linear):
        def forward(self, x):
            self.weight.data = self.weight.data.clone()
            return super().forward(x)

    def pull(grads, params):
        return grads + 0.5 * params

    still, moving = (trained(learner(partial(kind, 3, 2)), correct=pull).params for kind in (nn.Linear, Moving))
    assert still == moving


def test_buffers_apart_from_numpys_memory_give_the_same_bits():
    """As on a GPU: the same arithmetic, with copies in between."""

    def pull(grads, params):
        return grads + 0.1 * params

    ours, theirs = learner(Rich), learner(Rich)
    vars(theirs)["machine"] = Machine(Rich(), torch.device("cpu"), apart=True)
    split = fd.Split(images())
    for correct in (None, pull):
        assert trained(theirs, split, correct=correct).params == trained(ours, split, correct=correct).params
    sums = [made.evaluate(made.init(fd.key(0)), split.train, ["loss"])["loss"].tolist() for made in (ours, theirs)]
    assert sums[0] == sums[1]


# Steps


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=3),
    st.fixed_dictionaries(
        {"lr": st.sampled_from([0.1, 0.5])},
        optional={
            "momentum": st.sampled_from([0.0, 0.9]), "weight_decay": st.sampled_from([0.0, 0.01]),
            "dampening": st.sampled_from([0.0, 0.5]), "nesterov": st.booleans(),
        },
    ),
    st.booleans(),
)  # fmt: skip
@pytest.mark.properties
def test_plain_sgd_gives_the_bits_of_pytorch(shapes, settings, gap):
    if settings.get("nesterov") and (not settings.get("momentum") or settings.get("dampening")):
        settings["nesterov"] = False
    rng = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(*shape, generator=rng)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    assert plain(partial(SGD, **settings)) is not None
    step, reference = optimizer(partial(SGD, **settings), ours, 0.5).step, SGD(theirs, **settings)
    reference.param_groups[0]["lr"] *= 0.5
    for i in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = None if gap and i == 1 else torch.randn(p.shape, generator=rng)
            q.grad = None if p.grad is None else p.grad.clone()
        step(), reference.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "factory", [SGD, partial(SGD, lr=0.1, momentum=0.9), partial(Adam, lr=0.01), AdamW, partial(SGD, maximize=True)]
)
def test_an_optimizer_is_new_in_every_task_and_steps_as_pytorchs_own(factory):
    made = learner(optimizer=factory, epochs=2, batch_size=8)
    start = made.init(fd.key(0))
    model = nn.Linear(3, 2)
    for _ in range(2):
        model.load_state_dict({k: torch.from_numpy(x.copy()) for k, x in start.items()})
        other = factory(model.parameters())
        x, y = (torch.from_numpy(v) for v in table())
        for epoch in range(2):
            for rows in torch.from_numpy(KEY("order").order(20, epoch)).split(8):
                other.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                other.step()
        fit = made.train(start, SPLIT, KEY, None)
        assert np.array_equal(fit.params["weight"], model.weight.detach().numpy())
        assert (fit.examples, fit.steps, fit.path) == (20, 6, pytest.approx(6 * other.param_groups[0]["lr"]))


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"epochs": 2}, [8, 8, 4] * 2),
        ({"drop_last": True}, [8, 8]),
        ({"steps": 5}, [8, 8, 4, 8, 8]),
        ({"drop_last": True, "batch_size": 32}, [20]),
    ],
)
def test_batches_are_as_large_as_asked_and_none_is_lost_unasked(settings, sizes):
    seen = []

    def loss(outputs, targets):
        seen.append(len(targets))
        return F.cross_entropy(outputs, targets)

    made = learner(loss=loss, **{"batch_size": 8, **settings})
    assert trained(made).steps == len(sizes) and seen == sizes


def test_training_is_its_steps_and_a_step_is_a_pure_function():
    class Forgetful(Rich):
        remembers = False

    made, split = learner(Forgetful, batch_size=8, epochs=2), fd.Split(images())
    params = start = made.init(fd.key(0))
    rows = [epoch[at : at + 8] for epoch in islice(made.order(24, KEY), 2) for at in (0, 8, 16)]
    for i, batch in enumerate(rows):
        x, y = split.train[batch]
        assert made.step(params, (x, y), KEY("step", i))[0] == made.step(params, (x, y), KEY("step", i))[0]
        params, _ = made.step(params, (x, y), KEY("step", i))
    fitted = made.train(start, split, KEY, None).params
    assert all(np.array_equal(params[k], fitted[k]) for k in params)


def test_the_loss_is_a_pure_function_that_torch_func_differentiates():
    made = learner(Rich, lr=1.0)
    start, (x, y) = made.init(fd.key(0)), images(8)
    tensors = {k: torch.from_numpy(v.copy()) for k, v in start.items()}
    free = {k: v for k, v in tensors.items() if start.kinds[k] == "trainable"}
    assert made.machine
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    grads, loss = torch.func.grad_and_value(lambda p: made.loss_fn({**tensors, **p}, (x, y), KEY))(free)
    after, before_step = made.step(start, (x, y), KEY)
    assert before_step == loss.item()
    for name, grad in grads.items():
        assert np.allclose(after[name], (free[name] - grad).numpy(), atol=1e-6), name
    assert all(np.array_equal(tensors[k].numpy(), start[k]) for k in start)


def test_the_schedule_scales_the_learning_rate_by_round():
    made = learner(schedule=lambda round: 0.5**round, batch_size=20, lr=0.25)
    split = fd.Split(train=table(n=1))
    deltas = [moved(made, split, fd.key(0, round, 0, "north", "train"))["weight"] for round in range(3)]
    assert np.allclose(deltas[1] * 2, deltas[0], rtol=1e-5) and np.allclose(deltas[2] * 4, deltas[0], rtol=1e-4)
    assert trained(made, split, fd.key(0, 2, 0, "north", "train")).path == 0.0625


def test_gradients_are_clipped_by_their_whole_norm_after_the_correction():
    made = learner(clip=0.01, lr=1.0, steps=1)
    for correct in (None, lambda grads, params: 100.0 * grads):
        delta = moved(made, correct=correct)
        assert np.linalg.norm([*delta["weight"].ravel(), *delta["bias"]]) == pytest.approx(0.01, rel=1e-3)
    loose = learner(clip=1e9, lr=1.0, steps=1)
    assert np.array_equal(moved(loose)["weight"], moved(learner(lr=1.0, steps=1))["weight"])


def test_a_correction_sees_each_gradient_and_the_model_it_was_taken_at():
    seen = []

    def correct(grads, params):
        seen.append((grads.copy(), params.copy()))
        return 2.0 * grads

    made = learner(lr=0.5, batch_size=10)
    start = made.init(fd.key(0))
    fit = made.train(start, SPLIT, KEY, correct)
    assert seen[0][1] == start and len(seen) == 2
    one = start + -0.5 * (2.0 * seen[0][0])
    assert all(np.allclose(one[k], seen[1][1][k], atol=1e-6) for k in one)
    two = one + -0.5 * (2.0 * seen[1][0])
    assert all(np.allclose(two[k], fit.params[k], atol=1e-6) for k in two)


def test_a_correction_pulls_arrays_that_got_no_gradient():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    made = learner(Partly, lr=1.0, steps=1)
    start = made.init(fd.key(0))
    assert np.array_equal(trained(made).params["unused.weight"], start["unused.weight"])
    pulled = trained(made, correct=lambda grads, params: grads + 0.5 * params).params
    assert np.allclose(pulled["unused.weight"], 0.5 * start["unused.weight"])


# Data


class Table:
    """A map-style dataset of numpy rows."""

    def __init__(self, x, y, kind=np.asarray):
        self.x, self.y, self.kind = x, y, kind

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.kind(self.x[i]), self.y[i]


def test_arrays_tensors_and_datasets_give_the_same_bits():
    x, y = table(n=30)
    frozen = x.copy()
    frozen.flags.writeable = False
    forms = [
        (x, y), (x.astype(np.float64), y.astype(np.int32)), (x.astype(">f4"), y.astype(np.uint8)), (frozen, y.tolist()),
        (torch.from_numpy(x), torch.from_numpy(y)), (x[::-1], y[::-1]), Table(x, y), Table(x, y, torch.from_numpy),
        torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), Subset(Table(x, y), np.arange(30)),
    ]  # fmt: skip
    forms[5] = tuple(v[::-1] for v in (x[::-1].copy(), y[::-1].copy()))  # negative strides
    made = learner(epochs=2, batch_size=7)
    results = [trained(made, fd.Split(form)) for form in forms]
    assert {fd.digest(fit.params) for fit in results} == {fd.digest(results[0].params)}
    sums = [made.evaluate(made.init(fd.key(0)), fd.Split(form).train, ["loss", "auc"]) for form in forms]
    assert all(np.array_equal(s[k], sums[0][k]) for s in sums for k in s)


def test_large_arrays_are_gathered_in_pieces(monkeypatch):
    made = learner(batch_size=4)
    whole = trained(made).params
    monkeypatch.setattr("foedus.torch.batches.GATHERED", 60)
    assert trained(made).params == whole


def test_examples_may_have_several_inputs_or_named_ones():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(3, 2)

        def forward(self, left, right):
            return self.line(left + right)

    x, y = table()

    class Several(Table):
        def __getitem__(self, i):
            return self.x[i], self.x[i], self.y[i]

    class Named(Table):
        def __getitem__(self, i):
            return {"left": self.x[i], "right": self.x[i]}, self.y[i]

    made = learner(Two)
    one, two = (trained(made, fd.Split(form(x, y))).params for form in (Several, Named))
    assert one == two
    assert made.evaluate(one, Named(x, y), ["accuracy"])["accuracy"][1] == 20


def test_a_dataset_without_pairs_is_refused():
    class Rows(Table):
        def __getitem__(self, i):
            return {"x": self.x[i]}

    with pytest.raises(JobError, match="an example is dict"):
        trained(learner(), fd.Split(Rows(*table())))


def test_random_transforms_of_a_dataset_are_named_by_the_key():
    class Noisy(Table):
        def __getitem__(self, i):
            noise = np.random.normal() + random.random() + torch.randn(()).item()
            return self.x[i] + np.float32(noise), self.y[i]

    made, split = learner(), fd.Split(Noisy(*table()))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    state = random.getstate()
    one = trained(made, split).params
    assert random.getstate() == state
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    assert trained(made, split).params == one != trained(made, split, KEY("other")).params


# Measuring


def test_metrics_are_those_of_scikit_learn_on_the_pooled_data(home):
    sites = {f"s{i}": fd.Split(table(60, seed=i), valid=table(50 + i, seed=i + 9)) for i in range(3)}
    result = fd.Job(fd.fedavg(), learner(metrics=["accuracy", "auc"]), rounds=2).run(sites)
    x, y = (np.concatenate([getattr(s.valid, c) for s in sites.values()]) for c in "xy")
    logits = x.astype(np.float64) @ result.params["weight"].T + result.params["bias"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    last = result.history[-1]
    assert last["accuracy"] == accuracy_score(y, p.argmax(1))
    assert last["loss"] == pytest.approx(log_loss(y, p), abs=1e-5)
    assert last["auc"] == pytest.approx(roc_auc_score(y, p[:, 1]), abs=2e-3)


def test_the_training_loss_is_the_examples_mean_over_steps():
    made = learner(lr=1e-9, batch_size=8)
    total, count, squares = trained(made).metrics["train_loss"]
    model = nn.Linear(3, 2)
    model.load_state_dict({k: torch.from_numpy(x.copy()) for k, x in made.init(fd.key(0)).items()})
    x, y = (torch.from_numpy(v) for v in table())
    assert count == 20 and total / count == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-5)
    batches = [
        F.cross_entropy(model(x[rows]), y[rows]).item() for rows in torch.from_numpy(KEY("order").order(20)).split(8)
    ]
    assert squares == pytest.approx(sum(b * b * n for b, n in zip(batches, (8, 8, 4), strict=True)), rel=1e-5)


def hand_loss(outputs, targets):
    return F.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    "loss", [F.cross_entropy, nn.CrossEntropyLoss(), hand_loss, partial(F.cross_entropy, reduction="mean")]
)
def test_the_measured_loss_is_the_mean_over_examples_however_it_is_given(loss):
    made, (x, y) = learner(loss=loss), table(1500)
    start = made.init(fd.key(0))
    sums = made.evaluate(start, fd.Split((x, y)).train, ["loss"])["loss"]
    outputs = F.linear(torch.from_numpy(x), *(torch.from_numpy(v.copy()) for v in start.values()))
    each = F.cross_entropy(outputs, torch.from_numpy(y), reduction="none").numpy()
    assert sums[1] == 1500 and sums[0] == pytest.approx(each.sum(), rel=1e-5)
    if loss is not hand_loss:
        assert sums[2] == pytest.approx((each**2).sum(), rel=1e-5)


def test_segmentations_are_measured_by_pixel_in_few_examples_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 2, 8, 8)).astype(np.float32), rng.integers(0, 3, (6, 8, 8))
    sizes = []

    class Seg(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 1)

        def forward(self, x):
            sizes.append(len(x))
            return self.conv(x)

    made = learner(Seg, metrics=["dice", "accuracy"])
    start, part = made.init(fd.key(0)), fd.Split((x, y)).train
    whole = made.evaluate(start, part, ["loss", "dice", "accuracy"])
    monkeypatch.setattr("foedus.torch.batches.MEASURED_BYTES", 2 * (x[0].nbytes + y[0].nbytes))
    pieces = made.evaluate(start, part, ["loss", "dice", "accuracy"])
    assert sizes == [6, 2, 2, 2]
    assert all(np.allclose(whole[k], pieces[k]) for k in whole)
    logits = np.einsum("kc,nchw->nkhw", start["conv.weight"][:, :, 0, 0], x) + start["conv.bias"][:, None, None]
    assert whole["accuracy"].tolist() == [(logits.argmax(1) == y).sum(), 6 * 64]
    assert measures.values(whole, ["loss"])["loss"] == pytest.approx(
        F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(y)).item(), rel=1e-5
    )


def test_models_that_return_more_than_a_tensor_say_what_metrics_read():
    class Many(nn.Linear):
        def forward(self, x):
            return {"out": super().forward(x), "aux": x}

    def loss(made, y):
        return F.cross_entropy(made["out"], y)

    start = learner().init(fd.key(0))
    with pytest.raises(JobError, match="the model returns dict"):
        learner(partial(Many, 3, 2), loss).evaluate(start, SPLIT.train, ["accuracy"])
    made = learner(partial(Many, 3, 2), loss, outputs=lambda made: made["out"])
    expected = learner().evaluate(start, SPLIT.train, ["accuracy"])["accuracy"]
    assert np.array_equal(made.evaluate(start, SPLIT.train, ["accuracy"])["accuracy"], expected)


# What goes wrong


class Broken(nn.Linear):
    def forward(self, x):
        raise ValueError("no such layer")  # the line below counts


def test_a_model_that_raises_is_reported_with_site_file_and_line(home):
    line = next(
        i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "the line below counts" in text
    )
    with pytest.raises(Paused) as error:
        fd.Job(fd.fedavg(), learner(partial(Broken, 3, 2)), rounds=1).run({"north": SPLIT})
    for part in ("north", "train", "no such layer", f"test_torch.py, line {line}"):
        assert part in str(error.value)


def test_after_an_error_the_next_site_finds_a_whole_model():
    made = learner()
    expected = moved(made)

    def fails(grads, params):
        made.machine.model.weight.requires_grad_(False)
        made.machine.model.bias = nn.Parameter(torch.ones(2))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        moved(made, correct=fails)
    assert moved(made) == expected


def test_a_loss_that_is_no_number_is_refused_by_site_and_step_and_the_others_go_on(home):
    x, y = table()
    x = x.copy()
    x[3] = np.nan
    sites = {"good": SPLIT, "bad": fd.Split((x, y), valid=table()), "fine": fd.Split(table(seed=2))}
    with pytest.raises(
        Refused, match=r"site 'north', training: the loss of step \d of 5 is nan; lower the learning rate"
    ):
        trained(learner(batch_size=4), sites["bad"])
    result = fd.Job(fd.fedavg(), learner(batch_size=4), rounds=2).run(sites)
    assert len(result.history) == 2 and np.isfinite(result.params["weight"]).all()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "needs loss=… and optimizer=…"),
        ({"loss": nn.MSELoss, "optimizer": SGD}, r"write MSELoss\(\)"),
        ({"loss": 3, "optimizer": SGD}, "give a function"),
        ({"loss": F.mse_loss, "optimizer": SGD, "epochs": 0}, "epochs=0"),
        ({"loss": F.mse_loss, "optimizer": SGD, "steps": 0}, "steps=0"),
        ({"loss": F.mse_loss, "optimizer": SGD, "batch_size": 2.5}, "batch_size=2.5"),
        ({"loss": F.mse_loss, "optimizer": SGD, "clip": 0}, "clip=0"),
        ({"loss": F.mse_loss, "optimizer": SGD, "dtype": "int8"}, "dtype='int8'"),
        ({"train": print, "steps": 3, "clip": 1.0}, "move steps, clip into your loop"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments, why):
    with pytest.raises(JobError, match=why):
        TorchLearner(linear(), **arguments)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(JobError, match="no trainable parameters"):
        trained(learner(lambda: nn.Linear(3, 2).requires_grad_(False)))


def share(n):
    return lambda round: 1 / n


def test_the_description_is_plain_data_and_copies_leave_the_model_in_use_behind():
    made = learner(metrics=["auc", fd.Metric("mine", print, float, "max")], dtype="bfloat16")
    before = json.dumps(made.describe(), sort_keys=True)
    first = trained(made)
    assert json.dumps(made.describe(), sort_keys=True) == before
    assert '"lr": 0.1' in before and "torch.bfloat16" in before
    assert learner(schedule=share(2)).describe() != learner(schedule=share(3)).describe()
    for other in (copy.deepcopy(learner()), pickle.loads(pickle.dumps(learner()))):
        assert other.describe() == learner().describe()
    assert trained(copy.deepcopy(made)).params == first.params


# Processes of their own


def alone(code: str, **environment: str) -> str:
    drop = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}
    env = {k: v for k, v in os.environ.items() if k not in drop} | environment
    env["PYTHONPATH"] = os.pathsep.join([str(Path(fd.__file__).parents[1]), str(Path(__file__).parent)])
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.processes
def test_the_bits_do_not_depend_on_the_number_of_threads(home):
    """Images so large that two threads would add up in another order."""
    code = "from torch_models import *; print(rich_job().run(rich_sites(40)).digest)"
    found = [alone(code), alone(code, OMP_NUM_THREADS="1"), alone(code, OMP_NUM_THREADS="2", MKL_NUM_THREADS="2")]
    assert set(found) == {rich_job().run(rich_sites(40)).digest}


@pytest.mark.processes
def test_plain_sgd_needs_none_of_torchs_slow_imports():
    code = (
        "from torch_models import *; import sys; made = learner(Rich); split = fd.Split(images());"
        "fit = made.train(made.init(KEY), split, KEY, lambda grads, params: grads + params);"
        "made.evaluate(fit.params, split.train, ['loss', 'auc']);"
        "print([m for m in ('torch._dynamo', 'torch._inductor', 'sympy') if m in sys.modules])"
    )
    assert alone(code) == "[]"


@pytest.mark.processes
def test_foedus_itself_needs_no_torch_and_says_what_to_install():
    assert (
        alone("import foedus as fd, sys; fd.Job, fd.fedavg, fd.key(0).numpy(); print('torch' in sys.modules)")
        == "False"
    )
    code = (
        "import sys; sys.modules['torch'] = None\nimport foedus as fd\n"
        "try: fd.torch\nexcept fd.FoedusError as error: print(error)"
    )
    assert alone(code) == "torch is not installed: pip install 'foedus[torch]'"


@pytest.mark.parametrize("name", ["cuda:7", "nonsense", "cuda", ""])
def test_a_device_that_is_not_here_is_told_before_anything_runs(name: str, tmp_path: Path) -> None:
    made = TorchLearner(linear(), nn.CrossEntropyLoss(), SGD, device=name)
    sites = {"a": fd.Split(table()), "b": fd.Split(table(seed=1))}
    for backend in ("auto", "local", "processes", "vectorized"):
        with pytest.raises(JobError, match=rf"device='{name}' is not on this machine, which has cpu.*device='auto'"):
            launch.run(fd.Job(fd.fedavg(), made, rounds=1), sites, backend=backend, folder=tmp_path / backend)
        assert not (tmp_path / backend).exists()


@pytest.mark.parametrize(("place", "gpu"), [(0, 0), (1, 1), (2, 2), (3, 0), (7, 1)])
def test_workers_divide_the_gpus_among_themselves(place: int, gpu: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch, "empty", lambda *shape, **how: None)  # there is none here to put it on
    monkeypatch.setattr(processes, "place", place)
    assert build.device("auto") == torch.device("cuda", gpu)
