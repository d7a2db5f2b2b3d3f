"""Split and vertical learning against numbers by hand and against the whole network in one piece."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import foedus as fd
from foedus.algorithms.columns import How, parted
from foedus.errors import Incompatible, JobError, Paused
from foedus.keys import key
from foedus.layers import LayeredLearner, checked, dense, linear, logistic, squared, tanh
from foedus.linkage import hashed
from foedus.params import Params
from foedus.torch import layer
from tiny import final, played

RNG = np.random.default_rng(0)


def labelled(x: Any, y: Any) -> fd.Split:
    """A site whose examples are all for training."""
    return fd.Split(train=(x, y), valid=(x, y))


# Split learning.

TWO = LayeredLearner([linear(1), linear(1)], 1, "squared", lr=1 / 16, batch_size=None, dtype="float64")
START = {"0.w": np.array([[1.0]]), "1.w": np.array([[2.0]])}
PAIR = {"north": labelled([[1.0]], [0.0]), "south": labelled([[2.0]], [1.25])}


def by_hand(rounds: int) -> tuple[Fraction, Fraction]:
    """z = b a x: db = s h and da = s b x with h = a x and s = 2 (z - y), site after site, in plain fractions."""
    a, b = Fraction(1), Fraction(2)
    for x, y in [(1, Fraction(0)), (2, Fraction(5, 4))] * rounds:
        h, s = a * x, 2 * (b * a * x - y)
        a, b = a - s * b * x / 16, b - s * h / 16
    return a, b


def split(rounds: int = 2, learner: LayeredLearner = TWO, start: Any = START, **how: Any) -> fd.Job:
    algorithm = fd.split_learning(learner, how.pop("cut", 1), how.pop("head", None), **how)
    return fd.Job(algorithm, learner, rounds=rounds, start=start, evaluate=0)


def test_two_rounds_of_two_sites_in_turn_with_one_parameter_on_each_side_of_the_cut() -> None:
    # a = 1, b = 2. north: h = 1, z = 2, s = 4: a = 1 - 4 * 2/16 = 1/2, b = 2 - 4 * 1/16 = 7/4.
    # south: h = 2 a = 1, z = 7/4, s = 1: a = 1/2 - 7/2 / 16 = 9/32, b = 7/4 - 1/16 = 27/16.
    assert by_hand(1) == (Fraction(9, 32), Fraction(27, 16))
    assert final(played(split(1), PAIR)[0]) == {"0.w": [[9 / 32]], "1.w": [[27 / 16]]}
    a, b = by_hand(2)
    assert final(played(split(2), PAIR)[0]) == {"0.w": [[float(a)]], "1.w": [[float(b)]]}


def test_all_sites_at_once_is_one_step_for_both_of_the_mean_loss() -> None:
    # z = 2 and 4, s = 4 and 5.5 at the sites; db = (4 * 1 + 5.5 * 2) / 2 = 7.5, da = (4 * 2 + 5.5 * 4) / 2 = 15.
    ended, _ = played(split(1, turns=False), PAIR)
    assert final(ended) == {"0.w": [[1 - 15 / 16]], "1.w": [[2 - 7.5 / 16]]}


NET = LayeredLearner(
    [dense(5), tanh(), dense(4), tanh(), dense(3)], 4, "softmax", lr=0.3, batch_size=4, epochs=2, dtype="float64"
)
CLASSES = {name: labelled(RNG.normal(size=(n, 4)), RNG.integers(0, 3, n)) for name, n in (("north", 11), ("south", 6))}
WAYS: dict[str, dict[str, Any]] = {
    "labels at the server": {"cut": 2},
    "labels at the sites": {"cut": 1, "labels": "site"},
    "U-shaped": {"cut": 2, "head": 4, "labels": "site"},
}


@pytest.mark.parametrize("way", WAYS)
def test_in_turns_it_is_the_whole_network_trained_at_one_site_after_another(way: str) -> None:
    ended, _ = played(split(3, NET, None, **WAYS[way]), CLASSES, seed=5)
    whole = NET.init(key(5, 0, 0, "server", "init"))
    for round in range(3):
        for site, data in CLASSES.items():
            whole = NET.train(whole, data, key(5, round, "split", site), None).params
    for name, x in whole.items():
        np.testing.assert_allclose(ended.params[name], x, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("way", WAYS)
def test_with_one_batch_a_round_all_sites_at_once_are_pooled_gradient_descent(way: str) -> None:
    net = LayeredLearner(NET.stack.layers, 4, "softmax", lr=0.3, batch_size=None, dtype="float64")
    ended, _ = played(split(4, net, None, turns=False, **WAYS[way]), CLASSES)
    pooled = fd.Split(train=tuple(np.concatenate([getattr(d.train, c) for d in CLASSES.values()]) for c in "xy"))
    whole = net.init(key(0, 0, 0, "server", "init"))
    for _ in range(4):
        whole = net.train(whole, pooled, key(0), None).params
    for name, x in whole.items():
        np.testing.assert_allclose(ended.params[name], x, rtol=1e-12, atol=1e-14)


def test_torch_layers_with_dropout_are_the_same_wherever_the_labels_are() -> None:
    layers = [layer(nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3))), tanh(), layer(nn.Linear(6, 3))]
    net = LayeredLearner(layers, 4, "softmax", batch_size=4, dtype="float64")
    found = [final(played(split(2, net, None, cut=1, labels=where), CLASSES)[0]) for where in ("server", "site")]
    assert found[0] == found[1]
    assert found[0] != final(played(split(2, net, None, cut=1), CLASSES, seed=1)[0])


def test_the_sites_say_their_loss_where_they_have_the_labels() -> None:
    # All at once z = 2 and y = 0 at north, z = 4 and y = 5/4 at south: (2^2 + 2.75^2) / 2.
    _, journal = played(split(1, labels="site", turns=False), PAIR)
    row = journal.find("step", 0)
    assert row is not None and row["metrics"]["train_loss"] == (4 + 2.75**2) / 2


# Vertical learning.

X = np.array([[1.0, 1.0], [1.0, -1.0]])


def people(x: Any, y: Any = None, ids: Any = None) -> fd.Split:
    return fd.Split(train=fd.Records(ids, x, y))


def vertical(loss: Any = "squared", *layers: Any, rounds: int = 2, metrics: Any = (), **how: Any) -> fd.Job:
    how = {"link": False, "valid": 0.0} | how
    return fd.Job(fd.vertical(loss, *layers, **how), rounds=rounds, metrics=metrics)


def parts(job: fd.Job, sites: Mapping[str, Any], seed: int = 0) -> dict[str, dict[str, Any]]:
    """site -> what it has in the end."""
    result = job.run(dict(sites), backend="local", seed=seed)
    return {site: {name: x.tolist() for name, x in result.personal(site).items()} for site in sites}


def test_two_rounds_of_two_sites_with_one_column_each() -> None:
    # z = 0: slopes of the mean of (z - y)^2 are z - y = -3 and -1; north's column (1, 1): -4, south's (1, -1): -2.
    # With lr 1/4 the weights are 1 and 1/2; then z = 3/2 and 1/2, slopes -3/2 and -1/2: -2 and -1, so 3/2 and 3/4.
    sites = {"north": people(X[:, :1], np.array([3.0, 1.0])), "south": people(X[:, 1:])}
    for rounds, north, south in ((1, 1.0, 0.5), (2, 1.5, 0.75)):
        found = parts(vertical(rounds=rounds, top=[], lr=0.25), sites)
        assert found == {"north": {"0.w": [[north]]}, "south": {"0.w": [[south]]}}


def joined(seed: int, count: int = 3) -> tuple[dict[str, fd.Split], Any, Any]:
    """Sites with some columns each of overlapping people, in any order, and the table of who is in common."""
    rng = np.random.default_rng(seed)
    x, y, widths = rng.normal(size=(40, 6)), rng.integers(0, 2, 40), [(0, 2), (2, 3), (3, 6)][:count]
    known = {name: rng.permutation(40)[:34] for name in ("clinic", "lab", "shop")[:count]}
    common = sorted(set.intersection(*(set(who.tolist()) for who in known.values())), key=lambda i: f"p{i}")
    sites = {}
    for (name, who), (a, b) in zip(known.items(), widths, strict=True):
        sites[name] = people(x[who, a:b], y[who] if name == "lab" else None, [f"p{i}" for i in who])
    return sites, x[common, : widths[-1][1]], y[common]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", [squared(), logistic()], ids=lambda loss: loss.name)
def test_a_vertical_linear_model_is_pooled_gradient_descent_on_the_joined_columns(loss: Any, seed: int) -> None:
    sites, x, y = joined(seed)
    found = parts(vertical(loss, rounds=7, link=True), sites)
    w, b = np.zeros((6, 1)), np.zeros(1)
    for _ in range(7):
        slope = loss.slope(x @ w + b, y)
        w, b = w - 0.1 * x.T @ slope, b - 0.1 * slope.sum(0)
    own = np.concatenate([found[site]["0.w"] for site in sites])
    np.testing.assert_allclose(own, w, rtol=1e-12)
    np.testing.assert_allclose(found["lab"]["top.0.b"], b, rtol=1e-12)


def test_a_vertical_network_is_the_pooled_network_on_the_joined_columns() -> None:
    """Sums of the sites' linear layers are one linear layer over all columns."""
    sites, x, y = joined(4)
    found = parts(vertical("softmax", [linear(4)], [tanh(), dense(2)], rounds=5, link=True), sites)
    whole = LayeredLearner([linear(4), tanh(), dense(2)], 6, "softmax", batch_size=None, dtype="float64")
    firsts = [linear(4).init(key(0, "vertical", 0, site)(0), sites[site].train.x)["w"] for site in sites]
    top = dense(2).init(key(0, "vertical", 0, "top")(1), np.zeros((1, 4)))
    params = Params({"0.w": np.concatenate(firsts), "2.w": top["w"], "2.b": top["b"]})
    for _ in range(5):
        params = whole.train(params, fd.Split(train=(x, y)), key(0), None).params
    np.testing.assert_allclose(np.concatenate([found[site]["0.w"] for site in sites]), params["0.w"], rtol=1e-11)
    for name in "wb":
        np.testing.assert_allclose(found["lab"][f"top.1.{name}"], params[f"2.{name}"], rtol=1e-11, atol=1e-14)


