"""The gallery's brain tumours in 3D: folders of BraTS and FeTS that the test writes, and a short federation of them."""

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

import foedus as fd
from foedus import jobfile

FOLDER = Path(__file__).parents[1] / "examples" / "healthcare" / "brain_tumour_3d"
OLD, NEW = ("_", ("t1", "t1ce", "t2", "flair")), ("-", ("t1n", "t1c", "t2w", "t2f"))
MODALITIES = ("t1", "t1c", "t2", "flair")


@pytest.fixture(scope="module")
def made():
    """The job. monai imports transformers, for a network that is not used here: that takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        if "monai" not in sys.modules and "transformers" not in sys.modules:
            patch.setitem(sys.modules, "transformers", None)
        return jobfile.imported(FOLDER / "job.py")


def write(folder, name, layout, images, label, leave=()):
    """A case's files, as published."""
    join, words = layout
    (folder / name).mkdir(parents=True)
    for word, voxels in zip((*words, "seg"), (*images, label), strict=True):
        if word not in leave:
            image = nibabel.Nifti1Image(voxels, np.diag([1, 1, 2, 1]))
            nibabel.save(image, folder / name / f"{name}{join}{word}.nii.gz")


def tiny(*labels):
    """Four images of 4 x 4 x 4, each of one number, and a label whose first voxels are these."""
    label = np.zeros(64, np.uint8)
    label[: len(labels)] = labels
    return [np.full((4, 4, 4), n, np.float32) for n in (10, 20, 30, 40)], label.reshape(4, 4, 4)


# of the hash of a patient's name (sha256sum): below 0x99999999 is 60 %, below 0xcccccccc 80 %
HASHES = {
    "BraTS2021_00000": ("a9556b00", "valid"),
    "BraTS2021_00003": ("43fe7a3e", "train"),
    "BraTS-GLI-00000-000": ("dad9dffc", "test"),
    "BraTS-GLI-00000-101": ("dad9dffc", "test"),  # the same patient, later
    "FeTS2022_00000": ("7c161d10", "train"),
    "FeTS2022_01341": ("22518ebe", "train"),
}


def test_a_case_has_one_part_for_good_and_a_patient_too(made):
    for name, (hashed, part) in HASHES.items():
        assert made.brats.part(name) == part, name
        assert int(hashed, 16) / 16**8 < {"train": 0.6, "valid": 0.8, "test": 1}[part]


def test_brats_2021_has_four_modalities_and_1_2_4(made, tmp_path):
    write(tmp_path, "BraTS2021_00003", OLD, *tiny(1, 2, 4, 4))
    write(tmp_path, "BraTS2021_00000", OLD, *tiny(2))
    found = made.brats.split(tmp_path, "A", MODALITIES, "whole", "site")
    image, label = found.train[0]
    assert (len(found.train), len(found.valid), found.test) == (1, 1, None)
    assert image.shape == (4, 4, 4, 4)
    assert image.dtype == np.float32
    assert label.dtype == np.int64
    assert label.sum() == 4
    assert found.train.spacing(0) == (1, 1, 2)
    regions = made.brats.split(tmp_path, "A", ("flair", "t1c"), "regions", "case").train[0][1]
    assert regions.ravel()[:5].tolist() == [2, 1, 3, 3, 0]  # core, oedema, enhancing, enhancing
    assert [(regions >= k).sum() for k in (1, 2, 3)] == [4, 3, 2]  # whole tumour, tumour core, enhancing


def test_brats_2023_has_other_words_and_3_and_a_cavity_is_no_tumour(made, tmp_path):
    write(tmp_path, "BraTS-GLI-00000-000", NEW, *tiny(1, 2, 3, 4))
    [(case, layout)] = made.brats.cases(tmp_path, "A", ("t1c", "t1"))
    assert [path.name[-10:] for path in case.channels] == ["t1c.nii.gz", "t1n.nii.gz"]
    read = made.brats.Tumours(made.brats.Volumes([case], None), [layout], "regions")
    image, label = read[0]
    assert image[:, 0, 0, 0].tolist() == [20, 10]
    assert label.ravel()[:5].tolist() == [2, 1, 3, 0, 0]
    with pytest.raises(fd.FoedusError, match=r"A: none of its cases in .* is for training"):
        made.brats.split(tmp_path, "A")


