"""The UCI Heart Disease tables of four hospitals (Janosi et al. 1989, CC BY 4.0): from a folder, or the publisher."""

import hashlib
import io
import os
import urllib.request
import zipfile
from pathlib import Path

import numpy as np

import foedus as fd

HOSPITALS = {"cleveland": "cleveland", "hungary": "hungarian", "switzerland": "switzerland", "long_beach": "va"}
COLUMNS = ["age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca"]
COLUMNS += ["thal", "num"]
URL = "https://archive.ics.uci.edu/static/public/45/heart+disease.zip"
CHECKSUMS = {  # SHA-256 of the rows as numbers, so that the spelling of a gap does not count
    "cleveland": "d2126dd67df908b14048dfe8aa3aa54086dedca233b57feb3f23729ab974309a",
    "hungary": "3d06c4765f8967cb7fb6d76069d27a84ba7bed8b0ef261b157bd058676602bee",
    "switzerland": "88862cb3d62158b9e824734d6677a2bc6a5fe8943aa49afe98110d3f21898144",
    "long_beach": "3120a67847dbd3c9ee495ad07456d38b0528bd7a8ed26d454b36d88f17ef4612",
}
RANGES = {"age": (20, 80), "trestbps": (80, 200), "chol": (100, 600), "thalach": (60, 200), "oldpeak": (0, 6)}


def tables():
    """name -> CSV file of each hospital: in FOEDUS_DATA, beside this checkout, or fetched and kept."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    for folder in (os.environ.get("FOEDUS_DATA"), beside, Path.home() / ".cache" / "foedus"):
        found = {name: Path(folder or "") / "heart" / f"{name}.csv" for name in HOSPITALS}
        if folder and all(path.is_file() for path in found.values()):
            return found
    return fetched(Path.home() / ".cache" / "foedus" / "heart")


def fetched(folder, url=URL, checksums=CHECKSUMS):
    """The tables from the publisher; all are checked before any is kept."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            archive = zipfile.ZipFile(io.BytesIO(answer.read()))
    except OSError as error:
        raise fd.FoedusError(
            f"{url} cannot be read ({error}): get the tables and name their folder in FOEDUS_DATA"
        ) from error
    texts = {name: archive.read(f"processed.{file}.data") for name, file in HOSPITALS.items()}
    for name, text in texts.items():
        if checksum(rows(io.StringIO(text.decode()))) != checksums[name]:
            raise fd.FoedusError(f"{url}: the table of {name} is not the one that this example was written for")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.csv").write_bytes(text)
    return {name: folder / f"{name}.csv" for name in texts}


def table(path, name):
    """The CSV file of a hospital, given that file or the folder that holds it."""
    return path / f"{name}.csv" if path.is_dir() else path


def rows(file):
    """A table as an array (n, 14); gaps (`?` or NaN) are NaN."""
    found = np.genfromtxt(file, delimiter=",", missing_values="?", filling_values=np.nan, ndmin=2)
    if found.shape[1] != len(COLUMNS):
        raise fd.FoedusError(f"{file}: a row has {found.shape[1]} columns, the tables have {len(COLUMNS)}")
    return found


def checksum(table):
    return hashlib.sha256(np.round(table, 6).astype("<f8").tobytes()).hexdigest()


def examples(table):
    """(x, y) as FLamby has them: slope, ca and thal dropped, then rows with gaps; categories as dummies.

    Numbers are scaled by fixed clinical ranges, so that no site learns anything of another's data.
    """
    kept = {name: table[:, i] for i, name in enumerate(COLUMNS) if name not in ("slope", "ca", "thal")}
    whole = ~np.isnan(np.stack(list(kept.values()))).any(axis=0)
    kept = {name: column[whole] for name, column in kept.items()}
    scaled = [(kept[name] - low) / (high - low) for name, (low, high) in RANGES.items()]
    codes = [kept[name] == code for name, top in (("cp", 4), ("restecg", 2)) for code in range(1, top + 1)]
    flags = [kept[name] for name in ("sex", "fbs", "exang")]
    x = np.stack([*scaled, *codes, *flags], axis=1).astype(np.float64)
    return x, (kept["num"] > 0).astype(np.int64)


def split(x, y, rng):
    """Two thirds to train with, one third to test."""
    order = rng.permutation(len(x))
    cut = 2 * len(x) // 3
    return fd.Split(train=(x[order[:cut]], y[order[:cut]]), test=(x[order[cut:]], y[order[cut:]]))
