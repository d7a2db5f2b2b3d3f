"""A work done once for many sites: what it may do, what it may not, and that the sites' updates are the same."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import foedus as fd
from foedus import rows
from foedus.aggregators import Folding, fixed, mean
from foedus.core import Algorithm, Fit, Origin, Update
from foedus.params import Params, digest
from foedus.rows import Apart, Each, Keys, Rows
from test_vectorized import digits, ended, job

LOOKS: dict[str, Callable[[Any], Any]] = {
    "truth": bool, "hash": hash, "text": str, "a format": lambda x: f"{x}", "length": len, "iteration": list,
    "float": float, "int": int, "absolute": abs, "minus": operator.neg, "round": round, "array": np.asarray,
    "equal": lambda x: x == 1, "unequal": lambda x: x != 1, "less": lambda x: x < 1, "more": lambda x: x > 1,
    "sum": lambda x: x + 1, "reversed sum": lambda x: 1 + x, "difference": lambda x: x - 1,
    "reversed difference": lambda x: 1 - x, "product": lambda x: x * 2, "quotient": lambda x: x / 2,
    "reversed quotient": lambda x: 2 / x, "power": lambda x: x**0.5, "item": lambda x: x[0], "member": lambda x: 1 in x,
    "attribute": lambda x: x.train, "call": lambda x: x(), "ufunc": np.sqrt, "numpy": lambda x: np.float64(2) * x,
    "least": lambda x: min(x, 1), "most": lambda x: max(1, x), "root": math.sqrt, "key": lambda x: {x: 1},
}  # fmt: skip


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_sites_own_value_cannot_be_looked_at(look: Callable[[Any], Any]) -> None:
    with pytest.raises(Apart):
        look(Each([1.0, 2.0]))


def three() -> tuple[Rows, list[Params]]:
    """Three sites' models, whose rows are in another order; a buffer and a count are the same for all."""
    kinds: Any = {"running": "buffer"}
    models = [Params({"w": np.float32([i, 2]), "running": np.float32([5]), "n": np.int64(3)}, kinds) for i in range(3)]
    each: Any = {"float32": [np.float32([[2], [0], [1]]), np.float32([[2], [2], [2]])]} | {
        g: x for g, x in models[0].flats.items() if g != "float32"
    }
    return Rows(models[0].spec, each, [1, 2, 0]), models


