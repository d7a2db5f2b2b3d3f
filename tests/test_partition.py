"""Partitioners: every example at one site and in one part, the same for the same seed, with the promised skew."""

from __future__ import annotations

import itertools

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus import partition
from foedus.errors import FoedusError

PARTS = ("train", "valid", "test")


def numbered(labels):
    """Examples whose only feature is their number."""
    y = np.asarray(labels)
    return np.arange(len(y))[:, None], y


def held(split):
    return np.concatenate([getattr(split, part).x[:, 0] for part in PARTS if getattr(split, part) is not None])


def labels_of(split):
    return np.concatenate([getattr(split, part).y for part in PARTS if getattr(split, part) is not None])


def everything(sites):
    return sorted(np.concatenate([held(split) for split in sites.values()]).tolist())


def skew(sites, labels):
    """Mean total variation distance between a site's mix of labels and that of all sites."""
    whole = np.bincount(np.concatenate([labels_of(s) for s in sites.values()]), minlength=labels)
    mixes = [np.bincount(labels_of(s), minlength=labels) / len(labels_of(s)) for s in sites.values()]
    return np.mean([abs(mix - whole / whole.sum()).sum() / 2 for mix in mixes])


TEN = numbered(np.arange(2000) % 10)
MAKERS = {
    "iid": partition.iid,
    "dirichlet": lambda x, y, **named: partition.dirichlet(x, y, alpha=0.5, **named),
    "quantity": lambda x, y, **named: partition.quantity(x, y, alpha=0.5, **named),
    "pathological": lambda x, y, **named: partition.pathological(x, y, classes=2, **named),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


# what all promise


@makers
@pytest.mark.properties
@settings(max_examples=40)
@given(data=st.data())
def test_every_example_is_at_one_site_and_in_one_part(make, data):
    labels = data.draw(st.lists(st.integers(0, 3), min_size=24, max_size=80))
    labels += [0, 1, 2, 3] * 3
    count = data.draw(st.integers(2, 6))
    valid, test = data.draw(st.sampled_from([(0.1, 0.2), (0, 0), (0.3, 0), (0, 0.5), (0.45, 0.5)]))
    sites = make(*numbered(labels), sites=count, valid=valid, test=test, seed=data.draw(st.integers(0, 9)))
    assert len(sites) == count
    assert everything(sites) == list(range(len(labels)))
    for split in sites.values():
        n = len(held(split))
        assert len(split.train) >= 1
        assert (labels_of(split) == np.asarray(labels)[held(split)]).all()
        for share, part in ((valid, split.valid), (test, split.test)):
            wanted = max(1, round(share * n)) if share and n >= 3 else 0
            size = 0 if part is None else len(part)
            assert size == wanted or (1 <= size < wanted and len(split.train) == 1)


@makers
def test_equal_seeds_give_equal_sites_and_others_do_not(make):
    one, two, other = (make(*TEN, sites=5, seed=seed).digest for seed in (3, 3, 4))
    assert one == two != other


@makers
def test_numbered_names_sort_as_their_numbers(make):
    assert list(make(*TEN, sites=3)) == ["site-000", "site-001", "site-002"]
    many = list(make(*numbered(np.arange(4000) % 10), sites=1001))
    assert many == sorted(many) and many[0] == "site-0000" and many[-1] == "site-1000"
    assert list(make(*TEN, sites=["south", "north"])) == ["south", "north"]


@makers
def test_parts_have_the_labels_of_their_site(make):
    for split in make(*TEN, sites=4, valid=0.25, test=0.25).values():
        own = np.bincount(labels_of(split), minlength=10)
        for part in (split.valid, split.test):
            assert abs(np.bincount(part.y, minlength=10) - own / 4).max() <= 1.5


@makers
@pytest.mark.parametrize("sites", [0, -1, True, [], ["a", "a"], "north", ["a", 3], 2.0, None])
def test_bad_sites_are_refused(make, sites):
    with pytest.raises(FoedusError, match="give a count of at least 1, or a list of names that differ"):
        make(*TEN, sites=sites)


@makers
def test_more_sites_than_examples_are_refused(make):
    with pytest.raises(FoedusError, match="4 examples do not give 5 sites at least 1 each"):
        make(*numbered([0, 1, 0, 1]), sites=5)


@makers
@pytest.mark.parametrize(("valid", "test"), [(-0.1, 0.2), (0.5, 0.5), (0, 1.0), (float("nan"), 0)])
def test_shares_that_leave_nothing_for_train_are_refused(make, valid, test):
    with pytest.raises(FoedusError, match="leave something for train"):
        make(*TEN, sites=2, valid=valid, test=test)


@makers
def test_text_labels_become_numbers_in_sorted_order(make):
    texts = np.array(["well", "ill", "dead"])[np.arange(60) % 3]
    sites = make(*numbered(texts), sites=3)
    assert sites.classes == ("dead", "ill", "well")
    for split in sites.values():
        assert [sites.classes[y] for y in labels_of(split)] == texts[held(split)].tolist()
    assert make(*numbered(texts.astype(object)), sites=3).digest == sites.digest
    assert sites.table().splitlines()[0].split()[-3:] == ["dead", "ill", "well"]


@makers
def test_number_labels_are_kept(make):
    sites = make(*numbered(np.arange(40) % 2 * 4 + 3), sites=2)
    assert set(np.concatenate([labels_of(split) for split in sites.values()]).tolist()) == {3, 7}
    assert sites.classes == ()


@makers
def test_tensors_and_frames_are_divided_as_arrays_are(make):
    x, y = TEN
    tensors = make(torch.from_numpy(x), torch.from_numpy(y), sites=4)
    assert isinstance(tensors["site-001"].train.x, torch.Tensor)
    assert tensors.digest == make(x, y, sites=4).digest
    frame = make(pandas.DataFrame({"x": x[:, 0]}), pandas.Series(y), sites=4)
    assert frame["site-001"].train.x.dtype == np.float64
    assert everything(frame) == list(range(2000))


def test_sites_of_one_or_two_examples_keep_them_for_training():
    sites = partition.iid(*numbered([0, 1, 0]), sites=2)
    assert [(len(s.train), s.valid, s.test) for s in sites.values()] == [(2, None, None), (1, None, None)]


@pytest.mark.parametrize(
    ("valid", "test", "sizes"), [(0.05, 0.9, (1, 1, 1)), (0, 0.5, (1, 0, 2)), (0.6, 0.3, (1, 1, 1))]
)
def test_the_smallest_sites_still_have_every_part(valid, test, sizes):
    split = partition.iid(*numbered([0, 1, 0]), sites=1, valid=valid, test=test)["site-000"]
    assert tuple(0 if getattr(split, part) is None else len(getattr(split, part)) for part in PARTS) == sizes


def test_labels_that_are_neither_numbers_nor_text_are_refused():
    with pytest.raises(FoedusError, match="neither numbers nor text"):
        partition.iid(*numbered(np.array(["a", None], object)), sites=1)


# iid


def test_iid_sites_are_of_equal_size_and_mix():
    sites = partition.iid(*TEN, sites=7)
    sizes = [len(held(split)) for split in sites.values()]
    assert sorted(sizes) == [285] * 2 + [286] * 5 or max(sizes) - min(sizes) == 1
    assert skew(sites, 10) < 0.1


def test_iid_takes_targets_of_any_kind():
    x = np.arange(20)[:, None]
    assert everything(partition.iid(x, np.linspace(0, 1, 20), sites=2)) == list(range(20))
    assert everything(partition.iid(x, np.zeros((20, 4, 4), int), sites=2)) == list(range(20))


# dirichlet


def test_a_large_alpha_is_nearly_iid_and_a_small_one_skewed():
    found = [skew(partition.dirichlet(*TEN, sites=10, alpha=alpha), 10) for alpha in (1e6, 10, 1, 0.1, 0.001)]
    assert found == sorted(found)
    assert found[0] < 0.01
    assert found[-1] > 0.7


def test_large_alpha_gives_each_site_its_tenth_of_each_label():
    for split in partition.dirichlet(*TEN, sites=10, alpha=1e9).values():
        assert np.bincount(labels_of(split)).tolist() == [20] * 10


@pytest.mark.parametrize("alpha", [0.1, 0.5, 3.0])
def test_shares_have_the_moments_of_a_dirichlet(alpha):
    """Over k = 5 sites each share has mean 1/k and variance (1/k)(1 - 1/k)/(k alpha + 1)."""
    x, y = numbered(np.repeat(np.arange(200), 1000))
    sites = partition.dirichlet(x, y, sites=5, alpha=alpha, valid=0, test=0)
    shares = np.array([np.bincount(split.train.y, minlength=200) for split in sites.values()]) / 1000
    assert shares.sum(0) == pytest.approx(1)
    assert shares.mean(1) == pytest.approx(0.2, abs=0.1)
    assert shares.var() == pytest.approx(0.16 / (5 * alpha + 1), rel=0.15)


def test_a_tiny_alpha_gives_each_label_to_one_site():
    sites = partition.dirichlet(*TEN, sites=4, alpha=1e-6, seed=1)
    owners = [{name for name, s in sites.items() if (labels_of(s) == label).sum() > 1} for label in range(10)]
    assert all(len(names) == 1 for names in owners)


@pytest.mark.parametrize("least", [1, 5, 40])
def test_no_site_has_less_than_the_least_number(least):
    sites = partition.dirichlet(*TEN, sites=50, alpha=0.01, least=least)
    assert min(len(held(split)) for split in sites.values()) >= least
    assert everything(sites) == list(range(2000))


def test_a_least_number_that_cannot_be_had_is_refused():
    with pytest.raises(FoedusError, match="2000 examples do not give 50 sites at least 41 each"):
        partition.dirichlet(*TEN, sites=50, alpha=1, least=41)


def test_another_site_changes_the_shares_of_the_others_only_in_proportion():
    few, more = (partition.dirichlet(*TEN, sites=list(names), alpha=1, valid=0, test=0) for names in ("abc", "abcd"))
    counts = [np.array([np.bincount(s[name].train.y, minlength=10) for name in "abc"]) for s in (few, more)]
    assert abs(counts[0] / counts[0].sum(0) - counts[1] / counts[1].sum(0)).max() < 0.06  # whole examples of 200


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf")])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(FoedusError, match="alpha"):
        partition.dirichlet(*TEN, sites=2, alpha=alpha)


@pytest.mark.parametrize("y", [np.linspace(0, 1, 20), np.zeros((20, 2), int)])
def test_targets_that_are_no_classes_cannot_be_skewed(y):
    for make in (MAKERS["dirichlet"], MAKERS["pathological"]):
        with pytest.raises(FoedusError, match="no classes: divide them with iid"):
            make(*numbered(y), sites=2)


# pathological


@pytest.mark.properties
@settings(max_examples=60)
@given(st.data())
def test_each_site_has_exactly_that_many_labels(data):
    sizes = data.draw(st.lists(st.integers(5, 40), min_size=2, max_size=8))
    count, classes = data.draw(st.integers(1, 5)), data.draw(st.integers(1, len(sizes)))
    x, y = numbered(np.repeat(np.arange(len(sizes)), sizes))
    sites = partition.pathological(x, y, sites=count, classes=classes, seed=len(y))
    found = [len(set(labels_of(split).tolist())) for split in sites.values()]
    if count * classes >= len(sizes):
        assert found == [classes] * count
    assert everything(sites) == list(range(len(y)))


def test_fewer_shards_than_labels_mix_neighbours():
    sites = partition.pathological(*TEN, sites=2, classes=2, valid=0, test=0)
    runs = [np.unique(labels_of(split)).tolist() for split in sites.values()]  # shards of 500: two labels and a half
    assert [len(labels_of(split)) for split in sites.values()] == [1000, 1000]
    assert all(5 <= len(labels) <= 6 for labels in runs)


def test_labels_too_rare_to_be_shared_are_refused():
    with pytest.raises(FoedusError, match="5 sites cannot have 2 labels each, as the rarest label has 3 examples"):
        partition.pathological(*numbered([0] * 50 + [1] * 3), sites=5, classes=2)


def test_shards_are_of_about_equal_size():
    sites = partition.pathological(*TEN, sites=10, classes=2)
    sizes = [np.bincount(labels_of(split), minlength=10) for split in sites.values()]
    assert {size for row in sizes for size in row.tolist()} == {0, 100}  # 20 shards of 10 labels of 200


def test_frequent_labels_are_cut_into_more_shards():
    sites = partition.pathological(*numbered([0] * 60 + [1] * 20 + [2] * 20), sites=5, classes=1)
    assert sorted(tuple(np.unique(labels_of(s), return_counts=True)[1]) for s in sites.values()) == [(20,)] * 5


def test_shards_are_dealt_at_random():
    combinations = {
        tuple(sorted(set(labels_of(split).tolist())))
        for seed in range(40)
        for split in partition.pathological(*TEN, sites=10, classes=2, seed=seed).values()
    }
    assert combinations == set(itertools.combinations(range(10), 2))


@pytest.mark.parametrize("classes", [0, 11, 1.5, True])
def test_a_number_of_labels_that_cannot_be_is_refused(classes):
    with pytest.raises(FoedusError, match="from 1 to the 10 labels there are"):
        partition.pathological(*TEN, sites=10, classes=classes)


# by column


def frame():
    return pandas.DataFrame(
        {
            "hospital": ["north", "south", "north", "east", "south", "north"],
            "age": [63, 41, 50, 70, 33, 29],
            "chol": [1.0, None, 3, 4, 5, 6],
            "num": ["ill", "well", "well", "ill", "ill", "well"],
        }
    )


def test_each_value_of_the_column_is_a_site():
    sites = partition.by_column(frame(), "hospital", label="num", test=0.3)
    assert list(sites) == ["east", "north", "south"]
    assert sorted(held(sites["north"]).tolist()) == [29, 50, 63]
    assert sites.classes == ("ill", "well")
    assert [len(getattr(sites["north"], part)) for part in PARTS] == [1, 1, 1]
    assert sites["south"].train.x.shape == (2, 2) and np.isnan(sites["south"].train.x[0, 1])


def test_numbers_in_the_column_name_sites_too():
    table = frame().assign(hospital=[10, 9, 10, 9, 9, 10])
    assert set(partition.by_column(table, "hospital", label="num")) == {"9", "10"}


def test_a_site_keeps_its_split_when_others_join_or_leave():
    whole = pandas.DataFrame({"state": np.arange(90) % 3, "x": np.arange(90), "y": np.arange(90) % 2})
    some = whole[whole.state != 1]
    before, after = (partition.by_column(table, "state", label="y", seed=5) for table in (whole, some))
    assert list(after) == ["0", "2"]
    for name, part in itertools.product(after, PARTS):
        assert getattr(before[name], part).x.tolist() == getattr(after[name], part).x.tolist()


def test_columns_that_cannot_be_used_are_refused_by_name():
    with pytest.raises(FoedusError, match="no column 'clinic': choose from hospital, age, chol, num"):
        partition.by_column(frame(), "clinic", label="num")
    with pytest.raises(FoedusError, match="no column 'label'"):
        partition.by_column(frame(), "hospital", label="label")
    with pytest.raises(FoedusError, match="column 'hospital' does not hold numbers"):
        partition.by_column(frame(), "age", label="num")
    with pytest.raises(FoedusError, match=r"column 'num' has 1 gaps: drop these rows first"):
        partition.by_column(
            frame().replace({"num": {"well": None}}).assign(num=["ill"] * 5 + [None]), "hospital", label="num"
        )
    with pytest.raises(FoedusError, match="ndarray is no data frame"):
        partition.by_column(np.eye(3), "a", label="b")
