"""The data contract: schemas that are refused, and a finding for everything that can be wrong with a site's data."""

from __future__ import annotations

import json
import os
import re
import struct
import tempfile
import tomllib
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from foedus import schema
from foedus.data import Pairs, Split, save_split
from foedus.errors import JobError
from foedus.schema import Finding, Report, check, read, table
from foedus.schema import tables as schema_tables
from foedus.schema.counts import Counts, added, count
from foedus.schema.rules import Column
from foedus.wire.plain import canonical, parse

ROOT = Path(__file__).parents[1]
AGE = {"type": "integer", "unit": "years", "min": 0, "max": 120}
SEX = {"type": "code", "codes": [0, 1]}
CHOL = {"type": "number", "unit": "mg/dl", "min": 50, "max": 700, "missing": 0.3}
SMALL = {"age": AGE, "sex": SEX, "chol": CHOL}
ROWS = [(63, 1, 233), (67, 1, 286), (41, 0, 204), (56, 1, 236), (57, 0, 354), (44, 1, 263)]

FILL = "fill the gaps in an adapter, or leave such rows out"
CORRECT = "correct them, or leave such cells empty"
MARKED = "if a number such as 0, -9 or 999 stands for a gap, leave such cells empty"
QUOTE = "quote cells that hold the delimiter, and give every row the same number of cells"
LEAVE = "leave this Job out"

# The table of the UCI repository: 14 columns, no header; the ranges and codes are those of its description.
HEART = {
    "age": {"type": "integer", "unit": "years", "min": 18, "max": 100},
    "sex": {"type": "code", "codes": [0, 1]},
    "cp": {"type": "code", "codes": [1, 2, 3, 4]},
    "trestbps": {"type": "number", "unit": "mmHg", "min": 60, "max": 250, "missing": 0.3},
    "chol": {"type": "number", "unit": "mg/dl", "min": 50, "max": 700, "missing": 0.3},
    "fbs": {"type": "code", "codes": [0, 1], "missing": 0.7},
    "restecg": {"type": "code", "codes": [0, 1, 2], "missing": 0.05},
    "thalach": {"type": "number", "min": 50, "max": 220, "missing": 0.3},
    "exang": {"type": "code", "codes": [0, 1], "missing": 0.3},
    "oldpeak": {"type": "number", "min": -3, "max": 7, "missing": 0.35},
    "slope": {"type": "code", "codes": [1, 2, 3], "missing": 0.5},
    "ca": {"type": "code", "codes": [0, 1, 2, 3], "missing": 1},
    "thal": {"type": "code", "codes": [3, 6, 7], "missing": 1},
    "num": {"type": "code", "codes": [0, 1, 2, 3, 4]},
}


def asked(columns=None, **more):
    return read({"heart": ({"columns": columns} if columns else {}) | more})


def found(columns, data, **more):
    """Column -> what is wrong with it, of data that is held against these columns."""
    findings = check(asked(columns, **more), "heart", data, "north").findings
    assert all(f.site == "north" and f.dataset == "heart" and f.what and f.remedy for f in findings)
    assert len({f.column for f in findings}) == len(findings)
    return {f.column: f"{f.what}; {f.remedy}" for f in findings}


def csv(folder, rows, header="age,sex,chol", name="heart.csv", sep=","):
    path = folder / name
    lines = ([header] if header else []) + [sep.join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# Schemas


def test_a_file_and_a_mapping_give_the_same_schema(tmp_path):
    text = '[heart]\nleast_rows = 50\n[heart.columns]\nchol = {type = "number", unit = "mg/dl", min = 50, max = 700}\n'
    (tmp_path / "schema.toml").write_text(text)
    same = {
        "heart": {"least_rows": 50, "columns": {"chol": {"type": "number", "unit": "mg/dl", "min": 50, "max": 700}}}
    }
    assert read("schema.toml", beside=tmp_path) == read(tmp_path / "schema.toml") == read(same) == read(read(same))
    assert read(same).datasets["heart"].columns["chol"].max == 700
    assert read(None).datasets == {} and read(None).plain() == {}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("nowhere.toml", "schema .*nowhere.toml: No such file or directory; put the TOML file beside the job file"),
        (3, "the schema is int: give the path of a TOML file, or a mapping"),
        ({"heart": 3}, r"schema heart is 3: make it a table, \[heart\]"),
        ({"heart": {}}, "schema heart: it says nothing of the data; add a table `columns` or `image`"),
        ({"heart": {"least_row": 5}}, "schema heart: unknown key 'least_row'; did you mean 'least_rows'"),
        ({"heart": {"columns": SMALL, "least_rows": 0}}, "heart: least_rows = 0 is not a whole number of at least 1"),
        ({"heart": {"columns": SMALL, "least_rows": True}}, "least_rows = True is not a whole number"),
        ({"heart": {"columns": {"7": AGE}}}, "schema heart.columns: '7' is no name"),
        ({"": {"columns": SMALL}}, "schema: '' is no name"),
        ({"scans": {"image": {"dtype": "uint8"}}}, "schema scans.image: 'shape' is missing"),
        ({"scans": {"image": {"shape": [0, 3]}}}, "shape = .* is not a list of lengths"),
        ({"scans": {"image": {"shape": [3], "dtype": "float31"}}}, "'float31' is not a dtype out of float64, float32"),
        ({"scans": {"image": {"shape": [3], "min": 1, "max": 0}}}, "schema scans.image: min = 1 is above max = 0"),
        ({"scans": {"mask": {"shape": [3]}}}, "add a table `columns` or `image`"),
        ({"scans": {"image": {"shape": [3]}, "mask": {"shape": [3]}, "columns": SMALL}}, "in place of `columns`"),
    ],
)
def test_a_schema_that_cannot_be_meant_is_refused_by_name(written, message):
    with pytest.raises(JobError, match=message):
        read(written)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("number", "is 'number': make it a table"),
        ({"min": 3}, ": type = None; every column has one, out of number"),
        ({"type": ["code"]}, r": type = \['code'\]; every column has one"),
        (AGE | {"mx": 3}, ": unknown key 'mx'; did you mean 'max'?"),
        (AGE | {"colour": 3}, ": unknown key 'colour'; the keys are type, unit, min, max"),
        (AGE | {"codes": [1]}, ": 'codes' does not go with type = 'integer'"),
        (AGE | {"min": 130}, ": min = 130 is above max = 120"),
        (AGE | {"min": "low"}, ": min = 'low' is not a finite number"),
        (AGE | {"min": float("nan")}, ": min = nan is not a finite number"),
        (AGE | {"min": "0xnothing"}, ": min = '0xnothing' is not a finite number"),
        (AGE | {"min": 10**400}, ": min = 1.* is not a finite number"),
        (AGE | {"max": True}, ": max = True is not a finite number"),
        (AGE | {"missing": 30}, r": missing = 30 is not a share from 0 to 1 \(0.3 is 30 %\)"),
        (AGE | {"unit": 3}, ": unit = 3 is not a text"),
        (SEX | {"min": 0}, ": 'min' does not go with type = 'code'; its keys: type, codes"),
        (SEX | {"least_each": 0.5}, ": least_each = 0.5 is not a whole number of at least 1"),
        ({"type": "code"}, r": a code needs its list, for example codes = \[0, 1\]"),
        (SEX | {"codes": []}, ": codes = .* is not a list of whole numbers, or of texts, each of them once"),
        (SEX | {"codes": [0, "1"]}, ": codes = .* is not a list of whole numbers, or of texts"),
        (SEX | {"codes": [0, True]}, ": codes = .* is not a list of whole numbers"),
        (SEX | {"codes": [0, 0]}, ": codes = .* each of them once"),
        (SEX | {"codes": [2**53]}, ": codes = .* is not a list of whole numbers"),
    ],
)
def test_a_column_that_cannot_be_meant_is_refused_by_name(rule, message):
    with pytest.raises(JobError, match=f"^schema heart.columns.age ?{message}"):
        read({"heart": {"columns": {"age": rule}}})


