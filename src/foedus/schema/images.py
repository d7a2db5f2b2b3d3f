"""Images held against their rule: their shape, dtype and range.
Arrays and the heads of pictures come in; only counts go out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foedus.params import DTYPES, Array
from foedus.schema.pictures import Picture
from foedus.schema.rules import Image
from foedus.schema.sources import Stack
from foedus.schema.tables import Unreadable

NEAR = 0.01  # of a voxel's size, by which it may differ
SCALES = ((1 / 255, "0 to 255", "divide them by 255"), (255.0, "0 to 1", "multiply them by 255"))


class ImageCounts(NamedTuple):
    """Of images: how many have another shape or dtype, hold NaN or infinities, do not fit, are not read; how many have
    another spacing or modality, or say none.

    `fits` counts those that fit once they are scaled, for each of SCALES.
    """

    rows: int = 0
    shape: int = 0
    dtype: int = 0
    odd: int = 0
    misfit: int = 0
    unread: int = 0
    fits: tuple[int, ...] = (0,) * len(SCALES)
    spacing: int = 0
    modality: int = 0
    unsaid: int = 0


def count_images(rule: Image, held: Stack | Picture) -> ImageCounts:
    """The counts of a stack of images, or of one picture."""
    if isinstance(held, Picture):
        return _count_picture(rule, held)
    values = held.values[None] if held.alone and held.values.ndim == len(rule.shape) else held.values
    if values.ndim == 0:
        raise Unreadable("a single number is no image", "give an array with one image for each example")
    rows = len(values)
    unsaid = rows if rule.spacing or rule.modality else 0
    if not _alike(rule, values.shape[1:]) or 0 in values.shape[1:]:
        return ImageCounts(rows, shape=rows, unsaid=unsaid)
    if values.dtype.name not in ([rule.dtype] if rule.dtype else DTYPES):
        return ImageCounts(rows, dtype=rows, unsaid=unsaid)
    return _count_values(rule, values)._replace(unsaid=unsaid)


def _count_values(rule: Image, values: Array) -> ImageCounts:
    axes = tuple(range(1, values.ndim))  # no reshape: it would copy what is mapped or transposed
    low, high = (x.astype(np.float64) for x in (values.min(axis=axes), values.max(axis=axes)))
    finite = np.isfinite(low) & np.isfinite(high)
    low, high = low[finite], high[finite]
    fits = tuple(int(((low * s >= rule.min) & (high * s <= rule.max)).sum()) for s, *_ in SCALES)
    misfit = int(((low < rule.min) | (high > rule.max)).sum())
    return ImageCounts(len(values), odd=len(values) - len(low), misfit=misfit, fits=fits)


def _count_picture(rule: Image, held: Picture) -> ImageCounts:
    unsaid = (rule.spacing and not held.spacing) or (rule.modality and not held.modality)
    return ImageCounts(
        1,
        shape=int(not any(_alike(rule, shape) for shape in held.shapes)),
        dtype=int(held.dtype not in ([rule.dtype] if rule.dtype else DTYPES)),
        unread=int(held.low < rule.min or held.high > rule.max),
        spacing=int(bool(rule.spacing and held.spacing) and not _near(rule.spacing, held.spacing)),
        modality=int(bool(rule.modality and held.modality) and rule.modality != held.modality),
        unsaid=int(bool(unsaid)),
    )


def _near(wanted: tuple[float, ...], found: tuple[float, ...]) -> bool:
    """Whether voxels have the size that is wanted, to a hundredth; -1 is any."""
    return len(wanted) == len(found) and all(
        a == -1 or abs(b - a) <= NEAR * a for a, b in zip(wanted, found, strict=True)
    )


def _alike(rule: Image, shape: tuple[int, ...]) -> bool:
    return len(shape) == len(rule.shape) and all(want in (-1, n) for want, n in zip(rule.shape, shape, strict=True))
