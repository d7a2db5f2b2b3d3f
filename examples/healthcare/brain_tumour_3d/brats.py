"""Folders of BraTS and FeTS as they are published, as a site's Split: a folder a case, or a table of who has which.
foedus.monai reads the files; here is what they are called, what their labels mean, and which case is in which part."""

import csv
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np

import foedus as fd
from foedus.monai.reading import Case, Volumes, statistics

OEDEMA, CORE, ENHANCING = 1, 2, 3  # whole tumour, tumour core and enhancing are each `class >= its number`
TABLE = "partitioning_1.csv"  # by institution
TARGETS = {"whole": 2, "regions": 4}  # classes of a model
KEPT = 2e8  # voxels that stay in memory; larger parts are read again each time


class Layout(NamedTuple):
    """What files of a case are called, {name}{join}{word}.nii.gz, and which class their labels are."""

    join: str
    words: dict
    labels: dict


LAYOUTS = {
    "BraTS 2020 to 2022, FeTS": Layout(
        "_", {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}, {0: 0, 1: CORE, 2: OEDEMA, 4: ENHANCING}
    ),
    "BraTS 2023 and later": Layout(  # 4 is the cavity of an operation (2024), which is no tumour
        "-", {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "flair": "t2f"}, {0: 0, 1: CORE, 2: OEDEMA, 3: ENHANCING, 4: 0}
    ),
}
SEG = "seg"


class Tumours:
    """A dataset of cases: (image of (channels, x, y, z) in float32, classes of (1, x, y, z) in int64).

    `normalise`: (means, deviations) of the site, taken where the image is not 0; None leaves an image as it was read.
    """

    def __init__(self, read, layouts, target="whole", normalise=None):
        self.read, self.layouts, self.target, self.normalise = read, layouts, target, normalise

    def __len__(self):
        return len(self.read)

    def __getitem__(self, index):
        image, label = self.read[index]
        if self.normalise is not None:
            mean, deviation = (np.reshape(x, (-1, 1, 1, 1)) for x in self.normalise)
            image = np.where(image != 0, (image - mean) / deviation, 0).astype(np.float32)
        return image, classes(label, self.read.cases[index], self.layouts[index], self.target)

    def spacing(self, index):
        """The size of the case's voxels in mm."""
        return self.read.spacing(index)


def split(folder, site, modalities=("t1c", "flair"), target="whole", normalise="site"):
    """The site's Split: its cases divided by their names. `normalise`: by the "site" (its training cases), or "case".

    Raises FoedusError with the case and the remedy.
    """
    if target not in TARGETS or normalise not in ("site", "case"):
        raise fd.FoedusError(f"target={target!r} is one of whole and regions, normalise={normalise!r} of site and case")
    found = {"train": [], "valid": [], "test": []}
    for each in cases(folder, site, modalities):
        found[part(each[0].name)].append(each)
    if not found["train"]:
        raise fd.FoedusError(f"{site}: none of its cases in {folder} is for training; it takes part with more of them")
    read = {name: _volumes(part, "case" if normalise == "case" else None) for name, part in found.items() if part}
    own = statistics(read["train"]) if normalise == "site" else None
    return fd.Split(**{
        name: Tumours(volumes, [layout for _, layout in found[name]], target, own) for name, volumes in read.items()
    })  # fmt: skip


def cases(folder, site, modalities):
    """(Case, its Layout) of each of the site's cases, by name, with files that fit each other."""
    places = listed(Path(folder), site)
    if not places:
        raise fd.FoedusError(f"{folder} holds no cases: it needs {_wanted('CASE', ('t1c', SEG))} in a folder CASE each")
    return [_case(place, modalities) for place in places]


def listed(folder, site):
    """The folders of the site's cases: those that the table gives to it, or all where there is no table."""
    if not (folder / TABLE).is_file():
        return sorted(x for x in folder.iterdir() if x.is_dir() and x.name[0] != ".") if folder.is_dir() else []
    by_site = table(folder / TABLE)
    if site not in by_site:
        raise fd.FoedusError(f"{folder / TABLE} has no Partition_ID {site!r}: a site is called one of {_few(by_site)}")
    for name in by_site[site]:
        if not (folder / name).is_dir():
            raise fd.FoedusError(
                f"{folder} has no folder {name}, which {TABLE} gives to {site}: unpack it, or cut its row"
            )
    return [folder / name for name in sorted(by_site[site])]


