"""Sizes, times, shifted features and wrong labels: what was promised, counted and worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

from foedus import partition
from foedus.data import PARTS, Sites, Split
from foedus.errors import FoedusError


def visits():
    """Six visits, not in the order of their dates; the feature is the day's number."""
    days = [5, 2, 6, 1, 3, 4]
    dates = pandas.to_datetime([f"2024-01-{day:02}" for day in days])
    return pandas.DataFrame({"ward": list("abbaab"), "date": dates, "x": days, "y": [0, 1, 0, 1, 0, 1]})


def held(split, part):
    data = getattr(split, part)
    return [] if data is None else data.x[:, 0].tolist()


# quantity


def test_sizes_are_unequal_as_dirichlet_makes_them():
    """E[sum of p_i^2] = (alpha + 1) / (n alpha + 1) for Dirichlet(alpha) over n sites: 2/21 for alpha 1, 20 sites."""
    x, y = np.zeros((2000, 1)), np.arange(2000) % 2
    squares = []
    for seed in range(60):
        sites = partition.quantity(x, y, sites=20, alpha=1.0, valid=0, test=0, seed=seed)
        sizes = np.array([len(split.train) for split in sites.values()])
        assert sizes.sum() == 2000 and sizes.min() >= 1
        squares.append(((sizes / 2000) ** 2).sum())
    assert np.mean(squares) == pytest.approx(2 / 21, rel=0.1)


def test_a_large_alpha_comes_near_equal_sizes_and_least_is_kept():
    x, y = np.zeros((1000, 1)), np.arange(1000) % 2
    even = partition.quantity(x, y, sites=10, alpha=1e6, valid=0, test=0)
    assert all(abs(len(split.train) - 100) <= 2 for split in even.values())
    skewed = partition.quantity(x, y, sites=10, alpha=0.05, least=20, valid=0, test=0)
    assert min(len(split.train) for split in skewed.values()) >= 20


@pytest.mark.parametrize("alpha", [0, -1.0, float("inf"), float("nan")])
def test_an_alpha_that_is_none_is_refused(alpha):
    with pytest.raises(FoedusError, match="quantity\\(alpha="):
        partition.quantity(np.zeros((9, 1)), np.zeros(9, int), sites=2, alpha=alpha)


# time


def test_each_site_holds_a_stretch_of_time():
    frame = visits().drop(columns="ward")
    sites = partition.by_time(frame, "date", "y", sites=["old", "new"], valid=0, test=0)
    assert sorted(held(sites["old"], "train")) == [1, 2, 3] and sorted(held(sites["new"], "train")) == [4, 5, 6]
    assert sites["old"].train.x.shape == (3, 1)


def test_a_site_may_be_tested_on_its_newest_rows():
    """Ward a has the days 5, 1, 3; ward b has 2, 6, 4: one of three is for valid and one for test."""
    sites = partition.by_column(visits(), "ward", "y", time="date", valid=0.3, test=0.3)
    assert {name: [held(split, part) for part in PARTS] for name, split in sites.items()} == {
        "a": [[1], [3], [5]],
        "b": [[2], [4], [6]],
    }
    assert sites["a"].train.y.tolist() == [1]


def test_times_that_cannot_be_used_are_refused_by_name():
    odd = visits().drop(columns="ward").assign(date=[1, "b", None, 2, 3, 4])
    with pytest.raises(FoedusError, match="column 'date' has 1 gaps"):
        partition.by_time(odd, "date", "y", sites=2)
    with pytest.raises(FoedusError, match="column 'date' cannot be sorted"):
        partition.by_time(odd.fillna({"date": 9}), "date", "y", sites=2)


# feature shift


def plain(sites=4, each=400):
    x = np.random.default_rng(0).normal(size=(sites * each, 3))
    return partition.iid(x, np.arange(sites * each) % 2, sites=sites, valid=0.25, test=0.25)


def test_noise_grows_from_site_to_site():
    """Site i of 4 has variance 0.4 i / 4: 0.1, 0.2, 0.3, 0.4."""
    before = plain()
    after = partition.feature_shift(before, noise=0.4)
    for i, name in enumerate(before):
        for part in PARTS:
            difference = getattr(after[name], part).x - getattr(before[name], part).x
            assert difference.var() == pytest.approx(0.1 * (i + 1), rel=0.2)
            assert (getattr(after[name], part).y == getattr(before[name], part).y).all()