def test_a_schema_that_is_no_toml_is_refused_with_its_line(tmp_path):
    (tmp_path / "schema.toml").write_text("[heart]\nleast_rows 5\n")
    with pytest.raises(JobError, match=r"schema .*schema.toml: .*line 2"):
        read("schema.toml", beside=tmp_path)


numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text("abxy_ ä", min_size=1, max_size=4).filter(str.strip)
ranges = st.lists(numbers, min_size=2, max_size=2).map(
    lambda pair: dict(zip(("min", "max"), sorted(pair), strict=True))
)
shares = st.fixed_dictionaries({}, optional={"missing": st.floats(0, 1)})
measured = st.tuples(st.sampled_from(["number", "integer"]), ranges, shares).map(lambda t: {"type": t[0]} | t[1] | t[2])
lists = st.lists(st.integers(-9, 9), min_size=1, max_size=3, unique=True) | st.lists(
    st.text(max_size=3), min_size=1, max_size=3, unique=True
)
coded = st.builds(lambda codes, more: {"type": "code", "codes": codes} | more, lists, shares)
images = st.builds(lambda shape, limits: {"shape": shape} | limits, st.lists(st.integers(1, 9), min_size=1), ranges)
schemas = st.dictionaries(
    names,
    st.dictionaries(names, measured | coded, min_size=1, max_size=3).map(lambda c: {"columns": c})
    | images.map(lambda i: {"image": i}),
)


@pytest.mark.properties
@given(schemas)
def test_the_plain_form_is_json_without_floats_and_gives_the_schema_back(written):
    made = read(written)
    text = canonical(made.plain())
    json.loads(text, parse_float=lambda number: pytest.fail(f"{number} is a float"))
    assert read(parse(text)) == made


# Tables


@pytest.mark.parametrize(
    ("name", "header", "sep", "rows"),
    [
        ("a.csv", "age,sex,chol", ",", ROWS),
        ("a.csv", "", ",", ROWS),
        ("a.csv", "chol,extra,age,sex", ",", [(chol, "x", age, sex) for age, sex, chol in ROWS]),
        ("a.csv", "\ufeffage;sex;chol", ";", ROWS),
        ("a.csv", "age;note, in words, of the doctor;sex;chol", ";", [(a, "x,y,z", s, c) for a, s, c in ROWS]),
        ("a.csv", "", "\t", ROWS),
        ("a.TSV", "age\tsex\tchol", "\t", ROWS),
        ("a.csv", '\n"age","sex","chol"', ",", [('"63"', "1.0", " 233 "), *ROWS[1:], ()]),
    ],
)
def test_data_that_fits_has_no_findings_with_a_header_in_any_order_or_without_one(tmp_path, name, header, sep, rows):
    path = csv(tmp_path, rows, header, name, sep)
    assert check(asked(SMALL, least_rows=6), "heart", path, "north") == Report(6, ())
    assert check(asked(SMALL), "heart", str(path), "north").ok


def test_a_dataset_that_the_schema_does_not_describe_is_not_looked_at():
    assert check(asked(SMALL), "lungs", object(), "north") == Report(None, ())
    assert check(read(None), "heart", "/nowhere", "north").ok


def test_a_finding_names_the_site_the_dataset_the_column_and_the_remedy(tmp_path):
    report = check(asked(SMALL), "heart", csv(tmp_path, [(63, 1, 9999)] * 7), "north")
    assert not report.ok
    assert str(report.findings[0]) == (
        "site 'north', dataset 'heart', column 'chol': 7 of 7 values are outside 50 to 700 mg/dl; "
        "if a number such as 0, -9 or 999 stands for a gap, leave such cells empty"
    )


def test_a_missing_a_misspelt_and_a_doubled_column_are_found(tmp_path):
    path = csv(tmp_path, [(1, 2, 3, 4)] * 6, header="Sex ,chol,chol,weight")
    assert found(SMALL, path) == {
        "age": "the column is missing; add it, rename the one that holds it, or do so in an adapter",
        "sex": "the column is missing, but one is spelled alike; rename it: case and blanks count",
        "chol": "the column is there more than once; keep one of them",
    }


