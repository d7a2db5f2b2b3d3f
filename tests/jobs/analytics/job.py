"""Exact analyses of a table that each site holds as a file, simulated and real: one of them, or all in a row."""

import pandas as pd

import foedus as fd
from foedus import analytics
from foedus.params import join

FEATURES = ["age", "chol", "sex"]
DAYS = {"time": "days", "event": "died"}
SETTINGS = {
    "contingency": {"row": "sex", "column": "ill"},
    "correlation": {"columns": ["age", "chol", "days"]},
    "cox": DAYS | {"features": FEATURES},
    "describe": {},
    "glm": {"family": "binomial", "target": "ill", "features": FEATURES},
    "histogram": {"column": "chol"},
    "kaplan_meier": DAYS,
    "kmeans": {"features": ["age", "chol"], "k": 2, "starts": 2, "steps": 5},
    "logrank": DAYS | {"group": "sex"},
    "meta": {"family": "gaussian", "target": "score", "features": ["age"]},
    "mixed": {"target": "score", "features": ["age"]},
    "pca": {"features": ["age", "chol", "days"]},
    "quantiles": {"columns": ["age", "chol"]},
    "top_k": {"column": "sex"},
    "ttest": {"value": "score", "group": "died"},
    "unique": {"columns": ["age", "sex"]},
}


def load(site):
    return pd.read_csv(site.data)


def every():
    """One Algorithm whose round is that of each analysis, one after the other."""
    made = {name: getattr(analytics, name).make(**settings) for name, settings in SETTINGS.items()}

    def round(state, context):
        found = {}
        for name, algorithm in made.items():
            found[name] = yield from renamed(name, algorithm.round(fd.Params({}), context))
        return join(**found)

    works = {f"{name}.{work}": f for name, algorithm in made.items() for work, f in algorithm.works.items()}
    return fd.Algorithm(lambda params: params, round, works)


def renamed(name, steps):
    answer = None
    while True:
        try:
            task = steps.send(answer)
        except StopIteration as end:
            return end.value
        answer = yield task._replace(work=f"{name}.{task.work}")


def job(what="glm"):
    if what == "every":
        return fd.Job(every(), None, analytics.table(load), rounds=1, privacy="none")
    return getattr(analytics, what).job(**SETTINGS[what], data=load, privacy="none")
