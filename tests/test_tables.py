"""Frames divided by time: what is measured is later than what trains, and the moment is no feature."""

from __future__ import annotations

import pandas as pd
import pytest

import foedus as fd
from foedus.errors import FoedusError

FRAME = pd.DataFrame(
    {
        "opened": pd.to_datetime(["2025-08-01", "2025-01-05", "2025-07-01", "2025-06-30", "2025-03-01"]),
        "income": [1.0, 2.0, 3.0, 4.0, 5.0],
        "default": [0, 1, 0, 1, 0],
    }
)


def test_the_test_part_is_what_is_later() -> None:
    split = fd.Split.from_frame(FRAME, label="default", test=fd.after("2025-07-01", on="opened"))
    assert split.train.x[:, 0].tolist() == [2.0, 4.0, 5.0] and split.train.y.tolist() == [1, 1, 0]
    assert split.test.x.tolist() == [[1.0], [3.0]] and split.valid is None  # the day itself is later, too


def test_validation_lies_between_training_and_test() -> None:
    parts = {"valid": fd.after("2025-03-01", on="opened"), "test": fd.after("2025-07-01", on="opened")}
    split = fd.Split.from_frame(FRAME, label="default", **parts)
    assert [part.x[:, 0].tolist() for part in (split.train, split.valid, split.test)] == [[2.0], [4.0, 5.0], [1.0, 3.0]]


def test_numbers_divide_as_dates_do_and_frames_stay_what_they_were() -> None:
    split = fd.Split.from_frame(FRAME.drop(columns="opened"), label="default", test=fd.after(4, on="income"))
    assert len(split.test) == 2 and split.train.x.shape == (3, 0)
    plain = fd.Split.from_frame(FRAME[["income", "default"]], "default", test=FRAME[["income", "default"]])
    assert len(plain.train) == len(plain.test) == 5


@pytest.mark.parametrize(
    ("frame", "when", "on", "why"),
    [
        (FRAME, "2025-07-01", "closed", "no column 'closed': choose from opened, income, default"),
        (FRAME.assign(opened=[None, *FRAME["opened"][1:]]), "2025-07-01", "opened", "has 1 gaps"),
        (FRAME, "soon", "income", "cannot be compared with 'soon'"),
        (FRAME.assign(opened="31.01.2024"), "2025-07-01", "opened", "'opened' is text, .* write dates as 2025-07-01"),
        (FRAME.assign(opened="2024-01-31"), "01.07.2025", "opened", "or '01.07.2025' does not begin with a year"),
    ],
)
def test_a_column_that_says_no_time_is_refused(frame: pd.DataFrame, when: object, on: str, why: str) -> None:
    with pytest.raises(FoedusError, match=why):
        fd.Split.from_frame(frame, label="default", test=fd.after(when, on=on))
