"""Validation of a fixed model at every site, against what was stated beforehand; only counts of scores leave a site.
A Job comes in: its learner and data, and the schema that they must fit."""

from foedus.validation.groups import Cut, Levels, cut, levels
from foedus.validation.judging import Claim
from foedus.validation.validating import Validation, is_validation, job, read, validate

__all__ = ["Claim", "Cut", "Levels", "Validation", "cut", "is_validation", "job", "levels", "read", "validate"]
