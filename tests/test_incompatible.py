"""Every row of the table of incompatible parts: a Job that clashes is refused by name, and its nearest kin is built."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.naive_bayes import GaussianNB
from torch import nn

from foedus import (
    afl,
    alie,
    apfl,
    attacked,
    bulyan,
    central_dp,
    chain,
    clip,
    cyclic,
    distributed_dp,
    ditto,
    dp_ftrl,
    dp_metrics,
    dp_sgd,
    fedasync,
    fedavg,
    fedbuff,
    feddyn,
    fedexp,
    fednova,
    fedper,
    fedprox,
    fine_tuned,
    gaussian,
    gossip,
    hierarchical,
    inner_product,
    int8,
    krum,
    local_dp,
    median,
    moon,
    plateau,
    powersgd,
    qffl,
    random_k,
    scaffold,
    secagg,
    sign_flip,
    split_learning,
    summed,
    target,
    top_k,
    transformed,
    union,
    vertical,
)
from foedus.analytics import describe
from foedus.errors import Incompatible, JobError
from foedus.incompatible import TABLE
from foedus.job import Job
from foedus.layers import LayeredLearner, dense
from foedus.metrics import Metric
from foedus.numpy import NumpyLearner
from foedus.participation import in_turns, power_of_choice, stratified, uniform, weighted
from foedus.sklearn import SklearnLearner
from foedus.stop import any_of, wall_time
from foedus.torch import TorchLearner
from foedus.trees import histogram_boosting
from tiny import gradient, learner

LAYERED = LayeredLearner([dense(2), dense(1)], 2, "squared")
BAYES = SklearnLearner(GaussianNB(), features=2, classes=[0, 1])
FOREST = SklearnLearner(RandomForestClassifier(2, max_leaf_nodes=4), features=2, classes=[0, 1])
BASE: dict[str, Any] = {"algorithm": fedavg(), "learner": learner(), "rounds": 2}

CASES: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {  # (one, other): (a clash, its remedy)
    ("quorum", "cohort"): ({"quorum": 12, "cohort": 10, "over_select": 1.1}, {"quorum": 11}),
    ("quorum", "min_sites"): ({"quorum": 2, "min_sites": 3}, {"quorum": 3}),
    ("late='keep'", "quorum=None"): ({"late": "keep"}, {"quorum": 1}),
    ("over_select", "quorum=None"): ({"over_select": 1.3}, {"quorum": 10}),
    ("over_select", "a rule as cohort"): (
        {"over_select": 1.3, "quorum": 10, "cohort": uniform(10)},
        {"over_select": 1.0, "cohort": uniform(13)},
    ),
    ("best", "evaluate=0"): ({"best": "loss", "evaluate": 0}, {"evaluate": 3}),
    ("stop", "evaluate=0"): ({"stop": plateau("loss", 3), "evaluate": 0}, {"stop": wall_time(60)}),
    ("learner=None", "metrics"): ({"learner": None, "metrics": ["accuracy"]}, {"learner": learner()}),
    ("an algorithm of means (scaffold, fednova, feddyn, fedexp, qffl, afl)", "a Gather (median, …)"): (
        {"algorithm": fednova(aggregator=median())},
        {"algorithm": fedavg(aggregator=median())},
    ),
    ("an algorithm of one round's updates (scaffold, feddyn, afl)", "late='keep'"): (
        {"algorithm": scaffold(), "late": "keep", "quorum": 2},
        {"late": "drop"},
    ),
    ("an algorithm that asks every site (afl)", "cohort"): ({"algorithm": afl(), "cohort": 0.5}, {"algorithm": qffl()}),
    ("an algorithm that asks every site (afl)", "quorum"): ({"algorithm": afl(), "quorum": 2}, {"algorithm": qffl()}),
    ("an algorithm that reads the loss (qffl, afl, scaffold(option=1))", "a training loop of one's own without loss"): (
        {"algorithm": qffl(), "learner": NumpyLearner({}, train=print)},
        {"learner": NumpyLearner({}, gradient, train=print)},
    ),
    ("an algorithm that adds to the loss (moon)", "a learner that takes no steps in torch itself"): (
        {"algorithm": moon()},
        {"learner": TorchLearner(partial(nn.Linear, 1, 1), nn.MSELoss(), partial(torch.optim.SGD, lr=0.1))},
    ),
    ("an aggregator that needs several updates (krum, bulyan, …)", "a cohort of fewer sites"): (
        {"algorithm": fedavg(aggregator=krum(1)), "cohort": 4},
        {"cohort": 5},
    ),
    ("an aggregator that needs several updates (krum, bulyan, …)", "a quorum of fewer updates"): (
        {"algorithm": fedavg(aggregator=bulyan(1)), "quorum": 6},
        {"algorithm": fedavg(aggregator=bulyan(0))},
    ),
    ("a compression that sends some numbers alone (top_k, random_k)", "a Gather (median, krum, …)"): (
        {"algorithm": fedavg(aggregator=median()), "compress": top_k(0.1)},
        {"compress": powersgd()},
    ),
    ("a buffer (fedbuff, fedasync)", "quorum"): ({"algorithm": fedasync(), "quorum": 1}, {"quorum": None}),
    ("a buffer (fedbuff, fedasync)", "a cohort of fewer sites"): (
        {"algorithm": fedbuff(3), "cohort": 2},
        {"cohort": 3},
    ),
    ("a buffer (fedbuff)", "an algorithm of means (fednova, fedexp, qffl)"): (
        {"algorithm": fedbuff(3, fednova())},
        {"algorithm": fedbuff(3, fedprox(0.1))},
    ),
    ("staleness weights (fedbuff)", "a Gather (median, …)"): (
        {"algorithm": fedbuff(3, fedavg(aggregator=median()))},
        {"algorithm": fedbuff(3, fedavg(aggregator=median()), staleness=None)},
    ),
    ("an algorithm that sends parts of one computation (split_learning, vertical, link)", "late='keep'"): (
        {"algorithm": split_learning(LAYERED, 1), "learner": LAYERED, "late": "keep", "quorum": 2},
        {"late": "drop"},
    ),
    ("an algorithm for columns that lie apart (vertical, link)", "cohort or quorum"): (
        {"algorithm": vertical("squared"), "learner": None, "cohort": 2},
        {"cohort": None},
    ),
    ("an algorithm for columns that lie apart (vertical, link)", "a learner"): (
        {"algorithm": vertical("squared")},
        {"learner": None},
    ),
    ("an algorithm for columns that lie apart (vertical, link)", "best"): (
        {"algorithm": vertical("squared"), "learner": None, "best": "loss"},
        {"best": None},
    ),
    ("split_learning", "another learner than the one that is cut"): (
        {"algorithm": split_learning(LAYERED, 1)},
        {"learner": LAYERED},
    ),
    ("power_of_choice", "an algorithm without one model for all (fedbn, fedper, ifca, split_learning, …)"): (
        {"algorithm": fedper(), "cohort": power_of_choice(5, 3)},
        {"cohort": weighted(3, {})},
    ),
    ("power_of_choice", "late='keep'"): (
        {"algorithm": fedbuff(2), "cohort": power_of_choice(5, 3)},
        {"cohort": weighted(3, {})},
    ),
    ("a learner whose models are sums (naive Bayes, KMeans, PCA, Ridge)", "an algorithm other than summed"): (
        {"learner": BAYES},
        {"algorithm": summed()},
    ),
    ("summed", "a learner whose models are no sums"): (
        {"algorithm": summed(), "learner": FOREST},
        {"algorithm": union(FOREST)},
    ),
    ("a learner of trees (a forest, LightGBM)", "an algorithm other than union"): (
        {"learner": FOREST},
        {"algorithm": cyclic(union(FOREST))},
    ),
    ("summed or union", "a topology that averages (gossip, hierarchical, swarm), or cyclic sums"): (
        {"algorithm": cyclic(summed()), "learner": BAYES},
        {"algorithm": summed()},
    ),
    ("union", "compress"): (
        {"algorithm": union(FOREST), "learner": FOREST, "compress": top_k(0.1)},
        {"compress": None},
    ),
    ("an exact model (foedus.analytics, histogram_boosting)", "compress, cohort, quorum or late='keep'"): (
        {"algorithm": describe.make(), "learner": None, "compress": clip(1.0)},
        {"compress": None, "min_sites": 2},
    ),
    ("an attack by sites that collude (alie, inner_product)", "late='keep'"): (
        {"algorithm": attacked(fedavg(), share=0.2, attack=alie()), "late": "keep", "quorum": 2},
        {"algorithm": attacked(fedavg(), share=0.2, attack=sign_flip())},
    ),
    ("an algorithm that asks for gradients at two models (apfl)", "a training loop of one's own"): (
        {"algorithm": apfl(), "learner": NumpyLearner({}, gradient, train=print)},
        {"learner": NumpyLearner({}, gradient)},
    ),
    ("best='personal_…'", "models that stay at their sites"): (
        {"algorithm": ditto(), "best": "personal_loss"},
        {"best": None, "stop": plateau("personal_loss", 3)},
    ),
    ("a stop rule of a personal_ metric", "an algorithm that gives sites no models of their own"): (
        {"stop": any_of(wall_time(60), target("personal_loss", 1))},
        {"algorithm": fine_tuned(fedavg())},
    ),
    (
        "an algorithm without one model for all (fedbn, fedper, fedrep, lg_fedavg, ifca)",
        "best or a stop rule of such a model",
    ): ({"algorithm": fedper(), "stop": plateau("loss", 3)}, {"stop": plateau("personal_loss", 3)}),
    ("a buffer (fedbuff)", "an algorithm that shares a part of the model (fedbn, fedper, fedrep, lg_fedavg)"): (
        {"algorithm": fedbuff(2, fedper())},
        {"algorithm": fedbuff(2, ditto())},
    ),
    ("fine_tuned(after=…)", "rounds"): (
        {"algorithm": transformed(fine_tuned(after=2), clip(1.0))},
        {"algorithm": fine_tuned(after=1)},
    ),
    ("a topology (cyclic, gossip, hierarchical, swarm)", "another one inside it"): (
        {"algorithm": gossip(cyclic())},
        {"algorithm": gossip()},
    ),
    ("a topology (cyclic, gossip, hierarchical, swarm)", "late='keep'"): (
        {"algorithm": gossip(), "late": "keep", "quorum": 2},
        {"late": "drop"},
    ),
    (
        "a topology (cyclic, gossip, hierarchical, swarm)",
        "an algorithm that asks every site, or in several steps (afl, split_learning, vertical)",
    ): (
        {"algorithm": cyclic(afl())},
        {"algorithm": cyclic(fedprox(0.1))},
    ),
    ("gossip or swarm", "an algorithm of means, or a Gather (scaffold, fednova, median, …)"): (
        {"algorithm": gossip(fedavg(aggregator=median()))},
        {"algorithm": hierarchical({"a": ["x", "y", "z"]}, base=fedavg(aggregator=median()))},
    ),
    (
        "gossip, swarm or hierarchical",
        "an algorithm whose server keeps more than a model (scaffold, fedopt, fedavgm, …)",
    ): (
        {"algorithm": hierarchical({"a": ["x", "y"]}, base=scaffold())},
        {"algorithm": cyclic(scaffold())},
    ),
    ("gossip or swarm", "an algorithm with personal models (ditto, fedper, fine_tuned, …)"): (
        {"algorithm": gossip(ditto())},
        {"algorithm": cyclic(ditto())},
    ),
    ("gossip or swarm", "compress"): (
        {"algorithm": gossip(), "compress": top_k(0.1)},
        {"algorithm": hierarchical({"a": ["x", "y"]})},
    ),
    ("cyclic or hierarchical", "quorum"): ({"algorithm": cyclic(), "quorum": 2}, {"quorum": None}),
    ("cyclic", "a Gather (median, krum, …)"): (
        {"algorithm": cyclic(fedavg(aggregator=krum(0)))},
        {"algorithm": hierarchical({"a": ["x", "y", "z"]}, base=fedavg(aggregator=krum(0)))},
    ),
    ("secagg or he", "a Gather (median, krum, …)"): (
        {"privacy": "secagg", "algorithm": fedavg(aggregator=median())},
        {"algorithm": fedavg()},
    ),
    ("secagg or he", "late='keep' or a buffer (fedbuff, fedasync)"): (
        {"privacy": "secagg", "algorithm": fedbuff(3)},
        {"algorithm": fedavg()},
    ),
    ("secagg or he", "a compression to fewer numbers (top_k, random_k, powersgd)"): (
        {"privacy": "secagg", "compress": [clip(1.0), top_k(0.1)]},
        {"compress": [clip(1.0), int8()]},
    ),
    ("secagg or he", "power_of_choice"): (
        {"privacy": "secagg", "cohort": power_of_choice(5, 3)},
        {"cohort": weighted(3, {})},
    ),
    (
        "secagg or he",
        "an algorithm that reads what each site sends (afl, union, split_learning, vertical, link)",
    ): (
        {"privacy": "secagg", "algorithm": union(FOREST), "learner": FOREST},
        {"algorithm": fedavg(), "learner": learner()},
    ),
    ("he", "secagg, distributed_dp or an exact model (foedus.analytics, histogram_boosting)"): (
        {"privacy": ["he", "secagg"]},
        {"privacy": "he"},
    ),
    ("he", "a cohort of fewer than 3 sites"): ({"privacy": "he", "cohort": 2}, {"cohort": 3}),
    ("secagg or he", "a topology (cyclic, gossip, hierarchical, swarm)"): (
        {"privacy": "secagg", "algorithm": cyclic(fedprox(0.1))},
        {"algorithm": fedprox(0.1)},
    ),
    ("secagg", "a cohort or panel of fewer sites than a sum needs"): (
        {"privacy": secagg(), "cohort": 2},
        {"cohort": 3},
    ),
    ("secagg(threshold=…)", "a cohort of so many sites"): (  # 2 * 10 // 3 + 1 = 7
        {"privacy": secagg(threshold=6), "cohort": 10},
        {"privacy": secagg(threshold=7)},
    ),
    ("secagg", "a quorum of fewer updates than must go to the end"): (  # 13 are asked, 2 * 13 // 3 + 1 = 9
        {"privacy": secagg(), "cohort": 10, "over_select": 1.3, "quorum": 8},
        {"quorum": 9},
    ),
    (
        "dp_sgd",
        "an algorithm that reads training rows beside its steps (qffl, moon, scaffold(option=1), split_learning, …)",
    ): (
        {"privacy": dp_sgd(1.0, 1.1), "algorithm": scaffold(option=1)},
        {"algorithm": scaffold()},
    ),
    ("dp_sgd", "an algorithm with personal models (ditto, fedper, fine_tuned, …)"): (
        {"privacy": [dp_sgd(1.0, 1.1), "secagg"], "algorithm": ditto(0.1)},
        {"algorithm": fedprox(0.1)},
    ),
    ("dp_sgd", "late='keep', a buffer (fedbuff, fedasync) or a topology (cyclic, gossip, hierarchical, swarm)"): (
        {"privacy": dp_sgd(1.0, 1.1), "algorithm": cyclic(fedprox(0.1))},
        {"algorithm": fedprox(0.1)},
    ),
    ("dp_sgd(epsilon=…)", "rounds=None"): (
        {"privacy": dp_sgd(1.0, epsilon=2.0), "rounds": None, "stop": wall_time(60)},
        {"rounds": 10},
    ),
    (
        "noise on whole updates (central_dp, distributed_dp, dp_ftrl, local_dp)",
        "a Gather (median, krum, …), or an algorithm that sends more than its model (scaffold, fednova, qffl, …)",
    ): ({"privacy": central_dp(1.0, 1.1), "algorithm": scaffold()}, {"algorithm": fedprox(0.1)}),
    (
        "noise on whole updates (central_dp, distributed_dp, dp_ftrl, local_dp)",
        "late='keep', a buffer (fedbuff, fedasync) or a topology (cyclic, gossip, hierarchical, swarm)",
    ): ({"privacy": local_dp(1.0, 1.1), "algorithm": cyclic(fedprox(0.1))}, {"algorithm": fedprox(0.1)}),
    ("dp_metrics", "an algorithm that measures itself"): (
        {
            "privacy": dp_metrics(1.0),
            "algorithm": histogram_boosting({"objective": "binary:logistic"}),
            "learner": None,
        },
        {"algorithm": fedprox(0.1), "learner": learner()},
    ),
    ("dp_metrics", "an analysis to whose sums a row may add anything"): (
        {"privacy": dp_metrics(1.0), "algorithm": describe.make("age"), "learner": None, "rounds": 1},
        {"algorithm": describe.make(bounds={"age": (0, 100)})},
    ),
    ("dp_metrics", "best or a stop rule of a metric that is no count"): (
        {"privacy": dp_metrics(1.0), "best": "loss", "metrics": ["accuracy"]},
        {"best": "accuracy"},
    ),
    ("dp_metrics(epsilon=…)", "rounds=None"): (
        {"privacy": dp_metrics(epsilon=2.0), "rounds": None, "stop": wall_time(60)},
        {"rounds": 10},
    ),
    ("dp_ftrl", "rounds=None"): (
        {"privacy": dp_ftrl(1.0, 1.1), "rounds": None, "stop": wall_time(60)},
        {"rounds": 10},
    ),
    ("dp_ftrl(separation=N)", "a cohort of sites that may take part sooner again"): (
        {"privacy": dp_ftrl(1.0, 1.1, separation=3), "cohort": in_turns(2)},
        {"cohort": in_turns(3)},
    ),
    ("distributed_dp", "no secagg, or one without masks"): (
        {"privacy": distributed_dp(1.0, 1.1)},
        {"privacy": [distributed_dp(1.0, 1.1), secagg()]},
    ),
    ("distributed_dp", "secagg(bound=…)"): (
        {"privacy": [distributed_dp(1.0, 1.1), secagg(bound=1.0)]},
        {"privacy": [distributed_dp(1.0, 1.1), secagg()]},
    ),
    ("central_dp, distributed_dp or dp_ftrl", "compress=…"): (
        {"privacy": central_dp(1.0, 1.1), "compress": int8()},
        {"compress": None},
    ),
    ("local_dp", "secagg without a bound"): (
        {"privacy": [local_dp(1.0, 1.1), "secagg"]},
        {"privacy": [local_dp(1.0, 1.1), secagg(bound=20.0)]},
    ),
    (
        "noise on whole updates (central_dp, distributed_dp, dp_ftrl, local_dp)",
        "a choice of sites by their losses (power_of_choice)",
    ): (
        {"privacy": local_dp(1.0, 1.1), "cohort": power_of_choice(4, 2)},
        {"cohort": 2},
    ),
    ("central_dp, distributed_dp or local_dp (epsilon=…)", "rounds=None"): (
        {"privacy": central_dp(1.0, epsilon=2.0), "rounds": None, "stop": wall_time(60)},
        {"rounds": 10},
    ),
}


@pytest.mark.parametrize(("one", "other"), [(row.one, row.other) for row in TABLE])
def test_parts_that_clash_are_refused_by_name_and_with_a_remedy_that_works(one: str, other: str) -> None:
    clash, remedy = CASES[one, other]
    row = next(row for row in TABLE if (row.one, row.other) == (one, other))
    with pytest.raises(Incompatible) as caught:
        Job(**{**BASE, **clash})
    assert str(caught.value) == f"{one} and {other} do not go together: {row.remedy}"
    assert isinstance(caught.value, JobError)
    Job(**{**BASE, **clash, **remedy})


def test_no_two_rows_are_about_the_same_parts_and_no_case_is_about_none() -> None:
    assert sorted((row.one, row.other) for row in TABLE) == sorted(CASES)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        *((a(aggregator=median()), "a Gather") for a in (scaffold, fednova, feddyn, fedexp, qffl, afl)),
        *((a(late="keep", quorum=1), "late='keep'") for a in (scaffold, feddyn, afl)),
        (transformed(scaffold(aggregator=median()), clip(1.0)), "a Gather"),  # what wraps an algorithm hides nothing
        (attacked(scaffold(aggregator=median()), share=0.2, attack=gaussian()), "a Gather"),
        (transformed(fedavg(aggregator=krum(0)), chain(clip(1.0), random_k(0.1))), "some numbers alone"),
        (attacked(fedavg(late="keep", quorum=1), {"a": inner_product()}), "sites that collude"),
        *((fedbuff(2, a()), "late='keep'") for a in (scaffold, feddyn, afl)),
        *((fedbuff(2, a()), "of means") for a in (fednova, fedexp, qffl)),
        (attacked(fedbuff(2), {"a": alie()}), "sites that collude"),
    ],
)
def test_every_algorithm_of_a_row_is_refused(made: Any, why: str) -> None:
    with pytest.raises(Incompatible, match=why):
        Job(made, learner(), rounds=1)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"quorum": 4, "cohort": weighted(3, {})}, "quorum and cohort"),
        ({"quorum": 4, "cohort": power_of_choice(5, 3)}, "quorum and cohort"),
        ({"algorithm": fedbuff(4), "cohort": stratified({"a": 1, "b": 2}, {})}, "a cohort of fewer sites"),
        ({"algorithm": fedavg(aggregator=krum(1)), "cohort": uniform(4)}, "a cohort of fewer sites"),
        ({"algorithm": afl(), "cohort": uniform(4)}, "that asks every site"),
        ({"learner": NumpyLearner({}, train=print), "cohort": power_of_choice(5, 3)}, "reads the loss"),
        ({"learner": None, "cohort": power_of_choice(5, 3)}, "reads the loss"),
        ({"privacy": "secagg", "cohort": uniform(2)}, "fewer sites than a sum needs"),
        ({"privacy": "secagg", "panel": 2}, "fewer sites than a sum needs"),
        ({"privacy": "secagg", "late": "keep", "quorum": 3}, "secagg or he and late='keep'"),
        ({"privacy": "secagg", "algorithm": afl()}, "reads what each site sends"),
        ({"privacy": "secagg", "quorum": 2}, "a quorum of fewer updates"),  # whatever the roster, it needs three
    ],
)
def test_a_rule_is_refused_as_the_number_of_sites_that_it_draws(more: dict[str, Any], why: str) -> None:
    with pytest.raises(Incompatible, match=why):
        Job(**{**BASE, **more})


@pytest.mark.parametrize("made", [qffl(), afl(), scaffold(option=1)], ids=["qffl", "afl", "scaffold"])
def test_who_reads_the_loss_needs_one_beside_a_loop_of_ones_own(made: Any) -> None:
    own = partial(TorchLearner, partial(nn.Linear, 1, 1), train=print)
    with pytest.raises(Incompatible, match="without loss"):
        Job(made, own(), rounds=1)
    Job(made, own(nn.MSELoss()), rounds=1)
    with pytest.raises(Incompatible, match="adds to the loss"):
        Job(moon(), own(nn.MSELoss()), rounds=1)


def test_a_clash_that_a_change_makes_is_found_too() -> None:
    with pytest.raises(Incompatible, match="quorum and min_sites"):
        Job(**BASE, quorum=3).replace(min_sites=4)


OWN = {name: Metric(name, lambda outputs, targets: np.ones(1), float, "min") for name in ("my-metric", "wallet")}


@pytest.mark.parametrize(
    "stop", [plateau(OWN["my-metric"], 2), target(OWN["wallet"], 1.0), any_of(plateau("loss", 3), wall_time(60))]
)
def test_a_stop_rule_that_never_sees_its_metric_is_refused(stop: Any) -> None:
    with pytest.raises(Incompatible, match="reads a metric"):
        Job(**BASE, stop=stop, evaluate=0)


@pytest.mark.parametrize(
    "fine",
    [
        {"quorum": 12, "cohort": 10, "over_select": 1.1, "late": "keep"},  # late updates count too
        {"quorum": 4, "cohort": 3, "over_select": 1.1},  # 1.1 of 3 is asked for as 4
        {"quorum": 50, "cohort": 0.1},  # a share of nobody knows how many
        {"algorithm": fedavg(aggregator=krum(1)), "cohort": 4, "over_select": 1.25, "quorum": 5},
        {"algorithm": fedavg(aggregator=krum(1)), "cohort": 0.1},
        {"over_select": 1.0},
        {"quorum": 3, "cohort": power_of_choice(5, 3)},
        {"quorum": 3, "cohort": lambda context: context.roster[:2]},  # nobody knows how many that are
        {"learner": None},
    ],
)
def test_what_goes_together_is_built(fine: dict[str, Any]) -> None:
    Job(**{**BASE, **fine})
