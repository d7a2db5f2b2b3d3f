"""What a site's owner allows, from `policy.toml`: an unknown key or a wrong type forbids everything until it is mended.
Plain TOML comes in; every question is answered with "" (yes) or with the reason and the remedy."""

from __future__ import annotations

import datetime
import re
import time
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

from foedus.errors import Denied
from foedus.metrics import plain
from foedus.privacy.presets import guards
from foedus.privacy.spending import Limit
from foedus.site import terms
from foedus.site.terms import Terms

Some = tuple[str, ...]
Names = Some | None  # None: all
Hours = tuple[int, int] | None
Most = int | None  # None: no limit
Privacy = Literal["none", "secagg", "he", "dp"]
Demands = tuple[Privacy, ...]
SIGNED = {  # what a submission says of each
    "secagg": ("secagg",),
    "he": ("he", "secagg"),
    "dp": ("dp_sgd", "local_dp", "distributed_dp"),
}
NICEST = 19
_HOURS = re.compile(r"([01]?[0-9]|2[0-4])-([01]?[0-9]|2[0-4])")


class Policy(NamedTuple):
    """The rules of one site, all of them with a default that lets only approved code in."""

    trust: Some = ()
    approved: Some = ()
    datasets: Names = None
    metrics: Names = None
    least_examples: int = 1
    least_measured: int = 1
    most_update_bytes: int = 8 << 30
    hours: Hours = None
    network: bool = False
    error_texts: bool = False
    privacy: Demands = ()
    most_memory_bytes: Most = None
    most_cpu_seconds: Most = None
    nice: int = 0
    terms: Mapping[str, Terms] = {}

    @property
    def limits(self) -> dict[str, int | None]:
        """What the process of a Job's code may take of the machine."""
        return {"memory": self.most_memory_bytes, "cpu": self.most_cpu_seconds, "nice": self.nice}

    def private(self, privacy: str) -> str:
        """Whether a Job of this privacy may train here."""
        lacking = [
            word
            for word in self.privacy
            if word != "none" and not any(guards(privacy, signed) for signed in SIGNED[word])
        ]
        if not lacking:
            return ""
        word = "hospital" if "dp" in lacking else lacking[0]
        return (
            f"the job's privacy is {privacy!r}, and the site's policy demands {lacking[0]!r} (`privacy`): "
            f"submit it with privacy={word!r}"
        )

    def agreed(self, names: Iterable[str], purpose: str) -> str:
        """Whether these datasets may be used today, by a job of that purpose."""
        today = datetime.date.today()
        found = (terms.allowed(name, self.terms[name], purpose, today) for name in names if name in self.terms)
        return next(filter(None, found), "")

    def excluded(self, names: Iterable[str]) -> dict[str, tuple[list[str], str]]:
        """dataset -> the ids that its owner has excluded, and the column of a table in which they stand. Denied."""
        try:
            found = {name: (each.ids(), each.column) for name in names if (each := self.terms.get(name)) is not None}
        except (OSError, ValueError) as error:
            raise Denied(f"the list of excluded ids cannot be read ({error}); nothing is loaded without it") from None
        return {name: each for name, each in found.items() if each[0]}

    @property
    def budgets(self) -> dict[str, Limit]:
        """What may be spent of the datasets whose owner has set a limit."""
        return {name: found.limit for name, found in self.terms.items() if found.limit is not None}

    def dataset(self, names: Iterable[str]) -> str:
        """Whether these datasets may be used."""
        odd = [name for name in names if self.datasets is not None and name not in self.datasets]
        return f"the site's policy does not allow the dataset {odd[0]!r}: see `datasets` in policy.toml" if odd else ""

    def examples(self, count: int) -> str:
        """Whether so many training examples may take part."""
        if count >= self.least_examples:
            return ""
        return f"{count} training examples, and the site's policy wants {self.least_examples} (`least_examples`)"

    def few(self, metric: str, rows: Mapping[str, int]) -> bool:
        """Whether a metric is of too few examples to leave in the clear; `rows`: part of the data -> how many."""
        parts = {"test_": "test", "personal_test_": "test", "train_": "train"}
        part = next((part for prefix, part in parts.items() if metric.startswith(prefix)), "valid")
        return rows.get(part, rows.get("train", 0)) < self.least_measured

    def update(self, size: int, metrics: Collection[str]) -> str:
        """Whether an update of that size with these metrics may leave the site."""
        most = self.most_update_bytes
        if size > most:
            return f"an update of {size} bytes, and the site's policy allows {most} (`most_update_bytes`)"
        odd = [name for name in metrics if not self._lets_out(name)]
        return f"the site's policy does not let the metric {odd[0]!r} out: see `metrics` in policy.toml" if odd else ""

    def _lets_out(self, metric: str) -> bool:
        """`auc` allows `test_auc` and `train_auc`, too."""
        return self.metrics is None or not {metric, plain(metric.removeprefix("train_"))}.isdisjoint(self.metrics)

    def awake(self, now: time.struct_time) -> bool:
        """Whether the site works at this hour of its own clock; (20, 6) is from 20:00 to 5:59."""
        if self.hours is None:
            return True
        first, last = self.hours
        return first <= now.tm_hour < last if first < last else now.tm_hour >= first or now.tm_hour < last


