"""The job file of four banks as its author wrote it, in a short form: trees under secagg, saved, compared."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import xgboost

FILE = Path(__file__).parent / "jobs" / "loans" / "loans.py"
SCHEMA = """
[loans]
least_rows = 50

[loans.columns]
income = { type = "number", min = 0 }
debt = { type = "number", min = 0, max = 1 }
opened = { type = "text" }
default = { type = "code", codes = [0, 1], least_each = 20 }
"""


def loans(seed: int, rows: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    income, debt = rng.lognormal(10.5, 0.5, rows), rng.uniform(0, 1, rows)
    risk = 1 / (1 + np.exp(2 * (np.log(income) - 10.5) + 1.5 - 3 * debt))
    opened = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 730, rows), "D")
    return pd.DataFrame({"income": income, "debt": debt, "opened": opened, "default": rng.random(rows) < risk})


def test_the_file_runs_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i, bank in enumerate(("alpha", "beta", "gamma", "delta")):
        loans(i).astype({"default": int}).to_parquet(tmp_path / "data" / f"{bank}.parquet")
    text = FILE.read_text()
    assert text.count("rounds=300") == text.count("range(5)") == 1
    (tmp_path / "loans.py").write_text(text.replace("rounds=300", "rounds=3").replace("range(5)", "range(1)"))
    (tmp_path / "loans.schema.toml").write_text(SCHEMA)
    env = {**os.environ, "FOEDUS_HOME": str(tmp_path / "home")}
    run = [sys.executable, "loans.py"]
    said = subprocess.run(run, cwd=tmp_path, env=env, check=True, capture_output=True, text=True).stdout
    table = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    assert table["job"][0] == table["pooled"][0]  # the trees are those of all rows in one place
    assert {"alone", "unseen-site", "alpha", "beta", "gamma", "delta"} <= table.keys()
    booster = xgboost.Booster(model_file=tmp_path / "model.json")
    assert booster.feature_names == ["income", "debt"] and booster.num_boosted_rounds() >= 1
    tried = pd.DataFrame({"income": np.linspace(1e4, 9e4, 99), "debt": 0.5})
    assert (np.diff(booster.predict(xgboost.DMatrix(tried))) <= 0).all()
    shutil.rmtree(tmp_path / "home")
