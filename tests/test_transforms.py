"""Transforms: clipping by hand, the order of chains, states on both sides, and wrapped algorithms on `local`."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foedus import chain, clip, fedavg, transformed
from foedus.core import Algorithm, Decline, Task, Total, Transform, Update
from foedus.errors import JobError
from foedus.keys import key
from foedus.params import Params, digest
from foedus.transforms.clip import norm
from tiny import SITES, final, job, learner, played, working

KEY = key(0, 1, 0, "north", "encode")


def clipped(params: Params, bound: float) -> Params:
    return clip(bound).encode(Update(params), None, None, KEY)[0].params


# Clipping.


def test_clipping_by_hand() -> None:
    found = clipped(Params({"a": np.float32([3]), "b": np.float32([[4]])}), 1.0)  # the norm of both together is 5
    assert found["a"] == np.float32(0.6) and found["b"] == np.float32(0.8)


def test_what_is_small_enough_stays_the_same_object() -> None:
    p = Params({"a": np.float32([3, 4])})
    assert clipped(p, 5.0) is p and clipped(p, 6.0) is p


def test_buffers_and_integers_are_neither_measured_nor_touched() -> None:
    arrays = {"w": np.float32([3, 4]), "mean": np.float32([1e6]), "n": np.int64([10**9])}
    found = clipped(Params(arrays, {"mean": "buffer"}), 2.5)
    assert found["w"].tolist() == [1.5, 2.0] and found["mean"].tolist() == [1e6] and found["n"].tolist() == [10**9]


def test_the_norm_spans_dtypes() -> None:
    arrays = {"f": np.float32([2]), "d": np.float64([4]), "h": np.float16([5]), "z": np.array([6], ml_dtypes.bfloat16)}
    assert norm(Params(arrays)) == 9.0
    assert [float(x[0]) for x in clipped(Params(arrays), 4.5).values()] == [1.0, 2.0, 2.5, 3.0]


def test_zeros_are_small_enough() -> None:
    assert clipped(Params({"w": np.zeros(3, np.float32)}), 1e-3)["w"].tolist() == [0, 0, 0]


def test_a_nan_is_not_clipped_away() -> None:
    assert np.isnan(clipped(Params({"w": np.float32([math.nan, 1])}), 1.0)["w"]).any()


@pytest.mark.parametrize("bound", [0, -1.0, math.nan])
def test_a_bound_that_is_no_bound_is_refused(bound: float) -> None:
    with pytest.raises(JobError, match="the bound must be positive"):
        clip(bound)


@pytest.mark.properties
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8), st.floats(1e-3, 1e3))
def test_no_update_leaves_longer_than_its_bound(values: list[float], bound: float) -> None:
    p = Params({"w": np.float32(values)})
    assert norm(clipped(p, bound)) <= bound * (1 + 1e-6)


# Chains.


def shift(by: float) -> Transform:
    """Adds on the way out, and takes away on the way in."""

    def encode(update: Update, local: Any, public: Any, key: Any) -> tuple[Update, Any]:
        return update._replace(params=update.params.map(lambda x: x + np.float32(by))), local

    def decode(total: Total, state: Any, key: Any) -> tuple[Total, Any]:
        return total._replace(params=total.params.map(lambda x: x - np.float32(by))), state

    return Transform(encode=encode, decode=decode)


def double() -> Transform:
    def encode(update: Update, local: Any, public: Any, key: Any) -> tuple[Update, Any]:
        return update._replace(params=update.params.map(lambda x: x * 2)), local

    def decode(total: Total, state: Any, key: Any) -> tuple[Total, Any]:
        return total._replace(params=total.params.map(lambda x: x / 2)), state

    return Transform(encode=encode, decode=decode)


def total_of(value: float) -> Total:
    return Total(Params({"w": np.float32([value])}), 1.0, 1, {}, ())


def test_encode_runs_left_to_right_and_decode_right_to_left() -> None:
    both = chain(shift(1), double())
    state = both.init()
    sent, _ = both.encode(Update(Params({"w": np.float32([3])})), None, both.public(state), KEY)
    assert sent.params["w"].tolist() == [8]  # (3 + 1) * 2
    back, _ = both.decode(total_of(8), state, KEY)
    assert back.params["w"].tolist() == [3]
    other, _ = chain(double(), shift(1)).encode(Update(Params({"w": np.float32([3])})), None, [{}, {}], KEY)
    assert other.params["w"].tolist() == [7]


def spying(log: list[Any], name: str) -> Transform:
    """Counts its encodes in `local` and its decodes in `state`, and shows sites how often it has decoded."""

    def encode(update: Update, local: Any, public: Any, key: Any) -> tuple[Update, Any]:
        log.append((name, "encode", local, public, key.names))
        return update, (local or 0) + 1

    def decode(total: Total, state: Any, key: Any) -> tuple[Total, Any]:
        log.append((name, "decode", state["decodes"], key.names))
        return total, {"decodes": state["decodes"] + 1, "secret": "at the server"}

    return Transform(lambda: {"decodes": 0, "secret": "at the server"}, encode, decode, lambda state: state["decodes"])


def test_each_link_has_a_state_a_local_and_a_key_of_its_own() -> None:
    log: list[Any] = []
    both = chain(spying(log, "x"), spying(log, "y"))
    state = both.init()
    _, local = both.encode(Update(Params({})), None, both.public(state), KEY)
    _, local = both.encode(Update(Params({})), local, both.public(state), KEY)
    _, state = both.decode(total_of(0), state, KEY)
    assert local == [2, 2] and both.public(state) == [1, 1]
    assert [(row[0], row[1], row[2]) for row in log] == [
        ("x", "encode", None), ("y", "encode", None), ("x", "encode", 1), ("y", "encode", 1),
        ("y", "decode", 0), ("x", "decode", 0),
    ]  # fmt: skip
    assert log[0][-1] == (*KEY.names, 0) and log[1][-1] == (*KEY.names, 1)


def test_an_empty_chain_changes_nothing() -> None:
    plain, _ = played(job(), SITES)
    empty, _ = played(job(transformed(fedavg(), chain())), SITES)
    assert digest(empty.params) == digest(plain.params)


# Wrapped algorithms.


def test_an_algorithm_in_a_clipping_transform_by_hand() -> None:
    # The differences are (1, 0 | 2), (4, 0 | -4), (0, 2 | 0); clipped to norm 2 the last one stays as it is.
    ended, _ = played(job(transformed(fedavg(), clip(2.0)), rounds=1), SITES)
    north, south = 2 / math.sqrt(5), 2 / math.sqrt(32)
    w0 = (2 * np.float32(1 * north) + 1 * np.float32(4 * south)) / 8
    b = (2 * np.float32(2 * north) - 1 * np.float32(4 * south)) / 8
    assert ended.params["w"][0] == pytest.approx(w0, rel=1e-6) and ended.params["w"][1] == 1.25
    assert ended.params["b"] == pytest.approx(b, rel=1e-6)


def test_encoding_and_decoding_leave_the_model_as_it_was() -> None:
    plain, _ = played(job(rounds=3), SITES)
    wrapped, _ = played(job(transformed(fedavg(), chain(double(), double())), rounds=3), SITES)
    assert digest(wrapped.params) == digest(plain.params)
    assert [line["loss"] for line in wrapped.history] == [line["loss"] for line in plain.history]


def test_states_go_on_from_round_to_round_and_sites_see_the_public_part() -> None:
    log: list[Any] = []
    played(job(transformed(fedavg(), chain(spying(log, "x"))), rounds=3), SITES)
    encodes = [row for row in log if row[1] == "encode"]
    assert [(local, public) for _, _, local, public, _ in encodes] == [(r or None, r) for r in range(3) for _ in SITES]
    assert [names for *_, names in encodes[:3]] == [(0, 0, 0, site, "encode", 0) for site in SITES]
    assert [row[2] for row in log if row[1] == "decode"] == [0, 1, 2]
    assert log[3][-1] == (0, "secret", 0, "server", "decode", 0, 0, 0)  # of a secret that only the server has


def test_a_site_that_declines_or_is_refused_keeps_its_local_state() -> None:
    log: list[Any] = []

    def moody(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        if site.name == "south" and site.key.names[1] == 1:
            return local, Decline("not today")
        _, update = usual()
        if site.name == "west" and site.key.names[1] == 1:
            update = update._replace(params=math.nan * update.params)
        return local, update

    played(job(transformed(working(moody), spying(log, "x")), rounds=3), SITES)
    last = {row[4][3]: row[2] for row in log if row[1] == "encode" and row[4][1] == 2}
    assert last == {"north": 2, "south": 1, "west": 1}


def test_the_work_inside_has_a_local_state_of_its_own() -> None:
    seen: list[Any] = []

    def counting(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        seen.append(local)
        return {"n": (local or {"n": 0})["n"] + 1}, usual()[1]

    log: list[Any] = []
    played(job(transformed(working(counting), spying(log, "x")), rounds=2), {"north": SITES["north"]})
    assert seen == [None, {"n": 1}] and [row[2] for row in log if row[1] == "encode"] == [None, 1]


def test_an_algorithm_may_evaluate_beside_its_training() -> None:
    base = fedavg()

    def both(state: Any, context: Any) -> Any:
        train, test = yield [
            Task("train", state, context.cohort),
            Task("evaluate", state, context.cohort, returns=()),
        ]
        assert test.metrics["loss"][1] == 8 and len(test.params) == 0
        return state + train.params

    found, _ = played(job(transformed(Algorithm(base.init, both, base.works), double()), rounds=2), SITES)
    assert final(found) == final(played(job(rounds=2), SITES)[0])


def test_a_work_without_arrays_may_be_wrapped() -> None:
    def round(state: Any, context: Any) -> Any:
        total = yield Task("count", state, context.cohort, returns=())
        assert total.metrics["n"] == 8
        return state

    def count(payload: Params, local: Any, site: Any) -> Any:
        return local, Update(Params({}), 1.0, {"n": np.int64(len(site.split.train))})

    made = Algorithm(lambda params: params, round, {"count": count}, traits=("tells n",))
    played(job(transformed(made, chain(clip(1.0))), rounds=1, learner=learner()), SITES)