def table(path):
    """Partition_ID -> the cases' names."""
    found = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            if not row.get("Partition_ID") or not row.get("Subject_ID"):
                raise fd.FoedusError(f"{path}: a row has no Partition_ID or no Subject_ID: it needs these two columns")
            found.setdefault(row["Partition_ID"].strip(), []).append(row["Subject_ID"].strip())
    return found


def hospitals(folder):
    """site -> folder, of a FeTS folder with its table, or of a folder that has a folder of cases for each hospital."""
    if (folder / TABLE).is_file():
        return dict.fromkeys(table(folder / TABLE), folder)
    found = {x.name: x for x in sorted(folder.iterdir()) if x.is_dir() and x.name[0] != "."}
    if not found or any(_layout(place) for place in found.values()):
        raise fd.FoedusError(
            f"{folder} does not say which hospital a case is from: it needs {TABLE} with Partition_ID and Subject_ID, "
            "or a folder for each hospital with its cases in it"
        )
    return found


def part(name):
    """train (60 %), valid (20 %) or test, by a hash of the patient's name: it stays what it is when others come."""
    patient = re.sub(r"^(BraTS-\w+-\d+)-\d{3}$", r"\1", name)  # the last number there is that of the visit
    share = int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) / 16**8
    return "train" if share < 0.6 else "valid" if share < 0.8 else "test"


def classes(label, case, layout, target):
    """Classes of a model, from the labels of a file."""
    odd = sorted(set(np.unique(label).tolist()) - set(layout.labels))
    if odd:
        known = ", ".join(map(str, layout.labels))
        raise fd.FoedusError(f"{case.name}: {case.label} has the label {odd[0]}: in this layout it is one of {known}")
    found = np.array([layout.labels.get(value, 0) for value in range(max(layout.labels) + 1)])[label]
    return (found > 0).astype(np.int64) if target == "whole" else found


def _case(place, modalities):
    layout = _layout(place)
    if layout is None:
        wanted = _wanted(place.name, ("t1c", SEG))
        raise fd.FoedusError(f"{place.name}: {place} has none of {wanted}: download it again")
    unknown = [name for name in modalities if name not in layout.words]
    if unknown:
        raise fd.FoedusError(f"there is no modality {unknown[0]!r}: choose from {', '.join(layout.words)}")
    files = {name: _file(place, layout, name) for name in (*modalities, SEG)}
    missing = [name for name, file in files.items() if file is None]
    if missing:
        remedy = "leave the case out, or train on others" if missing[0] != SEG else "leave the case out"
        wanted = f"{place.name}{layout.join}{layout.words.get(missing[0], SEG)}.nii.gz"
        raise fd.FoedusError(f"{place.name}: {place} has no {wanted} ({missing[0]}): {remedy}")
    _same_grid(place.name, list(files.values()))
    return Case(place.name, tuple(files[name] for name in modalities), files[SEG]), layout


def _layout(place):
    """The layout of which a case has any file, or None."""
    return next((x for x in LAYOUTS.values() if any(_file(place, x, word) for word in (*x.words, SEG))), None)


def _file(place, layout, name):
    stem = f"{place.name}{layout.join}{layout.words.get(name, name)}.nii"
    return next((path for path in (place / f"{stem}.gz", place / stem) if path.is_file()), None)


def _same_grid(name, files):
    """Raises FoedusError unless the headers have one shape."""
    shapes = {path.name: nibabel.load(path).shape for path in files}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{file} {'x'.join(map(str, shape))}" for file, shape in shapes.items())
        raise fd.FoedusError(f"{name}: images of unequal shape ({told}): resample them, or leave the case out")


def _volumes(found, normalise):
    only = [case for case, _ in found]
    voxels = sum(int(np.prod(nibabel.load(case.label).shape)) * (1 + len(case.channels)) for case in only)
    return Volumes(only, normalise, keep=voxels < KEPT)


def _wanted(name, words):
    made = [f"{name}{x.join}{x.words.get(word, word)}.nii.gz" for x in LAYOUTS.values() for word in words]
    return f"{made[0]} and {made[1]}, or {made[2]} and {made[3]}"


def _few(names):
    names = sorted(names, key=lambda name: (len(name), name))
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
