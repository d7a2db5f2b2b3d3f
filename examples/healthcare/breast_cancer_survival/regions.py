"""TCGA-BRCA survival by region (NCI Genomic Data Commons, open access), as prepared and split by FLamby (2022)."""

import csv
import hashlib
import os
from functools import lru_cache
from pathlib import Path

import numpy as np

import foedus as fd

REGIONS = ("Northeast", "South", "West", "Midwest", "Europe", "Canada")  # their numbers in the published split
FEATURES = 39
CHECKSUMS = {
    "brca.csv": "07cb53423f7d579d33cfdbf2cba57b2aee75318b85866c68ce39a75b1f1ba020",
    "train_test_split.csv": "1249c6543a4060ff0fdaf8510fc37017755836db6c9fc5e6af96057c36510990",
}


def folder(given=None):
    """The folder of the two tables: the one given, FOEDUS_DATA/tcga_brca, or one beside this checkout."""
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    for place in (given, *(Path(root) / "tcga_brca" for root in (os.environ.get("FOEDUS_DATA"), beside) if root)):
        if place and all((Path(place) / name).is_file() for name in CHECKSUMS):
            return Path(place)
    raise fd.FoedusError(
        f"there is no tcga_brca/ with {' and '.join(CHECKSUMS)} in FOEDUS_DATA: take them from FLamby's fed_tcga_brca "
        "and name the folder that holds tcga_brca in FOEDUS_DATA"
    )


def checked(place):
    """The same folder. Raises FoedusError where its tables are not the published ones."""
    for name, sum in CHECKSUMS.items():
        if hashlib.sha256((place / name).read_bytes()).hexdigest() != sum:
            raise fd.FoedusError(f"{place / name} is not the table that this example was written for: get it anew")
    return place


@lru_cache(4)
def patients(place):
    """((region, part), x of (n, 39), y of (n, 2): days and whether the patient died) of each part of the split."""
    with open(place / "train_test_split.csv", newline="") as file:
        parts = {row["pid"]: row["fold2"] for row in csv.DictReader(file)}
    with open(place / "brca.csv", newline="") as file:
        head, *rows = csv.reader(file)
    if len(head) != FEATURES + 3 or head[-2:] != ["E", "T"]:
        raise fd.FoedusError(f"{place / 'brca.csv'}: {len(head)} columns, not pid, {FEATURES} covariates, E and T")
    found = {}
    for pid, *numbers in rows:
        if pid in parts:
            found.setdefault(parts[pid], []).append(list(map(float, numbers)))
    return {part: _arrays(np.array(rows)) for part, rows in found.items()}


def _arrays(table):
    x = table[:, :FEATURES].copy()
    x[:, 0] = (x[:, 0] - 60) / 15  # years; all others are 0 or 1
    return x, table[:, [-1, -2]]


def examples(place, region, part):
    """(x, y) of a region's `train` or `test` part."""
    return patients(place)[f"{part}_{REGIONS.index(region)}"]
