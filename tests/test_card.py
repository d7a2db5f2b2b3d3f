"""A model's card and its file, handed over together: what the journal knows, and nothing that a name could break."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from foedus import frames, launch, report
from foedus.errors import FoedusError
from foedus.loopback import environment
from foedus.numpy import NumpyLearner


def gradient(p: Any, x: Any, y: Any) -> Any:
    error = x @ p["w"] - y
    return error**2, {"w": 2 * x.T @ error / len(x)}


def rows(seed: int) -> fd.Split:
    x = np.random.default_rng(seed).normal(size=(40, 3))
    return fd.Split(train=(x[:30], x[:30].sum(1)), test=(x[30:], x[30:].sum(1)))


SITES = {"north": rows(1), "a|b `c`": rows(2)}


def job(**more: Any) -> fd.Job:
    learner = NumpyLearner({"w": np.zeros(3)}, gradient, lambda p, x: x @ p["w"], lr=0.1, metrics=["rmse"])
    return fd.Job(fd.fedprox(mu=0.01), learner, rounds=3, name="toy", **more)


@pytest.fixture
def run(tmp_path: Path) -> fd.Result:
    private = job(best="rmse", purpose="triage", privacy=fd.central_dp(1.0, 2.0))
    return launch.run(private, SITES, folder=tmp_path / "run")


def test_the_card_says_what_the_journal_knows(run: fd.Result, tmp_path: Path) -> None:
    text = report.hand_over(run.folder, tmp_path / "out").read_text()
    assert f"of digest `{run.digest}`" in text and "| `w` | 3 | float64 | trainable |" in text
    assert "| algorithm | fedavg, fedprox |" in text and "| purpose | triage |" in text
    assert "central_dp: clip 1, delta 1e-05, noise_multiplier 2, rate 0.2" in text
    assert f"epsilon {run.metrics['train_epsilon']:.3g}" in text
    assert f"| `test_rmse` | {run.metrics['test_rmse']:.4g} |" in text
    assert r"| a\|b 'c' | 3 |" in text  # a name ends no cell
    kept = frames.read_model(tmp_path / "out" / "model.safetensors")
    assert fd.digest(kept) == run.digest


def test_the_best_model_is_handed_over_by_name(run: fd.Result, tmp_path: Path) -> None:
    text = report.hand_over(run.folder, tmp_path / "best", best=True).read_text()
    assert run.best is not None and f"The best model, of round {run.best_round} of the federated run" in text
    assert fd.digest(frames.read_model(tmp_path / "best" / "model.safetensors")) == fd.digest(run.best)
    bare = launch.run(job(), SITES, folder=tmp_path / "bare")
    with pytest.raises(FoedusError, match="its Job names no metric for it"):
        report.hand_over(bare.folder, tmp_path / "none", best=True)
    assert "none: the server can read each site's update" in report.hand_over(bare.folder, tmp_path / "x").read_text()


def test_the_command_line_writes_both_files(run: fd.Result, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "foedus", "export", str(run.folder), "--out", str(tmp_path / "cli"), "--json"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert Path(json.loads(done.stdout)["card"]).read_text().startswith("# toy\n")
    assert (tmp_path / "cli" / "model.safetensors").exists()
