"""The heart example: its loader on small files in the real format, and on the real tables where they are."""

import importlib.util
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parents[1] / "examples" / "heart"
ROWS = """63,1,1,145,233,1,2,150,0,2.3,3,0,6,0
67,1,4,160,286,0,2,108,1,1.5,2,3,3,2
37,1,3,130,250,0,0,187,0,3.5,?,?,?,0
41,0,2,130,?,0,2,172,0,1.4,1,0,3,0
"""


@pytest.fixture
def data(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    spec = importlib.util.spec_from_file_location("heart_data", HERE / "data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_with_gaps_are_dropped_after_the_three_columns(data):
    x, y = data.examples(data.rows(io.StringIO(ROWS)))
    assert y.tolist() == [
        0,
        1,
        0,
    ]  # the third row's gaps are in slope, ca and thal, which nobody needs; the fourth has one in chol
    assert x.shape == (3, 14)
    assert x[0, :5] == pytest.approx([43 / 60, 65 / 120, 133 / 500, 90 / 140, 2.3 / 6])
    assert x[0, 5:9].tolist() == [1, 0, 0, 0] and x[1, 5:9].tolist() == [0, 0, 0, 1]  # cp 1 and 4


def test_what_the_publisher_sends_is_checked_before_it_is_kept(data, tmp_path):
    archive = tmp_path / "heart.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in data.HOSPITALS.values():
            file.writestr(f"processed.{name}.data", ROWS)
    right = dict.fromkeys(data.HOSPITALS, data.checksum(data.rows(io.StringIO(ROWS))))
    found = data.fetched(tmp_path / "kept", archive.as_uri(), right)
    assert data.rows(found["hungary"]).shape == (4, 14)
    with pytest.raises(ValueError, match="table of cleveland"):
        data.fetched(tmp_path / "other", archive.as_uri())
    assert not (tmp_path / "other").exists()


@pytest.mark.data
def test_the_real_tables_are_the_ones_that_the_example_was_written_for(data):
    tables = {name: data.rows(path) for name, path in data.tables().items()}
    assert {name: len(table) for name, table in tables.items()} == {
        "cleveland": 303,
        "hungary": 294,
        "switzerland": 123,
        "long_beach": 200,
    }
    assert {name: data.checksum(table) for name, table in tables.items()} == data.CHECKSUMS
    assert sum(len(data.examples(table)[1]) for table in tables.values()) == 740  # as published with FLamby


@pytest.mark.data
def test_the_federated_model_is_as_good_as_pooled_scikit_learn(data, tmp_path):
    from sklearn.linear_model import LogisticRegression

    from foedus import jobfile

    os.environ["FOEDUS_HOME"] = str(tmp_path)
    loaded = jobfile.load(HERE / "job.py")
    result = loaded.job.run(sites=loaded.sites())
    splits = [loaded.job.bench(0).split(name, path) for name, path in loaded.sites().items()]
    x, y = (np.concatenate([getattr(s.train, part) for s in splits]) for part in "xy")
    truth = LogisticRegression(max_iter=1000).fit(x, y)
    right = sum(truth.score(s.test.x, s.test.y) * len(s.test) for s in splits) / sum(len(s.test) for s in splits)
    assert result.metrics["test_accuracy"] == pytest.approx(right, abs=0.04)


@pytest.mark.data
def test_the_comparison_says_who_won(tmp_path):
    command = [sys.executable, str(HERE / "job.py")]
    told = subprocess.run(
        command, env={**os.environ, "FOEDUS_HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert "won on this data" in told.stdout.splitlines()[-1]
