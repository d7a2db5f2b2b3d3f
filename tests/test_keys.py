"""Named randomness: the same names give the same numbers everywhere, other names give others."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from enum import IntEnum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foedus.keys import Key, key, orders, splitmix64

NAMES = st.one_of(st.integers(), st.text())


def test_a_key_is_the_sha_256_of_its_names_as_json() -> None:
    text = b'[0, 3, 1, "north", "train"]'
    assert key(0, 3, 1, "north", "train").digest() == hashlib.sha256(text).digest()


def test_names_may_be_added_one_after_another() -> None:
    assert key(0)(3)(1, "north")("train") == key(0, 3, 1, "north", "train")


def test_numbers_of_numpy_and_of_python_are_one_name_and_strings_another() -> None:
    assert key(np.int64(3), np.uint8(7)) == key(3, 7)
    assert key(np.array(3)).digest() == key(3).digest()
    assert key(3).digest() != key("3").digest()
    assert key(np.str_("a")).digest() == key("a").digest()


def test_an_enumeration_is_its_number() -> None:
    class Task(IntEnum):
        TRAIN = 1

    assert key(Task.TRAIN) == key(1)


@pytest.mark.parametrize("name", [1.0, None, True, np.False_, b"a", ("a",), np.array([1, 2])])
def test_what_is_neither_string_nor_whole_number_is_no_name(name: object) -> None:
    with pytest.raises(TypeError):
        key(0, name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (key(1, 23), key(12, 3)),
        (key(0, "a", "b"), key(0, "ab")),
        (key(0, "a,b"), key(0, "a", "b")),
        (key(0, 'a", "b'), key(0, "a", "b")),
        (key(0, ""), key(0)),
        (key(-1), key(1)),
    ],
)
def test_names_do_not_run_into_one_another(one: Key, other: Key) -> None:
    assert one.digest() != other.digest()


@pytest.mark.properties
@given(st.lists(NAMES, min_size=1, max_size=5), st.lists(NAMES, min_size=1, max_size=5))
def test_two_keys_are_equal_only_if_their_names_are(one: list[int | str], other: list[int | str]) -> None:
    same = [(type(n), n) for n in one] == [(type(n), n) for n in other]
    assert (key(*one).digest() == key(*other).digest()) == same  # type: ignore[arg-type]


def test_generators_repeat_whoever_draws_first() -> None:
    first, second = key(0, "north").numpy().normal(size=4), key(0, "south").numpy().normal(size=4)
    again = [key(0, "south").numpy().normal(size=4), key(0, "north").numpy().normal(size=4)]
    assert (again[0] == second).all() and (again[1] == first).all() and (first != second).all()


def test_torch_generators_repeat() -> None:
    import torch

    one, two = (torch.rand(4, generator=key(0, "north").torch()) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, torch.rand(4, generator=key(0, "south").torch()))


def test_numbers_fit_every_library() -> None:
    found = [key(0, i).number() for i in range(1000)]
    assert all(0 <= n < 2**63 for n in found) and len(set(found)) == 1000
    assert max(found) > 2**62  # the high bits are used


def test_a_lent_generator_gives_the_numbers_of_ones_own() -> None:
    for name in ("a", "b", "a"):
        own, lent = key(0, name).numpy(), key(0, name).lent()
        assert lent.permutation(7).tolist() == own.permutation(7).tolist()
        assert lent.random(3).tolist() == own.random(3).tolist()
        assert lent.integers(9, size=5, dtype=np.uint8).tolist() == own.integers(9, size=5, dtype=np.uint8).tolist()


def test_the_numbers_that_orders_are_drawn_from_are_splitmix64s() -> None:
    # as the C code of Sebastiano Vigna (2015) prints them for the seed 1234567
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert splitmix64(np.array(1234567, np.uint64), np.arange(4, dtype=np.uint64)).tolist() == published


def test_an_order_is_drawn_for_each_key_and_epoch_alike_alone_and_among_others() -> None:
    sites = [key(0, name, "order") for name in ("north", "south", "east")]
    for epoch in range(3):
        together = orders(sites, [7, 20, 1], epoch)
        for site, count, found in zip(sites, (7, 20, 1), together, strict=True):
            assert sorted(found[:count].tolist()) == list(range(count))
            assert found[:count].tolist() == site.order(count, epoch).tolist()
    drawn = {tuple(site.order(20, epoch)) for site in sites for epoch in range(3)}
    assert len(drawn) == 9


def test_every_order_is_drawn_as_often_as_any_other() -> None:
    drawn = np.concatenate([orders([key(0, i) for i in range(4000)], [3] * 4000, epoch) for epoch in range(3)])
    _, counts = np.unique(drawn @ [9, 3, 1], return_counts=True)
    # chi-squared of 6 orders has 5 degrees of freedom: above 20.5 once in a thousand
    assert len(counts) == 6 and ((counts - 2000) ** 2 / 2000).sum() < 20.5


def test_draws_of_neighbouring_keys_are_not_alike() -> None:
    draws = np.array([key(0, i).numpy().uniform() for i in range(2000)])
    assert abs(draws.mean() - 0.5) < 0.03  # 4.6 standard errors
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.1


@pytest.mark.processes
def test_a_key_is_the_same_in_every_process() -> None:
    code = "from foedus.keys import key; print(key(1, 'a').number(), key(1, 'a').numpy().integers(2**62))"
    runs = []
    for seed in ("0", "77"):
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        runs.append(
            subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
        )
    assert runs[0] == runs[1] == f"{key(1, 'a').number()} {key(1, 'a').numpy().integers(2**62)}\n"
