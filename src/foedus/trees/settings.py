"""What boosted trees take of XGBoost's parameters, by XGBoost's names; any other is refused by its name.
A mapping comes in."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from foedus.errors import JobError

KNOWN = ("objective", "max_depth", "eta", "lambda", "alpha", "gamma", "min_child_weight", "scale_pos_weight",
         "base_score", "num_class", "max_cat_to_onehot", "max_cat_threshold", "monotone_constraints",
         "tree_method")  # fmt: skip
OBJECTIVES = ("binary:logistic", "reg:squarederror", "multi:softprob")
COUNTS = {"poisson", "gamma", "tweedie"}
ALIASES = {"learning_rate": "eta", "reg_lambda": "lambda", "reg_alpha": "alpha", "min_split_loss": "gamma"}
IDLE = {"nthread", "n_jobs", "verbosity", "seed", "random_state"}  # change nothing: no number is drawn
NUMBERS = ("eta", "lambda", "alpha", "gamma", "min_child_weight", "scale_pos_weight", "base_score")
SAID = {  # where it is said instead
    "eval_metric": "the Job's metrics=[…]",
    "early_stopping_rounds": "the Job's stop=fd.plateau(metric, patience=…)",
    "max_bin": "bins=…",
    "num_boost_round": "the Job's rounds=…",
    "n_estimators": "the Job's rounds=…",
    "enable_categorical": "categories={column: levels}",
}
MOST_DEPTH, MOST_BINS = 10, 4096


class Settings(NamedTuple):
    """XGBoost's defaults, but for `base_score`, which is 0.5 and never estimated."""

    objective: str
    max_depth: int = 6
    eta: float = 0.3
    lambda_: float = 1.0
    alpha: float = 0.0
    gamma: float = 0.0
    min_child_weight: float = 1.0
    scale_pos_weight: float = 1.0
    base_score: float = 0.5
    num_class: int = 0
    max_cat_to_onehot: int = 4
    max_cat_threshold: int = 64
    monotone: tuple[tuple[str, int], ...] = ()
    bins: int = 256
    categories: tuple[tuple[str, int], ...] = ()  # of these columns so many levels, coded 0, 1, …
    weight: str = ""  # the column of rows' weights, if there is one

    @property
    def logistic(self) -> bool:
        return self.objective == "binary:logistic"

    @property
    def groups(self) -> int:
        """Trees of a round: one a class, where there are more than two."""
        return max(1, self.num_class)

    @property
    def levels(self) -> int:
        """The most that a column of categories has."""
        return max((levels for _, levels in self.categories), default=0)

    @property
    def nodes(self) -> int:
        """Of a whole tree."""
        return (1 << (self.max_depth + 1)) - 1


def settings(
    params: Mapping[str, Any],
    bins: int,
    categories: Mapping[str, Any] = {},
    weight: str | None = None,
    whose: str = "histogram_boosting",
    beside: Sequence[str] = (),
) -> Settings:
    """The settings in XGBoost's `params`; `categories`: levels of columns, or how many. Raises JobError.

    `whose` says in errors who takes them; what is named `beside` them is XGBoost's own affair.
    """
    if not isinstance(params, Mapping):
        raise JobError(
            f"{whose}({params!r}): give XGBoost's parameters as a mapping, {{'objective': 'binary:logistic'}}"
        )
    _check_known(params, whose, beside)
    given = {ALIASES.get(name, name): value for name, value in params.items() if name not in (*IDLE, *beside)}
    if given.get("objective") not in OBJECTIVES:
        counts = "; LightGBMLearner has poisson and gamma" if COUNTS & {*str(given.get("objective")).split(":")} else ""
        raise JobError(f"{whose}: objective={given.get('objective')!r}; it is one of {', '.join(OBJECTIVES)}{counts}")
    if given.pop("tree_method", "hist") != "hist":
        raise JobError(f"{whose}: tree_method is 'hist', or left out")
    monotone = given.pop("monotone_constraints", {})
    if not isinstance(monotone, Mapping) or not set(monotone.values()) <= {-1, 0, 1}:
        raise JobError(f"{whose}: monotone_constraints maps a column's name (or 'f0', …) to -1, 0 or 1")
    made = Settings(
        **{name if name != "lambda" else "lambda_": value for name, value in given.items()},
        monotone=tuple(sorted(monotone.items())), bins=bins, weight=weight or "",
        categories=tuple(sorted((name, x if isinstance(x, int) else len(x)) for name, x in categories.items())),
    )  # fmt: skip
    _check(made, whose)
    return made


def _check_known(params: Mapping[str, Any], whose: str, beside: Sequence[str]) -> None:
    every = [*dict.fromkeys([*KNOWN, *beside])]
    for name in params:
        if name in SAID and name not in beside:
            raise JobError(f"{whose}: {name!r} is not known here; say {SAID[name]}")
        if name not in every and name not in ALIASES and name not in IDLE:
            near = difflib.get_close_matches(str(name), [*every, *ALIASES], 1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise JobError(f"{whose}: {name!r} is not known here; {meant}it takes {', '.join(every)}")


def _check(made: Settings, whose: str) -> None:
    if not isinstance(made.max_depth, int) or not 1 <= made.max_depth <= MOST_DEPTH:
        raise JobError(f"{whose}: max_depth={made.max_depth!r}; it is a whole number from 1 to {MOST_DEPTH}")
    if not isinstance(made.bins, int) or not 3 <= made.bins <= MOST_BINS:
        raise JobError(f"{whose}(bins={made.bins!r}): it is a whole number from 3 to {MOST_BINS}")
    numbers = {name: getattr(made, name.replace("lambda", "lambda_")) for name in NUMBERS}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise JobError(f"{whose}: {name}={value!r}; it must be a number")
    for name, value in {"eta": made.eta, "scale_pos_weight": made.scale_pos_weight}.items():
        if not value > 0:
            raise JobError(f"{whose}: {name}={value!r}; it must be positive")
    least = {"lambda": made.lambda_, "min_child_weight": made.min_child_weight, "alpha": made.alpha}
    for name, value in {**least, "gamma": made.gamma}.items():
        if not value >= 0:
            raise JobError(f"{whose}: {name}={value!r}; it must be 0 or more")
    if (made.objective == "multi:softprob") != bool(made.num_class) or not (made.num_class == 0 or made.num_class > 1):
        raise JobError(f"{whose}: objective='multi:softprob' and num_class, 2 or more, go together")
    for name, levels in made.categories:
        if not 1 <= levels < made.bins:
            raise JobError(f"{whose}(categories=…): {name!r} has {levels} levels: raise bins above it")
    if odd := {name for name, _ in made.categories} & {name for name, sign in made.monotone if sign}:
        raise JobError(f"{whose}: {min(odd)!r} has categories, which have no order to be monotone in")
    if made.logistic and not 0 < made.base_score < 1:
        raise JobError(f"{whose}: base_score={made.base_score!r}; of binary:logistic it is a probability")
