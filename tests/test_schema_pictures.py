"""Images of another size, spacing, number of channels or bits are found by their files' heads, before training."""

from __future__ import annotations

import sys

import nibabel
import numpy as np
import pytest

from foedus.errors import JobError
from foedus.schema import check, read
from foedus.schema.pictures import pictures
from scan_files import dicom, nifti

VOLUME = {"shape": [1, 6, 5, 4], "spacing": [1, 1, 2]}
MASK = {"shape": [1, 6, 5, 4], "dtype": "uint8"}


def voxels(*size, dtype=np.int16):
    return np.arange(np.prod(size)).reshape(size).astype(dtype)


def wrong(data, image, **more):
    """What is wrong with these images, by column."""
    findings = check(read({"scans": {"image": image, **more}}), "scans", data, "north").findings
    assert all(f.site == "north" and f.remedy for f in findings)
    return [f"{f.column}: {f.what}" for f in findings]


def test_a_volume_of_another_size_is_found_with_its_count(tmp_path):
    for i in range(7):
        nifti(tmp_path / f"{i}.nii.gz", voxels(6, 5, 4))
    assert wrong(tmp_path, VOLUME, least_rows=7) == []
    for i in range(5):
        nifti(tmp_path / f"other{i}.nii", voxels(6, 5, 3))
    assert wrong(tmp_path, VOLUME) == ["image: 5 of 12 arrays have not the shape 1 × 6 × 5 × 4"]
    assert wrong(tmp_path, {"shape": [6, 5, -1]}) == []
    assert wrong(tmp_path, {"shape": [6, 5, 4, 1]}) == ["image: 5 of 12 arrays have not the shape 6 × 5 × 4 × 1"]


def test_spacing_and_bits_are_those_of_the_head(tmp_path):
    for i, zooms in enumerate([(1, 1, 2), (1, 1, 2.01), (1, 1, 2.5), (1, 1.1, 2), (1, 2, 1), (2, 1, 1), (3, 3, 3)]):
        nifti(tmp_path / f"{i}.nii.gz", voxels(6, 5, 4), zooms)
    assert wrong(tmp_path, VOLUME) == ["image: 5 of 7 arrays have not the spacing 1 × 1 × 2 mm"]
    assert wrong(tmp_path, VOLUME | {"spacing": [-1, -1, -1]}) == []
    assert wrong(tmp_path, {"shape": [6, 5, 4], "dtype": "int16"}) == []
    assert wrong(tmp_path, {"shape": [6, 5, 4], "dtype": "float32"}) == ["image: 7 of 7 arrays are not float32"]
    assert wrong(np.zeros((3, 6, 5, 4)), {"shape": [6, 5, 4], "spacing": [1, 1, 1]}) == [
        "image: fewer than 5 of fewer than 5 arrays do not say their spacing or modality"
    ]


def test_the_range_that_values_may_have_follows_from_bits_and_scale(tmp_path):
    image = nibabel.Nifti1Image(voxels(6, 5, 4, dtype=np.uint8), np.eye(4))
    image.header.set_slope_inter(2, -10)
    nibabel.save(image, tmp_path / "a.nii")  # 2 x - 10, x from 0 to 255
    assert wrong(tmp_path, {"shape": [6, 5, 4], "min": -10, "max": 500}) == []
    for ends in ({"min": -9}, {"max": 499}):
        assert "whose values are not read" in wrong(tmp_path, {"shape": [6, 5, 4], **ends})[0]
    dicom(tmp_path / "b", voxels(6, 5, 4), BitsStored=12, HighBit=11, slope=0.5)  # 0.5 x - 1, x from 0 to 4095
    assert wrong(tmp_path / "b", {"shape": [6, 5, 4], "min": -1, "max": 2046.5, "dtype": "uint16"}) == []
    assert "whose values are not read" in wrong(tmp_path / "b", {"shape": [6, 5, 4], "max": 2046})[0]


