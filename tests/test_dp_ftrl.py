"""Correlated noise at the server: its matrix, its sensitivity by brute force, what training has of it, refusals."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import foedus as fd
from foedus.core import Outcome, RoundContext, Total
from foedus.errors import FoedusError, JobError
from foedus.keys import key
from foedus.numpy import NumpyLearner
from foedus.params import Params
from foedus.participation import in_turns
from foedus.privacy import accounting
from foedus.privacy.ftrl import _correlated, coefficients, dp_ftrl, sensitivity, spent

SITES = {f"s{i}": fd.Split(train=(np.full((4, 1), 1.0), np.zeros(4))) for i in range(6)}
TURNS = {f"s{i}": i % 3 for i in range(6)}


def pull(p: Any, x: Any, y: Any) -> Any:
    return (x[:, 0] * 0), {name: np.ones_like(array) for name, array in p.items()}


def job(how: Any, rounds: int = 6, size: int = 3, turns: int = 3, **more: Any) -> fd.Job:
    learner = NumpyLearner({"w": np.zeros(size)}, pull, lambda p, x: x[:, 0] * 0, lr=1.0, batch_size=None)
    cohort = in_turns(turns, {site: turn % turns for site, turn in TURNS.items()})
    return fd.Job(fd.fedavg(), learner, privacy=how, **{"rounds": rounds, "evaluate": 0, "cohort": cohort} | more)


# ---- the matrix ------------------------------------------------------------------------------------------------------
def matrix(rounds: int, bands: int) -> Any:
    """C, written out."""
    c = coefficients(bands)
    return sum(np.diag(np.full(rounds - j, c[j]), -j) for j in range(min(bands, rounds)))


def test_the_whole_matrix_is_the_square_root_of_the_prefix_sums() -> None:
    c = matrix(7, 7)
    assert c @ c == pytest.approx(np.tril(np.ones((7, 7))))
    assert coefficients(4) == [1, 0.5, 0.375, 0.3125]


def test_the_sensitivity_by_hand() -> None:
    assert sensitivity(3, 1, 2) == pytest.approx(math.sqrt(1 + 2.25 + 2.25))  # rows 1, 1.5, 1.5
    assert sensitivity(4, 2, 2) == pytest.approx(math.sqrt(2 * 1.25))  # rows 1, 0.5, 1, 0.5
    assert sensitivity(5, 1, 1) == pytest.approx(math.sqrt(5))


@pytest.mark.parametrize(("separation", "bands"), [(1, 1), (1, 3), (2, 2), (2, 4), (3, 2), (3, 3)])
def test_no_way_of_taking_part_and_no_updates_show_more(separation: int, bands: int) -> None:
    """All sets of rounds that are apart enough, and 50 drawn updates of norm 1 each, beside equal ones."""
    rounds, c, random = 7, matrix(7, bands), np.random.default_rng(0)
    largest = 0.0
    for rows in itertools.product([False, True], repeat=rounds):
        at = np.flatnonzero(rows)
        if len(at) and (np.diff(at) >= separation).all():
            for updates in [np.ones((len(at), 1)), *random.normal(size=(50, len(at), 2))]:
                unit = updates / np.linalg.norm(updates, axis=1, keepdims=True)
                largest = max(largest, float(np.linalg.norm(c[:, at] @ unit)))
    assert largest == pytest.approx(sensitivity(rounds, separation, bands))


# ---- the noise -------------------------------------------------------------------------------------------------------
def test_the_noise_is_c_inverse_of_independent_ones() -> None:
    """What the server adds, times C, has the covariance z² clip² sensitivity² on the diagonal, and none beside it."""
    rounds, size, n = 5, 40_000, 4
    how = dp_ftrl(0.5, 1.3, separation=3)
    transform, zeros = _correlated(how, rounds), Params({"w": np.zeros(size)})
    state, added = transform.init(), []
    for round in range(rounds):
        who = [Outcome(f"s{round % 3}", "counted")]
        total, state = transform.decode(Total(zeros, float(n), n, {}, who), state, key(0)("decode", round))
        added.append(total.params["w"] * n)
    z = matrix(rounds, 3) @ np.array(added)
    assert np.cov(z) == pytest.approx(np.eye(rounds) * (1.3 * 0.5 * sensitivity(rounds, 3, 3)) ** 2, rel=0.03, abs=0.05)
    assert len(state["noises"]) == 2 and len(state["recent"]) == 2


def test_what_training_adds_up_has_less_noise_than_by_independent_rounds() -> None:
    """The model after T rounds, at the same epsilon: the norm of 1ᵀC⁻¹ times the sensitivity, against the plain one."""
    result = job(dp_ftrl(0.5, 1.0, separation=3), rounds=24, size=4000).run(SITES)
    plain = job(dp_ftrl(0.5, 1.0, separation=3, bands=1), rounds=24, size=4000).run(SITES)
    ones = np.ones(24)
    expected = np.linalg.norm(ones @ np.linalg.inv(matrix(24, 3))) * sensitivity(24, 3, 3) * 0.5 / 2
    independent = math.sqrt(24) * sensitivity(24, 3, 1) * 0.5 / 2
    assert result.params["w"].std() == pytest.approx(expected, rel=0.05)
    assert plain.params["w"].std() == pytest.approx(independent, rel=0.05)
    assert expected < 0.8 * independent
    assert result.params["w"].mean() == pytest.approx(-24 * 0.5 / math.sqrt(4000), abs=4 * expected / math.sqrt(4000))


def test_without_noise_it_is_a_mean_of_clipped_updates_and_a_run_is_the_same_again() -> None:
    still = job(dp_ftrl(0.5, 0.0, separation=3)).run(SITES)
    assert still.params["w"] == pytest.approx(np.full(3, -6 * 0.5 / math.sqrt(3)), rel=1e-5)
    noisy = job(dp_ftrl(0.5, 1.0, separation=3))
    assert noisy.run(SITES).digest == noisy.run(SITES).digest != noisy.run(SITES, seed=1).digest


# ---- what it costs, and what is refused ------------------------------------------------------------------------------
def test_a_run_is_one_release_and_a_part_of_it_costs_less() -> None:
    """z = 1, one release, δ = 1e-5: 4.377178 (dp-accounting's PLD)."""
    how = dp_ftrl(1.0, 1.0, separation=4)
    told = [spent(how, 12, done) for done in range(1, 13)]
    assert told == sorted(told) and told[-1] == pytest.approx(4.377178, abs=1e-5)
    assert told[3] == pytest.approx(accounting.epsilon(sensitivity(12, 4, 4) / sensitivity(4, 4, 4), 1.0, 1, 1e-5))
    assert spent(dp_ftrl(1.0, epsilon=2.0), 5, 5) == 2.0
    result = job(dp_ftrl(1.0, 1.0, separation=3)).run(SITES)
    assert result.metrics["train_epsilon"] == pytest.approx(spent(dp_ftrl(1.0, 1.0, separation=3), 6, 6))


def test_a_site_that_takes_part_too_soon_again_ends_the_run() -> None:
    def twice(context: Any) -> Any:
        return context.roster[:2]

    rule = fd.participation.Participation(twice, turns=3)
    with pytest.raises(FoedusError, match="s0 takes part again after 1 round"):
        job(dp_ftrl(1.0, 1.0, separation=3), cohort=rule).run(SITES)


@pytest.mark.parametrize("words", [{"separation": 0}, {"bands": 1.5}, {"epsilon": 1.0}])
def test_a_wrong_word_is_refused(words: Any) -> None:
    with pytest.raises(JobError, match="dp_ftrl"):
        dp_ftrl(1.0, 1.0, **words)


def test_more_rounds_than_the_noise_was_found_for_are_refused() -> None:
    transform = _correlated(dp_ftrl(1.0, 1.0), 1)
    zeros = Params({"w": np.zeros(2)})
    _, state = transform.decode(Total(zeros, 1.0, 1, {}, []), transform.init(), key(0))
    with pytest.raises(JobError, match="round 2 of a run whose noise was found for 1"):
        transform.decode(Total(zeros, 1.0, 1, {}, []), state, key(0))


# ---- turns -----------------------------------------------------------------------------------------------------------
def test_each_site_is_asked_once_in_so_many_rounds_whoever_joins() -> None:
    names = [f"site-{i}" for i in range(50)]
    rule = in_turns(4)
    asked = [rule(RoundContext(0, r, names if r % 2 else names[:30], ())) for r in range(8)]
    assert sorted(site for sites in asked[1:4:2] for site in sites)  # somebody, in each
    for site in names:
        at = [r for r in range(8) if site in asked[r]]
        assert len({r % 4 for r in at}) <= 1
    assert {site for r in (4, 5, 6, 7) for site in asked[r]} >= set(names[:30])


@pytest.mark.parametrize(("of", "why"), [({"s0": 5}, "has turn 5"), ({}, "does not name site 's0'")])
def test_a_turn_that_is_none_is_refused(of: Any, why: str) -> None:
    with pytest.raises(JobError, match=why):
        in_turns(3, of)(RoundContext(0, 0, ["s0"], ()))


def test_turns_are_counted_in_whole_rounds() -> None:
    with pytest.raises(JobError, match=r"in_turns\(0\)"):
        in_turns(0)
