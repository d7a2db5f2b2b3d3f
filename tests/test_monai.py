"""Medical images: what files hold, what windows see, Dice and distances by hand, and federations of U-Nets."""

from __future__ import annotations

from functools import partial

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandCropByPosNegLabeld, RandFlipd

import foedus as fd
from foedus import midway
from foedus.errors import FoedusError, Incompatible, JobError
from foedus.monai import MonaiLearner, dice, hausdorff, statistics, unet, volumes
from foedus.monai.learner import spacing_of
from foedus.monai.reading import read
from scan_files import dicom, nifti

pytestmark = pytest.mark.long


def ball(seed, size=(16, 16, 8), bright=2.0):
    """A bright ball in noise, and where it is."""
    rng = np.random.default_rng(seed)
    centre = [rng.uniform(4, n - 4) if n > 8 else n / 2 for n in size]
    label = sum((g - c) ** 2 for g, c in zip(np.indices(size), centre, strict=True)) <= 9
    return (1 + rng.normal(scale=0.3, size=size) + bright * label).astype(np.float32), label.astype(np.uint8)


def test_a_series_of_dicom_is_the_nifti_of_the_same_patient(tmp_path):
    voxels = np.arange(4 * 3 * 5, dtype=np.float32).reshape(4, 3, 5)
    dicom(tmp_path / "series", voxels, (0.5, 0.75, 2), slope=0.5)
    affine = np.diag([-0.5, -0.75, 2, 1])  # DICOM's axes go left and posterior
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "same.nii.gz")
    series, file = read(tmp_path / "series"), read(tmp_path / "same.nii.gz")
    assert np.array_equal(series.voxels, file.voxels) and np.array_equal(series.voxels, voxels[::-1, ::-1])
    assert series.spacing == file.spacing == (0.5, 0.75, 2)
    dicom(tmp_path / "hole", voxels, drop=[2])
    with pytest.raises(FoedusError, match="hole: the slices of a series lie unevenly apart; one is missing"):
        read(tmp_path / "hole")


def test_folders_of_cases_are_normalised_by_case_or_by_site(tmp_path):
    for i in range(3):
        image, label = ball(i)
        nifti(tmp_path / "images" / f"p{i}.nii.gz", 10 * image + 5)
        nifti(tmp_path / "labels" / f"p{i}.nii.gz", label)
    found = volumes(tmp_path)
    image, label = found[1]
    assert image.shape == (1, 16, 16, 8) and image.dtype == np.float32 and label.dtype == np.int64
    assert image.mean() == pytest.approx(0, abs=1e-5) and image.std() == pytest.approx(1, abs=1e-4)
    assert found.spacing(1) == (1, 1, 2) and len(volumes(tmp_path, slices=True)) == 24
    assert volumes(tmp_path, slices=True)[9][0].shape == (1, 16, 16)
    raw = volumes(tmp_path, normalise=None)
    every = np.stack([raw[i][0] for i in range(3)])
    mean, deviation = statistics(raw)
    assert mean == pytest.approx([every.mean()], rel=1e-5) and deviation == pytest.approx([every.std()], rel=1e-5)
    own = volumes(tmp_path, normalise=(mean, deviation))
    assert np.stack([own[i][0] for i in range(3)]).std() == pytest.approx(1, abs=1e-4)
    part = fd.Split(raw).with_valid(fd.key(0)).valid
    assert spacing_of(part, 0) == (1, 1, 2) and spacing_of([0], 0) is None


