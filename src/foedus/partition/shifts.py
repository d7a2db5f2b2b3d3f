"""What makes equal sites unequal: features that shift, labels that are wrong. Sites come in, and others come out.
All randomness is named by (seed, site), so that these go on top of any partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foedus.data import PARTS, Pairs, Sites, Split
from foedus.errors import FoedusError
from foedus.params import Array
from foedus.partition.dividing import classed, drawn_by


def feature_shift(
    sites: Mapping[str, Any], *, noise: float = 0.0, gain: float = 0.0, offset: float = 0.0, seed: int = 0
) -> Sites:
    """The sites, each as if another device had measured its features: labels and parts stay as they are.

    Site i of n (from 1, in order of their names) gets normal noise of variance `noise` i / n in each number (Li et al.
    2022, ICDE). All its features are multiplied by exp(`gain` g) and raised by `offset` h, with one normal draw g and
    h a site. Features of whole numbers become float64. Raises FoedusError.

    >>> from foedus.partition import iid
    >>> shifted = feature_shift(iid(np.zeros((90, 2)), np.arange(90) % 3, sites=3), offset=1.0)
    >>> {name: len(np.unique(split.train.x)) for name, split in shifted.items()}
    {'site-000': 1, 'site-001': 1, 'site-002': 1}
    """
    for name, value in (("noise", noise), ("gain", gain), ("offset", offset)):
        if not 0 <= value < np.inf:
            raise FoedusError(f"feature_shift({name}={value!r}): it must be 0 or a positive number")
    found = {}
    for i, name in enumerate(sorted(sites)):
        random, deviation = drawn_by(seed, name, "shift").numpy(), np.sqrt(noise * (i + 1) / len(sites))
        g, h = random.standard_normal(2)
        found[name] = {
            part: Pairs(_shifted(data.x, np.exp(gain * g), offset * h, deviation, random), data.y)
            for part, data in _parts(name, sites[name]).items()
        }
    return _again(sites, found)


def label_noise(
    sites: Mapping[str, Any], share: float | Mapping[str, float], *, parts: Sequence[str] = ("train",), seed: int = 0
) -> Sites:
    """The sites with this share of labels wrong: each becomes another label of the data, all as likely.

    `share` is one for all sites, or a mapping site -> share (0 where it has none). Only `parts` are spoilt: what is
    measured stays true by default. Exactly the share of a part, rounded, is wrong. Raises FoedusError.
    """
    shares = share if isinstance(share, Mapping) else dict.fromkeys(sites, share)
    if strangers := sorted(set(shares) - set(sites)):
        raise FoedusError(f"label_noise names {strangers[0]!r}, which is none of the sites")
    if not all(0 <= value <= 1 for value in shares.values()):
        raise FoedusError(f"label_noise(share={share!r}): shares from 0 to 1")
    held = {name: _parts(name, sites[name]) for name in sites}
    labels = np.unique(np.concatenate([_labels(data) for own in held.values() for data in own.values()]))
    if len(labels) < 2 or not set(parts) <= set(PARTS):
        raise FoedusError(f"label_noise(parts={parts!r}): some of {', '.join(PARTS)}, with two labels or more")
    for name, own in held.items():
        for part in [p for p in parts if p in own]:
            key = drawn_by(seed, name, f"label noise {part}")
            own[part] = Pairs(own[part].x, _wrong(own[part].y, labels, shares.get(name, 0.0), key.numpy()))
    return _again(sites, held)


def _parts(name: str, held: Any) -> dict[str, Pairs]:
    found = {part: getattr(held, part, None) for part in PARTS}
    if not isinstance(held, Split) or not all(data is None or isinstance(data, Pairs) for data in found.values()):
        raise FoedusError(f"site {name!r} does not hold arrays: give Sites a Split of (x, y) arrays")
    return {part: data for part, data in found.items() if data is not None}


def _again(sites: Mapping[str, Any], held: Mapping[str, Mapping[str, Pairs]]) -> Sites:
    return Sites({name: Split(**held[name]) for name in sites}, getattr(sites, "classes", ()))


def _shifted(x: Any, scale: float, offset: float, deviation: float, random: np.random.Generator) -> Array:
    values = np.asarray(x)
    kept = values.dtype if values.dtype.kind == "f" else np.dtype(np.float64)
    return np.asarray(scale * values + offset + deviation * random.standard_normal(values.shape), kept)


def _labels(data: Pairs) -> Array:
    """The labels of a part. Raises FoedusError if its targets are not classes."""
    classed(data)
    return np.asarray(data.y)


def _wrong(y: Any, labels: Array, share: float, random: np.random.Generator) -> Array:
    values = np.array(y)
    chosen = random.permutation(len(values))[: int(np.rint(share * len(values)))]
    step = random.integers(1, len(labels), len(chosen))
    values[chosen] = labels[(np.searchsorted(labels, values[chosen]) + step) % len(labels)]
    return values
