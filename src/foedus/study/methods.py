"""What is compared, and under which options: Jobs, functions that return them, or a job file that has them.
Only jobs and job files come in."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foedus import jobfile
from foedus.errors import JobError
from foedus.job import Job


def methods(job: Any) -> dict[str, Any]:
    """name -> Job, or a function of options that returns one; from one of them, a mapping, or a job file."""
    if isinstance(job, (str, Path)):
        module = jobfile.imported(job)
        job = getattr(module, "methods", None) or getattr(module, "job", None)
    found = dict(job) if isinstance(job, Mapping) else {"job": job}
    for name, made in found.items():
        if not isinstance(name, str) or not name or not (isinstance(made, Job) or callable(made)):
            raise JobError(f"method {name!r} is {type(made).__name__}: give a fd.Job, or a function that returns one")
    if not found:
        raise JobError("compare needs at least one method: {name: fd.Job, or a function that returns one}")
    return found


def grid(name: str, made: Any, tune: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The options that a method is tried with: all combinations of `tune`, and of what it has for this method alone."""
    own = {key: value for key, value in tune.items() if not isinstance(value, Mapping)} | dict(tune.get(name, {}))
    if own and isinstance(made, Job):
        raise JobError(f"method {name!r} is a Job, which has no options to tune: give a function of {', '.join(own)}")
    for option, values in own.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise JobError(f"tune={{{option!r}: {values!r}}}: give a list of values")
    for values in itertools.product(*own.values()):
        chosen = dict(zip(own, values, strict=True))
        yield jobfile.typed(made, chosen) if chosen else {}


def built(name: str, made: Any, options: Mapping[str, Any]) -> Job:
    """The method's Job under these options. Raises JobError."""
    job = made if isinstance(made, Job) else made(**options)
    if not isinstance(job, Job):
        raise JobError(f"method {name!r} returned {type(job).__name__}: return a fd.Job")
    return job