def test_fets_says_by_a_table_who_has_which(made, tmp_path):
    for name in ("FeTS2022_00000", "FeTS2022_01341"):
        write(tmp_path, name, OLD, *tiny(4))
    table = tmp_path / "partitioning_1.csv"
    table.write_text("Partition_ID,Subject_ID\n1,FeTS2022_00000\n18,FeTS2022_01341\n")
    assert made.brats.hospitals(tmp_path) == {"1": tmp_path, "18": tmp_path}
    names = {site: [case.name for case, _ in made.brats.cases(tmp_path, site, ("t1c",))] for site in ("1", "18")}
    assert names == {"1": ["FeTS2022_00000"], "18": ["FeTS2022_01341"]}
    assert len(made.brats.split(tmp_path, "18").train) == 1
    with pytest.raises(fd.FoedusError, match="no Partition_ID '2': a site is called one of 1, 18"):
        made.brats.split(tmp_path, "2")
    table.write_text("Partition_ID,Subject_ID\n1,FeTS2022_00009\n")
    with pytest.raises(
        fd.FoedusError, match=r"no folder FeTS2022_00009, which partitioning_1.csv gives to 1: unpack it"
    ):
        made.brats.split(tmp_path, "1")
    table.write_text("Institution,Subject_ID\n1,FeTS2022_00000\n")
    with pytest.raises(fd.FoedusError, match="needs these two columns"):
        made.brats.hospitals(tmp_path)
    table.unlink()
    with pytest.raises(fd.FoedusError, match=r"does not say which hospital a case is from: it needs partitioning_1"):
        made.brats.hospitals(tmp_path)


def test_what_does_not_fit_names_the_case_and_the_remedy(made, tmp_path):
    split, name = made.brats.split, "BraTS2021_00003"
    write(tmp_path / "missing", name, OLD, *tiny(), leave=["flair"])
    with pytest.raises(fd.FoedusError, match=rf"{name}: .* has no {name}_flair.nii.gz \(flair\): leave the case out"):
        split(tmp_path / "missing", "A")
    assert len(split(tmp_path / "missing", "A", ("t1c",)).train) == 1  # which is not asked for, is not missed
    write(tmp_path / "label", name, OLD, *tiny(1, 3))
    with pytest.raises(fd.FoedusError, match=rf"{name}: .*seg.nii.gz has the label 3: .* it is one of 0, 1, 2, 4"):
        split(tmp_path / "label", "A").train[0]
    images, label = tiny()
    write(tmp_path / "shape", name, OLD, [*images[:3], images[3][:3]], label)
    with pytest.raises(fd.FoedusError, match=rf"{name}: images of unequal shape .*flair.nii.gz 3x4x4.*: resample them"):
        split(tmp_path / "shape", "A")
    (tmp_path / "none" / "notes").mkdir(parents=True)
    with pytest.raises(fd.FoedusError, match=r"notes: .* has none of notes_t1ce.nii.gz and notes_seg.nii.gz, or "):
        split(tmp_path / "none", "A")
    with pytest.raises(fd.FoedusError, match="holds no cases"):
        split(tmp_path / "nowhere", "A")
    with pytest.raises(fd.FoedusError, match="no modality 'pet': choose from t1, t1c, t2, flair"):
        split(tmp_path / "label", "A", ("pet",))


