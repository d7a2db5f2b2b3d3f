"""Tables for tests of analytics: a cohort with gaps, text, a level missing at one site and an empty site."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

FEATURES = ["age", "chol", "sex"]


@cache
def cohort() -> pd.DataFrame:
    """240 rows with a target of every family, survival and negative numbers; some cells are empty."""
    rng = np.random.default_rng(7)
    n = 240
    table = pd.DataFrame(
        {"age": rng.normal(60, 10, n), "chol": rng.normal(-250, 50, n), "sex": rng.choice(["f", "m", "x"], n)}
    )
    eta = 0.04 * (table.age - 60) + 0.006 * (table.chol + 250) + 0.5 * (table.sex == "m")
    table["ill"] = (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(int)
    table["visits"] = rng.poisson(np.exp(eta))
    table["score"] = eta + rng.normal(size=n)
    table["cost"] = np.exp(eta) * rng.gamma(2, 0.5, n)
    table["days"] = np.ceil(30 * rng.exponential(np.exp(-eta)))  # with ties
    table["died"] = (rng.random(n) < 0.6).astype(int)
    table.loc[[3, 77, 150], "age"] = np.nan
    table.loc[[5, 151], "sex"] = None
    return table


def sites() -> dict[str, pd.DataFrame]:
    """The cohort at four sites: south has no "m", and west no row at all."""
    table = cohort()
    south = table[150:][table[150:].sex != "m"]
    return {"north": table[:60], "east": table[60:150], "south": south, "west": table[:0]}


def pooled(*columns: str) -> pd.DataFrame:
    """All complete rows of these columns (all of them, where none is named)."""
    table = pd.concat(sites().values())
    return (table[list(columns)] if columns else table).dropna()


def design(table: pd.DataFrame, features: Any = tuple(FEATURES)) -> pd.DataFrame:
    """The features as other libraries need them: indicators of every level but the first, and an intercept."""
    return pd.get_dummies(table[list(features)], drop_first=True).astype(float).assign(const=1.0)