def load(path: Path) -> Policy:
    """The policy in a file. Raises Denied, with the line to mend, for anything that is not plain and known."""
    try:
        found = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise Denied(f"{path} is missing, so nothing is allowed: `foedus site join` wrote one, restore it") from None
    except (ValueError, OSError) as error:
        raise Denied(f"{path}: {error}; nothing is allowed until it is mended") from None
    try:
        tables = found.pop("dataset", {})
        each = {name: terms.read(name, table, path.parent) for name, table in tables.items()}
        return Policy(**{key: _value(key, value) for key, value in found.items()}, terms=each)
    except ValueError as error:
        raise Denied(f"{path}: {error}; nothing is allowed until it is mended") from None


def write(path: Path, trust: Collection[str]) -> None:
    """Writes the policy of a new site, with every rule explained; one that is there already stays."""
    if not path.exists():
        names, word = ", ".join(f'"{name}"' for name in trust), "" if trust else "# "
        path.write_text(_TEMPLATE.format(trust=names, word=word))


def _value(key: str, value: Any) -> Any:
    hints = get_type_hints(Policy)
    if key not in hints:
        raise ValueError(f"there is no rule {key!r}; the rules are {', '.join(hints)}")
    kind = hints[key]
    if key == "nice" and type(value) is int and value > NICEST:
        raise ValueError(f"nice = {value} is above {NICEST}, the least priority that there is")
    if kind == Most and type(value) is int and value > 0:
        return value
    if kind == Demands:
        words = value if isinstance(value, list) else [value]
        if all(word in get_args(Privacy) for word in words):
            return tuple(words)
    if kind is int and type(value) is int and value >= 0:
        return value
    if kind is bool and type(value) is bool:
        return value
    if kind == Hours and isinstance(value, str) and (found := _HOURS.fullmatch(value)):
        return int(found[1]), int(found[2])
    if kind == Names and value == "all":
        return None
    if kind in (Names, Some) and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise ValueError(f"{key} = {value!r} is not of its kind; the file's own comments show each")


def describe(policy: Policy) -> Mapping[str, Any]:
    """The rules as they are shown."""
    hints, none = get_type_hints(Policy), {Names: "all", Hours: "all", Most: "no limit"}
    found = {name: none[hints[name]] if value is None else value for name, value in policy._asdict().items()}
    shown = {
        name: {k: str(v) if k == "valid_until" else v for k, v in x._asdict().items()}
        for name, x in policy.terms.items()
    }
    return found | {"privacy": policy.privacy or "none", "terms": shown}


_TEMPLATE = """\
# What this site allows. It always wins; an unknown or misspelt rule forbids everything until it is mended.

# Submitters whose code runs without being approved first (their key is remembered when it is first seen).
trust = [{trust}]

# SHA-256 of bundles that are approved in advance; `foedus site approve` keeps its own list.
approved = []

# Datasets and metrics that may be used: "all", or a list such as ["heart"].
datasets = "all"
metrics = "all"

# A Job sees only data with at least so many training examples. A model fitted to a few people can tell of them: where
# examples are people, 20 or more is wise.
least_examples = 1

# Metrics of a part of the data (train, valid, test) with fewer examples leave only summed over sites, under secure
# aggregation; from other updates they are left out.
least_measured = 1

# No update above this size leaves.
most_update_bytes = {most}

# Hours of the day, by this machine's clock, in which the site takes part; from 20:00 to 5:59 would be "20-6".
# hours = "20-6"

# Whether the code that loads and trains may use the network, for instance to read a database. It runs on private data.
# network = true

# Whether the submitter is told what an error of the job's code says, beside its kind, file and line: a text such as
# "could not convert string to float: 'Smith'" quotes data. It always stands in the worker's log, here.
# error_texts = true

# The privacy that a job must have: "none", "secagg", "he", "dp", or ["dp", "secagg"], which is what `hospital` has.
# With "none" those whom you trust may send jobs without any: the server then reads each update of this site.
{word}privacy = "none"

# What the process that loads and trains may take of this machine: bytes of memory (each process that it starts may take
# as much), seconds of CPU time in its life, after which the run gets no more from this site, and its priority, from 0
# (as the agent) to 19 (the least).
# most_memory_bytes = 8589934592
# most_cpu_seconds = 36000
# nice = 10

# What may be done with one dataset; these tables stand at the end of the file.
#
# [dataset.heart]
# epsilon = 4.0                  # all jobs together may spend so much, at delta; no job without DP trains on it
# delta = 1e-5
# purpose = ["heart-failure"]    # a job must state one of these
# approval = "ethics 2026-113"   # stands in the ledger beside each training
# valid_until = 2027-06-30       # the last day
# excluded = "withdrawn.txt"     # an id a line, beside this file: rows, files and folders that no job sees
# column = "patient"             # of a table, with these ids
""".replace("{most}", str(Policy().most_update_bytes))