def test_a_series_is_a_volume_with_the_axes_of_the_same_nifti(tmp_path):
    dicom(tmp_path / "p1", voxels(6, 5, 4), (0.5, 0.75, 2), Modality="MR")
    dicom(tmp_path / "p2", voxels(6, 5, 4), (0.5, 0.75, 2), Modality="CT", suffix="")
    rule = {"shape": [1, 6, 5, 4], "spacing": [0.5, 0.75, 2], "dtype": "uint16", "modality": "MR"}
    assert wrong(tmp_path / "p1", rule) == []
    assert wrong(tmp_path, rule) == ["image: fewer than 5 of fewer than 5 arrays are not MR"]
    # sagittal: rows go posterior, columns down; so the last axis of the array goes left
    dicom(tmp_path / "s", voxels(6, 5, 4), (0.5, 0.75, 2), along=(0, 1, 0, 0, 0, -1))
    assert wrong(tmp_path / "s", {"shape": [4, 6, 5], "spacing": [2, 0.5, 0.75]}) == []
    dicom(tmp_path / "hole", voxels(6, 5, 4), drop=[1])
    assert wrong(tmp_path / "hole", rule)[0] == ": the slices of a series lie unevenly apart"


@pytest.mark.long
def test_heads_tell_what_the_reader_of_volumes_reads(tmp_path):
    from foedus.monai.reading import read as volume

    turned = nibabel.Nifti1Image(voxels(6, 5, 4), np.array([[0, 0, -2, 0], [3, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    dicom(tmp_path / "axial", voxels(6, 5, 4), (0.5, 0.75, 2))
    dicom(tmp_path / "sagittal", voxels(6, 5, 4), (0.5, 0.75, 2), along=(0, 1, 0, 0, 0, -1))
    dicom(tmp_path / "oblique", voxels(6, 5, 4), (0.5, 0.75, 2), along=(0.8, 0.6, 0, 0, 0, -1))
    for place in tmp_path.iterdir():
        (head,), whole = pictures(place), volume(place)
        assert head.grid == whole.voxels.shape and head.spacing == pytest.approx(whole.spacing)
        assert head.low <= whole.voxels.min() and whole.voxels.max() <= head.high


def test_pictures_of_one_slice_are_examples_of_their_own(tmp_path):
    for i in range(6):
        dicom(tmp_path, voxels(6, 5, 1), suffix=f".{i}.dcm", ImagePositionPatient=None, Modality="DX")
    rule = {"shape": [1, 5, 6], "spacing": [1, 1], "modality": "DX"}
    assert wrong(tmp_path, rule, least_rows=6) == []
    dicom(tmp_path, voxels(7, 5, 1), suffix=".7.dcm", BitsAllocated=8, PixelData=bytes(36), BitsStored=8, HighBit=7)
    assert wrong(tmp_path, rule | {"dtype": "uint16"}) == [
        "image: fewer than 5 of 7 arrays have not the shape 1 × 5 × 6",
        "image: fewer than 5 of 7 arrays are not uint16",
        "image: fewer than 5 of 7 arrays do not say their spacing or modality",
    ]


def test_images_and_labels_of_one_name_are_examples(tmp_path):
    for name in ("a", "b"):
        nifti(tmp_path / "images" / f"{name}.nii.gz", voxels(6, 5, 4))
        nifti(tmp_path / "labels" / f"{name}.nii.gz", voxels(6, 5, 4, dtype=np.uint8))
    dicom(tmp_path / "images" / "c", voxels(6, 5, 4))
    nifti(tmp_path / "labels" / "c.nii", voxels(6, 5, 4, dtype=np.uint8))
    assert wrong(tmp_path, VOLUME, mask=MASK, least_rows=3) == []
    nifti(tmp_path / "images" / "ward" / "a.nii.gz", voxels(6, 5, 4))
    nifti(tmp_path / "labels" / "ward" / "a.nii.gz", voxels(6, 5, 4, dtype=np.uint8))
    assert wrong(tmp_path, VOLUME, mask=MASK, least_rows=4) == []
    nifti(tmp_path / "images" / "b.nii", voxels(6, 5, 4))  # beside b.nii.gz: it would be two channels
    assert wrong(tmp_path, VOLUME, mask=MASK)[0].startswith(
        "image: fewer than 5 of fewer than 5 arrays have not the shape"
    )
    for extra in ("images/b.nii", "images/ward/a.nii.gz", "labels/ward/a.nii.gz"):
        (tmp_path / extra).unlink()
    nifti(tmp_path / "images" / "c2.nii.gz", voxels(6, 5, 4))
    nifti(tmp_path / "labels" / "a.nii.gz", voxels(6, 5, 3, dtype=np.uint8))
    assert wrong(tmp_path, {"shape": [-1, -1, -1]}, mask={"shape": [-1, -1, -1]}) == [
        ": the image and the mask of an example differ in size (file 1 of 4, in the order of their names)",
        ": an image has no mask, or a mask no image (file 4 of 4, in the order of their names)",
    ]


def test_a_folder_a_case_has_a_file_for_each_channel(tmp_path):
    rule, mask = VOLUME | {"shape": [2, 6, 5, 4], "channels": ["t1", "flair"]}, MASK | {"channels": ["seg"]}
    for case in ("BraTS-1", "BraTS-2"):
        for word in ("t1", "flair"):
            nifti(tmp_path / case / f"{case}_{word}.nii.gz", voxels(6, 5, 4))
        nifti(tmp_path / case / f"{case}-seg.nii.gz", voxels(6, 5, 4, dtype=np.uint8))
    assert wrong(tmp_path, rule, mask=mask, least_rows=2) == []
    assert wrong(tmp_path, {**rule, "shape": [3, 6, 5, 4]}, mask=mask)[0].endswith("have not the shape 3 × 6 × 5 × 4")
    (tmp_path / "BraTS-2" / "BraTS-2_t1.nii.gz").unlink()
    nifti(tmp_path / "BraTS-1" / "BraTS-1_t1.nii.gz", voxels(6, 5, 4), (1, 1, 1))
    assert wrong(tmp_path, rule, mask=mask) == [
        ": the channels of an example differ in size or spacing (file 1 of 2, in the order of their names)",
        ": an example has not one picture for each channel (file 2 of 2, in the order of their names)",
    ]
    with pytest.raises(JobError, match=r"image and mask are both found by `channels`"):
        read({"scans": {"image": rule, "mask": MASK}})


def test_a_damaged_file_or_a_missing_library_is_a_finding_without_its_name(tmp_path, monkeypatch):
    (tmp_path / "mueller.nii.gz").write_bytes(b"\x1f\x8b nothing")
    (tmp_path / "mueller.dcm").write_bytes(bytes(128) + b"DICM")
    found = wrong(tmp_path, VOLUME)
    assert len(found) == 2 and all("cannot be read" in x or "cannot be opened" in x for x in found)
    assert "mueller" not in str(found)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    nifti_only = wrong(tmp_path / "mueller.nii.gz", VOLUME)
    assert nifti_only == [": nibabel is not installed"]


@pytest.mark.parametrize(
    ("image", "what"),
    [
        ({"spacing": [1, 0]}, "spacing = .* is not a list of sizes in mm"),
        ({"spacing": 2}, "is not a list of sizes"),
        ({"spacing": [1, 1, 1]}, "spacing has 3 axes, and shape 2"),
        ({"channels": ["t1", "t1"]}, "each of them once"),
        ({"modality": 3}, "is not a text"),
    ],
)
def test_a_rule_that_makes_no_sense_is_told(image, what):
    with pytest.raises(JobError, match=what):
        read({"scans": {"image": {"shape": [4, 4], **image}}})


def test_a_rule_of_pictures_is_the_same_after_it_was_signed():
    rule = {"shape": [2, 6, 5, 4], "spacing": [0.9, -1, 2], "modality": "MR", "channels": ["t1", "t2"]}
    found = read({"scans": {"image": rule}})
    assert read(found.plain()) == found and found.datasets["scans"].image.spacing == (0.9, -1, 2)
