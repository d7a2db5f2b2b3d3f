"""Parts that do not go together, in one table; a Job that joins two of them is refused when it is built.
Only what the Job's parts say of themselves is read: no site and no data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from foedus.algorithms.buffered import size
from foedus.algorithms.rounds import needed
from foedus.errors import Incompatible
from foedus.metrics import plain
from foedus.participation import times
from foedus.privacy.distributed import DistributedDp
from foedus.privacy.dp_metrics import blocks_of
from foedus.privacy.ftrl import DpFtrl
from foedus.privacy.secagg import majority
from foedus.privacy.site_level import CentralDp, LocalDp

READ = {"everybody", "exchange", "columns", "cut", "exact", "union"}  # traits of algorithms to which a sum says nothing

UNLIKE = {"gather", "loss", "chooses", "sums", "mean", *READ}  # of those whose Totals are no means of updates

READS = {"loss", "term", "elsewhere", "chooses", "sums", *READ}  # of those that read training rows beside the steps


class Row(NamedTuple):
    """Two parts that exclude one another, and what to do instead."""

    one: str
    other: str
    clash: Callable[[Any], bool]
    remedy: str


def _has(job: Any, *traits: str) -> bool:
    return set(traits) <= set(job.method.traits)


def _topologies(job: Any) -> set[str]:
    return {"cyclic", "gossip", "edges", "swarm"} & set(job.method.traits)


def _peers(job: Any) -> bool:
    """Whether sites hand models to one another."""
    return _has(job, "gossip") or _has(job, "swarm")


def _summed(job: Any) -> bool:
    """Whether the server is to see sums of updates alone."""
    return job.seal is not None or job.he is not None


def _late(job: Any) -> bool:
    """Whether updates of earlier rounds count."""
    return job.late == "keep" or _has(job, "late")


def _buffered(job: Any) -> bool:
    """Whether a round closes with so many updates, whosever they are."""
    return size(job.method.traits) > 0


def _without_loss(learner: Any) -> bool:
    """Whether there is none, or it is one's own loop and says neither loss nor gradient."""
    told = (getattr(learner, name, None) for name in ("loss", "gradient"))
    return learner is None or (getattr(learner, "own", None) is not None and not any(told))


def _asks(job: Any) -> float:
    """How many sites a round asks to train at most; infinity where that depends on the roster or on one's own rule."""
    if isinstance(job.cohort, int):
        return times(job.over_select, job.cohort)
    return getattr(job.cohort, "trains", None) or math.inf


def _steps_in_torch(learner: Any) -> bool:
    return hasattr(learner, "loss_fn") and learner.own is None


def _watched(job: Any, personal: bool) -> list[str]:
    """The metrics that `best` and the stop rules read: of the sites' own models, or of the global one."""
    names = [job.best or "", *(job.stop.reads if job.stop else ())]
    return [name for name in names if name and (plain(name) != name) == personal]


def _unbounded(job: Any) -> list[str]:
    """The metrics that `best` and the stop rules read, and that are no counts of bounded parts."""
    known = {m.name for m in job.table().values() if m.sensitivity is None}
    return [name for personal in (True, False) for name in _watched(job, personal) if plain(name) in known]


def _last(job: Any, word: str) -> int:
    """N of the trait `word N`; 0 where there is none."""
    return max((int(t.split()[1]) for t in job.method.traits if t.startswith(f"{word} ")), default=0)


def _by(job: Any) -> str:
    """What the learner's models are combined by, where it says so."""
    return getattr(job.learner, "by", "")


def _measure(job: Any) -> float:
    """How many sites measure, if the Job says a number."""
    return job.panel if job.evaluate and isinstance(job.panel, int) else math.inf


def _sealed(job: Any, asked: float) -> int:
    """How many of the sites asked a sealed Task needs, or of few where it is not known how many they are."""
    return int(job.seal.needed(0 if math.isinf(asked) else int(asked)))