def test_batches_are_the_same_people_everywhere_and_each_person_is_in_one() -> None:
    """A model of one weight for each person: after an epoch each has moved once, whatever its batch."""
    n = 7
    sites = {"north": people(np.eye(n)[:, :4], np.arange(n) + 1.0), "south": people(np.eye(n)[:, 4:])}
    found = parts(vertical(rounds=1, top=[], lr=0.5, batch_size=1), sites)
    own = np.concatenate([found[site]["0.w"] for site in sites])[:, 0]
    assert own.tolist() == [1, 2, 3, 4, 5, 6, 7]  # w = 0 - 1/2 * 2 (0 - y)


def test_metrics_are_measured_at_the_labels_site_on_people_left_out_of_training() -> None:
    n = 200
    x = np.random.default_rng(1).normal(size=(n, 3))
    y = x @ [1.0, 2.0, 3.0] - 1
    sites = {"north": people(x[:, :1]), "south": people(x[:, 1:], y)}
    job = vertical(rounds=60, valid=0.2, test=0.1, metrics=["rmse"])
    result = job.run(dict(sites), backend="local")
    assert result.metrics["rmse"] < 1e-3 and result.metrics["test_rmse"] < 1e-3
    assert result.history[0]["rmse"] > 1 and list(result.per_site) == ["south"]
    assert result.personal("south")["top.0.b"] == pytest.approx([-1], abs=1e-3)


