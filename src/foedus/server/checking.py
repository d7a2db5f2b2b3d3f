"""Whether an update can be counted: all that a site sent is looked at before its acceptance is journaled.
A file behind a descriptor and the words that the site signed come in; nobody has vouched for either."""

from __future__ import annotations

import base64
import mmap
import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from foedus import frames, measured
from foedus.aggregators.folding import CHECKING, check, check_finite, check_room, opened
from foedus.core import Task, Update
from foedus.errors import FoedusError, Refused, WireError
from foedus.metrics import Metric
from foedus.params import DTYPES, Array, Params

MOST_BUILD = 64  # characters of a build's hash
AGREE = "use the same foedus as the server, or look into the site's agent"


def checked(said: Mapping[str, Any], task: Task, metrics: Collection[Metric], fd: int) -> str:
    """ "" if the update behind `fd` (which is closed) can be counted; else why not, with site, stage and remedy."""
    try:
        size = os.fstat(fd).st_size
        _check(said, mapped(fd), size, task, metrics)
    except Refused as error:
        return str(error)
    except Exception as error:
        why = str(error) if isinstance(error, FoedusError) else f"{type(error).__name__}: {error}"
        return str(Refused(said["site"], CHECKING, why, AGREE))
    return ""


def _check(said: Mapping[str, Any], params: Any, size: int, task: Task, metrics: Collection[Metric]) -> None:
    """Raises Refused for the first thing that is wrong."""
    site = said["site"]
    _check_facts(said, size, site)
    if not isinstance(params, Params):
        raise Refused(site, CHECKING, "the file holds no Params", AGREE)
    update = Update(params, weight_of(said["weight"], site), sums_of(said["metrics"], site))
    if check(update, tuple(task.returns or ()), site).params is not params:
        raise Refused(site, CHECKING, "its arrays are in another order than announced", AGREE)
    check_finite(params, site)
    assert task.aggregator is not None
    update = opened(task.aggregator, update, site)
    if update.params is not params:
        check_finite(update.params, site)
    check_room(task.aggregator, update, site, len(task.sites))
    measured.check(update.metrics, metrics, site, CHECKING)


def _check_facts(said: Mapping[str, Any], size: int, site: str) -> None:
    if said["size"] != size:
        raise Refused(site, CHECKING, f"it has {size} bytes, not the {said['size']!r} that were signed", AGREE)
    if type(said["stateful"]) is not bool:
        raise Refused(site, CHECKING, f"stateful is {said['stateful']!r:.40}, not true or false", AGREE)
    if type(said["build"]) is not str or len(said["build"]) > MOST_BUILD:
        raise Refused(site, CHECKING, f"build is {said['build']!r:.40}, no hash", AGREE)


def weight_of(text: Any, site: str) -> float:
    """A weight as it travels, the text of `float.hex`. Refused for anything else; what it may be is checked later."""
    try:
        return float.fromhex(text)
    except (TypeError, ValueError, OverflowError):
        raise Refused(site, CHECKING, f"weight {text!r:.40} is no number in the form of float.hex", AGREE) from None


def sums_of(metrics: Any, site: str) -> dict[str, Array]:
    """Metrics as they travel in an envelope, as arrays. Refused, with the metric's name, where they cannot be read."""
    if not isinstance(metrics, dict):
        raise Refused(site, CHECKING, f"its metrics are {type(metrics).__name__}, not named sums", AGREE)
    return {name: _sum_of(name, packed, site) for name, packed in metrics.items()}


def _sum_of(name: str, packed: Any, site: str) -> Array:
    try:
        shape = packed["shape"]
        if type(shape) is not list or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"shape {shape!r:.40}")
        data = base64.b64decode(packed["data"], validate=True)
        return np.frombuffer(data, DTYPES[packed["dtype"]]).reshape(shape).copy()
    except (KeyError, TypeError, ValueError) as error:
        why = f"metric {name!r:.60} cannot be read ({type(error).__name__}: {error!s:.80})"
        raise Refused(site, CHECKING, why, AGREE) from None


def mapped(fd: int) -> Any:
    """The tree in the file behind a descriptor, which is closed."""
    try:
        return frames.unpack(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    except ValueError as error:
        raise WireError(f"an empty update file: {error}") from error
    finally:
        os.close(fd)
