"""The heart example: its loader on small files in the real format, and on the real tables where they are."""

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from foedus.errors import FoedusError

HERE = Path(__file__).parents[1] / "examples" / "heart"
ROWS = """63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0
67.0,1.0,4.0,160.0,286.0,0.0,2.0,108.0,1.0,1.5,2.0,3.0,3.0,2
37,1,3,130,250,0,0,187,0,3.5,?,?,?,0
41,0,2,130,?,0,2,172,0,1.4,1,0,3,0
55,0,2,NaN,200,0,1,150,0,1,1,0,3,4
"""


@pytest.fixture
def data():
    spec = importlib.util.spec_from_file_location("heart_data", HERE / "data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(seed: int, size: int) -> str:
    """A table in the publisher's format: older patients with a low pulse are ill; gaps as `?` and as NaN."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(size):
        age, pulse = rng.integers(30, 78), rng.integers(80, 190)
        ill = int(age - 54 + (135 - pulse) / 2 + rng.normal(0, 8) > 0) * rng.integers(1, 5)
        chol = rng.choice(["?", "NaN", "233"], p=[0.05, 0.05, 0.9])
        lines.append(f"{age},1,{rng.integers(1, 5)},130,{chol},0,{rng.integers(0, 3)},{pulse},0,1.5,?,?,?,{ill}")
    return "\n".join(lines) + "\n"


def foedus(home: Path, *arguments, data: Path):
    env = {**os.environ, "FOEDUS_HOME": str(home), "FOEDUS_DATA": str(data), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_rows_with_gaps_are_dropped_after_the_three_columns(data):
    x, y = data.examples(data.rows(io.StringIO(ROWS)))
    assert y.tolist() == [0, 1, 0]  # the third row's gaps are in slope, ca and thal, which nobody needs
    assert x.shape == (3, 14)
    assert x[0, :5] == pytest.approx([43 / 60, 65 / 120, 133 / 500, 90 / 140, 2.3 / 6])
    assert x[0, 5:9].tolist() == [1, 0, 0, 0] and x[1, 5:9].tolist() == [0, 0, 0, 1]  # cp 1 and 4
    assert x[0, 9:].tolist() == [0, 1, 1, 1, 0] and x[2, 9:].tolist() == [0, 0, 1, 0, 0]  # restecg, sex, fbs, exang


def test_no_site_is_scaled_by_what_another_has(data):
    both = data.rows(io.StringIO(ROWS))
    alone, _ = data.examples(both[:1])
    together, _ = data.examples(both)
    assert alone[0].tolist() == together[0].tolist()


def test_a_table_of_one_row_is_a_table_and_one_with_other_columns_is_none(data):
    assert data.rows(io.StringIO(ROWS.splitlines()[0])).shape == (1, 14)
    with pytest.raises(FoedusError, match="a row has 3 columns, the tables have 14"):
        data.rows(io.StringIO("1,2,3\n4,5,6\n"))


def archive(data, path: Path, other: str = ROWS) -> str:
    with zipfile.ZipFile(path, "w") as file:
        for name in data.HOSPITALS.values():
            file.writestr(f"processed.{name}.data", other if name == "va" else ROWS)
    return path.as_uri()


def test_what_the_publisher_sends_is_checked_before_anything_is_kept(data, tmp_path):
    right = dict.fromkeys(data.HOSPITALS, data.checksum(data.rows(io.StringIO(ROWS))))
    found = data.fetched(tmp_path / "kept", archive(data, tmp_path / "heart.zip"), right)
    assert set(found) == set(data.HOSPITALS) and data.rows(found["hungary"]).shape == (5, 14)
    changed = archive(data, tmp_path / "changed.zip", ROWS.replace("233.0", "234.0"))
    with pytest.raises(FoedusError, match="table of long_beach is not the one"):
        data.fetched(tmp_path / "other", changed, right)
    assert not (tmp_path / "other").exists()


def test_the_spelling_of_a_gap_does_not_change_the_checksum(data):
    one, other = (data.checksum(data.rows(io.StringIO(text))) for text in (ROWS, ROWS.replace("?", "NaN")))
    assert one == other != data.checksum(data.rows(io.StringIO(ROWS.replace("2.3", "2.4"))))


def test_a_publisher_that_cannot_be_reached_is_named_with_the_remedy(data, tmp_path):
    with pytest.raises(FoedusError, match=r"nowhere.zip cannot be read .*: get the tables and name their folder"):
        data.fetched(tmp_path, (tmp_path / "nowhere.zip").as_uri())


def test_tables_are_found_in_the_folder_that_the_environment_names(data, tmp_path, monkeypatch):
    monkeypatch.setenv("FOEDUS_DATA", str(tmp_path))
    (tmp_path / "heart").mkdir()
    for i, name in enumerate(data.HOSPITALS):
        (tmp_path / "heart" / f"{name}.csv").write_text(table(i, 40))
    assert data.tables() == {name: tmp_path / "heart" / f"{name}.csv" for name in data.HOSPITALS}


@pytest.mark.processes
def test_the_job_runs_without_arguments_and_with_sites_that_are_files_or_folders(data, tmp_path):
    folder = tmp_path / "heart"
    folder.mkdir()
    for i, name in enumerate(data.HOSPITALS):
        (folder / f"{name}.csv").write_text(table(i, 90))
    run = ("-m", "foedus", "run", HERE / "job.py", "rounds=20", "--json")
    plain = foedus(tmp_path, *run, data=tmp_path)
    found = json.loads(plain.stdout)
    assert set(found["per_site"]) == set(data.HOSPITALS) and found["metrics"]["test_accuracy"] > 0.7
    named = {"cleveland": folder, **{name: folder / f"{name}.csv" for name in list(data.HOSPITALS)[1:]}}
    bound = [text for name, path in named.items() for text in ("--site", f"{name}={path}")]
    again = foedus(tmp_path, *run, *bound, data=tmp_path / "nowhere")
    assert json.loads(again.stdout)["digest"] == found["digest"]


@pytest.mark.data
def test_the_real_tables_are_the_ones_that_the_example_was_written_for(data):
    tables = {name: data.rows(path) for name, path in data.tables().items()}
    sizes = {name: len(found) for name, found in tables.items()}
    assert sizes == {"cleveland": 303, "hungary": 294, "switzerland": 123, "long_beach": 200}
    assert {name: data.checksum(found) for name, found in tables.items()} == data.CHECKSUMS
    kept = {name: len(data.examples(found)[1]) for name, found in tables.items()}
    assert kept == {"cleveland": 303, "hungary": 261, "switzerland": 46, "long_beach": 130}  # 740, as published


@pytest.mark.data
def test_the_federated_model_is_as_good_as_pooled_scikit_learn(data, tmp_path):
    from sklearn.linear_model import LogisticRegression

    from foedus.keys import key

    run = foedus(tmp_path, "-m", "foedus", "run", HERE / "job.py", "--json", data=Path(os.environ["FOEDUS_DATA"]))
    federated = json.loads(run.stdout)["metrics"]["test_accuracy"]
    splits = [
        data.split(*data.examples(data.rows(path)), key(0, name, "split").numpy())
        for name, path in data.tables().items()
    ]
    x, y = (np.concatenate([getattr(s.train, part) for s in splits]) for part in "xy")
    truth = LogisticRegression(max_iter=1000).fit(x, y)
    right = sum(truth.score(s.test.x, s.test.y) * len(s.test) for s in splits) / sum(len(s.test) for s in splits)
    assert 0.7 < right < 0.9 and federated == pytest.approx(right, abs=0.04)  # of 247 patients, one in 25


@pytest.mark.data
def test_the_comparison_is_the_one_in_the_readme(tmp_path):
    copied = shutil.copytree(HERE, tmp_path / "heart", ignore=shutil.ignore_patterns("*.svg"))
    told = foedus(tmp_path, copied / "job.py", data=Path(os.environ["FOEDUS_DATA"]))
    assert (copied / "study.svg").is_file()
    lines = told.stdout.splitlines()
    table = [line for line in (HERE / "README.md").read_text().splitlines() if "±" in line and line.startswith("|")]
    assert [line.split()[0] for line in lines[1:6]] == ["cleveland", "hungary", "long_beach", "switzerland", "mean"]
    for line, cells in zip(lines[1:6], table, strict=True):
        ours, theirs = (re.findall(r"(\d\.\d+) ±", text) for text in (line, cells))
        assert [float(x) for x in ours] == pytest.approx([float(x) for x in theirs], abs=0.03)  # a patient or two
    differences = dict(re.findall(r"^(.*: )([+-].*)$", told.stdout, re.MULTILINE))
    (mean, half), (tuned, wide) = (
        map(float, differences[f"{method} less alone, switzerland: "].split(" ± ")) for method in ("federated", "tuned")
    )
    assert mean < -half  # it harms
    assert abs(tuned) < wide
