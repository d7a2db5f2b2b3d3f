"""The study that was promised runs as it is written (jobs/target): in a short form, and all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

TARGET = (Path(__file__).parent / "jobs" / "target" / "target.py").read_text()
SHORT = {"sites=20": "sites=4", "rounds=50": "rounds=2", "range(5)": "range(2)", "[0.01, 0.05, 0.1]": "[0.01, 0.1]"}


@pytest.mark.parametrize("short", [SHORT, pytest.param({}, marks=pytest.mark.long)], ids=["short", "whole"])
def test_the_target_runs_as_it_is_written(
    short: dict[str, str], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TARGET
    for long, less in short.items():
        assert text.count(long) == 1
        text = text.replace(long, less)
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {"__name__": "target"}
    exec(compile(text, "target", "exec"), found)
    study = found["study"]
    lines = str(study.table(by=["mean", "worst_site", "bytes", "seconds"])).splitlines()  # type: ignore[attr-defined]
    assert [line.split()[0] for line in lines[:7]] == [
        "method", "FedAvg", "FedProx", "SCAFFOLD", "Ditto", "alone", "pooled",
    ]  # fmt: skip
    assert lines[0].split() == ["method", "mean", "worst_site", "bytes", "seconds", "options"]
    assert (tmp_path / "study" / "scores.json").exists()
