"""Robust aggregators: numbers worked out by hand from the papers, plain references, and what holds for any updates.

Sites are a, b, c … in the order of their rows, so that a number alone is a point on a line.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus import (
    Decline,
    bulyan,
    centered_clipping,
    combine,
    fedavg,
    frames,
    geometric_median,
    krum,
    median,
    multi_krum,
    norm_bounded,
    trimmed_mean,
)
from foedus.aggregators.bulyan import selected
from foedus.aggregators.chunks import fold_files
from foedus.aggregators.folding import Folding
from foedus.aggregators.gathering import COLUMNS
from foedus.core import Algorithm, Gather, Origin, Outcome, Task, Update
from foedus.errors import FoedusError, JobError, Paused, Refused
from foedus.params import Params
from test_folding import bytes_of, drawn, in_files, tree
from tiny import job, many, played, working

RULES: dict[str, Gather] = {  # all of them bear seven updates
    "median": median(),
    "trimmed mean": trimmed_mean(3),
    "krum": krum(2),
    "multi-krum": multi_krum(2, 3),
    "bulyan": bulyan(1),
    "geometric median": geometric_median(),
    "centered clipping": centered_clipping(10.0),
    "norm bounded": norm_bounded(10.0),
}


def line(*points: float, dtype: Any = np.float32) -> dict[str, Update]:
    return {chr(97 + i): Update(Params({"w": np.array([x], dtype)})) for i, x in enumerate(points)}


def rows(*points: Sequence[float], weights: Sequence[float] = ()) -> dict[str, Update]:
    """The first number of each is one array, the others another, of another dtype."""
    given = weights or [1.0] * len(points)
    arrays = [{"w": np.float32(p[:1]), "v": np.float64(p[1:])} for p in points]
    return {chr(97 + i): Update(Params(a), w) for i, (a, w) in enumerate(zip(arrays, given, strict=True))}


def one(rule: Gather, updates: Mapping[str, Update]) -> float:
    return float(combine(rule, updates)["w"][0])


def both(rule: Gather, updates: Mapping[str, Update]) -> list[float]:
    found = combine(rule, updates)
    return [*found["w"].tolist(), *found["v"].tolist()]


# By hand.


def test_the_trimmed_mean_by_hand() -> None:
    assert one(trimmed_mean(1), line(8, 1, 100, 4, 2)) == np.float32(14 / 3)  # (2 + 4 + 8) / 3
    assert one(trimmed_mean(2), line(8, 1, 100, 4, 2)) == 4
    assert one(trimmed_mean(0), line(8, 1, 100, 4, 2)) == 23
    # each number by itself: of (1, 2, 9) and of (-5, 7, 0) the middle ones
    assert both(trimmed_mean(1), rows((1, -5), (2, 7), (9, 0))) == [2, 0]


def test_krum_by_hand() -> None:
    # n = 5, f = 1: the two nearest others, squared. 0: 1 + 9; 1: 1 + 4; 3: 4 + 9; 7: 16 + 36; 100: 93² + 97²
    assert one(krum(1), line(0, 1, 3, 7, 100)) == 1
    assert one(krum(0), line(0, 1, 3, 7, 100)) == 3  # the three nearest. 0: 59; 1: 41; 3: 9 + 4 + 16 = 29; 7: 101
    assert one(krum(1), line(2, 2, 2, 2, 2)) == 2


def test_krum_looks_at_all_arrays_together() -> None:
    # Distances squared (n = 5, f = 1, two nearest): a-b 4, a-c 5, b-c 1, c-d 1, b-d 2. a: 4 + 5; b: 1 + 2; c: 1 + 1.
    found = both(krum(1), rows((0, 0), (0, 2), (1, 2), (1, 3), (90, 90)))
    assert found == [1, 2]


def test_of_several_krum_takes_that_of_the_first_site_by_name() -> None:
    updates = line(0, 1, 5, 6, 50)  # 0: 1 + 25; 1: 1 + 16; 5: 1 + 16; 6: 1 + 25
    for order in (updates, dict(reversed(updates.items()))):
        assert one(krum(1), order) == 1


def test_multi_krum_by_hand() -> None:
    points = line(0, 1, 3, 7, 100)  # scores 10, 5, 13, 52 and a large one
    assert one(multi_krum(1, 1), points) == 1
    assert one(multi_krum(1, 2), points) == 0.5
    assert one(multi_krum(1, 3), points) == np.float32(4 / 3)
    assert one(multi_krum(1, 4), points) == 2.75


def test_bulyan_by_hand() -> None:
    """n = 7, f = 1: five are chosen one by one, with the 4, 3, 2, 1 and (in the paper 0, here 1) nearest others.

    All: 0: 39, 1: 22, 2: 1+1+4+9 = 15, 3: 18, 5: 23, 6: 30, 8: 74. So 2.
    Then 0: 35, 1: 21, 3: 17, 5: 1+4+9 = 14, 6: 1+4+9 = 14, 8: 38. So 5, the first of two.
    Then 0: 10, 1: 1+4 = 5, 3: 13, 6: 13, 8: 29. So 1.
    Then 0: 9, 3: 9, 6: 4, 8: 4. So 6. Then 0: 9, 3: 9, 8: 25. So 0.
    Of 0, 1, 2, 5, 6 the three nearest to 2 are 0, 1, 2. Had all been chosen at once, it were 1, 2, 3, 5, 6, and then 2.
    """
    points = np.array([0, 1, 2, 3, 5, 6, 8])
    assert selected(np.square(points[:, None] - points), 1) == [2, 4, 1, 5, 0]
    assert one(bulyan(1), line(*points)) == 1.0


def test_bulyan_without_liars_is_the_plain_mean() -> None:
    assert both(bulyan(0), rows((1, 4), (2, 5), (6, 0), weights=[1, 2, 3])) == [3, 3]


def test_bulyan_takes_other_sites_for_other_numbers() -> None:
    # g is never chosen; d and e may be, but of w the number of d is the furthest one, of v that of e.
    found = both(bulyan(1), rows((0, 0), (0, 0), (0, 0), (5, 0), (0, 5), (0, 0), (900, 900)))
    assert found == [0, 0]


def test_the_geometric_median_by_hand() -> None:
    # From the mean 1: distances 1, 1, 2; (0 + 0 + 3/2) / (1 + 1 + 1/2) = 0.6. Weights count as copies do.
    assert one(geometric_median(1), line(0, 0, 3)) == pytest.approx(0.6, rel=1e-6)
    assert both(geometric_median(1), rows((0, 0), (3, 0), weights=[2, 1])) == pytest.approx([0.6, 0], rel=1e-6)
    # From 0.6: distances 0.6, 0.6, 2.4; 3/2.4 / (2/0.6 + 1/2.4) = 1.25 / 3.75
    assert one(geometric_median(2), line(0, 0, 3)) == pytest.approx(1 / 3, rel=1e-6)


def test_the_geometric_median_is_where_geometry_puts_it() -> None:
    # Of four corners it is where the diagonals meet; where one point has most of the weight, it is that point.
    corners = rows((-1, 0), (3, 0), (0, -1), (0, 5))
    assert both(geometric_median(200), corners) == pytest.approx([0, 0], abs=1e-4)
    assert both(geometric_median(), rows((0, 0), (10, 0), (0, 5), weights=[3, 1, 1])) == pytest.approx([0, 0], abs=1e-4)


def test_less_than_half_of_the_weight_moves_the_geometric_median_little() -> None:
    honest = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    for rule, liars in ((geometric_median(), 2), (geometric_median(100), 3)):  # each iteration leaves liars / honest
        assert np.hypot(*both(rule, rows(*honest, *[(1e6, 1e6)] * liars))) < 10


def test_centered_clipping_by_hand() -> None:
    # From 0: (0.5 - 0.5 + 1 + 1) / 4 = 0.5. From there: 0.5 + (0 - 1 + 1 + 1) / 4 = 0.75.
    points = line(0.5, -0.5, 2, 10)
    assert one(centered_clipping(1.0, 1), points) == 0.5
    assert one(centered_clipping(1.0, 2), points) == 0.75
    # From 0.75: 0.75 + (-0.25 - 1 + 1 + 1) / 4
    assert one(centered_clipping(1.0, 3), points) == one(centered_clipping(1.0), points) == 0.9375
    assert both(centered_clipping(1.0, 1), rows((3, 4))) == pytest.approx([0.6, 0.8])


def test_norm_bounding_by_hand() -> None:
    # (2 (0.6, 0.8) + (0.3, 0.4) + (0, -1)) / 4
    found = both(norm_bounded(1.0), rows((3, 4), (0.3, 0.4), (0, -10), weights=[2, 1, 1]))
    assert found == pytest.approx([0.375, 0.25], rel=1e-6)
    assert both(norm_bounded(1.0), rows((0, 0), (0, 0))) == [0, 0]


def test_distances_are_of_differences_in_float64() -> None:
    """Far from zero squares have no room for what differs: 2**46 in float32, 2**80 in float64 forget the points."""
    far = 2.0**23
    assert one(krum(1), line(*(far + x for x in (0, 1, 3, 7, 100)))) == far + 1
    far = 2.0**40
    assert one(krum(1), line(*(far + x for x in (0, 1, 3, 7, 100)), dtype=np.float64)) == far + 1
    assert one(krum(1), line(*(x * 2.0**90 for x in (0, 1, 3, 7, 100)))) == 2.0**90  # squares beyond float32


# What is no difference to look at.


def test_buffers_have_no_say_in_distances_and_are_medians_and_integers_take_the_largest() -> None:
    def update(w: float, mean: float, n: int) -> Update:
        arrays = {"w": np.float32([w]), "mean": np.float32([mean]), "n": np.int64(n)}
        return Update(Params(arrays, {"mean": "buffer"}))

    facts = [(0, 9, 1), (1, -1e9, 2), (3, 8, 3), (7, 1e9, 4), (100, 10, 9)]
    found = combine(krum(1), {str(i): update(*fact) for i, fact in enumerate(facts)})
    assert (found["w"][0], found["mean"][0], found["n"]) == (1, 9, 9)


def test_a_model_without_trainable_numbers_has_a_total() -> None:
    updates = {s: Update(Params({"n": np.int64(i), "e": np.zeros((0, 2))})) for i, s in enumerate("abcde")}
    assert combine(krum(1), updates)["n"] == 4


def test_numbers_whose_squares_have_no_room_are_refused() -> None:
    with pytest.raises(Refused, match=r"site 'c'.*numbers above"):
        combine(krum(0), line(0, 1, -1e200, dtype=np.float64))
    with pytest.raises(Refused, match=r"site 'b'.*NaN or Inf"):
        combine(median(), line(0, np.inf, 1))


# How many are needed.


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        (trimmed_mean(2), 5), (krum(0), 3), (krum(1), 5), (krum(4), 11), (multi_krum(1, 2), 5), (multi_krum(1, 8), 9),
        (bulyan(0), 3), (bulyan(1), 7), (bulyan(2), 11), (median(), 1), (geometric_median(), 1),
    ],
)  # fmt: skip
def test_an_aggregator_with_too_few_updates_says_how_many_it_needs(rule: Gather, least: int) -> None:
    """2f + 1, 2f + 3 (Krum) and 4f + 3 (Bulyan)."""
    assert rule.least == least
    combine(rule, line(*range(least)))
    if least > 1:
        with pytest.raises(FoedusError, match=f"needs {least} updates and has {least - 1}: ask more sites.*a lower f"):
            combine(rule, line(*range(least - 1)))


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: krum(-1), r"krum\(f=-1\)"),
        (lambda: bulyan(1.0), r"bulyan\(f=1.0\)"),  # type: ignore[arg-type]
        (lambda: trimmed_mean(True), r"trimmed_mean\(f=True\)"),
        (lambda: multi_krum(1, 0), r"multi_krum\(m=0\)"),
        (lambda: geometric_median(0), r"geometric_median\(0"),
        (lambda: geometric_median(smoothing=0.0), "must be positive"),
        (lambda: centered_clipping(0.0), r"centered_clipping\(0.0"),
        (lambda: centered_clipping(float("nan")), r"centered_clipping\(nan"),
        (lambda: centered_clipping(1.0, 0), "must be positive"),
        (lambda: norm_bounded(-1.0), r"norm_bounded\(-1.0\)"),
    ],
)
def test_a_setting_that_is_none_is_refused(made: Any, why: str) -> None:
    with pytest.raises(JobError, match=why):
        made()


def test_a_job_waits_for_as_many_as_its_aggregator_needs() -> None:
    made = job(fedavg(aggregator=krum(1)), rounds=1)
    assert made.least == 5 and made.replace(min_sites=6).least == 6
    played(made, many(5))

    def away(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        return (local, Decline("not today")) if site.name == "s00" else usual()

    absent = made.replace(algorithm=working(away, made.algorithm))
    played(absent, many(6))
    with pytest.raises(Paused, match="4 of the 5 updates needed arrived; s00: declined"):
        played(absent, many(5))


def test_a_task_of_ones_own_that_asks_too_few_is_an_error() -> None:
    def round(state: Any, context: Any) -> Any:
        total = yield Task("train", state, context.cohort, aggregator=krum(1))
        return state + total.params

    with pytest.raises(JobError, match="task 'train': this aggregator needs 5 updates and has 4"):
        played(job(Algorithm(lambda params: params, round, fedavg().works), rounds=1), many(4))
    with pytest.raises(JobError, match="needs 5 updates and has 4"):
        played(job(fedavg(aggregator=krum(1), quorum=4), rounds=1), many(6))


# Whatever the updates are.

points = st.lists(st.lists(st.integers(-20, 20), min_size=3, max_size=3), min_size=7, max_size=12)


def fractions(points: Sequence[Sequence[int]]) -> list[list[Fraction]]:
    return [[Fraction(x) for x in p] for p in points]


def best(points: Sequence[Sequence[Fraction]], f: int) -> list[int]:
    """Krum's order, one distance after another."""
    scores = []
    for i, p in enumerate(points):
        far = [sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) for j, q in enumerate(points) if j != i]
        scores.append(sum(sorted(far)[: max(1, len(points) - f - 2)]))
    return sorted(range(len(points)), key=lambda i: (scores[i], i))


