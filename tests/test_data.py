"""Splits, Pairs and Sites: arrays, tensors, frames and datasets, checked, shown, hashed and kept as files."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from foedus.data import Pairs, Site, Sites, Split, Subset, load_split, save_split
from foedus.errors import FoedusError, Missing
from foedus.keys import key


def pairs(n, start=0):
    return np.arange(start, start + n, dtype=np.float32)[:, None], np.arange(start, start + n)


def sites():
    north = Split(train=(np.eye(3), np.array([0, 1, 1])), test=(np.ones((1, 3)), np.array([1])))
    south = Split(train=(np.zeros((2, 3)), np.array([0, 0])), valid=(np.ones((1, 3)), np.array([1])))
    return Sites({"north": north, "south": south})


# Pairs


def test_pairs_are_taken_by_number_slice_and_index_array():
    data = Pairs(*pairs(5))
    assert len(data) == 5
    assert [int(y) for _, y in data] == [0, 1, 2, 3, 4]
    assert data[2][0].tolist() == [2] and data[-1][1] == 4
    assert data[1:3][1].tolist() == [1, 2]
    assert data[np.array([3, 0])][0].tolist() == [[3], [0]]


def test_pairs_feed_a_torch_dataloader():
    batches = list(DataLoader(Pairs(*pairs(5)), batch_size=2))
    assert [y.tolist() for _, y in batches] == [[0, 1], [2, 3], [4]]
    assert batches[0][0].dtype == torch.float32 and batches[0][0].shape == (2, 1)


def test_tensors_stay_tensors():
    data = Pairs(torch.arange(6).reshape(3, 2), torch.tensor([0, 1, 0]))
    assert isinstance(data.x, torch.Tensor)
    assert data[np.array([2, 0])][0].tolist() == [[4, 5], [0, 1]]


def test_lists_and_frames_of_numbers_become_arrays():
    frame = pandas.DataFrame({"age": [63, 41], "ill": [True, False], "chol": [1.5, None]})
    data = Pairs(frame, pandas.Series([1, 0]))
    assert data.x.dtype == np.float64
    assert np.array_equal(data.x, [[63, 1, 1.5], [41, 0, np.nan]], equal_nan=True)
    assert data.y.tolist() == [1, 0]
    assert Pairs([[1, 2], [3, 4]], [0, 1]).x.tolist() == [[1, 2], [3, 4]]


def test_nullable_columns_have_their_gaps_as_nan():
    frame = pandas.DataFrame({"age": pandas.array([63, None], dtype="Int64")})
    assert np.array_equal(Pairs(frame, [0, 1]).x, [[63], [np.nan]], equal_nan=True)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((3, 2)), np.ones(2), "x has 3 examples and y has 2"),
        (np.ones(3), 1.0, "y is a single value"),
        ([[1, 2], [3]], [0, 1], "the examples of x differ in shape"),
        (np.array([object()]), [0], "x holds Python objects"),
        (pandas.DataFrame({"sex": ["m", "f"]}), [0, 1], "column 'sex' does not hold numbers"),
        (np.ones(2), pandas.Series(["ill", "well"], name="state"), "column 'state' does not hold numbers"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(x, y, message):
    with pytest.raises(FoedusError, match=message):
        Pairs(x, y)


# Split


def test_a_tuple_becomes_pairs_and_a_dataset_stays():
    dataset = TensorDataset(torch.zeros(4, 1), torch.zeros(4))
    split = Split(train=pairs(3), test=dataset)
    assert isinstance(split.train, Pairs) and split.valid is None and split.test is dataset


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": None}, "train is NoneType"),
        ({"train": "data/train"}, "train is str: give"),
        ({"train": {"x": [1], "y": [2]}}, "train is dict: give"),
        ({"train": ([1], [2], [3])}, "train is tuple: give"),
        ({"train": iter([1])}, "train is list_iterator: give"),
        ({"train": pairs(0)}, "train has no examples: a site without any takes no part"),
        ({"train": pairs(2), "valid": pairs(0)}, "valid has no examples: leave valid out"),
        ({"train": pairs(2), "test": []}, "test has no examples: leave test out"),
        ({"train": pandas.DataFrame({"a": [1]})}, r"train is a data frame: use Split.from_frame"),
    ],
)
def test_parts_that_are_no_examples_are_refused(parts, message):
    with pytest.raises(FoedusError, match=message):
        Split(**parts)


def test_a_split_from_frames_takes_the_label_apart():
    frame = pandas.DataFrame({"age": [63, 41], "num": [1, 0], "chol": [2.0, 3.0]})
    split = Split.from_frame(frame, label="num", test=frame[:1])
    assert split.train.x.tolist() == [[63, 2], [41, 3]] and split.train.y.tolist() == [1, 0]
    assert split.valid is None and len(split.test) == 1
    with pytest.raises(FoedusError, match="no column 'sick': choose from age, num, chol"):
        Split.from_frame(frame, label="sick")
    with pytest.raises(FoedusError, match="list is no data frame"):
        Split.from_frame([1], label="num")


@pytest.mark.properties
@given(st.integers(2, 60), st.integers(0, 5))
def test_valid_is_a_tenth_of_train_drawn_by_key(n, seed):
    split = Split(train=pairs(n)).with_valid(key(seed, "valid"))
    again = Split(train=pairs(n)).with_valid(key(seed, "valid"))
    assert len(split.valid) == max(1, round(n / 10))
    assert sorted([*split.train.y, *split.valid.y]) == list(range(n))
    assert (split.train.x[:, 0] == split.train.y).all()
    assert split.valid.y.tolist() == again.valid.y.tolist()


def test_another_key_draws_another_valid():
    drawn = {tuple(Split(train=pairs(50)).with_valid(key(seed)).valid.y.tolist()) for seed in range(10)}
    assert len(drawn) > 5


def test_a_valid_part_that_is_given_stays_and_a_single_example_is_not_taken():
    given_ = Split(train=pairs(20), valid=pairs(2))
    assert given_.with_valid(key(0)) is given_
    single = Split(train=pairs(1))
    assert single.with_valid(key(0)).valid is None


def test_valid_of_a_dataset_is_a_subset_of_it():
    dataset = [(i, -i) for i in range(30)]
    split = Split(train=dataset, test=pairs(2)).with_valid(key(1))
    assert isinstance(split.valid, Subset) and (len(split.train), len(split.valid), len(split.test)) == (27, 3, 2)
    assert sorted([*split.train, *split.valid]) == dataset
    assert sum(len(batch[0]) for batch in DataLoader(split.train, batch_size=4, shuffle=True)) == 27


def test_a_split_crosses_to_another_process():
    split = pickle.loads(pickle.dumps(Split(train=pairs(3))))
    assert split.train.y.tolist() == [0, 1, 2]


# Sites


def test_sites_are_a_mapping_of_names_to_data():
    found = Sites({"north": pairs(3), "south": "data/south"})
    assert list(found) == ["north", "south"] and len(found) == 2
    assert isinstance(found["north"], Split) and found["south"] == "data/south"
    assert repr(found) == "Sites(north, south)"
    assert Site("north", found["north"], key(0)).name == "north"


@pytest.mark.parametrize("bad", [{}, {"": pairs(1)}, {3: pairs(1)}])
def test_sites_without_names_are_refused(bad):
    with pytest.raises(FoedusError, match="at least one site"):
        Sites(bad)


def test_the_table_says_who_has_what():
    assert sites().table().splitlines() == [
        "site   train  valid  test  0  1",
        "north      3      0     1  1  3",
        "south      2      1     0  2  1",
    ]


def test_the_table_names_classes_and_leaves_out_many_labels():
    named = Sites(dict(sites()), classes=["well", "ill"])
    assert named.table().splitlines()[0].split() == ["site", "train", "valid", "test", "well", "ill"]
    many = Sites({"north": Split(train=pairs(13))})
    assert many.table().splitlines() == ["site   train  valid  test", "north     13      0     0"]


def test_a_table_of_folders_is_refused_by_name():
    with pytest.raises(FoedusError, match="site 'south' holds str"):
        Sites({"north": pairs(1), "south": "folder"}).table()


def test_the_plot_stacks_the_labels_of_each_site(tmp_path):
    axes = sites().plot(tmp_path / "who.png").axes[0]
    heights = [[bar.get_height() for bar in stack] for stack in axes.containers]
    floors = [[bar.get_y() for bar in stack] for stack in axes.containers]
    assert heights == [[1, 2], [3, 1]]
    assert floors == [[0, 0], [1, 2]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0", "1"]
    assert (tmp_path / "who.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_stacks_parts_where_labels_are_many():
    axes = Sites({"north": Split(train=pairs(20), test=pairs(5))}).plot().axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "valid", "test"]


def test_a_plot_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Missing, match=r"pip install 'foedus\[plot\]'"):
        sites().plot()


def test_the_digest_hangs_on_every_name_and_number_and_not_on_order():
    one = sites()
    assert len(one.digest) == 64
    assert Sites(dict(list(one.items())[::-1])).digest == one.digest == sites().digest
    renamed = Sites({"north": one["north"], "east": one["south"]})
    changed = Sites({**one, "south": Split(train=(np.zeros((2, 3)), np.array([0, 1])), valid=one["south"].valid)})
    moved = Sites({**one, "south": Split(train=one["south"].train, test=one["south"].valid)})
    assert len({one.digest, renamed.digest, changed.digest, moved.digest}) == 4


def test_the_digest_of_folders_is_refused_by_name():
    with pytest.raises(FoedusError, match="site 'south' does not hold arrays"):
        _ = Sites({"south": "folder"}).digest


# files


def test_a_split_comes_back_from_its_file(tmp_path):
    split = Split(train=(np.float32([[1, 2], [3, 4]]), np.array([0, 1])), test=(torch.ones(1, 2), torch.tensor([True])))
    save_split(tmp_path / "north.safetensors", split)
    found = load_split(tmp_path / "north.safetensors")
    assert found.train.x.dtype == np.float32 and found.train.x.tolist() == [[1, 2], [3, 4]]
    assert found.train.y.tolist() == [0, 1] and found.valid is None and found.test.y.tolist() == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["north.safetensors"]


def test_loaded_arrays_are_writable_so_that_torch_takes_them(tmp_path):
    save_split(tmp_path / "a", Split(train=pairs(2)))
    assert torch.from_numpy(load_split(tmp_path / "a").train.x).tolist() == [[0], [1]]


def test_sites_come_back_from_their_folder(tmp_path):
    given_ = Sites({"south/east": sites()["south"], "é ..": sites()["north"]}, classes=["well", "ill"])
    files = given_.save(tmp_path / "sites")
    assert sorted(path.parent.name for path in files.values()) == ["sites", "sites"]
    found = Sites.load(tmp_path / "sites")
    assert (found.digest, found.classes) == (given_.digest, ("well", "ill"))
    assert list(found) == ["south/east", "é .."]
    assert load_split(files["south/east"]).valid.y.tolist() == [1]


def test_sites_are_not_saved_among_other_sites(tmp_path):
    sites().save(tmp_path)
    sites().save(tmp_path)
    with pytest.raises(FoedusError, match=r"already holds north.safetensors, of other sites"):
        Sites({"south": sites()["south"]}).save(tmp_path)


def test_data_without_a_saved_form_is_refused_by_name(tmp_path):
    with pytest.raises(FoedusError, match=r"site 'north' does not hold arrays"):
        Sites({"north": Split(train=[1, 2])}).save(tmp_path)
    with pytest.raises(FoedusError, match=r"north: train/y is <U1"):
        Sites({"north": Split(train=([1], ["a"]))}).save(tmp_path)


def test_files_that_are_no_splits_are_refused(tmp_path):
    with pytest.raises(FoedusError, match="holds no sites saved"):
        Sites.load(tmp_path)
    save_split(tmp_path / "one.safetensors", Split(train=pairs(1)))
    with pytest.raises(FoedusError, match="holds no sites saved"):
        Sites.load(tmp_path)
    whole = (tmp_path / "one.safetensors").read_bytes()
    for damaged in (b"", whole[:-1], whole[:40], b"\x80\x04" + whole, whole.replace(b"train/y", b"train/z")):
        (tmp_path / "two").write_bytes(damaged)
        with pytest.raises(FoedusError):
            load_split(tmp_path / "two")
