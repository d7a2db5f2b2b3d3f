"""Partitioners: one data set divided among the sites of a simulation, every example at one site and in one part of it.
Arrays or a data frame come in; all randomness is named by (seed, site), so equal arguments give equal sites."""

from foedus.partition.drawn import dirichlet, iid, pathological, quantity
from foedus.partition.natural import by_column, by_time
from foedus.partition.shifts import feature_shift, label_noise

__all__ = ["by_column", "by_time", "dirichlet", "feature_shift", "iid", "label_noise", "pathological", "quantity"]