TABLE = (
    Row(
        "quorum",
        "cohort",
        lambda j: j.quorum is not None and j.late == "drop" and j.quorum > _asks(j),
        "ask at least as many sites as the quorum needs: raise cohort or over_select",
    ),
    Row(
        "quorum",
        "min_sites",
        lambda j: j.quorum is not None and j.quorum < j.min_sites,
        "a round that closes at quorum updates cannot count min_sites: raise quorum or lower min_sites",
    ),
    Row(
        "late='keep'",
        "quorum=None",
        lambda j: j.late == "keep" and j.quorum is None,
        "late updates are kept only where a round may close without them: give quorum=K",
    ),
    Row(
        "over_select",
        "quorum=None",
        lambda j: j.over_select > 1 and j.quorum is None,
        "over-selection asks more sites than it needs: say how many it needs with quorum=K",
    ),
    Row(
        "over_select",
        "a rule as cohort",
        lambda j: j.over_select > 1 and callable(j.cohort),
        "a rule says itself how many are asked: let it draw more than the quorum needs, and leave out over_select=…",
    ),
    Row(
        "best",
        "evaluate=0",
        lambda j: j.best is not None and j.evaluate == 0,
        "the best model is chosen by evaluation: let evaluate be 1 or more",
    ),
    Row(
        "stop",
        "evaluate=0",
        lambda j: j.stop is not None and j.evaluate == 0 and bool(j.stop.reads),
        "this stop rule reads a metric: let evaluate be 1 or more",
    ),
    Row(
        "learner=None",
        "metrics",
        lambda j: j.learner is None and bool(j.metrics) and j.algorithm.measure is None,
        "metrics are measured by a learner: give one as the Job's second argument",
    ),
    Row(
        "an algorithm of means (scaffold, fednova, feddyn, fedexp, qffl, afl)",
        "a Gather (median, …)",
        lambda j: _has(j, "mean", "gather"),
        "its equations hold for means alone: leave out aggregator=…, or give it to fedavg, fedprox or fedopt",
    ),
    Row(
        "an algorithm of one round's updates (scaffold, feddyn, afl)",
        "late='keep'",
        lambda j: _has(j, "fresh") and _late(j),
        "what it knows of a site is as old as the update: drop late updates, or use fedavg, fedprox or fedopt",
    ),
    Row(
        "an algorithm that asks every site (afl)",
        "cohort",
        lambda j: _has(j, "everybody") and j.cohort is not None,
        "it weighs the losses of all sites: leave out cohort=…, or use qffl",
    ),
    Row(
        "an algorithm that asks every site (afl)",
        "quorum",
        lambda j: _has(j, "everybody") and j.quorum is not None,
        "it weighs the losses of all sites, the slow ones' too: leave out quorum=…, or use qffl",
    ),
    Row(
        "an algorithm that reads the loss (qffl, afl, scaffold(option=1))",
        "a training loop of one's own without loss",
        lambda j: _has(j, "loss") and _without_loss(j.learner),
        "say the loss beside train=…: loss=… of a TorchLearner, gradient=… of a NumpyLearner",
    ),
    Row(
        "an algorithm that adds to the loss (moon)",
        "a learner that takes no steps in torch itself",
        lambda j: _has(j, "term") and not _steps_in_torch(j.learner),
        "take a TorchLearner with loss=… and optimizer=…, or use fedprox, which needs gradients alone",
    ),
    Row(
        "an aggregator that needs several updates (krum, bulyan, …)",
        "a cohort of fewer sites",
        lambda j: _asks(j) < needed(j.method.traits),
        "raise cohort, or let it tolerate fewer liars: a lower f",
    ),
    Row(
        "an aggregator that needs several updates (krum, bulyan, …)",
        "a quorum of fewer updates",
        lambda j: j.quorum is not None and j.quorum < needed(j.method.traits),
        "raise quorum, or let it tolerate fewer liars: a lower f",
    ),
    Row(
        "a compression that sends some numbers alone (top_k, random_k)",
        "a Gather (median, krum, …)",
        lambda j: _has(j, "sparse", "gather"),
        "what a site did not send is no zero to compare with: compress with int8, int4, qsgd, bf16 or powersgd",
    ),
    Row(
        "a buffer (fedbuff, fedasync)",
        "quorum",
        lambda j: _buffered(j) and j.quorum is not None,
        "its buffer says how many updates close a round: leave out quorum=…",
    ),
    Row(
        "a buffer (fedbuff, fedasync)",
        "a cohort of fewer sites",
        lambda j: _asks(j) < size(j.method.traits),
        "each round asks a cohort anew, which has to fill the buffer: raise cohort, or make the buffer smaller",
    ),
    Row(
        "a buffer (fedbuff)",
        "an algorithm of means (fednova, fedexp, qffl)",
        lambda j: _buffered(j) and _has(j, "mean"),
        "its equations hold for updates of one round: give fedbuff fedavg, fedprox, moon or a server optimizer",
    ),
    Row(
        "staleness weights (fedbuff)",
        "a Gather (median, …)",
        lambda j: _has(j, "ages", "gather"),
        "a median or Krum knows no such weights: give fedbuff staleness=None",
    ),
    Row(
        "power_of_choice",
        "an algorithm without one model for all (fedbn, fedper, ifca, split_learning, …)",
        lambda j: _has(j, "chooses") and (j.method.measure is not None or getattr(j.method.personal, "alone", False)),
        "candidates are compared at one model: take fd.participation.weighted, or stratified",
    ),
    Row(
        "power_of_choice",
        "late='keep'",
        lambda j: _has(j, "chooses") and _late(j),
        "losses compare sites at one model, and late updates are of others: take fd.participation.weighted",
    ),
    Row(
        "an algorithm that sends parts of one computation (split_learning, vertical, link)",
        "late='keep'",
        lambda j: _has(j, "exchange") and j.late == "keep",
        "what goes up is answered by what comes down: drop late updates",
    ),
    Row(
        "an algorithm for columns that lie apart (vertical, link)",
        "cohort or quorum",
        lambda j: _has(j, "columns") and (j.cohort is not None or j.quorum is not None),
        "each person's columns are at all sites, and all are asked: leave out cohort=… and quorum=…",
    ),
    Row(
        "an algorithm for columns that lie apart (vertical, link)",
        "a learner",
        lambda j: _has(j, "columns") and j.learner is not None,
        "no site has the whole model: say loss=… and layers to fd.vertical, and give no learner",
    ),
    Row(
        "an algorithm for columns that lie apart (vertical, link)",
        "best",
        lambda j: _has(j, "columns") and j.best is not None,
        "sites keep their last parts alone: leave out best=…, and end the run with stop=fd.plateau(…)",
    ),
    Row(
        "split_learning",
        "another learner than the one that is cut",
        lambda j: _has(j, "cut") and not hasattr(j.learner, "stack"),
        "give the Job the LayeredLearner that split_learning was given",
    ),
    Row(
        "an attack by sites that collude (alie, inner_product)",
        "late='keep'",
        lambda j: _has(j, "colludes") and _late(j),
        "they look at one round's updates together: drop late updates, or take sign_flip",
    ),
    Row(
        "an algorithm that asks for gradients at two models (apfl)",
        "a training loop of one's own",
        lambda j: _has(j, "elsewhere") and getattr(j.learner, "own", None) is not None,
        "let the learner step: optimizer=… of a TorchLearner, gradient=… of a NumpyLearner; or take fd.ditto()",
    ),
    Row(
        "best='personal_…'",
        "models that stay at their sites",
        lambda j: j.best is not None and plain(j.best) != j.best,
        "a site keeps its newest model alone: end the run with stop=fd.plateau('personal_…', patience=…)",
    ),
    Row(
        "a stop rule of a personal_ metric",
        "an algorithm that gives sites no models of their own",
        lambda j: bool(_watched(j, personal=True)) and j.method.personal is None,
        "watch the metric without personal_, or take fd.ditto() or fd.fine_tuned(algorithm)",
    ),
    Row(
        "an algorithm without one model for all (fedbn, fedper, fedrep, lg_fedavg, ifca)",
        "best or a stop rule of such a model",
        lambda j: bool(_watched(j, personal=False)) and j.method.personal is not None and j.method.personal.alone,
        "only the sites' own models are measured: stop by personal_loss or another personal_ metric, without best=…",
    ),
    Row(
        "a buffer (fedbuff)",
        "an algorithm that shares a part of the model (fedbn, fedper, fedrep, lg_fedavg)",
        lambda j: _buffered(j) and j.method.personal is not None and j.method.personal.alone,
        "a buffer moves the whole model: give it ditto, or drop late updates",
    ),
    Row(
        "fine_tuned(after=…)",
        "rounds",
        lambda j: j.rounds is not None and _last(j, "after") >= j.rounds,
        "the run would end before any site tunes its model: let rounds be more than after",
    ),
    Row(
        "a topology (cyclic, gossip, hierarchical, swarm)",
        "another one inside it",
        lambda j: len(_topologies(j)) > 1 or any(j.method.traits.count(name) > 1 for name in _topologies(j)),
        "wrap fedavg or fedprox in one of them; groups of groups are federations of their own",
    ),
    Row(
        "a topology (cyclic, gossip, hierarchical, swarm)",
        "late='keep'",
        lambda j: bool(_topologies(j)) and _late(j),
        "its steps follow one another: drop late updates, or use fedavg or fedprox as they are",
    ),
    Row(
        "a topology (cyclic, gossip, hierarchical, swarm)",
        "an algorithm that asks every site, or in several steps (afl, split_learning, vertical)",
        lambda j: bool(_topologies(j)) and bool({"everybody", "exact", "exchange"} & set(j.method.traits)),
        "it says itself whom it asks: use it as it is, or wrap fedavg or fedprox",
    ),
    Row(
        "gossip or swarm",
        "an algorithm of means, or a Gather (scaffold, fednova, median, …)",
        lambda j: _peers(j) and (_has(j, "mean") or _has(j, "gather")),
        "a site has its own update and its neighbours' models, no others: wrap fedavg, fedprox or moon",
    ),
    Row(
        "gossip, swarm or hierarchical",
        "an algorithm whose server keeps more than a model (scaffold, fedopt, fedavgm, …)",
        lambda j: _has(j, "server state"),
        "models are averaged, and nothing else has a mean: wrap fedavg, fedprox or moon, or use cyclic",
    ),
    Row(
        "gossip or swarm",
        "an algorithm with personal models (ditto, fedper, fine_tuned, …)",
        lambda j: _peers(j) and _has(j, "personal base"),
        "there each site has a model of its own already: wrap fedavg, fedprox or moon",
    ),
    Row(
        "gossip or swarm",
        "compress",
        lambda j: _peers(j) and bool(j.compress),
        "sites send whole models to one another, no differences: leave out compress, or use hierarchical",
    ),
    Row(
        "cyclic or hierarchical",
        "quorum",
        lambda j: (_has(j, "cyclic") or _has(j, "edges")) and (j.quorum is not None),
        "a step asks one site, or one group, and passes by who is gone: leave out quorum and over_select",
    ),
    Row(
        "cyclic",
        "a Gather (median, krum, …)",
        lambda j: _has(j, "cyclic", "gather"),
        "a visit has one update, and nothing to compare it with: leave out aggregator=…, or use hierarchical",
    ),
    Row(
        "a learner whose models are sums (naive Bayes, KMeans, PCA, Ridge)",
        "an algorithm other than summed",
        lambda j: _by(j) == "sums" and not _has(j, "sums"),
        "sums are added up, not averaged: write fd.summed()",
    ),
    Row(
        "summed",
        "a learner whose models are no sums",
        lambda j: _has(j, "sums") and _by(j) in ("mean", "union"),
        "models of steps are averaged and trees are joined: write fd.fedavg(), or fd.union(learner)",
    ),
    Row(
        "a learner of trees (a forest, LightGBM)",
        "an algorithm other than union",
        lambda j: _by(j) == "union" and not _has(j, "union"),
        "trees have no mean: write fd.union(learner), or fd.cyclic(fd.union(learner))",
    ),
    Row(
        "summed or union",
        "a topology that averages (gossip, hierarchical, swarm), or cyclic sums",
        lambda j: (
            (_has(j, "sums") and bool(_topologies(j)))
            or (_has(j, "union") and bool(_topologies(j) & {"gossip", "edges", "swarm"}))
        ),
        "what is added up or joined is no mean: use the algorithm inside it as it is",
    ),
    Row(
        "union",
        "compress",
        lambda j: _has(j, "union") and bool(j.links),
        "numbers of trees have to arrive as they are: leave compress out, and say max_leaf_nodes or num_leaves",
    ),
    Row(
        "an exact model (foedus.analytics, histogram_boosting)",
        "compress, cohort, quorum or late='keep'",
        lambda j: _has(j, "exact") and bool(j.compress or j.cohort or j.quorum or j.late == "keep"),
        "its sums are those of every site, whole: leave them out; min_sites=… lets sites be absent",
    ),
    Row(
        "secagg or he",
        "a Gather (median, krum, …)",
        lambda j: _summed(j) and _has(j, "gather"),
        "under a seal nobody sees single updates: leave out aggregator=…",
    ),
    Row(
        "secagg or he",
        "late='keep' or a buffer (fedbuff, fedasync)",
        lambda j: _summed(j) and (_late(j) or _buffered(j)),
        "keys are of one round, and a late update's masks never cancel: drop late updates",
    ),
    Row(
        "secagg or he",
        "a compression to fewer numbers (top_k, random_k, powersgd)",
        lambda j: _summed(j) and any(link.read and "rounding" not in link.traits for link in j.links),
        "masked words are one a number: round numbers (int8, int4, qsgd), or leave compress out",
    ),
    Row(
        "secagg or he",
        "power_of_choice",
        lambda j: _summed(j) and _has(j, "chooses"),
        "it reads each site's loss: take fd.participation.weighted, or stratified",
    ),
    Row(
        "secagg or he",
        "an algorithm that reads what each site sends (afl, union, split_learning, vertical, link)",
        lambda j: _summed(j) and bool((READ - {"exact"}) & set(j.method.traits)),
        "only sums leave under a seal: take fedavg, fedopt, scaffold, fednova, or an algorithm that averages updates",
    ),
    Row(
        "secagg or he",
        "a topology (cyclic, gossip, hierarchical, swarm)",
        lambda j: _summed(j) and bool(_topologies(j)),
        "it asks one site, or few: use the algorithm inside it as it is",
    ),
    Row(
        "secagg",
        "a cohort or panel of fewer sites than a sum needs",
        lambda j: j.seal is not None and min(_asks(j), _measure(j)) < _sealed(j, min(_asks(j), _measure(j))),
        "of two sites each learns the other's update: ask at least 3 in a round and on a panel, or lower threshold",
    ),
    Row(
        "he",
        "secagg, distributed_dp or an exact model (foedus.analytics, histogram_boosting)",
        lambda j: j.he is not None and (bool(j.seal) or isinstance(j.site_level, DistributedDp) or _has(j, "exact")),
        "its words are the sums of plain updates: take secagg alone, which goes together with them",
    ),
    Row(
        "he",
        "a cohort of fewer than 3 sites",
        lambda j: j.he is not None and _asks(j) < 3,
        "of two sites each learns the other's update: ask at least 3 in a round",
    ),
    Row(
        "secagg(threshold=…)",
        "a cohort of so many sites",
        lambda j: j.seal is not None and math.isfinite(_asks(j)) and _sealed(j, _asks(j)) < majority(int(_asks(j))),
        "below ⌊2n/3⌋+1 of the n sites asked a server could have two sums: raise threshold, or leave it out",
    ),
    Row(
        "secagg",
        "a quorum of fewer updates than must go to the end",
        lambda j: j.seal is not None and j.quorum is not None and j.quorum < _sealed(j, _asks(j)),
        "masks come off with ⌊2n/3⌋+1 of the n sites asked, and 3 at least: raise quorum, or lower over_select",
    ),
    Row(
        "dp_sgd",
        "an algorithm that reads training rows beside its steps (qffl, moon, scaffold(option=1), split_learning, …)",
        lambda j: j.dp_sgd is not None and bool(READS & set(j.method.traits)),
        "only the steps are noised: take fedavg, fedprox, fedopt, fednova, feddyn or scaffold()",
    ),
    Row(
        "dp_sgd",
        "an algorithm with personal models (ditto, fedper, fine_tuned, …)",
        lambda j: j.dp_sgd is not None and j.method.personal is not None,
        "sites train more than one model, and one is accounted for: take fedavg, fedprox, fedopt or scaffold()",
    ),
    Row(
        "dp_sgd",
        "late='keep', a buffer (fedbuff, fedasync) or a topology (cyclic, gossip, hierarchical, swarm)",
        lambda j: j.dp_sgd is not None and (_late(j) or _buffered(j) or bool(_topologies(j))),
        "one training a site and round is accounted for: use the algorithm inside it as it is, and drop late updates",
    ),
    Row(
        "dp_sgd(epsilon=…)",
        "rounds=None",
        lambda j: j.dp_sgd is not None and j.dp_sgd.epsilon is not None and j.rounds is None,
        "the noise is found from the number of rounds: say rounds=…, beside stop=…, or noise_multiplier=…",
    ),
    Row(
        "noise on whole updates (central_dp, distributed_dp, dp_ftrl, local_dp)",
        "a Gather (median, krum, …), or an algorithm that sends more than its model (scaffold, fednova, qffl, …)",
        lambda j: j.site_level is not None and bool(UNLIKE & set(j.algorithm.traits)),
        "the noise is that of one mean of clipped models: take fedavg, fedprox or a server optimizer (fedadam, …)",
    ),
    Row(
        "noise on whole updates (central_dp, distributed_dp, dp_ftrl, local_dp)",
        "late='keep', a buffer (fedbuff, fedasync) or a topology (cyclic, gossip, hierarchical, swarm)",
        lambda j: j.site_level is not None and (_late(j) or _buffered(j) or bool(_topologies(j))),
        "one update a site and round is accounted for: use the algorithm inside it as it is, and drop late updates",
    ),
    Row(
        "central_dp, distributed_dp or dp_ftrl",
        "compress=…",
        lambda j: isinstance(j.site_level, (CentralDp, DistributedDp, DpFtrl)) and bool(j.links),
        "a compressed update may be longer than its clip: leave compress=… out (fd.clip too: the noise has its own)",
    ),
    Row(
        "dp_metrics",
        "an algorithm that measures itself",
        lambda j: j.dp_metrics is not None and j.algorithm.measure is not None,
        "only sums of the learner's evaluation get noise: leave dp_metrics out, or say evaluate=0",
    ),
    Row(
        "dp_metrics",
        "an analysis to whose sums a row may add anything",
        lambda j: j.dp_metrics is not None and j.learner is None and j.exact_sums and not blocks_of(j.algorithm),
        "noise needs a bound: give describe, quantiles and correlation bounds=…, histogram edges (bins=[…]), "
        "contingency and top_k categories=…, or take analytics.counts; else leave dp_metrics out",
    ),
    Row(
        "dp_metrics",
        "best or a stop rule of a metric that is no count",
        lambda j: j.dp_metrics is not None and bool(_unbounded(j)),
        "it is not sent: watch accuracy, balanced_accuracy, precision, recall or f1",
    ),
    Row(
        "dp_metrics(epsilon=…)",
        "rounds=None",
        lambda j: j.dp_metrics is not None and j.dp_metrics.epsilon is not None and j.rounds is None,
        "the noise is found from the number of evaluations: say rounds=…, beside stop=…, or noise_multiplier=…",
    ),
    Row(
        "dp_ftrl",
        "rounds=None",
        lambda j: isinstance(j.site_level, DpFtrl) and j.rounds is None,
        "its noise is that of a whole run: say rounds=…, beside stop=…",
    ),
    Row(
        "dp_ftrl(separation=N)",
        "a cohort of sites that may take part sooner again",
        lambda j: isinstance(j.site_level, DpFtrl) and j.site_level.separation > getattr(j.cohort, "turns", 1),
        "say cohort=fd.participation.in_turns(N), or separation=1",
    ),
    Row(
        "distributed_dp",
        "no secagg, or one without masks",
        lambda j: isinstance(j.site_level, DistributedDp) and not (j.seal and j.seal.masks),
        "a single update has too little noise to be seen: say privacy=[fd.distributed_dp(…), fd.secagg()]",
    ),
    Row(
        "distributed_dp",
        "secagg(bound=…)",
        lambda j: isinstance(j.site_level, DistributedDp) and j.seal is not None and bool(j.seal.bound),
        "the clip and the noise say how large numbers are: leave bound=… out",
    ),
    Row(
        "local_dp",
        "secagg without a bound",
        lambda j: isinstance(j.site_level, LocalDp) and j.seal is not None and j.seal.bound is None,
        "noise has no largest number, and what is beyond the bound is refused: say fd.secagg(bound=…), several sigma",
    ),
    Row(
        "noise on whole updates (central_dp, distributed_dp, dp_ftrl, local_dp)",
        "a choice of sites by their losses (power_of_choice)",
        lambda j: j.site_level is not None and bool(getattr(j.cohort, "by_loss", False)),
        "the losses that sites tell have no noise: draw the cohort by chance",
    ),
    Row(
        "central_dp, distributed_dp or local_dp (epsilon=…)",
        "rounds=None",
        lambda j: j.site_level is not None and j.site_level.epsilon is not None and j.rounds is None,
        "the noise is found from the number of rounds: say rounds=…, beside stop=…, or noise_multiplier=…",
    ),
)


def check_parts(job: Any) -> None:
    """Raises Incompatible, by the names of both parts and with the remedy."""
    for row in TABLE:
        if row.clash(job):
            raise Incompatible(f"{row.one} and {row.other} do not go together: {row.remedy}")
