"""Files of NIfTI and DICOM that tests write."""

from __future__ import annotations

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid


def nifti(path, voxels, zooms=(1, 1, 2)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*zooms, 1])), path)


def dicom(folder, voxels, zooms=(1, 1, 2), slope=1.0, drop=(), along=(1, 0, 0, 0, 1, 0), suffix=".dcm", **more):
    """A series of slices along the last axis, whose files are named against their order in space.

    `along`: the directions of a row and of a column; `more`: tags of every file, of which None takes one away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series, normal = generate_uid(), np.cross(along[:3], along[3:])
    for z in set(range(voxels.shape[2])) - set(drop):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.4"
        meta.MediaStorageSOPInstanceUID = generate_uid()
        found = pydicom.Dataset()
        found.file_meta, found.SOPClassUID = meta, meta.MediaStorageSOPClassUID
        found.SOPInstanceUID, found.SeriesInstanceUID = meta.MediaStorageSOPInstanceUID, series
        found.ImageOrientationPatient, found.ImagePositionPatient = list(along), (z * zooms[2] * normal).tolist()
        found.PixelSpacing, found.SliceThickness = [zooms[1], zooms[0]], zooms[2]
        found.RescaleSlope, found.RescaleIntercept = slope, -1
        pixels = np.rint((voxels[:, :, z].T + 1) / slope).astype(np.uint16)  # rows are y
        found.Rows, found.Columns = pixels.shape
        found.SamplesPerPixel, found.PhotometricInterpretation, found.PixelRepresentation = 1, "MONOCHROME2", 0
        found.BitsAllocated, found.BitsStored, found.HighBit = 16, 16, 15
        found.PixelData = pixels.tobytes()
        for name, value in more.items():
            setattr(found, name, value)
            if value is None:
                delattr(found, name)
        found.save_as(folder / f"{99 - z:02}{suffix}", enforce_file_format=True)
