"""What is shown of an update: names, shapes, dtypes, bytes and norms of its arrays, its weight, its metrics, its seal.
Params and metrics come in, from here or from a site's worker; plain data goes out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foedus import frames
from foedus.errors import WireError
from foedus.files import write_atomic
from foedus.params import Array, Params
from foedus.privacy.secagg import ring_of

MOST_VALUES = 8  # of a metric's array that are shown
Json = dict[str, Any]


def row(
    round: int,
    task: int,
    work: str,
    path: Path,
    weight: float,
    metrics: Mapping[str, Any],
    stateful: bool,
    sealed: Json | None = None,
) -> Json:
    """Everything about the update in the file at `path`; `norm` is that of all its trainable arrays together."""
    data, params = path.read_bytes(), read(path)
    return {
        "round": round, "task": task, "work": work, "file": str(path), "bytes": len(data),
        "digest": hashlib.sha256(data).hexdigest(), "weight": float(weight), "stateful": stateful,
        "norm": norm(*params.trainable().values()), "arrays": arrays(params),
        "metrics": {name: figure(x) for name, x in sorted(metrics.items())}, "sealed": sealed,
    }  # fmt: skip


def read(path: Path) -> Params:
    """The arrays of an update's file. Raises WireError."""
    found = frames.read(path)
    if not isinstance(found, Params):
        raise WireError(f"{path} holds no arrays of a model")
    return found


def arrays(params: Params) -> list[Json]:
    """name, kind, dtype, shape, bytes and norm of each array."""
    return [
        {"name": leaf.name, "kind": leaf.kind, "dtype": leaf.dtype, "shape": list(leaf.shape),
         "bytes": params[leaf.name].nbytes, "norm": norm(params[leaf.name])}
        for leaf in params.spec
    ]  # fmt: skip


def norm(*found: Array) -> float | None:
    """The L2 norm over all numbers of these arrays; None where it is not finite."""
    length = math.sqrt(sum(float(np.square(x.astype(np.float64)).sum()) for x in found))
    return length if math.isfinite(length) else None


def figure(value: Any) -> Json:
    """A metric: its dtype, its shape, and its first numbers."""
    x = np.asarray(value)
    values = {"values": x.reshape(-1)[:MOST_VALUES].tolist()}
    return {"dtype": x.dtype.name, "shape": list(x.shape)} | values | text_of(x)


def text_of(x: Array) -> dict[str, str]:
    """The text of bytes that are JSON, such as a list of levels: whole, for each of its words leaves the site."""
    if x.dtype != np.uint8 or x.ndim != 1:
        return {}
    try:
        return {"text": json.dumps(json.loads(x.tobytes().rstrip()), ensure_ascii=False)}
    except ValueError:
        return {}


def words(params: Params, weight: float, metrics: Mapping[str, Any], bound: float, wmax: float, sites: int) -> Array:
    """The words of a sealed update before its masks: arrays, weight and metrics as whole numbers of the ring."""
    from foedus.privacy import masking
    from foedus.privacy.masking import figures

    part = {leaf.group: params.flats[leaf.group] for leaf in params.spec}
    coded = masking.encode(ring_of(bound, wmax, sites), part, weight)
    return np.concatenate([coded, figures.figures(metrics, figures.announced(metrics))])


def sealed(
    params: Params,
    weight: float,
    metrics: Mapping[str, Any],
    bound: float,
    wmax: float,
    sites: int,
    beside: Path,
) -> Json:
    """What is shown of the words of a sealed update, which are in a file beside that of the update."""
    path, found = beside.with_suffix(".words"), words(params, weight, metrics, bound, wmax, sites)
    data = found.view(np.uint8).data
    write_atomic(path, data, durable=False)
    facts = {"file": str(path), "bytes": found.nbytes, "digest": hashlib.sha256(data).hexdigest()}
    return facts | {"bound": bound, "wmax": wmax, "sites": sites}
