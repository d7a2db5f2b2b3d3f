"""`foedus privacy plan`: its numbers are the accountants', its slips are answered, and sampling is never assumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foedus.privacy import epsilon
from test_cli_first import MISSING, MISTAKE, USAGE, without
from test_cli_run import foedus

pytestmark = pytest.mark.processes
PLAN = ["privacy", "plan", "--epsilon", "2", "--rounds", "100", "--sampling-rate", "1", "--accountant", "rdp"]


def test_the_plan_keeps_within_epsilon_and_says_what_the_noise_does(tmp_path: Path) -> None:
    more = ["--steps", "3", "--batch", "10", "--parameters", "400", "--clip", "0.5"]
    found = json.loads(foedus(tmp_path, *PLAN, *more, "--json").out)
    z = found["noise_multiplier"]
    assert found["steps"] == 300 and list(found["spent"]) == ["25", "50", "100"]
    assert 1.999 < epsilon(z, 1, 300, 1e-5, "rdp") == found["spent"]["100"] == found["rdp_epsilon"] <= 2
    assert found["spent"]["25"] == epsilon(z, 1, 75, 1e-5, "rdp")
    assert found["sigma"] == z * 0.5 and found["noise"] == pytest.approx(z * 0.05)
    assert found["noise_norm"] == pytest.approx(2 * z)  # z * sqrt(400) / 10


def test_people_read_the_same(tmp_path: Path) -> None:
    said = foedus(tmp_path, *PLAN)
    assert said.code == 0 and "it keeps 100 rounds (100 steps, everybody in every step) within epsilon 2" in said.out
    assert "--batch and --parameters" in said.err


def test_sampling_is_stated_and_slips_are_answered(tmp_path: Path) -> None:
    said = foedus(tmp_path, *PLAN[:6])
    assert said.code == USAGE and "Missing option '--sampling-rate'" in said.err
    said = foedus(tmp_path, *PLAN[:6], "--sampling-rate", "2")
    assert (
        said.code == MISTAKE
        and said.last == "foedus: sampling_rate=2.0: it must be in (0, 1]; 1: everybody in each step"
    )


def test_without_the_library_the_pip_line_is_named(tmp_path: Path) -> None:
    said = without("dp_accounting", tmp_path, *PLAN)
    assert said.code == MISSING and said.last == "foedus: dp_accounting is not installed: pip install 'foedus[privacy]'"