def test_test_people_change_no_parameter() -> None:
    """Their targets are other ones; who they are is drawn by key, so that they are found by what they do not change."""
    how = How(checked([]), checked([]), squared(), 0.1, None, 1, 0.0, 0.25, "float64")
    tested = parted(how, key(0), 8)[2]
    assert len(tested) == 2
    x, y = RNG.normal(size=(8, 2)), RNG.normal(size=8)
    other = y.copy()
    other[tested] += 5
    found = [
        parts(vertical(test=0.25, rounds=3), {"north": people(x[:, :1], z), "south": people(x[:, 1:])})
        for z in (y, other)
    ]
    assert found[0] == found[1]


def test_a_wrong_holding_is_named_with_the_remedy() -> None:
    x, y = RNG.normal(size=(4, 1)), np.arange(4.0)
    cases: list[tuple[str, dict[str, Any], dict[str, fd.Split]]] = [
        ("0 sites have targets: give one site", {}, {"a": people(x), "b": people(x)}),
        (r"2 sites have targets: say whose with label=… \(a, b\)", {}, {"a": people(x, y), "b": people(x, y)}),
        ("1 sites have targets: say whose", {"label": "b"}, {"a": people(x, y), "b": people(x)}),
        (r"differ in people \(a: 4, b: 3\): let link=True", {}, {"a": people(x, y), "b": people(x[:3])}),
        ("nobody is known to all", {"link": True}, {"a": people(x, y, "abcd"), "b": people(x, None, "efgh")}),
    ]
    for said, how, sites in cases:
        with pytest.raises(JobError, match=said):
            played(vertical(**how), sites)
    for said, site in (("load fd.Split", labelled(x, y)), ("more than once", people(x, None, "aabc"))):
        with pytest.raises(Paused, match=said):
            played(vertical(link=True), {"a": people(x, y, "abcd"), "b": site})


