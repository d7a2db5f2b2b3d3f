"""Script mode: a training script that stays a script, run as its own process which lives from round to round.
`learner` and `process` are the Job's side, `run`, `loop`, `models` and `ranks` the script's; torch comes in lazily."""

from __future__ import annotations

from foedus.script.learner import Script

__all__ = ["Script"]
