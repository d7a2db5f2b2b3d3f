"""foedus: train and validate AI models on data that never leaves its owners.
Every public name is reachable as `fd.NAME` and is imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "Algorithm Decline Deadline Fit Gather Origin Outcome": "core",
    "RoundContext SiteContext Sum Task Total Transform Update": "core",
    "Params digest": "params",
    "key": "keys",
    "Job": "job",
    "Result": "result",
    "Records Site Sites Split load_split save_split": "data",
    "Metric": "metrics",
    "FoedusError": "errors",
    "combine fixed mean median trimmed_mean krum multi_krum bulyan": "aggregators",
    "geometric_median centered_clipping norm_bounded": "aggregators",
    "fedavg fedavgm fedadam fedyogi fedadagrad fedopt": "algorithms",
    "fedprox scaffold fednova feddyn moon fedexp qffl afl delta": "algorithms",
    "fedbn fedper fedrep lg_fedavg ditto apfl pfedme fine_tuned ifca": "algorithms",
    "link": "algorithms.link",
    "split_learning": "algorithms.split_learning",
    "vertical": "algorithms.vertical",
    "summed": "algorithms.summed",
    "union": "algorithms.union",
    "cyclic gossip hierarchical swarm": "algorithms",
    "ring grid random_rings": "algorithms.graphs",
    "chain clip transformed bf16 fp16 int8 int4 qsgd top_k random_k powersgd": "transforms",
    "attacked sign_flip gaussian alie inner_product label_flip backdoor": "attacks",
    "fedbuff fedasync": "algorithms",
    "plateau target wall_time any_of": "stop",
    "alone": "algorithms",
    "among": "algorithms.among",
    "compare contribution cross_site Contribution Matrix Study": "study",
    "connect": "remote",
    "recall_at": "metrics",
    "after": "tables",
    "secagg": "privacy.secagg",
    "he": "privacy.he",
    "dp_sgd": "privacy.dp_sgd",
    "central_dp local_dp": "privacy.site_level",
    "distributed_dp": "privacy.distributed",
    "dp_ftrl": "privacy.ftrl",
    "dp_metrics": "privacy.dp_metrics",
    "attack": "audit",
    "validate": "validation",
    "edge": "edges",
    "progress": "progress",
    "Script": "script.learner",
    "rounds": "script.loop",  # of a script; with share, work and step, of an algorithm
}
_NAMES = {name: f"foedus.{module}" for names, module in _WHERE.items() for name in names.split()}
_MODULES = (
    "partition",
    "metrics",
    "clock",
    "participation",
    "staleness",
    "torch",
    "numpy",
    "aggregators",
    "algorithms",
    "transforms",
    "attacks",
    "audit",
    "validation",
    "privacy",
    "layers",
    "linkage",
    "analytics",
)

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name in _MODULES:
        return import_module(f"foedus.{name}")
    raise AttributeError(f"foedus has no {name!r}")


def __dir__() -> list[str]:
    return __all__
