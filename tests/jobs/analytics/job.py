"""Exact analyses of a table that each site holds as a file, for simulations and real federations."""

import pandas as pd

from foedus import analytics

FEATURES = ["age", "chol", "sex"]
SETTINGS = {
    "glm": ("binomial",),
}
DAYS = {"time": "days", "event": "died"}
NAMED = {
    "glm": {"target": "ill", "features": FEATURES},
    "cox": DAYS | {"features": FEATURES},
    "kaplan_meier": DAYS,
    "logrank": DAYS | {"group": "sex"},
}


def load(site):
    return pd.read_csv(site.data)


def job(what="glm"):
    return getattr(analytics, what).job(*SETTINGS.get(what, ()), **NAMED.get(what, {}), data=load)