def test_gain_and_offset_are_one_straight_line_a_site_in_all_parts():
    before, lines = plain(), []
    after = partition.feature_shift(before, gain=0.5, offset=2.0, seed=3)
    for name, split in after.items():
        x = np.concatenate([getattr(before[name], part).x.ravel() for part in PARTS])
        shifted = np.concatenate([getattr(split, part).x.ravel() for part in PARTS])
        slope, base = np.polyfit(x, shifted, 1)
        assert np.allclose(shifted, slope * x + base) and slope > 0
        lines.append((slope, base))
    assert len(set(lines)) == 4
    assert partition.feature_shift(before, gain=0.5, offset=2.0, seed=3).digest == after.digest
    assert partition.feature_shift(before, gain=0.5, offset=2.0, seed=4).digest != after.digest


def test_dtypes_stay_but_whole_numbers_become_floats():
    for dtype, then in ((np.float32, np.float32), (np.uint8, np.float64)):
        sites = partition.iid(np.ones((20, 2), dtype), np.arange(20) % 2, sites=2)
        assert partition.feature_shift(sites, noise=0.1)["site-000"].train.x.dtype == then


def test_shifts_that_are_none_are_refused():
    with pytest.raises(FoedusError, match="feature_shift\\(noise=-1\\)"):
        partition.feature_shift(plain(), noise=-1)
    with pytest.raises(FoedusError, match="site 'north' does not hold arrays"):
        partition.feature_shift({"north": 3}, noise=1)


# label noise


def test_exactly_the_share_of_training_labels_is_wrong():
    """400 examples a site, of which 200 are trained with: a tenth are 20."""
    before = plain()
    after = partition.label_noise(before, 0.1)
    for name in before:
        wrong = after[name].train.y != before[name].train.y
        assert wrong.sum() == 20 and (after[name].train.x == before[name].train.x).all()
        assert all((getattr(after[name], p).y == getattr(before[name], p).y).all() for p in ("valid", "test"))


def test_sites_may_have_shares_of_their_own_and_other_parts():
    before = plain()
    first = min(before)
    after = partition.label_noise(before, {first: 1.0}, parts=PARTS)
    assert all((getattr(after[first], part).y != getattr(before[first], part).y).all() for part in PARTS)
    assert (
        Sites({n: after[n] for n in list(before)[1:]}).digest == Sites({n: before[n] for n in list(before)[1:]}).digest
    )


def test_a_wrong_label_is_any_other_of_the_data_as_likely():
    y = np.full(3000, 5)
    y[:3] = [2, 9, 11]
    sites = Sites({"north": Split(train=(np.zeros((3000, 1)), y))})
    counts = np.unique(partition.label_noise(sites, 1.0)["north"].train.y, return_counts=True)
    assert counts[0].tolist() == [2, 5, 9, 11] and (abs(counts[1][[0, 2, 3]] - 1000) < 100).all()


def test_label_noise_that_is_none_is_refused():
    with pytest.raises(FoedusError, match="shares from 0 to 1"):
        partition.label_noise(plain(), 1.5)
    with pytest.raises(FoedusError, match="'mars', which is none of the sites"):
        partition.label_noise(plain(), {"mars": 0.1})
    with pytest.raises(FoedusError, match="some of train, valid, test"):
        partition.label_noise(plain(), 0.1, parts=["all"])
    with pytest.raises(FoedusError, match="are no classes"):
        partition.label_noise({"a": Split(train=(np.zeros((2, 1)), np.array([0.5, 1.5])))}, 0.1)


# what all promise


def test_what_is_shifted_can_be_plotted_saved_and_digested(tmp_path):
    sites = partition.label_noise(partition.feature_shift(plain(), noise=0.1), 0.2)
    sites.save(tmp_path)
    assert Sites.load(tmp_path).digest == sites.digest
    assert len(sites.plot().axes[0].patches) == 8  # two labels, four sites
