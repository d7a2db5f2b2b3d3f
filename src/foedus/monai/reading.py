"""A site's volumes: files of NIfTI and series of DICOM as arrays in one orientation, with the size of their voxels.
nibabel and pydicom come in; what is read stays in memory if asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pydicom

from foedus.errors import FoedusError
from foedus.params import Array
from foedus.schema.pictures import placed
from foedus.schema.tables import Unreadable

NIFTI = (".nii", ".nii.gz")
IMAGES, LABELS = "images", "labels"


class Case(NamedTuple):
    """One patient: a file or series for each channel, and the label's."""

    name: str
    channels: tuple[Path, ...]
    label: Path


class Volume(NamedTuple):
    """Voxels along right, anterior and superior, and their size in mm."""

    voxels: Array
    spacing: tuple[float, ...]


class Volumes:
    """A dataset of cases: `volumes[i]` is (image of (channels, x, y, z) in float32, label of (1, x, y, z) in int64).

    With `slices` an example is an axial slice, (channels, x, y) and (1, x, y). `normalise`: "case" takes each channel
    of a case to mean 0 and deviation 1 over what is not 0 there, (means, deviations) are the site's own, None is none.
    """

    def __init__(self, cases: Sequence[Case], normalise: Any = "case", slices: bool = False, keep: bool = True) -> None:
        if normalise not in ("case", None) and not isinstance(normalise, tuple):
            raise FoedusError(f"normalise={normalise!r}: it is 'case', None, or (means, deviations) of this site")
        self.cases, self.normalise, self.slices, self.keep = list(cases), normalise, slices, keep
        self.kept: dict[int, tuple[Array, Array, tuple[float, ...]]] = {}
        depths = [self._case(i)[1].shape[-1] if slices else 1 for i in range(len(self.cases))]
        self.places = [(i, z) for i, depth in enumerate(depths) for z in range(depth)]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Array, Array]:
        case, z = self.places[index]
        image, label, _ = self._case(case)
        return (image[..., z], label[..., z]) if self.slices else (image, label)

    def spacing(self, index: int) -> tuple[float, ...]:
        """The size of the example's voxels (pixels, of slices) in mm."""
        found = self._case(self.places[index][0])[2]
        return found[:2] if self.slices else found

    def _case(self, index: int) -> tuple[Array, Array, tuple[float, ...]]:
        if index in self.kept:
            return self.kept[index]
        case = self.cases[index]
        channels, label = [read(path) for path in case.channels], read(case.label)
        for path, found in zip(case.channels, channels, strict=True):
            if found.voxels.shape != label.voxels.shape:
                raise FoedusError(
                    f"{path} has {found.voxels.shape} voxels and {case.label} {label.voxels.shape}: "
                    "resample images and labels of a case to one grid"
                )
        classes = np.rint(label.voxels)
        if (classes != label.voxels).any() or classes.min() < 0:
            raise FoedusError(f"{case.label} holds values that are no classes: labels are whole numbers from 0")
        image = self._normal(np.stack([found.voxels for found in channels]).astype(np.float32))
        made = image, classes.astype(np.int64)[None], label.spacing
        if self.keep:
            self.kept[index] = made
        return made

    def _normal(self, image: Array) -> Array:
        if self.normalise is None:
            return image
        if isinstance(self.normalise, tuple):
            mean, deviation = (np.asarray(x, np.float32).reshape(-1, 1, 1, 1) for x in self.normalise)
            return np.asarray((image - mean) / deviation)
        for channel in image:
            inside = channel != 0
            if inside.any():
                channel[inside] = (channel[inside] - channel[inside].mean()) / (channel[inside].std() or 1.0)
        return image