def test_a_header_in_other_words_is_not_taken_for_data(tmp_path):
    path = csv(tmp_path, ROWS, header="alter,geschlecht,cholesterin")
    assert found(SMALL, path).keys() == {"age", "sex", "chol"}
    assert check(asked(SMALL), "heart", path, "north").rows == 6


def test_without_a_header_the_columns_are_counted(tmp_path):
    path = csv(tmp_path, [(*row, 1) for row in ROWS], header="")
    assert found(SMALL, path) == {
        "": "there are 4 columns without names, and the schema has 3; "
        "add a header, or give exactly these columns in this order: age, sex, chol"
    }


def test_without_a_header_a_column_that_does_not_fit_hints_at_the_order(tmp_path):
    path = csv(tmp_path, [(chol, sex, age) for age, sex, chol in ROWS], header="")
    wrong = found(SMALL | {"age": AGE | {"min": 18}, "chol": {"type": "number", "min": 150, "max": 700}}, path)
    assert "6 of 6 values are no whole numbers, or outside 18 to 120 years" in wrong["age"]
    assert "no column has a name, so number 1 is read as 'age': check the order, or add a header" in wrong["age"]
    assert "number 3 is read as 'chol'" in wrong["chol"]
    assert "sex" not in wrong


def test_rows_of_another_length_are_counted_and_left_out(tmp_path):
    path = csv(tmp_path, [*ROWS, *[(1, 2, 3, 4)] * 5])
    assert found(SMALL, path) == {"": f"5 rows have more or fewer cells than the first; {QUOTE}"}
    assert check(asked(SMALL), "heart", path, "north").rows == 6


def test_every_mark_of_a_gap_is_missing_and_too_many_are_found(tmp_path):
    gaps = ["", "NA", "n/a", "NaN", "null", "None", "?", ".", " "]
    path = csv(tmp_path, [(63, 1, gap) for gap in gaps] + ROWS)
    assert found(SMALL, path) == {"chol": f"9 of 15 values are missing, and at most 30 % may be; {FILL}"}
    assert found(SMALL | {"chol": CHOL | {"missing": 0.6}}, path) == {}
    assert "and none may be" in found(SMALL | {"chol": {"type": "number"}}, path)["chol"]


def test_a_column_of_gaps_alone_is_named_as_such_unless_the_schema_allows_all(tmp_path):
    path = csv(tmp_path, [(63, 1, "NaN")] * 9)
    assert found(SMALL, path) == {"chol": "every value is missing; fill the column, or bind other data"}
    assert found(SMALL | {"chol": CHOL | {"missing": 1}}, path) == {}


def test_text_among_numbers_and_infinities_are_counted(tmp_path):
    cells = ["6,1", "high", "1e999", "inf", "<200", "233", "286"]
    path = csv(tmp_path, [(63, 1, f'"{cell}"') for cell in cells])
    assert found(SMALL, path)["chol"].startswith(
        "5 of 7 values are no finite numbers; write plain numbers with a decimal"
    )


def test_values_out_of_range_and_broken_ones_are_counted(tmp_path):
    path = csv(tmp_path, [(63.5, 1, 49)] * 5 + [(63, 1, 701)] * 2 + [(63, 1, 200)] * 10)
    assert found(SMALL, path) == {
        "age": f"5 of 17 values are no whole numbers, or outside 0 to 120 years; {CORRECT}",
        "chol": f"7 of 17 values are outside 50 to 700 mg/dl; {CORRECT}",
    }
    assert "outside 60 and above" in found({"chol": {"type": "number", "min": 60}}, {"chol": [50] * 9})["chol"]
    assert "outside 40 and below" in found({"chol": {"type": "number", "max": 40}}, {"chol": [50] * 9})["chol"]


def test_limits_themselves_fit():
    assert found({"chol": CHOL}, {"chol": [50, 700]}) == {}
    assert "2" not in found({"chol": CHOL}, {"chol": [49.99, 700.01]})["chol"].split(";")[0]


def test_zeros_in_place_of_gaps_are_suspected(tmp_path):
    path = csv(tmp_path, [(63, 1, 0)] * 8 + ROWS)
    assert found(SMALL, path)["chol"] == (f"8 of 14 values are outside 50 to 700 mg/dl; {MARKED}")


def measure(unit, low, high):
    return {"type": "number", "unit": unit, "min": low, "max": high}


@pytest.mark.parametrize(
    ("rule", "values", "looks", "remedy"),
    [
        (CHOL, [6.0, 7.4, 5.3, 6.1, 9.2], "look like mmol/l", "mg/dl: cholesterol × 38.6"),
        (measure("mmol/L", 2, 15), [232, 286, 205, 236], "look like mg/dl", "cholesterol × 0.02586"),
        (AGE | {"min": 18}, [756, 804, 492, 672, 684], "look like months", "convert months to years: time × 0.08333"),
        (AGE | {"min": 18}, [23010, 24472, 14975], "look like days", "time × 0.002738"),
        (measure("°C", 34, 43), [98.6, 99.1, 101], "look like fahrenheit", "temperature × 0.5556 -17.78"),
        (measure("Celsius", 34, 43), [310, 311.5], "look like kelvin", "temperature × 1 -273.1"),
        (measure("mmHg", 60, 250), [16, 18.6, 17.3], "look like kPa", "pressure × 7.501"),
        (measure("cm", 120, 220), [1.78, 1.6, 1.92], "look like m;", "length × 100"),
        (measure("kg", 30, 80), [130, 150, 120], "look like lb", "mass × 0.4536"),
        (measure("µmol/l", 30, 900), [0.9, 1.1, 2], "look like mg/dl", "creatinine × 88.4"),
        (measure("umol/L", 30, 900), [0.9, 1.1, 2], "look like mg/dl", "creatinine × 88.4"),
        (measure("", 100, 900), [0.2, 0.5, 0.7], "look 1,000 times too small", "multiply them by 1,000"),
        (measure("U/l", 1, 9), [20, 50, 70], "look 10 times too large", "divide them by 10"),
        ({"type": "code", "codes": [0, 1, 2, 3]}, [1, 2, 3, 4, 4], "look counted from another", "subtract 1 from each"),
        ({"type": "code", "codes": [1, 2]}, [0, 1, 0, 1, 1], "look counted from another number", "add 1 to each"),
    ],
)
def test_values_in_another_unit_or_count_are_recognised(rule, values, looks, remedy):
    wrong = found({"a": rule}, {"a": np.array(values, dtype=float)})["a"]
    assert looks in wrong and remedy in wrong