def test_a_site_normalises_by_its_training_cases_where_there_is_tissue(made, tmp_path):
    for name, low, high in (("BraTS2021_00003", 10, 30), ("BraTS2021_00000", 20, 50)):
        voxels = np.zeros((4, 4, 4), np.float32)
        voxels[0], voxels[1] = low, high
        write(tmp_path, name, OLD, [voxels] * 4, np.zeros((4, 4, 4), np.uint8))
    found = made.brats.split(tmp_path, "A", ("flair",))  # its training case has mean 20 and deviation 10 where not 0
    assert found.train[0][0][0, :, 0, 0].tolist() == pytest.approx([-1, 1, 0, 0])
    assert found.valid[0][0][0, :, 0, 0].tolist() == pytest.approx([0, 3, 0, 0])
    own = made.brats.split(tmp_path, "A", ("flair",), normalise="case")
    assert own.valid[0][0][0, :, 0, 0].tolist() == pytest.approx([-1, 1, 0, 0])


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Two hospitals with a patient to train and one to validate with: a bright cube of 4 in 8 voxels, one ten times as
    bright."""
    folder = tmp_path_factory.mktemp("four")
    for site, scale in (("A", 1.0), ("B", 10.0)):
        for name in ("BraTS2021_00003", "BraTS2021_00000"):
            rng = np.random.default_rng([ord(site), int(name[-1])])
            label = np.zeros((8, 8, 8), np.uint8)
            label[2:6, 2:6, 2:6] = 4
            images = [(scale * (2 + rng.normal(0, 0.2, label.shape) + (label > 0))).astype(np.float32)] * 4
            write(folder / site, name, OLD, images, label)
    return {"A": folder / "A", "B": folder / "B"}


def by_hand(learner, params, data):
    """The mean Dice of the tumour, voxel by voxel, of a model that sees an image whole."""
    import torch

    model, found = learner.module(params), []
    for i in range(len(data)):
        image, label = data[i]
        with torch.no_grad():
            there = model(torch.from_numpy(image)[None])[0].argmax(0).numpy() == 1
        found.append(2 * (there & (label[0] == 1)).sum() / (there.sum() + label.sum()))
    return float(np.mean(found))


def test_two_rounds_measure_dice_as_by_hand_and_norms_stay_at_home(made, four):
    job = made.job("own", rounds=2, epochs=6, window=8, lr=0.03)
    result = job.run(four, seed=1, backend="local")
    own, parts = {}, {site: made.brats.split(folder, site) for site, folder in four.items()}
    for site, split in parts.items():
        own[site] = result.personal(site)
        assert result.per_site[site]["personal_dice_mean"] == pytest.approx(
            by_hand(job.learner, own[site], split.valid), abs=1e-6
        )
    norms = {name.rpartition(".")[0] for name in result.params if name.endswith("running_mean")}
    assert len(norms) == 6  # three on the way down, a step and a unit up, and the last step up
    first = job.learner.init(fd.key(0))
    for name in result.params:
        kept = name.rpartition(".")[0] in norms
        same = np.array_equal(own["A"][name], own["B"][name])
        if kept and not name.endswith("num_batches_tracked"):
            assert not same, name
        if kept and "running" in name:
            assert np.array_equal(result.params[name], first[name]), name  # none of them came to the server
        if not kept:
            assert same, name


def test_fedavg_shares_all_of_it(made, four):
    job = made.job(rounds=1, epochs=1, window=8)
    result = job.run(four, seed=1, backend="local")
    first = job.learner.init(fd.key(0))
    running = [name for name in result.params if name.endswith("running_mean")]
    assert any(not np.array_equal(result.params[name], first[name]) for name in running)
    split = made.brats.split(four["A"], "A")
    assert result.per_site["A"]["dice_mean"] == pytest.approx(
        by_hand(job.learner, result.params, split.valid), abs=1e-6
    )


def test_a_folder_in_foedus_data_is_taken_in_place_of_synthetic_lesions(made, four, monkeypatch):
    root = four["A"].parent
    (root / "data").mkdir()
    (root / "data" / "brats").symlink_to(root, target_is_directory=True)
    monkeypatch.setenv("FOEDUS_DATA", str(root / "data"))
    found = made.sites()
    assert found["A"].resolve() == four["A"]


def test_a_way_of_norms_that_is_none_is_told(made):
    with pytest.raises(fd.FoedusError, match="norms='mine' is one of shared and own"):
        made.job("mine")


def test_a_picture_shows_what_a_sliding_window_sees(made, tmp_path):
    """Of a patient larger than the window, as the learner measures it: the Dice of both is the same."""
    picture = __import__("picture")
    learner = made.job(window=8).learner
    params = learner.init(fd.key(3))
    rng = np.random.default_rng(0)
    image, label = rng.normal(size=(2, 12, 8, 16)).astype(np.float32), rng.integers(0, 2, (1, 12, 8, 16))
    seen = picture.segmented(learner, params, image)
    sums = learner.evaluate(params, [(image, label)], learner.metrics[:1])["dice_mean"]
    assert 0 < seen.sum() < seen.size
    assert sums.tolist() == [[pytest.approx(2 * (seen & (label[0] > 0)).sum() / (seen.sum() + label.sum())), 1]]
    shown = picture.Shown("A", image, label[0] > 0, {"own": seen, "nothing": np.zeros_like(seen)})
    picture.drawn([shown, shown], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_what_is_drawn_is_read_as_it_was_and_each_part_has_its_patients(made, tmp_path):
    volumes = __import__("volumes")
    parts = {"train": 2, "valid": 1, "test": 3}
    names = list(volumes.names("a", parts))
    rng = np.random.default_rng(0)
    truth = rng.choice(np.array([0, 1, 2, 4], np.uint8), volumes.SIZE)
    for i, name in enumerate(names):
        volumes.save(tmp_path / name, np.full((2, *volumes.SIZE), [[[[i + 1]]], [[[i + 101]]]], np.float32), truth)
    found = made.brats.split(tmp_path, "A", target="regions", normalise="case")
    assert {part: len(getattr(found, part)) for part in parts} == parts
    assert found.test.spacing(0) == (4, 4, 4)
    assert np.array_equal(found.test[0][1][0], np.array([0, 2, 1, -1, 3])[truth])  # core, oedema, enhancing
    [(case, _)] = [x for x in made.brats.cases(tmp_path, "A", ("t1c", "flair")) if x[0].name == names[0]]
    whole = made.brats.Volumes([case], None)[0][0]
    assert (whole[0] == 1).all()
    assert (whole[1] == 101).all()


def test_lesions_are_in_tissue_oedema_is_in_white_matter_and_a_rim_is_outside_its_core(made):
    volumes = __import__("volumes")
    h, shape = volumes.HOSPITALS["a"], volumes.SIZE
    off = (np.indices(shape) - np.reshape(shape, (3, 1, 1, 1)) // 2) * volumes.VOXEL
    left = np.indices(shape)[0] < shape[0] // 2
    for seed in range(3):
        anatomy = {"wm": left.astype(float), "gm": np.zeros(shape)}
        truth = volumes.lesion(anatomy, off, 15.0, h, np.random.default_rng(seed))
        assert set(np.unique(truth)) == {0, 1, 2, 4}
        assert not truth[~left].any()  # there is no tissue
        far = [np.sqrt((off**2).sum(0))[truth == label].mean() for label in (volumes.CORE, volumes.ENHANCING)]
        assert far[0] < far[1] < 15 / 0.75 + 6
        assert np.sqrt((off**2).sum(0))[truth > 0].max() < (15 + 12) / 0.75 + 10


@pytest.mark.long
def test_synthetic_hospitals_have_their_patients_and_a_federation_finds_tumours(made, home, monkeypatch):
    monkeypatch.delenv("FOEDUS_DATA", raising=False)
    sites = made.sites(7)
    for site, folder in sites.items():
        split = made.brats.split(folder, site)
        assert [len(split.train), len(split.valid), len(split.test)] == [6, 3, 10]
        image, label = split.train[0]
        assert image.shape == (2, 48, 56, 48)
        assert label.any()
        assert image[1][label[0] > 0].mean() > image[1][(image[1] != 0) & (label[0] == 0)].mean()  # FLAIR is bright
    result = made.job(rounds=10).run(sites, seed=7, backend="local")
    assert result.metrics["test_dice_mean"] > 0.3
