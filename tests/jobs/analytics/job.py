"""Exact analyses of a table that each site holds as a file, for simulations and real federations."""

import pandas as pd

from foedus import analytics

FEATURES = ["age", "chol", "sex"]
SETTINGS = {
    "describe": (),
    "glm": ("binomial",),
}
NAMED = {
    "glm": {"target": "ill", "features": FEATURES},
}


def load(site):
    return pd.read_csv(site.data)


def job(what="glm"):
    return getattr(analytics, what).job(*SETTINGS[what], **NAMED.get(what, {}), data=load)
