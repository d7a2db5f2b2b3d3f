"""Images held against their rule: their shape, dtype and range.
Arrays and the heads of pictures come in; only counts go out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foedus.params import DTYPES, Array
from foedus.schema.rules import Image
from foedus.schema.sources import Picture, Stack
from foedus.schema.tables import Unreadable

SCALES = ((1 / 255, "0 to 255", "divide them by 255"), (255.0, "0 to 1", "multiply them by 255"))


class ImageCounts(NamedTuple):
    """Of images: how many have another shape or dtype, hold NaN or infinities, do not fit, are not read.

    `fits` counts those that fit once they are scaled, for each of SCALES.
    """

    rows: int = 0
    shape: int = 0
    dtype: int = 0
    odd: int = 0
    misfit: int = 0
    unread: int = 0
    fits: tuple[int, ...] = (0,) * len(SCALES)


def count_images(rule: Image, held: Stack | Picture) -> ImageCounts:
    """The counts of a stack of images, or of one picture."""
    if isinstance(held, Picture):
        return _count_picture(rule, held)
    values = held.values[None] if held.alone and held.values.ndim == len(rule.shape) else held.values
    if values.ndim == 0:
        raise Unreadable("a single number is no image", "give an array with one image for each example")
    rows = len(values)
    if not _alike(rule, values.shape[1:]) or 0 in values.shape[1:]:
        return ImageCounts(rows, shape=rows)
    if values.dtype.name not in ([rule.dtype] if rule.dtype else DTYPES):
        return ImageCounts(rows, dtype=rows)
    return _count_values(rule, values)


def _count_values(rule: Image, values: Array) -> ImageCounts:
    axes = tuple(range(1, values.ndim))  # no reshape: it would copy what is mapped or transposed
    low, high = (x.astype(np.float64) for x in (values.min(axis=axes), values.max(axis=axes)))
    finite = np.isfinite(low) & np.isfinite(high)
    low, high = low[finite], high[finite]
    fits = tuple(int(((low * s >= rule.min) & (high * s <= rule.max)).sum()) for s, *_ in SCALES)
    misfit = int(((low < rule.min) | (high > rule.max)).sum())
    return ImageCounts(len(values), odd=len(values) - len(low), misfit=misfit, fits=fits)


def _count_picture(rule: Image, held: Picture) -> ImageCounts:
    most = np.iinfo(held.dtype).max
    known = rule.min <= 0 and most <= rule.max
    shape = not any(_alike(rule, shape) for shape in held.shapes)
    return ImageCounts(1, int(shape), int(rule.dtype not in ("", held.dtype)), unread=int(not known))


def _alike(rule: Image, shape: tuple[int, ...]) -> bool:
    return len(shape) == len(rule.shape) and all(want in (-1, n) for want, n in zip(rule.shape, shape, strict=True))