def test_a_folder_a_case_has_channels_and_what_does_not_fit_is_said(tmp_path):
    image, label = ball(0)
    for word, voxels in (("t1", image), ("flair", 2 * image), ("seg", label)):
        nifti(tmp_path / "brats" / "c1" / f"c1_{word}.nii.gz", voxels)
    assert volumes(tmp_path / "brats", ("t1", "flair"))[0][0].shape == (2, 16, 16, 8)
    with pytest.raises(FoedusError, match=r"0 files end in _t2\.nii\.gz"):
        volumes(tmp_path / "brats", ("t2",))
    with pytest.raises(FoedusError, match="holds no cases: it needs images/NAME"):
        volumes(tmp_path / "nothing")
    nifti(tmp_path / "odd" / "images" / "a.nii", image)
    with pytest.raises(FoedusError, match="'a' is in images and not in labels"):
        volumes(tmp_path / "odd")
    nifti(tmp_path / "odd" / "labels" / "a.nii", label[:8])
    with pytest.raises(FoedusError, match="resample images and labels"):
        volumes(tmp_path / "odd")[0]
    nifti(tmp_path / "odd" / "labels" / "a.nii", image)
    with pytest.raises(FoedusError, match="values that are no classes"):
        volumes(tmp_path / "odd")[0]
    (tmp_path / "odd" / "images" / "a.nii").write_bytes(b"nonsense")
    with pytest.raises(FoedusError, match=r"a\.nii cannot be read"):
        volumes(tmp_path / "odd")[0]


def logits(classes, predicted):
    return np.moveaxis(np.eye(classes)[predicted], -1, 1)


def test_dice_and_hausdorff_by_hand():
    true, predicted = np.zeros((2, 1, 8, 8), int), np.zeros((2, 8, 8), int)
    true[0, 0, 2:4, 2:4] = 1  # four pixels, of which two are found, and two others
    predicted[0, 2:4, 3:5] = 1
    true[0, 0, 6, 6] = 2  # not found
    true[1, 0, 1, 1] = predicted[1, 1, 1] = 1
    outputs = logits(3, predicted)
    sums = dice(3).sums(outputs, true)
    assert sums.tolist() == [[0.5 + 1.0, 2], [0, 1]]  # 2·2/(4 + 4) and 1; 0; what neither has is left out
    assert dice(3).value(sums) == pytest.approx((0.75 + 0) / 2)
    far = hausdorff(3, 100)
    assert far.name == "hausdorff100" and far.sums(outputs, true).tolist() == [[1 + 0, 2, 0], [0, 0, 1]]
    assert far.sums(outputs, true, spacing=(1, 2.5)).tolist() == [[2.5, 2, 0], [0, 0, 1]]
    assert far.value(far.sums(outputs, true)) == 0.5 and np.isnan(far.value(np.zeros((2, 3))))


class Cases(list):
    """Cases in memory, whose pixels are 1 by 3 mm."""

    def spacing(self, index):
        return (1.0, 3.0)


def cases(count, first, size=(16, 16), scale=1.0):
    made = (ball(first + i, (*size, 1)) for i in range(count))
    return Cases((scale * image[None, ..., 0], label[None, ..., 0].astype(np.int64)) for image, label in made)


CROP = Compose([
    RandCropByPosNegLabeld(["image", "label"], "label", (8, 8), num_samples=2),
    RandFlipd(["image", "label"], prob=0.5, spatial_axis=0),
])  # fmt: skip


def learner(**more):
    settings = {"optimizer": partial(torch.optim.Adam, lr=1e-2), "window": (8, 8), "metrics": [dice(2), hausdorff(2)]}
    return MonaiLearner(unet(2, channels=(4, 8), residual=0), augment=CROP, **settings | more)


def test_hospitals_train_a_u_net_on_crops_and_keep_their_own_normalisation():
    sites = {
        "a": fd.Split(cases(8, 0), cases(4, 50)),
        "b": fd.Split(cases(8, 100, scale=20.0), cases(4, 150, scale=20.0)),
    }
    job = fd.Job(fd.fedbn(), learner(epochs=3), rounds=4)
    result = job.run(sites, backend="local")
    first, last = result.history[0], result.history[-1]
    assert last["personal_dice_mean"] > max(0.6, first["personal_dice_mean"])
    assert last["personal_loss"] < first["personal_loss"] and last["personal_hausdorff95"] >= 0
    own = {name: result.personal(name) for name in sites}
    norms = [name for name in result.params if "running_mean" in name]
    assert norms and all((own["a"][name] != own["b"][name]).any() for name in norms)
    assert job.run(sites, backend="local").digest == result.digest  # crops and flips are named