MOVES: dict[str, Callable[[Any, Params], Any]] = {
    "itself": lambda x, p: x,
    "difference": lambda x, p: x - p,
    "sum": lambda x, p: x + p,
    "scaled": lambda x, p: 0.5 * x,
    "by numpy's number": lambda x, p: np.float64(0.5) * x,
    "a step": lambda x, p: 0.1 * (x - p) + p,
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_rows_are_what_params_are_row_by_row(move: Callable[[Any, Params], Any]) -> None:
    many, models = three()
    p = Params({"w": np.float32([0.3, 7]), "running": np.float32([1]), "n": np.int64(9)}, {"running": "buffer"})
    found = move(many, p)
    assert [digest(found.row(i)) for i in range(3)] == [digest(move(model, p)) for model in models]


@pytest.mark.parametrize(
    "look",
    [
        *(LOOKS[name] for name in ("truth", "hash", "text", "length", "iteration", "equal", "minus", "item")),
        *(lambda x: x["w"], lambda x: x.trainable(), lambda x: x - x, lambda x: Each() * x, lambda x: x.flats),
        *(lambda x: x - Params({"other": np.float32([1, 2])}), lambda x: sum([x, x])),
    ],
)
def test_nothing_else_is_done_with_rows(look: Callable[[Any], Any]) -> None:
    with pytest.raises(Apart):
        look(three()[0])


def test_params_less_rows_is_no_silent_mistake() -> None:
    many, models = three()
    with pytest.raises((Apart, AttributeError, TypeError)):
        models[0] - many  # type: ignore[operator]


def trained(params: Params, splits: Any, keys: Any, correct: Any) -> Fit:
    """Site i, whose split is its number, adds that; the loss is its key's last name."""
    x = params.flats["float32"]
    each = {"float32": [np.stack([x + i for i in splits])]}
    number: Any = Each(list(splits))
    return Fit(Rows(params.spec, each, range(len(splits))), number, number, number, {"key": Each(keys)})  # type: ignore[arg-type, dict-item]


def test_a_work_is_called_once_and_sees_nobody() -> None:
    p, called = Params({"w": np.float32([1])}), []

    def work(payload: Params, local: Any, site: Any) -> Any:
        called.append(site.metrics)
        fit = site.train(payload, site.split, site.key("train", 3), None)
        return None, Update(2.0 * (fit.params - payload), fit.examples, {**fit.metrics, "same": 1.0})

    update = rows.together(work, p, [(0, 1, 2, "a"), (0, 1, 2, "b")], [4, 5], trained, ["accuracy"])
    assert called == [["accuracy"]]
    assert [update.params.row(i)["w"].item() for i in (0, 1)] == [8, 10]  # type: ignore[attr-defined]
    assert list(rows.listed(update.weight, 2)) == [4, 5]
    assert [k.names for k in rows.listed(update.metrics["key"], 2)] == [(0, 1, 2, s, "train", 3) for s in "ab"]
    assert rows.listed(update.metrics["same"], 2) == [1.0, 1.0]


WORKS: dict[str, Callable[[Params, Any, Any], Any]] = {
    "looks at its data": lambda p, local, site: site.split.train,
    "looks at its name": lambda p, local, site: p[site.name],
    "draws": lambda p, local, site: site.key("x").numpy(),
    "draws in secret": lambda p, local, site: site.secret("x"),
    "measures": lambda p, local, site: site.evaluate(p, site.split, []),
    "trains on a part": lambda p, local, site: site.train(p, [1], site.key("train"), None),
    "trains by a key of its own": lambda p, local, site: site.train(p, site.split, fd.key(0), None),
    "keeps a state": lambda p, local, site: ({}, Update(site.train(p, site.split, site.key, None).params, 1.0)),
    "declines": lambda p, local, site: (None, fd.Decline("not today")),
    "sends what is the same for all": lambda p, local, site: (None, Update(p, 1.0)),
    "goes on from its own model": lambda p, local, site: site.train(
        site.train(p, site.split, site.key, None).params, site.split, site.key, None
    ),
}


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_a_work_that_sees_its_own_site_is_done_apart(work: Any) -> None:
    with pytest.raises(Apart):
        rows.together(work, Params({"w": np.float32([1])}), [(0, "a")], [4], trained)


def test_keys_take_names_and_nothing_else() -> None:
    assert [k.names for k in Keys([(1, "a"), (1, "b")])("x")(2).all()] == [(1, "a", "x", 2), (1, "b", "x", 2)]
    for look in (lambda k: k(Each()), lambda k: k.digest(), lambda k: k.numpy()):
        with pytest.raises(Apart):
            look(Keys([(1,)]))


@pytest.mark.parametrize("rule", [mean(), mean(arithmetic=fixed(100.0, 64.0)), mean(lambda age: 0.5)])
def test_rows_are_folded_as_updates_one_by_one(rule: Any) -> None:
    many, models = three()
    weights, losses = [1.0, 3.0, 64.0], [np.array([2.0, 1, 4]), np.array([1.0, 1, 1]), np.array([0.5, 2, 0.25])]
    whole, single = (Folding(rule, many.spec, 3) for _ in range(2))
    origins = [Origin(site, 0, 0) for site in "abc"]
    update = Update(many, Each(weights), {"train_loss": Each(losses)})  # type: ignore[arg-type, dict-item]
    outcomes = whole.add_rows(update, origins)
    for origin, model, weight, loss in zip(origins, models, weights, losses, strict=True):
        single.add(Update(model, weight, {"train_loss": loss}), origin)
    a, b = whole.total(), single.total()
    assert (digest(a.params), a.weight, a.count) == (digest(b.params), b.weight, b.count)
    assert a.metrics["train_loss"].tolist() == b.metrics["train_loss"].tolist() == [3.5, 4, 5.25]
    assert [(o.site, o.weight, o.metrics["train_loss"].tolist()) for o in outcomes if o] == [
        (site, w, x.tolist()) for site, w, x in zip("abc", weights, losses, strict=True)
    ]


@pytest.mark.parametrize("odd", ["model", "weight", "loss"])
def test_a_row_that_would_be_refused_is_left_out_and_named(odd: str) -> None:
    many, _ = three()
    if odd == "model":
        many.each["float32"][0][many.at[1], 0] = np.nan
    weights = [1.0, -1.0 if odd == "weight" else 1.0, 1.0]
    losses = [np.array([1.0, 1, 1]), np.array([math.inf if odd == "loss" else 1.0, 1, 1]), np.array([1.0, 1, 1])]
    folding = Folding(mean(), many.spec, 3)
    update = Update(many, Each(weights), {"train_loss": Each(losses)})  # type: ignore[arg-type, dict-item]
    outcomes = folding.add_rows(update, [Origin(site, 0, 0) for site in "abc"])
    assert [o and o.site for o in outcomes] == ["a", None, "c"]
    assert folding.count == 2 and folding.total().params["w"].tolist() == [1, 2]


def with_rest() -> nn.Module:
    """A model with a layer that does not train."""
    made = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    made[0].requires_grad_(False)
    return made


FREE: dict[str, tuple[Algorithm, Any]] = {
    "fedavg": (fd.fedavg(), {}),
    "fedadam": (fd.fedadam(), {}),
    "fedprox": (fd.fedprox(mu=0.1), {}),
    "a cohort": (fd.fedavg(), {"cohort": 4}),
    "frozen layers": (fd.fedavg(), {"model": with_rest}),
    "trimmed": (fd.fedavg(aggregator=fd.trimmed_mean(1)), {}),
    "scaffold": (fd.scaffold(), {}),
    "fednova": (fd.fednova(), {}),
    "clipped": (fd.transformed(fd.fedavg(), fd.clip(1.0)), {}),
}
AT_ONCE = {"fedavg", "fedadam", "fedprox", "a cohort", "frozen layers"}


def timeless(found: Any) -> list[dict[str, Any]]:
    """Rows without seconds, and without what only slow rounds have."""
    slow = ("seconds", "intervals", "bounds", "site_intervals")
    return [{k: v for k, v in row.items() if k not in slow} for row in found]


@pytest.mark.parametrize("name", FREE)
def test_sites_at_once_have_the_bits_of_sites_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, more = FREE[name]
    sites, calls = digits(), []
    together = rows.together

    def counted(*args: Any) -> Any:
        calls.append(found := together(*args))
        return found

    monkeypatch.setattr(rows, "together", counted)
    first, journal, _ = ended(job(algorithm, **more), sites)
    assert bool(calls) == (name in AT_ONCE)
    monkeypatch.setattr("foedus.backends.vectorized.Many._alike", lambda *_: ())
    second, other, _ = ended(job(algorithm, **more), sites)
    assert digest(first.params) == digest(second.params)
    for kind in ("close", "step"):
        assert timeless(journal.all(kind)) == timeless(other.all(kind))


def test_groups_of_a_large_model_have_the_bits_of_sites_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foedus.torch.together.MOST_BYTES", 3 * 4 * 2410)  # three sites at once
    first = ended(job(), digits())[0]
    monkeypatch.setattr("foedus.backends.vectorized.Many._alike", lambda *_: ())
    assert digest(first.params) == digest(ended(job(), digits())[0].params)


def test_a_site_whose_training_diverges_is_named_and_the_others_count_at_once() -> None:
    sites = digits()
    bad = np.full((20, 64), np.nan, np.float32), np.zeros(20, np.int64)
    name = min(sites)
    _, journal, _ = ended(job(min_sites=1), {**sites, name: fd.Split(train=bad, valid=bad)})
    outcomes = {row[0]: row[1:3] for row in journal.all("close")[0]["outcomes"]}
    assert outcomes[name][0] == "refused" and "the loss of step 1" in outcomes[name][1]
    assert {status for site, (status, _) in outcomes.items() if site != name} == {"counted"}


def test_torch_draws_nothing_for_rows() -> None:
    before = torch.get_rng_state()
    ended(job(rounds=1), digits())
    assert torch.equal(before, torch.get_rng_state())