def exact(found: Mapping[str, Any], expected: Sequence[Fraction]) -> bool:
    return found["w"].tolist() == [np.float32(float(x)) for x in expected]


def updates_of(points: Sequence[Sequence[int]]) -> dict[str, Update]:
    return {f"s{i:02}": Update(Params({"w": np.float32(p)})) for i, p in enumerate(points)}


@pytest.mark.properties
@given(points, st.integers(0, 2), st.integers(1, 5))
def test_krum_and_multi_krum_are_those_of_a_plain_reference(points: list[list[int]], f: int, m: int) -> None:
    order, plain = best(fractions(points), f), fractions(points)
    assert exact(combine(krum(f), updates_of(points)), plain[order[0]])  # a real update
    mean = [sum(column) / m for column in zip(*(plain[i] for i in order[:m]), strict=True)]
    assert exact(combine(multi_krum(f, m), updates_of(points)), mean)  # type: ignore[arg-type]


@pytest.mark.properties
@given(points, st.integers(0, 1))
def test_bulyan_is_that_of_a_plain_reference(points: list[list[int]], f: int) -> None:
    left, chosen = fractions(points), []
    while len(chosen) < len(points) - 2 * f:
        chosen.append(left.pop(best(left, f)[0]))
    expected = []
    for column in map(sorted, zip(*chosen, strict=True)):
        n = len(column)
        middle = (column[(n - 1) // 2] + column[n // 2]) / 2
        near = sorted(column, key=lambda x: (abs(x - middle), x))[: n - 2 * f]
        expected.append(sum(near) / len(near))
    assert exact(combine(bulyan(f), updates_of(points)), expected)  # type: ignore[arg-type]


numbers = st.floats(-(2.0**60), 2.0**60, width=32)


@pytest.mark.properties
@given(st.lists(numbers, min_size=5, max_size=9), st.integers(0, 2))
def test_a_trimmed_mean_lies_between_what_it_kept(values: list[float], f: int) -> None:
    found, kept = one(trimmed_mean(f), line(*values)), sorted(values)[f : len(values) - f]
    assert kept[0] <= found <= kept[-1]


@pytest.mark.properties
@given(st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=1, max_size=6), st.floats(1e-3, 1e3))
def test_no_site_moves_a_clipped_total_further_than_it_may(points: list[list[float]], bound: float) -> None:
    least = rows(*points)
    assert np.hypot(*both(norm_bounded(bound), least)) <= bound * (1 + 1e-6)
    assert np.hypot(*both(centered_clipping(bound, 2), least)) <= 2 * bound * (1 + 1e-6)


@pytest.mark.properties
@pytest.mark.parametrize("name", RULES)
@given(seed=st.integers(0, 2**32), sites=st.integers(7, 9))
@settings(max_examples=10)
def test_any_order_and_any_tree_give_the_same_bytes(name: str, seed: int, sites: int) -> None:
    rng, found, mapped = random.Random(seed), [], []
    parts = [(Origin(f"s{i}", 5, 0), drawn(rng, i, 5)) for i in range(sites)]
    for _ in range(3):
        rng.shuffle(parts)
        found.append(bytes_of(tree(rng, RULES[name], list(parts), sites).total()))
        made = combine(RULES[name], {origin.site: update for origin, update in parts})
        mapped.append({n: x.tobytes() for n, x in made.items()})
    assert found == found[:1] * 3 and mapped == mapped[:1] * 3


# From files.


@pytest.mark.parametrize("name", RULES)
def test_files_give_the_bytes_of_memory(name: str, tmp_path: Path) -> None:
    rng, parts = np.random.default_rng(3), []
    for i in range(7):
        arrays = {"f": rng.normal(size=COLUMNS + 77).astype(np.float32), "g": rng.normal(size=COLUMNS - 1)}
        arrays |= {"m": rng.normal(size=5), "n": np.int64([i])}
        parts.append((Origin(f"s{i}", 4, 0), Update(Params(arrays, {"m": "buffer"}), float(i + 1))))
    folding = Folding(RULES[name], parts[0][1].params.spec, 7)
    for origin, found in parts:
        folding.add(found, origin)
    assert bytes_of(in_files(RULES[name], parts[::-1], tmp_path)) == bytes_of(folding.total())


@pytest.mark.parametrize("name", ["bulyan", "norm bounded"])
def test_a_gather_over_files_takes_no_more_memory_for_a_larger_model(name: str, tmp_path: Path) -> None:
    most = []
    for millions in (1, 3):
        counted, w = [], np.arange(millions << 20, dtype=np.float32)
        for i in range(7):
            (tmp_path / f"{i}").write_bytes(frames.pack(Params({"w": w * np.float32(i)})).bytes())
            counted.append((Origin(f"s{i}", 0, 0), 1.0, frames.read(tmp_path / f"{i}")))
        outcomes = [Outcome(origin.site, "counted", "", 1.0) for origin, _, _ in counted]
        tracemalloc.start()
        fold_files(RULES[name], counted[0][2].spec, counted, 7, outcomes, tmp_path / "total")
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert most[1] < most[0] + (1 << 20) and most[1] < 24 << 20  # bytes; the seven updates have 84 MiB
