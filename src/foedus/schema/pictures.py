"""Pictures and volumes by their heads: size, spacing and bits of PNG, NIfTI and DICOM, told without their values.
Paths come in; nibabel and pydicom are needed for their own files alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foedus.errors import Missing
from foedus.params import Array
from foedus.schema.tables import Unreadable

NIFTI, DICOM = (".nii", ".nii.gz"), (".dcm", ".dicom", ".ima")
SUFFIXES = (".png", *NIFTI, ".dcm")
EVEN = 0.01  # of the distance of two slices, by which others may differ
_PNG = struct.Struct(">8s4x4sIIBB")  # signature, type of the first chunk, width, height, bits, colour type
_CHANNELS = {2: 3, 4: 2, 6: 4}  # by colour type; the others are grey values or a palette
_PREAMBLE = 128  # bytes of a DICOM file before its mark (PS3.10, 7.1)


class Picture(NamedTuple):
    """What a head tells: lengths along its axes in space, channels, dtype, the range its values may have; and if it is
    said, the size of a voxel along these axes in mm, and what took it (DICOM's Modality)."""

    grid: tuple[int, ...]
    channels: int
    dtype: str
    low: float
    high: float
    spacing: tuple[float, ...] = ()
    modality: str = ""

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Those that it may be read in."""
        ways = [(self.channels, *self.grid), (*self.grid, self.channels)]
        return [*ways, self.grid] if self.channels == 1 else ways


def is_picture(path: Path) -> bool:
    """Whether a file is one of these: by its name, or by the mark of DICOM, whose files have any name."""
    return path.name.lower().endswith((".png", *NIFTI)) or is_dicom(path)


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM image, by its name or its mark."""
    if path.suffix.lower() in DICOM:
        return True
    if path.name == "DICOMDIR" or path.name.lower().endswith((".png", *NIFTI)):
        return False
    with path.open("rb") as file:
        return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"


def stem(path: Path) -> str:
    """The name without what says its kind."""
    return path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".png")


def pictures(path: Path) -> Iterator[Picture]:
    """That of a file, or of each series in a folder of DICOM files. Raises Unreadable, or what a library raises."""
    if path.is_dir():
        yield from _series(sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != "." and is_dicom(p)))
    elif path.name.lower().endswith(NIFTI):
        yield _nifti(path)
    elif path.suffix.lower() == ".png":
        yield _png(path)
    else:
        yield from _series([path])


def together(found: Sequence[Picture]) -> Picture:
    """One picture of several channels. Raises Unreadable where they lie on different grids."""
    first = found[0]
    if len({(x.grid, x.spacing) for x in found}) > 1:
        raise Unreadable("the channels of an example differ in size or spacing", "resample them to one grid")
    dtypes, modalities = {x.dtype for x in found}, {x.modality for x in found}
    return first._replace(
        channels=sum(x.channels for x in found),
        dtype=first.dtype if len(dtypes) == 1 else "mixed",
        low=min(x.low for x in found),
        high=max(x.high for x in found),
        modality=first.modality if len(modalities) == 1 else "mixed",
    )


def placed(slices: Sequence[Any]) -> tuple[list[Any], Array]:
    """The slices of a DICOM series in their order in space, and the affine (4 x 4, mm, right-anterior-superior) of
    their stack, (columns, rows, slices) (PS3.3 C.7.6.2). Raises Unreadable where they lie unevenly apart."""
    row, column = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(row, column)
    found = sorted(slices, key=lambda x: float(np.dot(normal, np.array(x.ImagePositionPatient, float))))
    places = np.array([x.ImagePositionPatient for x in found], float)
    steps = np.diff(places @ normal)
    if len(steps) and (steps[0] <= 0 or not np.allclose(steps, steps[0], rtol=EVEN, atol=1e-3)):
        raise Unreadable("the slices of a series lie unevenly apart", "one is missing or twice: export it again")
    thick = float(steps[0]) if len(steps) else float(getattr(found[0], "SliceThickness", 1.0) or 1.0)
    down, across = map(float, found[0].PixelSpacing)  # between rows, between columns
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = row * across, column * down, normal * thick, places[0]
    return found, np.diag([-1, -1, 1, 1]) @ affine


