"""A site's worker that is killed after it trained by DP-SGD trains again with the same samples and the same noise: two
updates of one model whose noise differs would say more than one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from federations import finished, joined
from toys import make_sites

pytestmark = [pytest.mark.kills, pytest.mark.long]
JOB = Path(__file__).parent / "jobs" / "private" / "job.py"


def test_a_killed_worker_draws_the_same_noise_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites, once = make_sites(tmp_path / "data", ["north", "south"]), tmp_path / "killed"
    once.mkdir()
    monkeypatch.setenv("FOEDUS_KILL", "worker.before-reply:2")
    monkeypatch.setenv("FOEDUS_KILL_ONCE", str(once))
    with joined(tmp_path / "home", sites) as made:
        result = finished(made.remote().submit(JOB, {"rounds": "4"}))
    assert os.listdir(once) and result.rounds == 4
    told = {
        name: [line.split() for line in (place / "trained").read_text().splitlines()] for name, place in sites.items()
    }
    by_round = {
        (name, round): {d for r, d in lines if r == round} for name, lines in told.items() for round, _ in lines
    }
    assert sum(map(len, told.values())) > 8, "nobody trained twice"
    assert [len(digests) for digests in by_round.values()] == [1] * 8
    assert len(set.union(*by_round.values())) == 8  # and each site and round has noise of its own