def test_a_few_values_out_of_range_are_no_other_unit():
    assert "look" not in found({"age": AGE | {"min": 18}}, {"age": [756, 804, *range(20, 90)]})["age"]


def test_codes_that_are_not_in_the_list_are_counted(tmp_path):
    wards = ["A", "B", "a", "B ", "C", "D", "?"] * 3
    rule = {"ward": {"type": "code", "codes": ["A", "B"], "missing": 0.2}}
    assert found(rule, csv(tmp_path, zip(wards, strict=True), header="ward")) == {
        "ward": "12 of 21 values are none of the codes A, B; write the codes as in the schema: case and blanks count"
    }
    assert (
        "5 of 11 values are none of the codes 0, 1"
        in found(SMALL, csv(tmp_path, [(63, sex, 200) for sex in ["m", 7, 0.5, "f", 3]] + ROWS))["sex"]
    )


def test_a_code_that_is_spelled_like_a_gap_is_a_code(tmp_path):
    rule = {"region": {"type": "code", "codes": ["EU", "NA"]}}
    assert found(rule, csv(tmp_path, [("NA",), ("EU",)], header="region")) == {}


def test_a_class_that_is_missing_or_rare_is_found():
    rule = {"ill": {"type": "code", "codes": [0, 1, 2, 3], "least_each": 2}}
    assert found(rule, {"ill": [0, 0, 1, 1, 1, 2]}) == {
        "ill": f"too few rows have the codes 2, 3: the Job needs 2 of each; bind data with more of them, or {LEAVE}"
    }
    text = {"ill": {"type": "code", "codes": ["no", "yes"], "least_each": 1}}
    assert found(text, {"ill": np.array(["no", "no"])})["ill"].startswith("too few rows have the codes yes: ")
    assert found(text, {"ill": np.array(["no", "yes"])}) == {}


def test_text_is_only_searched_for_gaps(tmp_path):
    path = csv(tmp_path, [("anything",), ("1",), ("?",), ("NA",)] * 2, header="note")
    assert found({"note": {"type": "text"}}, path)["note"].startswith("fewer than 5 of 8 values are missing")
    assert found({"note": {"type": "text", "missing": 0.5}}, path) == {}


@pytest.mark.parametrize(
    ("rows", "least", "what"),
    [
        (6, 50, "it holds 6 rows, and the Job needs at least 50"),
        (3, 50, "it holds fewer than 5 rows, and the Job needs at least 50"),
        (2, 3, "it holds fewer than 3 rows, and the Job needs at least 3"),
        (0, 1, "it holds no rows, and the Job needs at least 1"),
    ],
)
def test_too_few_rows_are_found(tmp_path, rows, least, what):
    path = csv(tmp_path, ROWS[:rows])
    assert found(SMALL, path, least_rows=least)[""] == f"{what}; bind more data, or leave this Job out"
    assert found(SMALL, path, least_rows=max(rows, 1)) == ({} if rows else found(SMALL, path, least_rows=1))


