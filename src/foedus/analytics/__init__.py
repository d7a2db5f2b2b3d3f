"""Federated analytics and exact models: the answer of pooled data, from sums; each runs simulated and as a Job.
Algorithms are made here and Jobs built; nothing of backends, servers or sites."""

from foedus.analytics import counts as _counts
from foedus.analytics import cox as _cox
from foedus.analytics import describe as _describe
from foedus.analytics import drift as _drift
from foedus.analytics import glm as _glm
from foedus.analytics import histogram as _histogram
from foedus.analytics import kaplan_meier as _kaplan_meier
from foedus.analytics import kmeans as _kmeans
from foedus.analytics import meta as _meta
from foedus.analytics import mixed as _mixed
from foedus.analytics import moments as _moments
from foedus.analytics import quantiles as _quantiles
from foedus.analytics import schema as _schema
from foedus.analytics import table_one as _table_one
from foedus.analytics import tables as _tables
from foedus.analytics.analysis import Analysis, Answer, is_answer, read
from foedus.analytics.held import loader as table

contingency = Analysis(_tables.contingency)
correlation = Analysis(_moments.correlation)
counts = Analysis(_counts.counts)
cox = Analysis(_cox.cox)
describe = Analysis(_describe.describe)
drift = Analysis(_drift.drift)
glm = Analysis(_glm.glm)
histogram = Analysis(_histogram.histogram)
kaplan_meier = Analysis(_kaplan_meier.kaplan_meier)
kmeans = Analysis(_kmeans.kmeans)
logrank = Analysis(_kaplan_meier.logrank)
meta = Analysis(_meta.meta)
mixed = Analysis(_mixed.mixed)
pca = Analysis(_moments.pca)
quantiles = Analysis(_quantiles.quantiles)
schema = Analysis(_schema.schema)
table_one = Analysis(_table_one.table_one)
top_k = Analysis(_tables.top_k)
ttest = Analysis(_moments.ttest)
unique = Analysis(_tables.unique)

__all__ = [
    "Analysis",
    "Answer",
    "contingency",
    "correlation",
    "counts",
    "cox",
    "describe",
    "drift",
    "glm",
    "histogram",
    "is_answer",
    "kaplan_meier",
    "kmeans",
    "logrank",
    "meta",
    "mixed",
    "pca",
    "quantiles",
    "read",
    "schema",
    "table",
    "table_one",
    "top_k",
    "ttest",
    "unique",
]
