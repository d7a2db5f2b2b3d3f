"""The gallery: loans by state and survival by region, on small files in the real format, and on the real ones."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from foedus import launch

HERE = Path(__file__).parents[1] / "examples"
LOANS, SURVIVAL = HERE / "finance" / "loans" / "job.py", HERE / "healthcare" / "breast_cancer_survival" / "job.py"


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return path


def loans(folder: Path) -> dict[str, Path]:
    """Two states: who pays more than 15 % goes bad."""
    rng = np.random.default_rng(0)
    counts = "inq_last_6mths revol_util delinq_2yrs open_il_6m open_il_12m open_il_24m all_util inq_fi inq_last_12m"
    zeros = dict.fromkeys([*counts.split(), "num_il_tl"], 1)
    money = {"funded_amnt": 9000, "annual_inc": 50000, "total_bal_il": 10000, "total_il_high_credit_limit": 20000}
    words = {"term": "term_60", "verification_status": "Verified", "emp_length": "emp_lt_1", "sub_grade": "B3"}
    found = {}
    for state in ("CA", "NY"):
        rates = rng.uniform(5, 25, 120)
        rows = [
            {**zeros, **money, **words, "int_rate": rate, "addr_state": state, "Class": "bad" if rate > 15 else "good"}
            for rate in rates
        ]
        found[state] = written(folder / f"{state}.csv", rows)
    return found


def survival(folder: Path) -> dict[str, Path]:
    """Two regions whose first covariate after age says who dies first."""
    rng, rows, split = np.random.default_rng(1), [], []
    for i in range(160):
        x = rng.integers(0, 2, 38)
        days = rng.exponential(100 if x[0] else 2000) + 1
        names = {f"c{k}": v for k, v in enumerate([60, *x])}
        rows.append({"pid": f"p{i}", **names, "E": 1, "T": days})
        split.append({"pid": f"p{i}", "fold2": f"{'test' if i % 5 == 0 else 'train'}_{i % 2}"})
    written(folder / "brca.csv", rows)
    written(folder / "train_test_split.csv", split)
    return dict.fromkeys(("Northeast", "South"), folder)


def module(path: Path) -> Any:
    """The job's module, as `foedus compare` imports it: with what lies beside it."""
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(found)
    finally:
        sys.path.remove(str(path.parent))
    return found


def ran(path: Path, sites: Any, method: str, folder: Path, **options: Any) -> fd.Result:
    job = module(path).methods[method](**options)
    return launch.run(job, sites, backend="local", folder=folder)


@pytest.mark.parametrize("method", ["FedAvg", "boosted trees"])
def test_loans_are_told_apart_by_what_decides_them(method: str, tmp_path: Path) -> None:
    result = ran(LOANS, loans(tmp_path / "data"), method, tmp_path / "run", rounds=15)
    assert result.metrics["test_auc"] > 0.95 and sorted(result.per_site) == ["CA", "NY"]


def test_survival_is_ranked_by_what_decides_it(tmp_path: Path) -> None:
    result = ran(SURVIVAL, survival(tmp_path / "data"), "FedAvg", tmp_path / "run", rounds=60)
    w = result.params["w"]
    assert w[1] > 2 * np.delete(w, 1).max() and result.metrics["test_c_index"] > 0.5
    assert sorted(result.per_site) == ["Northeast", "South"]


@pytest.mark.data
def test_real_loans_are_ranked_as_well_as_by_scikit_learn_on_the_loans_of_all_states(tmp_path: Path) -> None:
    """The mean of the states' AUC, over three divisions: within 0.005 of pooled, which a state alone is far from."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    made, found, truth, alone = module(LOANS), [], [], []
    for seed in (1, 2, 3):
        result = launch.run(made.job(), made.sites(), backend="local", folder=tmp_path / str(seed), seed=seed)
        found += [row["test_auc"] for row in result.per_site.values()]
        parts = [made.load(fd.data.Site(name, path, fd.key(seed, name))) for name, path in made.sites().items()]
        x, y = (np.concatenate([split.train[:][i] for split in parts]) for i in (0, 1))
        assert len(y) + sum(len(split.test) for split in parts) == 5140
        # its C is of the sum of losses, the example's 0.01 of their mean
        pooled = LogisticRegression(C=1 / (0.01 * len(y)), max_iter=1000).fit(x, y)
        for split in parts:
            own = LogisticRegression(C=1 / (0.01 * len(split.train)), max_iter=1000).fit(*split.train[:])
            u, v = split.test[:]
            truth.append(roc_auc_score(v, pooled.decision_function(u)))
            alone.append(roc_auc_score(v, own.decision_function(u)))
    assert np.mean(found) >= np.mean(truth) - 0.005
    assert np.mean(found) > np.mean(alone) + 0.02


@pytest.mark.data
def test_the_published_survival_split_is_ranked_at_least_as_well_as_was_published(tmp_path: Path) -> None:
    """FLamby: 0.732 by FedAvg, 0.815 at best; each region's own test part counts alike."""
    result = ran(SURVIVAL, module(SURVIVAL).sites(), "FedAvg", tmp_path / "run")
    found = [row["test_c_index"] for row in result.per_site.values()]
    assert len(found) == 6 and np.mean(found) >= 0.80