def _png(path: Path) -> Picture:
    """ISO/IEC 15948, clause 11.2.2."""
    with path.open("rb") as file:
        head = file.read(_PNG.size)
    if len(head) < _PNG.size or not head.startswith(b"\x89PNG\r\n\x1a\n"):
        raise Unreadable("the file is no PNG picture", "save it again as PNG")
    _, _, width, height, bits, colour = _PNG.unpack(head)
    dtype = "uint16" if bits == 16 else "uint8"
    return Picture((height, width), _CHANNELS.get(colour, 1), dtype, 0.0, float(np.iinfo(dtype).max))


def _nifti(path: Path) -> Picture:
    """Its axes go right, anterior and superior, as `foedus.monai.volumes` reads them; a fourth one is channels."""
    try:
        import nibabel
    except ImportError as error:
        raise Missing("nibabel", "monai") from error
    image = nibabel.load(path)
    shape, dtype = tuple(map(int, image.shape)), image.get_data_dtype()
    whole = np.iinfo(dtype) if dtype.kind in "iu" else None
    low, high = (float(whole.min), float(whole.max)) if whole else (-np.inf, np.inf)
    ends = _scaled(low, high, float(image.dataobj.slope), float(image.dataobj.inter))
    size = tuple(float(x) for x in image.header.get_zooms())
    grid, spacing = _canonical(shape[:3], size[:3], image.affine)
    return Picture(grid, int(np.prod(shape[3:])), dtype.name, ends[0], ends[1], spacing)


def _scaled(low: float, high: float, slope: float, zero: float) -> tuple[float, float]:
    """The range of values that are stored in this one."""
    ends = low * slope + zero, high * slope + zero
    return min(ends), max(ends)


def _canonical(
    grid: tuple[int, ...], spacing: tuple[float, ...], affine: Array
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Lengths and spacing by the axes that lie closest to right, anterior and superior."""
    if len(grid) < 3:
        return grid, spacing
    import nibabel

    order = np.argsort(nibabel.io_orientation(affine)[:, 0])
    return tuple(grid[int(i)] for i in order), tuple(spacing[int(i)] for i in order)


def _series(paths: Sequence[Path]) -> Iterator[Picture]:
    """Of each series its volume; of one without places in space each picture."""
    try:
        import pydicom
    except ImportError as error:
        raise Missing("pydicom", "monai") from error
    series: dict[str, list[Any]] = {}
    for path in paths:
        found = pydicom.dcmread(path, stop_before_pixels=True)
        series.setdefault(str(getattr(found, "SeriesInstanceUID", path)), []).append(found)
    for slices in series.values():
        alone = len(slices) == 1 or not all(hasattr(x, "ImagePositionPatient") for x in slices)
        yield from map(_slice, slices) if alone else [_volume(slices)]


def _slice(found: Any) -> Picture:
    """A picture of rows and columns, or of several frames."""
    bits, stored = int(found.BitsAllocated), int(getattr(found, "BitsStored", found.BitsAllocated))
    signed = bool(getattr(found, "PixelRepresentation", 0))
    low, high = (-(2.0 ** (stored - 1)), 2.0 ** (stored - 1) - 1) if signed else (0.0, 2.0**stored - 1)
    ends = _scaled(low, high, float(getattr(found, "RescaleSlope", 1)), float(getattr(found, "RescaleIntercept", 0)))
    frames = int(getattr(found, "NumberOfFrames", 1) or 1)
    size = (int(found.Rows), int(found.Columns))
    spacing = getattr(found, "PixelSpacing", None) or getattr(found, "ImagerPixelSpacing", None)
    return Picture(
        (frames, *size) if frames > 1 else size,
        int(getattr(found, "SamplesPerPixel", 1)),
        f"{'' if signed else 'u'}int{bits}",
        ends[0],
        ends[1],
        tuple(map(float, spacing)) if spacing and frames == 1 else (),
        str(getattr(found, "Modality", "")),
    )


def _volume(slices: Sequence[Any]) -> Picture:
    heads = list(map(_slice, slices))
    if len({(x.grid, x.channels, x.dtype) for x in heads}) > 1:
        raise Unreadable("the slices of a series differ in size or bits", "keep one series of one size")
    _, affine = placed(slices)
    rows, columns = heads[0].grid
    size = tuple(float(x) for x in np.linalg.norm(affine[:3, :3], axis=0))
    try:
        grid, spacing = _canonical((columns, rows, len(slices)), size, affine)
    except ImportError as error:
        raise Missing("nibabel", "monai") from error
    return together(heads)._replace(grid=grid, spacing=spacing, channels=heads[0].channels)
