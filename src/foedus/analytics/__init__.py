"""Federated analytics and exact models: the answer of pooled data, from sums; each runs simulated and as a Job.
Algorithms are made here and Jobs built; nothing of backends, servers or sites."""

from foedus.analytics import cox as _cox
from foedus.analytics import describe as _describe
from foedus.analytics import glm as _glm
from foedus.analytics import kaplan_meier as _kaplan_meier
from foedus.analytics.analysis import Analysis, Answer, read

describe = Analysis(_describe.describe)
glm = Analysis(_glm.glm)
cox = Analysis(_cox.cox)
kaplan_meier = Analysis(_kaplan_meier.kaplan_meier)
logrank = Analysis(_kaplan_meier.logrank)

__all__ = ["Analysis", "Answer", "cox", "describe", "glm", "kaplan_meier", "logrank", "read"]