def volumes(
    folder: str | os.PathLike[str],
    channels: Sequence[str] = (),
    label: str = "seg",
    normalise: Any = "case",
    slices: bool = False,
    keep: bool = True,
) -> Volumes:
    """The cases of a folder, by name: `images/NAME` beside `labels/NAME`, each a .nii or .nii.gz or a folder of DICOM.

    With `channels`, such as ("t1", "flair"), it has a folder a case, in which files end in `_t1`, … and `_seg` (BraTS,
    FeTS). Raises FoedusError where a file is missing.
    """
    place = Path(folder)
    found = _by_channel(place, channels, label) if channels else _side_by_side(place)
    if not found:
        layout = f"CASE/*_{channels[0]}.nii.gz" if channels else f"{IMAGES}/NAME.nii.gz and {LABELS}/NAME.nii.gz"
        raise FoedusError(f"{place} holds no cases: it needs {layout}")
    return Volumes(found, normalise, slices, keep)


def statistics(found: Volumes) -> tuple[Array, Array]:
    """Means and deviations of each channel over what is not 0, for `normalise`; of volumes read with None."""
    sums = np.zeros((3, len(found.cases[0].channels)))
    for i in range(len(found.cases)):
        for c, channel in enumerate(found._case(i)[0].astype(np.float64)):
            inside = channel[channel != 0]
            sums[:, c] += inside.size, inside.sum(), np.square(inside).sum()
    mean = sums[1] / np.maximum(sums[0], 1)
    return mean, np.sqrt(np.maximum(sums[2] / np.maximum(sums[0], 1) - mean**2, 1e-12))


def read(path: Path) -> Volume:
    """A NIfTI file, or a folder with one DICOM series. Raises FoedusError with the path for what cannot be read."""
    try:
        image = _series(path) if path.is_dir() else nibabel.load(path)
        image = nibabel.as_closest_canonical(image)
        voxels = np.asarray(image.get_fdata(dtype=np.float32))
    except FoedusError:
        raise
    except Exception as error:  # whatever a reader raises for a damaged file
        raise FoedusError(f"{path} cannot be read ({type(error).__name__}: {error}): convert it again") from error
    if voxels.ndim != 3:
        raise FoedusError(f"{path} has {voxels.ndim} axes: a volume has three; give each channel a file of its own")
    if not np.isfinite(voxels).all():
        raise FoedusError(f"{path} holds NaN or Inf: mend or leave out this case")
    return Volume(voxels, tuple(float(x) for x in image.header.get_zooms()[:3]))


def _series(folder: Path) -> Any:
    """The slices of a DICOM series in their order in space, rescaled (PS3.3 C.7.6.2, C.11.1), as a NIfTI image."""
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "."]
    if len({found.SeriesInstanceUID for found in slices}) != 1:
        raise FoedusError(
            f"{folder} holds {len({x.SeriesInstanceUID for x in slices})} DICOM series: keep one a folder"
        )
    try:
        slices, affine = placed(slices)
    except Unreadable as error:
        raise FoedusError(f"{folder}: {error.what}; {error.remedy}") from error
    voxels = [
        found.pixel_array.astype(np.float32) * float(getattr(found, "RescaleSlope", 1))
        + float(getattr(found, "RescaleIntercept", 0))
        for found in slices
    ]
    return nibabel.Nifti1Image(np.stack(voxels, -1).transpose(1, 0, 2), affine)


def _side_by_side(folder: Path) -> list[Case]:
    images, labels = (_named(folder / part) for part in (IMAGES, LABELS))
    for name in sorted(images.keys() ^ labels.keys()):
        part, other = (IMAGES, LABELS) if name in images else (LABELS, IMAGES)
        raise FoedusError(f"{folder}: {name!r} is in {part} and not in {other}")
    return [Case(name, (images[name],), labels[name]) for name in sorted(images)]


def _by_channel(folder: Path, channels: Sequence[str], label: str) -> list[Case]:
    places = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [
        Case(place.name, tuple(_ending(place, name) for name in channels), _ending(place, label)) for place in places
    ]


def _ending(place: Path, word: str) -> Path:
    found = [path for path in place.iterdir() if _stem(path).endswith((f"_{word}", f"-{word}"))]
    if len(found) != 1:
        raise FoedusError(f"{place}: {len(found)} files end in _{word}.nii.gz, and there is to be one")
    return found[0]


def _named(folder: Path) -> dict[str, Path]:
    paths = folder.iterdir() if folder.is_dir() else ()
    return {_stem(path): path for path in paths if path.is_dir() or path.name.endswith(NIFTI)}


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
