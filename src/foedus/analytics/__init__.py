"""Federated analytics and exact models: the answer of pooled data, from sums; each runs simulated and as a Job.
Algorithms are made here and Jobs built; nothing of backends, servers or sites."""

from foedus.analytics.analysis import Analysis, Answer, read
from foedus.analytics.describe import describe as _describe
from foedus.analytics.glm import glm as _glm

describe = Analysis(_describe)
glm = Analysis(_glm)

__all__ = ["Analysis", "Answer", "describe", "glm", "read"]
