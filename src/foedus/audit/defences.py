"""Defences by word: the same Job with another compression and privacy, so that attacks can be held side by side.
A Job comes in; what a Job may hold in `compress=` and `privacy=` can be named here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from foedus import transforms
from foedus.core import Transform
from foedus.errors import FoedusError, Incompatible, JobError
from foedus.job import Job
from foedus.privacy import presets
from foedus.privacy.dp_sgd import dp_sgd
from foedus.privacy.secagg import LEAST, secagg

PLAIN, OWN = "none", "job"
MAKERS = {name: getattr(transforms, name) for name in transforms.__all__ if name not in ("chain", "transformed")}
MAKERS |= {"secagg": secagg, "dp_sgd": lambda epsilon: dp_sgd(clip=1.0, epsilon=epsilon)}


def chosen(job: Job, against: str | Sequence[str] | Mapping[str, Job] | None, sites: int) -> dict[str, Job]:
    """word -> Job, in the order given; a mapping of Jobs is taken as it is.

    None: the Job as it stands, without any protection, and with secure aggregation where that goes. Raises JobError.
    """
    if isinstance(against, Mapping):
        return {name: _learning(variant) for name, variant in against.items()}
    if against is None:
        return _usual(job, sites)
    words = [word.strip() for word in (against.split(",") if isinstance(against, str) else against)]
    if not any(words):
        raise JobError(f"against={against!r} names no defence: choose from {known()}")
    return {word: defended(job, word) for word in words if word}


def defended(job: Job, word: str) -> Job:
    """The Job with that defence alone: `none`, `job` (as it stands), `hospital`, or parts as `clip=1.0+int8`.

    `dp_sgd=8` finds the noise for an ε of 8 at a clip of 1, over the Job's rounds.

    Raises JobError for an unknown one, Incompatible for one that does not go with the Job.
    """
    if word == OWN:
        return _learning(job)
    bare = _learning(job.replace(compress=None, privacy=None))
    if word == PLAIN:
        return bare
    parts = [x for text in word.split("+") for x in (presets.HOSPITAL if text == "hospital" else [_part(text, word)])]
    links = [part for part in parts if isinstance(part, Transform)]
    privacies = [part for part in parts if not isinstance(part, Transform)]
    if len({type(x) for x in privacies}) < len(privacies):
        raise JobError(f"defence {word!r}: a Job has one privacy of a kind; name it once")
    return bare.replace(compress=links or None, privacy=privacies or None)


def known() -> str:
    """The words, for people."""
    return ", ".join([PLAIN, OWN, "hospital", *sorted(MAKERS)])


def _part(text: str, word: str) -> Any:
    name, _, value = (x.strip() for x in text.partition("="))
    if name not in MAKERS:
        raise JobError(
            f"there is no defence {name!r} (in {word!r}): choose from {known()}; join two by +, as clip=1+int8"
        )
    try:
        return MAKERS[name](*([_number(value)] if value else []))
    except FoedusError:
        raise
    except (TypeError, ValueError):
        remedy = "leave the number out" if value else f"write {name}=NUMBER"
        raise JobError(f"defence {text!r}: {remedy}") from None


def _number(text: str) -> float:
    return int(text) if text.isdecimal() else float(text)


def _usual(job: Job, sites: int) -> dict[str, Job]:
    protected = job.compress or job.privacy not in (None, PLAIN)
    found = {OWN: _learning(job)} if protected else {}
    found[PLAIN] = defended(job, PLAIN)
    if job.seal is None and sites >= LEAST:
        with suppress(Incompatible):
            found["secagg"] = job.replace(privacy="secagg")
    return found


def _learning(job: Job) -> Job:
    """The Job itself. Raises JobError where nothing in it has gradients that could be read."""
    if job.learner is None or not hasattr(job.learner, "mean_gradient"):
        what = "no learner" if job.learner is None else f"the learner {type(job.learner).__name__}"
        raise JobError(f"this Job has {what}: attack reads gradients, so it takes a TorchLearner or a NumpyLearner")
    return job
