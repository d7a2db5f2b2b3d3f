"""A learner of LightGBM: sites add trees to one booster, side by side or one after another.
The public name is LightGBMLearner; lightgbm comes in here and is an extra."""

from __future__ import annotations

from foedus.errors import Missing

try:
    import lightgbm as _lightgbm  # noqa: F401
except ModuleNotFoundError as error:
    raise Missing("lightgbm", "lightgbm") from error

from foedus.lightgbm.learner import LightGBMLearner

__all__ = ["LightGBMLearner"]
