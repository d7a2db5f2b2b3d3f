"""Updates on their way to a Total: what is refused and how, and the same bytes in any order, tree, or from files.
The reference adds in rational arithmetic, one number after another."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus import frames
from foedus.aggregators import Folding, combine, fixed, mean, median
from foedus.aggregators.chunks import CHUNK, fold_files
from foedus.aggregators.folding import MOST_UPDATES, check
from foedus.core import Gather, Origin, Outcome, Sum, Total, Update
from foedus.errors import FoedusError, JobError, Refused
from foedus.params import Leaf, Params, digest

BF16 = ml_dtypes.bfloat16
SPEC = Params({"a": np.zeros((2, 2), np.float32), "b": np.zeros(3, np.float32), "n": np.int64(0)}).spec


def update(a: float = 1.0, n: int = 0, weight: Any = 1.0, **more: Any) -> Update:
    arrays = {"a": np.full((2, 2), a, np.float32), "b": np.zeros(3, np.float32), "n": np.int64(n)}
    return Update(Params(arrays), weight, **more)


def folded(aggregator: Any, updates: Mapping[str, Update], spec: tuple[Leaf, ...] | None = None) -> Total:
    folding = Folding(aggregator, spec or next(iter(updates.values())).params.spec, len(updates))
    for site, found in updates.items():
        folding.add(found, Origin(site, 0, 0))
    return folding.total()


# Each refusal names the site, the array and the remedy.

ODD = {
    "a missing array": ({"a": np.zeros((2, 2), np.float32), "n": np.int64(0)}, "'b' is missing"),
    "an array too many": (
        {"a": np.zeros((2, 2), np.float32), "b": np.zeros(3, np.float32), "n": np.int64(0), "z": np.zeros(1)},
        r"'z' is trainable float64\[1\], the Task announced missing",
    ),
    "another shape": (
        {"a": np.zeros(4, np.float32), "b": np.zeros(3, np.float32), "n": np.int64(0)},
        r"'a' is trainable float32\[4\], the Task announced trainable float32\[2, 2\]",
    ),
    "a shape that would broadcast": (
        {"a": np.zeros((2, 1), np.float32), "b": np.zeros(3, np.float32), "n": np.int64(0)},
        r"'a' is trainable float32\[2, 1\]",
    ),
    "another dtype": (
        {"a": np.zeros((2, 2)), "b": np.zeros(3, np.float32), "n": np.int64(0)},
        r"'a' is trainable float64\[2, 2\], the Task announced trainable float32\[2, 2\]",
    ),
    "text": (
        {"a": np.array("x"), "b": np.zeros(3, np.float32), "n": np.int64(0)},
        r"array 'a' has dtype <U1",
    ),
    "no mapping": ([1, 2], "its params are list"),
    "nothing": (None, "its params are NoneType"),
}


@pytest.mark.parametrize("odd", ODD)
def test_params_that_were_not_announced_are_refused(odd: str) -> None:
    params, why = ODD[odd]
    with pytest.raises(Refused, match=rf"site 'north', checking its update: .*{why}.*; (build|return) "):
        check(Update(params), SPEC, "north")


def test_a_kind_that_was_not_announced_is_refused() -> None:
    spec = Params({"m": np.zeros(2, np.float32)}, {"m": "buffer"}).spec
    with pytest.raises(Refused, match=r"'m' is trainable float32\[2\], the Task announced buffer float32\[2\]"):
        check(Update(Params({"m": np.zeros(2, np.float32)})), spec, "north")


@pytest.mark.parametrize(
    "weight",
    [0, 0.0, -1.0, math.nan, math.inf, 2.0**-65, 2.0**65, 10**400, True, None, "3", 1j, [1.0], 1 + 2.0**-29, 2**30 + 1],
)
def test_a_weight_of_no_use_is_refused(weight: Any) -> None:
    with pytest.raises(Refused, match=r"site 'north', checking its update: weight .* cannot be used; return a"):
        check(update(weight=weight), SPEC, "north")


@pytest.mark.parametrize("weight", [1, 303, 0.1 * 2**4 // 1, 2.0**-64, 2.0**64, np.int64(7), np.float32(0.1), 2**30])
def test_a_good_weight_becomes_a_float(weight: Any) -> None:
    found = check(update(weight=weight), SPEC, "north").weight
    assert type(found) is float and found == weight


def test_the_largest_counts_of_all_sites_have_room_in_64_bits() -> None:
    check(update(metrics={"n": 2**41 - 1}), SPEC, "north")
    assert (2**41 - 1) * MOST_UPDATES < 2**63 <= 2**41 * MOST_UPDATES


@pytest.mark.parametrize(
    "sums",
    [{"loss": "low"}, {"loss": None}, {"loss": [1, [2]]}, {"loss": np.uint64(1)}, [1], None, {"n": -(2**41)}],
)
def test_metrics_that_are_no_sums_are_refused(sums: Any) -> None:
    with pytest.raises(Refused, match=r"site 'north', checking its update: metric '\w+' is no sum; return a mapping"):
        check(update(metrics=sums), SPEC, "north")


def test_arrays_in_another_order_or_in_a_plain_mapping_are_put_in_order() -> None:
    arrays = dict(reversed(list(update().params.items())))
    for given_params in (Params(arrays), arrays):
        found = check(Update(given_params), SPEC, "north")
        assert found.params.spec == SPEC and found.params == update().params


def test_a_plain_mapping_takes_the_kinds_that_were_announced() -> None:
    spec = Params({"m": np.zeros(2, np.float32)}, {"m": "buffer"}).spec
    assert check(Update({"m": np.ones(2, np.float32)}), spec, "s").params.kinds == {"m": "buffer"}  # type: ignore[arg-type]


def test_what_is_refused_does_not_depend_on_who_came_first() -> None:
    wrong = Update(Params({"a": np.zeros((2, 2)), "b": np.zeros(3), "n": np.int64(0)}))
    folding = Folding(mean(), SPEC, 2)
    with pytest.raises(Refused, match="north"):
        folding.add(wrong, Origin("north", 0, 0))
    folding.add(update(5.0), Origin("south", 0, 0))
    assert folding.total().params["a"].tolist() == [[5, 5], [5, 5]]


# A refused update leaves no trace.

GROUPS = {
    "w": np.ones(3, np.float32),
    "bn.mean": np.ones(3, np.float32),
    "h": np.ones(3, np.float16),
    "d": np.ones(3, np.float64),
    "z": np.ones(3, BF16),
    "n": np.array([1, 2, 3]),
}
BUFFER = {"bn.mean": "buffer"}


def spoilt(name: str, value: float) -> Update:
    arrays = {k: x.copy() for k, x in GROUPS.items()}
    arrays[name][1] = value
    return Update(Params(arrays, BUFFER), 2.0, {"loss": np.array([1.0, 1.0])})  # type: ignore[arg-type]


@pytest.mark.parametrize("aggregator", [mean(), median(), mean(arithmetic=fixed(100.0, 8.0))])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["w", "bn.mean", "h", "d", "z"])
def test_a_refused_update_leaves_no_trace(aggregator: Any, value: float, name: str) -> None:
    good = {"a": spoilt("w", 3.0), "b": spoilt("d", 2.0)}
    folding = Folding(aggregator, good["a"].params.spec, 3)
    folding.add(good["a"], Origin("a", 0, 0))
    with pytest.raises(Refused, match=rf"site 'bad', checking its update: array '{name}' holds NaN or Inf; lower the"):
        folding.add(spoilt(name, value), Origin("bad", 0, 0))
    folding.add(good["b"], Origin("b", 0, 0))
    clean = Folding(aggregator, good["a"].params.spec, 3)
    for site, found in good.items():
        clean.add(found, Origin(site, 0, 0))
    one, other = folding.total(), clean.total()
    assert digest(one.params) == digest(other.params)
    assert (one.weight, one.count, one.metrics["loss"].tolist()) == (4.0, 2, [2.0, 2.0])


def test_a_refused_first_update_leaves_no_trace() -> None:
    folding = Folding(mean(), spoilt("w", 1).params.spec, 2)
    with pytest.raises(Refused):
        folding.add(spoilt("d", math.nan), Origin("bad", 0, 0))
    with pytest.raises(FoedusError, match="no update was counted"):
        folding.total()
    folding.add(spoilt("w", 4.0), Origin("a", 0, 0))
    assert folding.total().params["w"].tolist() == [1, 4, 1]


def test_a_product_beyond_the_arithmetic_is_refused_by_name_and_leaves_no_trace() -> None:
    folding = Folding(mean(), spoilt("w", 1).params.spec, 2)
    folding.add(spoilt("w", 4.0), Origin("a", 0, 0))
    before = digest(folding.total().params)
    with pytest.raises(Refused, match="site 'bad', checking its update: array 'd': element 1 is 1e"):
        folding.add(spoilt("d", 1e300), Origin("bad", 0, 0))
    assert digest(folding.total().params) == before


def test_a_discount_that_leaves_nothing_is_a_mistake_of_the_job() -> None:
    folding = Folding(mean(discount=lambda age: 0.0 if age > 2 else 1.0), SPEC, 1)
    with pytest.raises(JobError, match=r"the discount makes 0\.0 of weight 1\.0 at age 3"):
        folding.add(update(), Origin("north", 0, 0, 3))


# What a Total is.


def test_the_mean_by_hand() -> None:
    total = folded(mean(), {"x": update(1.0, 7, 1), "y": update(5.0, 3, 3)})
    assert total.params["a"].tolist() == [[4, 4], [4, 4]]  # (1 * 1 + 3 * 5) / 4
    assert (total.weight, total.count) == (4.0, 2)


def test_buffers_average_and_integers_take_the_maximum() -> None:
    kinds = {"mean": "buffer"}
    one = Params({"mean": np.float32([2]), "n": np.int64([5, -7]), "seen": np.array([True, False])}, kinds)  # type: ignore[arg-type]
    two = Params({"mean": np.float32([6]), "n": np.int64([4, -6]), "seen": np.array([False, False])}, kinds)  # type: ignore[arg-type]
    total = folded(mean(), {"x": Update(one, 3.0), "y": Update(two, 1.0)}).params
    assert total["mean"].tolist() == [3] and total["n"].tolist() == [5, -6] and total["seen"].tolist() == [True, False]
    assert total.kinds["mean"] == "buffer"


def test_integers_alone_have_a_total() -> None:
    total = folded(mean(), {s: Update(Params({"n": np.int32([i])})) for i, s in enumerate("abc")})
    assert total.params["n"].tolist() == [2] and total.count == 3


def test_no_arrays_at_all_have_a_total() -> None:
    sums = {"loss": np.array([1.5, 2.0])}
    total = folded(mean(), {s: Update(Params({}), 1.0, sums) for s in "ab"})
    assert len(total.params) == 0 and total.metrics["loss"].tolist() == [3.0, 4.0] and total.weight == 2.0


@pytest.mark.parametrize("dtype", [np.float16, BF16])
def test_the_mean_of_halves_is_float32(dtype: Any) -> None:
    updates = {
        s: Update(Params({"w": np.array([v], dtype), "v": np.float32([v])}), w)
        for s, v, w in (("x", 1, 1.0), ("y", 1.5, 2.0))
    }
    total = folded(mean(), updates).params
    assert total["w"].dtype == np.float32 and list(total) == ["w", "v"]
    assert total["w"][0] == total["v"][0] == np.float32(4 / 3)  # (1 + 2 * 1.5) / 3
    assert total.narrow()["w"].dtype == np.dtype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, BF16, np.float32, np.float64])
def test_the_median_by_hand(dtype: Any) -> None:
    rows = {"x": [1, 10], "y": [2, -10], "z": [64, 0]}
    updates = {s: Update(Params({"w": np.array(v, dtype), "n": np.int64([v[0]])}), 9.0) for s, v in rows.items()}
    total = folded(median(), updates).params
    assert total["w"].tolist() == [2, 0] and total["n"].tolist() == [64]
    assert total["w"].dtype == (np.float64 if dtype is np.float64 else np.float32)
    del updates["z"]
    assert folded(median(), updates).params["w"].tolist() == [1.5, 0]


def test_a_gather_sees_sites_sorted_with_their_weights() -> None:
    seen: list[Any] = []

    def finish(origins: Sequence[Origin], weights: Sequence[float], chunk: Any) -> Any:
        seen.append(([o.site for o in origins], list(weights), chunk.tolist()))
        return chunk[0]

    updates = {s: Update(Params({"w": np.float32([v])}), w) for s, v, w in (("z", 1, 2.0), ("a", 5, 4.0))}
    folded(Gather(finish), updates)
    assert seen == [(["a", "z"], [4.0, 2.0], [[5.0], [1.0]])]


def test_old_updates_weigh_less() -> None:
    folding = Folding(mean(discount=lambda age: 1 / (1 + age)), SPEC, 2)
    folding.add(update(8.0, weight=4), Origin("old", 0, 0, 3))  # 4 / 4 = 1
    folding.add(update(0.0, weight=3), Origin("new", 3, 0, 0))
    assert folding.total().params["a"][0, 0] == 2.0  # 8 / 4
    assert folding.total().weight == 4.0


def test_the_order_of_the_mapping_does_not_count_for_combine() -> None:
    updates = {"x": Update(Params({"w": np.float32([0.1])}), 3), "y": Update({"w": np.float32([0.7])}, 5.0)}  # type: ignore[arg-type]
    one, other = (combine(mean(), dict(order)) for order in (updates.items(), reversed(updates.items())))
    assert one["w"].tobytes() == other["w"].tobytes()
    exact = (3 * Fraction(float(np.float32(0.1))) + 5 * Fraction(float(np.float32(0.7)))) / 8
    assert one["w"][0] == np.float32(float(exact))


def test_combine_names_the_same_site_in_any_order() -> None:
    updates = {"b": Update(Params({"w": np.zeros(2)})), "a": Update(Params({"w": np.zeros(3)}))}
    for order in (updates.items(), reversed(updates.items())):
        with pytest.raises(Refused, match="site 'b'"):
            combine(mean(), dict(order))
    with pytest.raises(FoedusError, match="no update to combine"):
        combine(mean(), {})


# The same bytes in any order, sharding and tree, and from files.

FINITE = {
    "f": np.float32, "g": np.float64, "h": np.float16, "z": BF16, "m": np.float32, "n": np.int16,
}  # fmt: skip


def drawn(rng: random.Random, site: int, size: int) -> Update:
    arrays: dict[str, Any] = {}
    for name, dtype in FINITE.items():
        numbers = [rng.choice([1, -1]) * rng.random() * 10.0 ** rng.randint(-4, 4) for _ in range(size)]
        arrays[name] = np.array(numbers).astype(dtype)
    weight = rng.choice([1, 3, 1000, 0.5, 7])
    sums = {"loss": np.array([rng.random(), 1.0]), "hits": np.array([site, 1])}
    return Update(Params(arrays, {"m": "buffer"}), weight, sums)


def tree(rng: random.Random, aggregator: Any, parts: list[tuple[Origin, Update]], asked: int) -> Folding:
    """Folds the parts through a random binary tree."""
    spec = parts[0][1].params.spec
    if len(parts) == 1 or rng.random() < 0.2:
        folding = Folding(aggregator, spec, asked)
        for origin, found in parts:
            folding.add(found, origin)
        return folding
    cut = rng.randint(1, len(parts) - 1)
    left, right = tree(rng, aggregator, parts[:cut], asked), tree(rng, aggregator, parts[cut:], asked)
    left.merge(right)
    return left


def bytes_of(total: Total) -> tuple[Any, ...]:
    sums = {name: x.tobytes() for name, x in total.metrics.items()}
    return digest(total.params), total.params.spec, total.weight, total.count, sums


AGGREGATORS = {
    "exact": mean(),
    "discounted": mean(discount=lambda age: 1 / math.sqrt(1 + age)),
    "fixed": mean(arithmetic=fixed(2e4, 1024)),
    "median": median(),
}


@pytest.mark.properties
@pytest.mark.parametrize("kind", AGGREGATORS)
@given(seed=st.integers(0, 2**32), sites=st.integers(1, 9))
@settings(max_examples=25)
def test_any_order_and_any_tree_give_the_same_bytes(kind: str, seed: int, sites: int) -> None:
    rng, aggregator = random.Random(seed), AGGREGATORS[kind]
    parts = [(Origin(f"s{i}", 5, 0, rng.randint(0, 3)), drawn(rng, i, 5)) for i in range(sites)]
    found = []
    for _ in range(4):
        rng.shuffle(parts)
        found.append(bytes_of(tree(rng, aggregator, list(parts), sites).total()))
    assert all(other == found[0] for other in found)


@pytest.mark.properties
@given(seed=st.integers(0, 2**32), sites=st.integers(1, 7))
@settings(max_examples=25)
def test_the_mean_is_that_of_rational_arithmetic(seed: int, sites: int) -> None:
    rng = random.Random(seed)
    updates = {f"s{i}": drawn(rng, i, 3) for i in range(sites)}
    total, weights = folded(mean(), updates).params, [Fraction(u.weight) for u in updates.values()]
    for name, dtype in FINITE.items():
        columns = [[u.params[name][i] for u in updates.values()] for i in range(3)]
        if name == "n":
            assert total[name].tolist() == [max(column) for column in columns]
            continue
        for i, column in enumerate(columns):
            products = [w * Fraction(float(x)) for w, x in zip(weights, column, strict=True)]
            exact = sum(products, Fraction()) / sum(weights)
            least = 5e-16 * abs(exact) if dtype is np.float64 else np.spacing(np.float32(abs(float(exact))))
            assert abs(Fraction(float(total[name][i])) - exact) <= Fraction(float(least))


@pytest.mark.properties
@given(seed=st.integers(0, 2**32), sites=st.integers(1, 8))
@settings(max_examples=20)
def test_the_median_is_that_of_the_standard_library(seed: int, sites: int) -> None:
    rng = random.Random(seed)
    updates = {f"s{i}": drawn(rng, i, 3) for i in range(sites)}
    total = folded(median(), updates).params
    for name in ("f", "g", "h", "z", "m"):
        for i in range(3):
            exact = statistics.median(float(u.params[name][i]) for u in updates.values())
            assert total[name][i] == total[name].dtype.type(exact)


def in_files(aggregator: Sum | Gather, parts: list[tuple[Origin, Update]], folder: Path) -> Total:
    """The Total that `fold_files` makes of the parts, each read back from a file of its own."""
    counted = []
    for i, (origin, found) in enumerate(parts):
        (folder / f"{i}").write_bytes(frames.pack(found.params).bytes())
        counted.append((origin, float(found.weight), frames.read(folder / f"{i}")))
    outcomes = [Outcome(o.site, "counted", "", float(u.weight), u.metrics) for o, u in parts]
    fold_files(aggregator, parts[0][1].params.spec, counted, len(parts), outcomes, folder / "total")
    tree = frames.read(folder / "total")
    assert [row[0] for row in tree["outcomes"]] == [origin.site for origin, _ in parts]
    return Total(tree["params"], float(Fraction(tree["weight"])), tree["count"], tree["metrics"], ())


@pytest.mark.parametrize("names", ["f", "fg", "fmn", "hz", "fghzmn", "n", ""])
@pytest.mark.parametrize("kind", AGGREGATORS)
def test_files_folded_in_chunks_give_the_bytes_of_folding_in_memory(kind: str, names: str, tmp_path: Path) -> None:
    rng, aggregator, parts = np.random.default_rng(3), AGGREGATORS[kind], []
    sizes = {"f": CHUNK + 77, "g": CHUNK - 1, "h": CHUNK + 5, "z": 3, "m": 5, "n": CHUNK + 1}
    for i in range(3):
        arrays = {n: (rng.normal(size=sizes[n]) * 100).astype(FINITE[n]) for n in names}
        sums = {"loss": np.array([rng.random(), 1.0])}
        params = Params(arrays, {"m": "buffer"} if "m" in names else {})
        parts.append((Origin(f"s{i}", 4, 0, i), Update(params, float(i + 1), sums)))
    folding = Folding(aggregator, parts[0][1].params.spec, 3)
    for origin, found in parts:
        folding.add(found, origin)
    assert bytes_of(in_files(aggregator, parts[::-1], tmp_path)) == bytes_of(folding.total())


def test_a_model_with_an_empty_array_has_a_total(tmp_path: Path) -> None:
    arrays = {"w": np.float32([1]), "e": np.zeros((0, 3), np.float64)}
    parts = [(Origin(s, 0, 0), Update(Params(arrays), 1.0)) for s in "ab"]
    total = folded(mean(), {o.site: u for o, u in parts})
    assert total.params["e"].shape == (0, 3) and total.params["w"].tolist() == [1]
    assert bytes_of(in_files(mean(), parts, tmp_path)) == bytes_of(total)


def test_a_total_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    parts = [(Origin("a", 0, 0), Update(Params({"w": np.float32([math.nan])}), 1.0))]
    with pytest.raises(FoedusError):
        in_files(mean(), parts, tmp_path)
    assert not (tmp_path / "total").exists()