def test_a_training_that_is_cut_off_goes_on_with_the_crops_of_a_calm_one(tmp_path, monkeypatch):
    monkeypatch.setattr(midway, "EVERY", 0.0)
    monkeypatch.setattr(midway, "SHARE", 0)

    class Failing(Cases):
        taken = 0

        def __getitem__(self, i):
            self.taken += 1
            if self.taken == 5:
                raise OSError("the share went away")
            return super().__getitem__(i)

    key, made = fd.key(0, 0, 0, "a", "train"), learner(batch_size=2)
    start = made.init(fd.key(0))
    calm = made.train(start, fd.Split(cases(8, 0)), key, None)
    with midway.at(tmp_path / "midway"):
        split = fd.Split(Failing(cases(8, 0)))
        with pytest.raises(OSError, match="went away"):
            learner(batch_size=2).train(start, split, key, None)
        again = learner(batch_size=2).train(start, split, key, None)
    assert split.train.taken == 9  # the fifth case twice
    assert {n: x.tolist() for n, x in again.params.items()} == {n: x.tolist() for n, x in calm.params.items()}


def test_windows_cover_an_image_of_any_size_and_distances_are_in_mm():
    made, data = learner(overlap=0.5), cases(2, 0, size=(24, 13))
    params = made.init(fd.key(0))
    sums = made.evaluate(params, data, ["loss", "dice", dice(2), hausdorff(2, 100)])
    assert sums["loss"][1] == 2 and sums["dice"][1] == 2
    made.machine.load(params)
    made.machine.mode(training=False)
    assert hausdorff(2, 100).sums.keywords == {}
    expected = np.zeros((1, 3))
    with torch.no_grad():
        for image, label in data:
            outputs = made._segmented(torch.from_numpy(image)[None]).numpy()
            assert outputs.shape == (1, 2, 24, 13)
            expected += hausdorff(2, 100).sums(outputs, label[None], spacing=(1.0, 3.0))
    assert np.array_equal(sums["hausdorff100"], expected)


def test_volumes_of_files_train_a_u_net_in_three_dimensions(tmp_path):
    for site in ("a", "b"):
        for i in range(6):
            image, label = ball(i + 10 * (site == "b"))
            place = tmp_path / site
            (dicom if site == "b" else nifti)(
                place / "images" / (f"p{i}" if site == "b" else f"p{i}.nii.gz"), np.rint(100 * image).clip(0)
            )
            nifti(place / "labels" / f"p{i}.nii.gz", label[::-1, ::-1].copy() if site == "b" else label)
    crop = RandCropByPosNegLabeld(["image", "label"], "label", (8, 8, 8), num_samples=2)
    made = MonaiLearner(unet(3, channels=(4, 8), residual=0), window=(8, 8, 8), epochs=4, augment=crop,
                        optimizer=partial(torch.optim.Adam, lr=2e-2), metrics=[dice(2)])  # fmt: skip
    job = fd.Job(fd.fedavg(), made, lambda site: fd.Split(volumes(site.data), volumes(site.data)), rounds=6)
    result = job.run({"a": tmp_path / "a", "b": tmp_path / "b"}, backend="local")
    assert result.metrics["dice_mean"] > 0.6


def test_what_is_no_network_or_window_is_said():
    with pytest.raises(Incompatible, match="clipping them does not clip the case: leave out augment"):
        fd.Job(fd.fedavg(), learner(), rounds=1, privacy=fd.dp_sgd(1.0, noise_multiplier=1.0))
    with pytest.raises(JobError, match="2 or 3 dimensions"):
        unet(4)
    with pytest.raises(JobError, match="overlap=1"):
        learner(overlap=1)