def test_what_makes_no_sense_is_refused_when_it_is_built() -> None:
    for said, how in (
        ("a head lies where the labels are: labels='site'", {"cut": 1, "head": 3}),
        ("some of the 5 layers have to lie at the server", {"cut": 5}),
        ("some of the 5 layers", {"cut": 3, "head": 3, "labels": "site"}),
        ("labels='both'", {"cut": 1, "labels": "both"}),
    ):
        with pytest.raises(JobError, match=said):
            fd.split_learning(NET, **how)  # type: ignore[arg-type]
    with pytest.raises(JobError, match="leave somebody to train on"):
        fd.vertical("squared", valid=0.5, test=0.5)
    with pytest.raises(Incompatible, match="an algorithm that sends none do not go together: leave out compress"):
        fd.Job(fd.vertical("squared"), rounds=1, compress=fd.int8())


# Linking by Tasks.


def test_linking_between_sites_is_what_the_pure_functions_say() -> None:
    ids = {"bank": ["ann", "bob", "eve"], "clinic": ["dan", "eve", "ann"], "shop": ["eve", "zoe", "bob", "ann"]}
    sites = {site: people(np.zeros((len(own), 1)), None, own) for site, own in ids.items()}
    result = fd.Job(fd.link(), rounds=1).run(sites, backend="local")
    assert {name: int(x) for name, x in result.params.items()} == {"common": 2, "union": 5}
    rows = {site: result.personal(site)["rows"].tolist() for site in sites}
    assert rows == {"bank": [0, 2], "clinic": [2, 1], "shop": [3, 0]}  # ann, then eve


def test_no_point_that_passes_the_server_is_that_of_an_id() -> None:
    ids = {"bank": ["ann", "bob"], "shop": ["eve", "bob"]}
    sites = {site: people(np.zeros((2, 1)), None, own) for site, own in ids.items()}
    job, seen = fd.Job(fd.link(), rounds=1), set()
    bench = job.bench(0)

    def spied(payload: Any, local: Any, site: Any, work: Any) -> Any:
        local, update = work(payload, local, site)
        seen.update(row.tobytes() for p in (payload, update.params) if "points" in p for row in p["points"])
        return local, update

    bench.works = {name: partial(spied, work=work) for name, work in bench.works.items()}
    algorithm = job.algorithm._replace(works=bench.works)
    played(fd.Job(algorithm, rounds=1), sites)
    assert len(seen) == 2 + 2 + 3  # what each began with, and three people that both have blinded
    assert not seen & {hashed(x.encode()) for x in ("ann", "bob", "eve")}


# What docs/algorithms.md says of them.


def exchanges(job: fd.Job, sites: Mapping[str, Any]) -> list[int]:
    """How often each round's generator waited for sites."""
    counts = list[int]()

    def round(state: Any, context: Any) -> Any:
        steps, answer = job.algorithm.round(state, context), None
        counts.append(0)
        while True:
            try:
                asked = steps.send(answer)
            except StopIteration as end:
                return end.value
            counts[-1] += 1
            answer = yield asked

    played(job.replace(algorithm=job.algorithm._replace(round=round)), sites)
    return counts


def test_the_docs_say_how_often_sites_are_asked() -> None:
    """Two sites with two batches each, in the round after the one that counts their examples."""
    net = LayeredLearner(NET.stack.layers, 4, "softmax", batch_size=6)
    both = {name: labelled(RNG.normal(size=(n, 4)), np.zeros(n, int)) for name, n in (("a", 11), ("b", 12))}
    for how, expected in (
        ({}, 2 * (2 + 1)),
        ({"turns": False}, 2 + 1),
        ({"labels": "site"}, 2 * (2 * 2 + 1)),
        ({"labels": "site", "turns": False}, 2 * 2 + 1),
    ):
        assert exchanges(split(2, net, None, cut=2, **how), both)[1] == expected
    sites = {"a": people(X, np.zeros(2)), "b": people(X)}
    assert exchanges(vertical(batch_size=1), sites)[1] == 2 * 2 + 1
    ids = {site: people(X, None, [1, 2]) for site in "abc"}
    assert exchanges(fd.Job(fd.link(), rounds=1), ids) == [3 + 2]
    text = (Path(__file__).parents[1] / "docs" / "algorithms.md").read_text()
    for row in (r"split_learning\(.*n · \(B \+ 1\); .*B \+ 1", r"vertical\(loss\).*2B \+ 1", r"link\(\).*n \+ 2"):
        assert re.search(rf"^\| `{row}", text, re.M)