# Files that cannot be read


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.csv", b"", "the file is empty; bind a file that holds data"),
        ("a.csv", b"\n \r\n", "the file holds no rows"),
        ("a.csv", "größe,sex\n1,2\n".encode("latin-1"), "the file is no UTF-8 text; save it as UTF-8 CSV"),
        ("a.csv", "age,sex\n1,2\n".encode("utf-16"), "the file is no UTF-8 text"),
        ("a.csv", b'age,sex,chol\n"' + b"x" * 200_000, "it cannot be read (Error); open it at the site to see why"),
        ("a.npy", b"not an array", "it cannot be read (ValueError)"),
        ("a.npz", b"PK\x03\x04 not an archive", "it cannot be read (BadZipFile)"),
        ("a.safetensors", b"\xff" * 40, "it cannot be read (WireError)"),
        (
            "a.bmp",
            b"BM",
            "this kind of file is not checkable (.csv, .tsv, .parquet, .npy, .npz, .safetensors, .png, .nii, .nii.gz, ",
        ),
        ("heart", b"63,1,233", "this kind of file is not checkable"),
        ("a.png", b"\x89PNG", "a picture holds no columns; give an adapter whose adapt(path, name) returns"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_finding(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    wrong = found(SMALL, tmp_path / name)
    assert wrong[""].startswith(what) and len(wrong) == 1
    assert check(asked(SMALL), "heart", tmp_path / name, "north").rows is None


def test_a_file_that_is_not_there_or_forbidden_is_a_finding(tmp_path, monkeypatch):
    gone = "it cannot be opened (No such file or directory); check the path and what the agent's user may read"
    assert found(SMALL, tmp_path / "gone.csv") == {"": gone}

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/srv/secret.csv")

    monkeypatch.setattr(Path, "open", refuse)
    assert found(SMALL, csv_by_os(tmp_path)) == {"": gone.replace("No such file or directory", "Permission denied")}


def csv_by_os(folder):
    with open(folder / "heart.csv", "w") as file:
        file.write("age\n3\n")
    return folder / "heart.csv"


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(schema_tables, "MOST_LINE", 1000)
    path = csv(tmp_path, [*ROWS, ("1" * 2000, 1, 1)])
    assert found(SMALL, path)[""].startswith("a line of the file has no end")


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert found(SMALL, tmp_path / "a.npy")[""].startswith("it cannot be read (ValueError)")


def test_parquet_goes_through_pandas_and_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")

    def without(_):
        raise ImportError("no engine")

    monkeypatch.setattr(pandas, "read_parquet", without)
    assert found(SMALL, path)[""].startswith(
        "pandas with pyarrow is not installed; pip install 'foedus[parquet]', or bind"
    )
    monkeypatch.setattr(pandas, "read_parquet", lambda _: pandas.DataFrame(ROWS, columns=list(SMALL)))
    assert found(SMALL, path) == {}


# Frames, arrays, Splits


def test_a_frame_goes_by_name_and_keeps_its_own_gaps():
    frame = pandas.DataFrame(ROWS, columns=list(SMALL))[["chol", "age", "sex"]]
    frame["age"] = frame["age"].astype("Int64")
    frame["sex"] = frame["sex"].astype(str).astype("category")
    assert found(SMALL, frame) == {}
    frame.loc[:4, "age"] = pandas.NA
    assert "5 of 6 values are missing" in found(SMALL, frame)["age"]
    assert found(SMALL, frame.drop(columns="sex"))["sex"].startswith("the column is missing")
    assert found({"note": {"type": "text"}}, pandas.DataFrame({"note": ["a", None, "b"]}))["note"].startswith(
        "fewer than 5 of"
    )


def test_a_frame_without_names_goes_by_order():
    assert found(SMALL, pandas.DataFrame(ROWS)) == {}
    assert "columns without names" in found(SMALL, pandas.DataFrame(ROWS)[[0, 1]])[""]


def test_arrays_go_by_order_the_features_first():
    x, y = np.array([(age, sex) for age, sex, _ in ROWS]), np.array([chol for *_, chol in ROWS])
    named = pandas.DataFrame(x, columns=["sex", "age"]), pandas.Series(y, name="chol")
    for data in ((x, y), Pairs(x, y), (x.tolist(), y.tolist()), (torch.tensor(x), torch.tensor(y)), (x, y[:, None])):
        assert found(SMALL, data) == {}, data
    assert found(SMALL, np.column_stack([x, y])) == {}
    assert found(SMALL, named).keys() == {"sex"}
    assert found(SMALL, (x, y[:3]))[""].startswith("its columns differ in length, or there are none")
    assert found(SMALL, (np.zeros((6, 2, 2)), y))[""].startswith("an array of 3 axes holds no columns")


def test_all_parts_of_a_split_are_checked_together():
    rows = np.array(ROWS, dtype=float)
    split = Split(train=(rows[:4, :2], rows[:4, 2]), test=(rows[4:, :2], rows[4:, 2]))
    assert check(asked(SMALL, least_rows=6), "heart", split, "north") == Report(6, ())
    rows[5, 2] = 9999
    assert "fewer than 5 of 6 values are outside" in found(SMALL, split_of(rows))["chol"]


def split_of(rows):
    return Split(train=(rows[:4, :2], rows[:4, 2]), test=(rows[4:, :2], rows[4:, 2]))


@pytest.mark.parametrize(
    "data", [object(), 7, [1, 2], None, b"x", Split(train=torch.utils.data.TensorDataset(torch.ones(2)))]
)
def test_other_objects_are_not_checkable_and_say_so(data):
    wrong = found(SMALL, data)[""]
    assert (
        "is not checkable; give an adapter whose adapt(path, name) returns a data frame, (x, y) arrays or a Split"
        in wrong
    )


def test_an_object_that_raises_is_a_finding():
    class Cursed:
        iloc = columns = None

        def items(self):
            raise RuntimeError("the patient's name")

    assert found(SMALL, Cursed()) == {
        "": "it cannot be read (RuntimeError); open it at the site to see why; save it again"
    }


def test_arrays_by_name_are_columns_or_x_and_y(tmp_path):
    age, sex, chol = (np.array(column) for column in zip(*ROWS, strict=True))
    np.savez(tmp_path / "named.npz", age=age, sex=sex, chol=chol, about=np.arange(3))
    np.savez(tmp_path / "pair.npz", x=np.column_stack([age, sex]), y=chol)
    np.save(tmp_path / "one.npy", np.array(ROWS))
    save_split(tmp_path / "split.safetensors", split_of(np.array(ROWS, dtype=float)))
    for data in ({"age": age, "sex": sex, "chol": chol}, *(tmp_path / n for n in ("named.npz", "pair.npz", "one.npy"))):
        assert check(asked(SMALL), "heart", data, "north") == Report(6, ()), data
    assert check(asked(SMALL), "heart", tmp_path / "split.safetensors", "north") == Report(6, ())
    np.savez(tmp_path / "odd.npz", a=age, b=sex)
    assert found(SMALL, tmp_path / "odd.npz")[""].startswith(
        "none of its arrays is named x or image; name them x and y"
    )
    assert found(SMALL, {"age": age, "chol": chol})["sex"].startswith("the column is missing")


# Images


def png(path, width, height, colour=0, bits=8):
    """A PNG file of zeros."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + bytes(width * bits // 8 * {0: 1, 2: 3}[colour])
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * height)) + chunk(b"IEND", b"")
    )


SCAN = {"shape": [2, 4, 4], "dtype": "float32", "min": -10, "max": 10}


def scans(count=8, dtype=np.float32):
    return np.linspace(-1, 1, count * 32).reshape(count, 2, 4, 4).astype(dtype)


def images_found(rule, data, **more):
    return found(None, data, image=rule, **more)


def test_images_that_fit_have_no_findings_however_they_are_kept(tmp_path):
    np.save(tmp_path / "all.npy", scans())
    (tmp_path / "apart" / "ward").mkdir(parents=True)
    for number, scan in enumerate(scans()):
        np.save(tmp_path / "apart" / "ward" / f"{number}.npy", scan)
    (tmp_path / "apart" / "README.txt").write_text("not an image")
    (tmp_path / "apart" / ".hidden.npy").write_text("not an image")
    split = Split(train=(scans()[:5], np.zeros(5)), test=(scans()[5:], np.zeros(3)))
    save_split(tmp_path / "split.safetensors", split)
    for data in (
        scans(),
        (scans(), None),
        split,
        torch.tensor(scans()),
        *(tmp_path / n for n in ("all.npy", "apart", "split.safetensors")),
    ):
        assert check(asked(None, image=SCAN, least_rows=8), "heart", data, "north") == Report(8, ())
    assert images_found(SCAN | {"shape": [2, -1, 4]}, scans()) == {}


def test_images_of_another_shape_or_dtype_are_counted(tmp_path):
    assert images_found(SCAN, scans().transpose(0, 2, 3, 1)) == {
        "image": "8 of 8 arrays have not the shape 2 × 4 × 4; resample, crop or transpose them in an adapter"
    }
    assert images_found(SCAN, scans(dtype=np.float64))["image"].startswith(
        "8 of 8 arrays are not float32; convert them"
    )
    assert images_found({"shape": [2]}, np.array([["a", "b"]]))["image"].startswith(
        "fewer than 5 of fewer than 5 arrays are not num"
    )
    assert images_found(SCAN | {"shape": [-1, 2]}, np.zeros((8, 2)))["image"].startswith(
        "8 of 8 arrays have not the shape any × 2"
    )
    assert images_found(SCAN | {"shape": [2, -1, 4]}, np.zeros((8, 2, 0, 4), np.float32))["image"].startswith(
        "8 of 8 arrays have not the shape"
    )
    assert images_found(SCAN, np.float32(3))[""].startswith("a single number is no image")


def test_nan_and_values_out_of_range_are_counted_by_image():
    held = scans()
    held[:4, 0, 0, 0], held[4, 0, 0, 0] = np.nan, np.inf
    assert images_found(SCAN, held)["image"].startswith("5 of 8 arrays hold NaN or infinities")
    held[5:, 1, 1, 1] = -11
    wrong = check(asked(None, image=SCAN), "heart", held, "north").findings
    assert [f.what for f in wrong] == [
        "5 of 8 arrays hold NaN or infinities",
        "fewer than 5 of 8 arrays hold values outside -10 to 10",
    ]


def test_images_on_the_scale_of_bytes_are_recognised():
    grey = {"shape": [4, 4], "min": 0, "max": 1}
    held = np.full((8, 4, 4), 200, np.uint8)
    assert (
        images_found(grey, held)["image"]
        == "8 of 8 arrays hold values outside 0 to 1, and look like 0 to 255; divide them by 255"
    )
    assert images_found(grey | {"min": 10, "max": 255}, np.full((8, 4, 4), 0.5))["image"].endswith(
        "look like 0 to 1; multiply them by 255"
    )


def test_half_precision_is_read(tmp_path):
    from foedus.params import DTYPES

    held = {"image": scans().astype(DTYPES["bfloat16"])}
    assert images_found(SCAN | {"dtype": "bfloat16"}, held) == {}
    assert "outside 0 to 10" in images_found(SCAN | {"dtype": "bfloat16", "min": 0}, held)["image"]


def test_masks_and_columns_are_targets_of_images(tmp_path):
    rule, masks = {"shape": [1, 4, 4], "dtype": "uint8", "max": 1}, np.ones((8, 1, 4, 4), np.uint8)
    assert images_found(SCAN, (scans(), masks), mask=rule) == {}
    assert images_found(SCAN, {"image": scans(), "mask": masks * 2}, mask=rule)["mask"].startswith(
        "8 of 8 arrays hold values outside 1 and"
    )
    assert images_found(SCAN, scans(), mask=rule)[""].startswith("there is no mask, which the schema asks for")
    assert images_found(SCAN, (scans(), masks[:7]), mask=rule)[""].startswith(
        "the examples differ in number (8 of image, 7 of mask)"
    )
    label = {"grade": {"type": "code", "codes": [1, 2]}}
    grades = np.array([1, 2] * 4)
    assert found(label, (scans(), grades), image=SCAN) == {}
    assert found(label, {"image": scans(), "grade": grades}, image=SCAN) == {}
    assert "none of the codes 1, 2" in found(label, (scans(), grades * 3), image=SCAN)["grade"]


def test_a_folder_holds_tables_and_images_of_one_dataset(tmp_path):
    for number, scan in enumerate(scans(6)):
        np.savez(tmp_path / f"{number}.npz", image=scan)
    csv(tmp_path, ROWS[:3], name="a.csv")
    csv(tmp_path, ROWS[3:], name="b.csv")
    assert found(SMALL, tmp_path, image=SCAN, least_rows=6) == {}
    assert found(SMALL, tmp_path, least_rows=6) == {}
    (tmp_path / "b.csv").unlink()
    assert found(SMALL, tmp_path, image=SCAN)[""].startswith(
        "the examples differ in number (6 of image, fewer than 5 of columns)"
    )


def test_a_bad_file_of_a_folder_is_named_by_its_place_and_the_others_are_checked(tmp_path):
    for number in range(8):
        csv(
            tmp_path,
            ROWS,
            name=f"patient-mueller-{number}.csv",
            header="age,sex" if number in (1, 6) else "age,sex,chol",
        )
    (tmp_path / "patient-mueller-4.csv").write_bytes(b"")
    wrong = check(asked(SMALL), "heart", tmp_path, "north").findings
    assert [f.what for f in wrong] == [
        "the column is missing (file 2, 7 of 8, in the order of their names)",
        "the file is empty (file 5 of 8, in the order of their names)",
        "12 rows have more or fewer cells than the first",
    ]
    assert "mueller" not in str(wrong)


def test_a_folder_without_anything_to_check_says_so(tmp_path):
    (tmp_path / "scan.bmp").write_bytes(b"BM")
    assert images_found(SCAN, tmp_path)[""].startswith("the folder holds no file that is checkable (.csv, .tsv,")


def test_png_pictures_are_checked_by_their_head(tmp_path):
    png(tmp_path / "a.png", width=6, height=4)
    png(tmp_path / "b.png", width=6, height=4)
    grey = {"shape": [4, 6], "dtype": "uint8", "min": 0, "max": 255}
    assert images_found(grey, tmp_path, least_rows=2) == {}
    assert (
        images_found(grey | {"shape": [1, 4, 6]}, tmp_path) == images_found(grey | {"shape": [4, 6, 1]}, tmp_path) == {}
    )
    assert "have not the shape 6 × 4" in images_found(grey | {"shape": [6, 4]}, tmp_path)["image"]
    png(tmp_path / "c.png", width=6, height=4, colour=2, bits=16)
    colour = {"shape": [3, 4, 6], "dtype": "uint16", "min": 0, "max": 65535}
    assert (
        images_found(colour, tmp_path / "c.png")
        == {}
        == images_found(colour | {"shape": [4, 6, 3]}, tmp_path / "c.png")
    )
    assert "are not uint8" in images_found(colour | {"dtype": "uint8"}, tmp_path / "c.png")["image"]
    assert (
        "PNG, NIfTI or DICOM, whose values are not read"
        in images_found(colour | {"max": 1000}, tmp_path / "c.png")["image"]
    )
    assert (
        "PNG, NIfTI or DICOM, whose values are not read"
        in images_found(colour | {"min": 1}, tmp_path / "c.png")["image"]
    )
    assert "have not the shape" in images_found(colour | {"shape": [4, 6]}, tmp_path / "c.png")["image"]
    (tmp_path / "c.png").write_bytes(b"GIF89a" + bytes(40))
    assert images_found(colour, tmp_path / "c.png")[""].startswith("the file is no PNG picture")


# Nothing of the data leaves


def test_no_value_no_file_name_and_no_foreign_column_is_in_a_report(tmp_path):
    secret = "mueller"
    rows = [(secret, 7777, f"{secret}@example.org")] * 3 + [(63, 1, 233)] * 3 + [(1, 2, 3, secret)]
    for header in ("age,sex,chol", f"{secret},sex,weight", "", f"age,age,{secret}"):
        path = csv(tmp_path, rows, header=header, name=f"{secret}.csv")
        report = check(asked(SMALL, image=SCAN, least_rows=90), "heart", path, "north")
        assert report.findings
        assert secret not in str(report) and "7777" not in str(report)
    (tmp_path / f"{secret}.{secret}").write_text(secret)
    for odd in (tmp_path / f"{secret}.{secret}", tmp_path / secret, {secret: np.array([secret])}):
        assert secret not in str(check(asked(SMALL), "heart", odd, "north"))


def test_small_counts_are_blurred_and_so_is_a_small_number_of_rows():
    wrong = found({"a": {"type": "number", "max": 1}}, {"a": [2.0] * 4 + [0.5] * 4})["a"]
    assert wrong.startswith("fewer than 5 of 8 values are outside 1 and below")
    assert found({"a": {"type": "number", "max": 1}}, {"a": [2.0] * 5 + [0.5] * 4})["a"].startswith("5 of 9 values")
    assert Report(4).plain() == {"rows": "fewer than 5", "findings": []}
    assert Report(5).plain()["rows"] == 5 and Report(None).plain()["rows"] is None
    report = check(asked(SMALL), "heart", {"age": [3]}, "north")
    assert json.loads(json.dumps(report.plain()))["findings"][0] == report.findings[0]._asdict()


# Streaming


def test_a_large_csv_is_read_as_a_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(schema_tables, "CELLS", 3000)
    path = csv(tmp_path, ROWS * 8000)
    check(asked(SMALL), "heart", csv(tmp_path, ROWS, name="first.csv"), "north")  # what numpy imports late
    tracemalloc.start()
    try:
        assert check(asked(SMALL), "heart", path, "north") == Report(48_000, ())
        assert tracemalloc.get_traced_memory()[1] < 1 << 20 < 48_000 * 3 * 50  # bytes of all cells as texts
    finally:
        tracemalloc.stop()


def test_an_npy_file_is_mapped_and_read_a_few_images_at_a_time(tmp_path):
    np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.float32, (4096, 1, 64, 64))[0] = 1  # 64 MB
    tracemalloc.start()
    try:
        report = check(asked(None, image={"shape": [1, 64, 64], "max": 1}), "heart", tmp_path / "big.npy", "north")
        assert report == Report(4096, ())
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


cells = st.sampled_from(
    ["", "?", "nan", " 3 ", "3.5", "x", "inf", "-9", "0", "1", "2", "1e400", "4", "99", "yes", "no"]
)
rules = st.sampled_from([
    Column("number", min=0, max=3),
    Column("integer", unit="years", min=1, max=99),
    Column("code", codes=(0, 1, 2), least_each=1),
    Column("code", codes=("no", "yes"), least_each=1),
    Column("text"),
])  # fmt: skip


def slowly(rule, texts):
    """The counts of a column without its fits, one cell at a time."""
    missing = odd = misfit = marks = 0
    rows = dict.fromkeys(rule.codes if rule.least_each else (), 0)
    for text in texts:
        if text in ("", "?", "nan"):
            missing += 1
            continue
        value = text
        if rule.type != "text" and rule.codes != ("no", "yes"):
            value = float(text) if text not in ("x", "yes", "no", "inf", "1e400") else None
        if value is None or (rule.codes == ("no", "yes") and value not in rule.codes):
            odd += 1
            continue
        good = value in rule.codes if rule.codes else rule.type == "text" or rule.min <= value <= rule.max
        good = good and (rule.type != "integer" or value == int(value))
        misfit += not good
        marks += not good and value in (0, -9, 99)
        if value in rows:
            rows[value] += 1
    return (len(texts), missing, odd, misfit, marks), tuple(rows.values())


@pytest.mark.properties
@given(rules, st.lists(cells), st.integers(0, 20))
def test_counts_are_those_of_a_loop_over_cells_however_they_are_cut(rule, texts, cut):
    whole = count(rule, texts)
    assert (whole[:5], whole.codes) == slowly(rule, texts)
    assert added(count(rule, texts[:cut]), count(rule, texts[cut:])) == whole
    assert isinstance(whole, Counts) and whole.read == whole.rows - whole.missing - whole.odd


@pytest.mark.properties
@given(st.lists(st.lists(cells, min_size=3, max_size=3), min_size=1), st.integers(3, 30))
def test_the_size_of_blocks_changes_nothing(tmp_path_factory, rows, size):
    path = csv(tmp_path_factory.mktemp("blocks"), [[f'"{cell}"' for cell in row] for row in rows])
    whole = check(asked(SMALL), "heart", path, "north")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema_tables, "CELLS", size)
        assert check(asked(SMALL), "heart", path, "north") == whole


@pytest.mark.properties
@given(st.binary(max_size=300) | st.text('0123456789.,;\t\n\r"?aeghosx \ufeff\0').map(str.encode))
@example(b'age,sex,chol\n"')
@example(b"age,sex,chol\r63,1,233\r\r")
@example(b"\0,\0,\0")
@example(b'""')
@example(b"\xef\xbb\xbf")
@example(b"age;sex;chol\n1,2,3\n")
def test_no_bytes_make_the_check_raise(content):
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".csv", ".tsv", ".npy", ".safetensors", ".png"):
            path = Path(folder, f"a{suffix}")
            path.write_bytes(content)
            report = check(asked(SMALL, image=SCAN), "heart", path, "north")
            assert report.findings and all(f.what and f.remedy for f in report.findings)
            json.dumps(report.plain())


# The table


def test_the_table_shows_every_site_and_below_it_every_finding():
    bad = Report(294, (Finding("south", "heart", "chol", "23 of 294 values are missing", "fill them"),) * 2)
    long = "waits for its owner: foedus site approve 7f3a"
    shown = table({
        "north": {"dataset": "heart", "schema": {"heart": Report(303)}, "rows": {"train": 200, "test": 103},
                  "packages": "present", "approval": "given"},
        "south": {"dataset": "heart", "schema": {"heart": bad.plain()}, "rows": 294,
                  "packages": "present", "approval": long},
        "east": None,
        "west": {"approval": "given"},
    })  # fmt: skip
    line = "site 'south', dataset 'heart', column 'chol': 23 of 294 values are missing; fill them"
    assert shown.splitlines() == [
        "site   reachable  dataset  schema      rows  packages  approval",
        "north  yes        heart    fits        303   present   given",
        "south  yes        heart    2 findings  294   present   see below",
        "east   no         –        –           –     –         –",
        "west   yes        –        –           –     –         given",
        "",
        line,
        line,
        f"site 'south', approval: {long}",
    ]


def test_a_table_of_ready_sites_has_nothing_below():
    assert table(
        {"n": {"dataset": "d", "schema": {}, "rows": 5, "packages": "present", "approval": "given"}}
    ).splitlines() == [
        "site  reachable  dataset  schema  rows  packages  approval",
        "n     yes        d        fits    5     present   given",
    ]
    assert table({}).splitlines() == ["site  reachable  dataset  schema  rows  packages  approval"]


@pytest.mark.parametrize("held", [3, None, {}, {"findings": 3}, {"findings": [3]}, {"findings": [{"what": "x"}]}])
def test_a_report_that_is_none_is_shown_as_such(held):
    shown = table({"north": {"schema": {"heart": held}}})
    assert "1 finding " in shown
    assert "site 'north', dataset 'heart': its report cannot be read; run the same version" in shown


def test_a_site_cannot_steer_the_terminal():
    evil = Finding("s", "d", "c", "\x1b[2J\n", "\r")
    shown = table(
        {"no\x07rth": {"dataset": "a\x1bb", "approval": "\n" * 40, "schema": {"d": Report(9, (evil,)).plain()}}}
    )
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert "\x1b" not in shown and len(shown.splitlines()) == 5


# Real data, docs


def test_the_form_of_the_uci_table_is_read(tmp_path):
    rows = [
        (63.0, 1.0, 1.0, 145.0, 233.0, 1.0, 2.0, 150.0, 0.0, 2.3, 3.0, 0.0, 6.0, 0),
        (28, 1, 2, 130, 132, 0, 2, 185, 0, 0, "NaN", "NaN", "NaN", 0),
        (34, 1, 4, 115, "?", "?", "NaN", 154, 0, ".2", 1, "?", "?", 1),
    ] * 7
    assert found(HEART | {"restecg": HEART["restecg"] | {"missing": 0.4}, "chol": HEART["chol"] | {"missing": 0.4}},
                 csv(tmp_path, rows, header="")) == {}  # fmt: skip
    assert found(HEART, csv(tmp_path, rows, header="")) == {
        "chol": f"7 of 21 values are missing, and at most 30 % may be; {FILL}",
        "restecg": f"7 of 21 values are missing, and at most 5 % may be; {FILL}",
    }


@pytest.mark.data
@pytest.mark.parametrize(  # counted with awk
    ("hospital", "rows", "what"),
    [
        ("cleveland", 303, {}),
        ("hungary", 294, {"slope": "190 of 294 values are missing, and at most 50 % may be"}),
        ("switzerland", 123, {"chol": "123 of 123 values are outside 50 to 700 mg/dl"}),
        ("long_beach", 200, {"chol": "49 of 200 values are outside 50 to 700 mg/dl",
                             "trestbps": "fewer than 5 of 200 values are outside 60 to 250 mmHg",
                             "slope": "102 of 200 values are missing, and at most 50 % may be"}),
    ],
)  # fmt: skip
def test_four_hospitals_are_told_apart(hospital, rows, what):
    path = Path(os.environ["FOEDUS_DATA"]) / "heart" / f"{hospital}.csv"
    report = check(asked(HEART, least_rows=100), "heart", path, hospital)
    assert report.rows == rows and {f.column: f.what for f in report.findings} == what
    assert all("0, -9 or 999 stands for a gap" in f.remedy for f in report.findings if f.column in ("chol", "trestbps"))


def test_the_schema_in_the_docs_is_read():
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```toml\n(.*?)^```", page, re.S | re.M)
    assert [list(read(tomllib.loads(block)).datasets) for block in blocks] == [["heart", "scans", "tumours"]]


def test_the_public_names_are_these():
    assert sorted(schema.__all__) == ["Finding", "Report", "Schema", "check", "read", "table"]
