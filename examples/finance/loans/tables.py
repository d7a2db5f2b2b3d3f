"""Loans of Lending Club by US state, as R's modeldata has them: `FOEDUS_DATA/lending_club`, or a state's own file."""

import csv
import hashlib
import os
from functools import lru_cache
from pathlib import Path

import numpy as np

import foedus as fd

STATES = ("CA", "TX", "NY", "FL", "IL", "NJ", "OH", "GA")  # those with most loans
CHECKSUM = "7c6ccf49493974135526d5219239ed8fc68eca73eb081f01e8244fc977bd3c07"  # SHA-256 of the file
PLAIN = {  # column -> (middle, half width): about what a lender knows of such loans without looking at anybody's
    "int_rate": (13, 5),
    "inq_last_6mths": (1, 1),
    "revol_util": (50, 25),
    "delinq_2yrs": (0, 1),
    "open_il_6m": (3, 3),
    "open_il_12m": (1, 1),
    "open_il_24m": (1.5, 1.5),
    "all_util": (60, 20),
    "inq_fi": (1, 1.5),
    "inq_last_12m": (2, 2.5),
    "num_il_tl": (8, 7),
}
MONEY = {  # of the logarithm
    "funded_amnt": (9.5, 0.7),
    "annual_inc": (11.1, 0.6),
    "total_bal_il": (9, 3.5),
    "total_il_high_credit_limit": (9.5, 3.5),
}
FLAGS = {
    "term": ("term_60",),
    "verification_status": ("Source_Verified", "Verified"),
    "emp_length": ("emp_ge_10", "emp_lt_1", "emp_unk"),
}
NAMES = [*PLAIN, *MONEY, "grade", *(f"{column}_{level}" for column, levels in FLAGS.items() for level in levels)]


def tables():
    """state -> the file with its loans: here one file for all of them."""
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    for folder in (os.environ.get("FOEDUS_DATA"), beside):
        file = Path(folder or "") / "lending_club" / "lending_club.csv"
        if folder and file.is_file():
            if hashlib.sha256(file.read_bytes()).hexdigest() != CHECKSUM:
                raise fd.FoedusError(f"{file} is not the table of this example: write modeldata's lending_club anew")
            return dict.fromkeys(STATES, file)
    raise fd.FoedusError(
        "there is no lending_club/lending_club.csv in FOEDUS_DATA: write it from R by "
        "`write.csv(as.data.frame(modeldata::lending_club), 'lending_club.csv')`, and name the folder of lending_club"
    )


@lru_cache(1)
def loans(path):
    """All rows of a file, as mappings."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def examples(path, state):
    """(x, y) of a state's loans; y is 1 for a bad one. Raises FoedusError where a column is not there."""
    rows = [row for row in loans(path) if row.get("addr_state", state) == state]
    if missing := {*PLAIN, *MONEY, *FLAGS, "sub_grade", "Class"} - {*(rows[0] if rows else ())}:
        raise fd.FoedusError(f"{path}: no loans of {state} with the columns {', '.join(sorted(missing))}")
    x = [[_scaled(float(row[name]), *by) for name, by in PLAIN.items()] for row in rows]
    for numbers, row in zip(x, rows, strict=True):
        numbers += [_scaled(np.log1p(float(row[name])), *by) for name, by in MONEY.items()]
        numbers += [_scaled(5 * "ABCDEFG".index(row["sub_grade"][0]) + int(row["sub_grade"][1]), 12, 7)]
        numbers += [row[column] == level for column, levels in FLAGS.items() for level in levels]
    return np.array(x, np.float64), np.array([row["Class"] == "bad" for row in rows], np.int64)


def _scaled(value, middle, half):
    return min(max((value - middle) / half, -4.0), 4.0)
