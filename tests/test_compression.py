"""Compression: what is sent, read and kept by hand; bounds; bytes on the wire as a real federation journals them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from federations import joined, kinds
from foedus import (
    bf16,
    chain,
    clip,
    combine,
    fedavg,
    fp16,
    frames,
    int4,
    int8,
    jobfile,
    krum,
    launch,
    mean,
    median,
    powersgd,
    qsgd,
    random_k,
    scaffold,
    top_k,
    transformed,
)
from foedus.algorithms import fednova
from foedus.core import Gather, Opened, Sum, Transform, Update
from foedus.errors import Incompatible, JobError, Refused
from foedus.keys import key
from foedus.params import DTYPES, Params, digest
from foedus.transforms.powersgd import orthonormal
from foedus.transforms.random_k import places
from server_rig import Rig, Scripted
from tiny import SITES, final, job, learner, played, working
from toys import make_sites

BF16 = ml_dtypes.bfloat16
KEY = key(0, 1, 0, "north", "encode")
MADE = {
    "bf16": bf16(), "fp16": fp16(), "int8": int8(), "int4": int4(), "qsgd": qsgd(), "top_k": top_k(0.25),
    "random_k": random_k(0.25), "powersgd": powersgd(1), "chain": chain(top_k(0.5), int8(2)),
}  # fmt: skip
FEEDBACK = ("top_k", "random_k", "powersgd")


def encoded(transform: Transform, params: Params, local: Any = None, key: Any = KEY) -> tuple[Params, Params, Any]:
    """What is sent, what the server reads, and what the site keeps."""
    assert transform.read is not None
    public = transform.public(transform.init())
    update, local = transform.encode(Update(params), local, public, key)
    assert update.params.spec == transform.returns(params.spec)
    read = transform.read(update.params, params.spec)
    assert read.spec == params.spec
    return update.params, read, local


def numbers(transform: Transform, values: Any, local: Any = None, key: Any = KEY) -> tuple[list[float], Any]:
    """What the server reads of one float32 array, and what the site keeps."""
    _, read, local = encoded(transform, Params({"w": np.float32(values)}), local, key)
    return read["w"].tolist(), local


# By hand.


def test_int8_by_hand() -> None:
    # The largest magnitude, 127, has level 127; -63.5 goes to the even one of two; the next block has steps of 2.
    sent, read, kept = encoded(int8(4), Params({"w": np.float32([127, -63.5, 1.2, 0.4, -254, 3.2])}))
    assert sent["p.float32/levels"].tolist() == [127, -64, 1, 0, -127, 2] and sent["p.float32/scale"].tolist() == [1, 2]
    assert read["w"].tolist() == [127, -64, 1, 0, -254, 4] and kept is None
    assert sent.nbytes == 6 + 2 * 4


def test_int4_by_hand() -> None:
    # m = 14: steps of 2. 7 goes to 3.5 and so to level 4; -3.4 to -1.7 and -2; 1.6 to 0.8 and 1. Two share a byte.
    sent, read, _ = encoded(int4(4), Params({"w": np.float32([7, -3.4, 1.6, 14, -7])}))
    assert read["w"].tolist() == [8, -4, 2, 14, -7]
    assert sent["p.float32/levels"].tolist() == [12 | 6 << 4, 9 | 15 << 4, 1]  # levels + 8; the last is half a byte
    assert sent.nbytes == 3 + 2 * 4


def test_blocks_reach_across_arrays_and_zeros_stay_zeros() -> None:
    _, read, _ = encoded(int8(4), Params({"a": np.float32([0, 0, 0]), "b": np.float32([[127, 0.6]])}))
    assert read["a"].tolist() == [0, 0, 0] and read["b"][0, 0] == 127
    assert read["b"][0, 1] == np.float32(0.6)  # alone in its block
    assert numbers(int4(), [0.0] * 5)[0] == [0] * 5 and numbers(qsgd(), [0.0] * 5)[0] == [0] * 5


def test_halves_by_hand() -> None:
    # bf16 has 8 significant bits, fp16 11; what lies in the middle goes to the even neighbour.
    assert numbers(bf16(), [1 + 2.0**-8, 1 + 3 * 2.0**-8, 3e38])[0] == [1, 1 + 2.0**-6, float(np.float32(BF16(3e38)))]
    assert numbers(fp16(), [1 + 2.0**-11, 1 + 3 * 2.0**-11, 65504])[0] == [1, 1 + 2.0**-9, 65504]
    with pytest.raises(JobError, match=r"holds 100000, for which float16 has no room: use bf16\(\) or int8\(\)"):
        numbers(fp16(), [1, 1e5])
    assert encoded(bf16(), Params({"w": np.float32([1, 2, 3])}))[0].nbytes == 6


def test_qsgd_by_hand() -> None:
    # The norm of (3, -4) is 5: with 5 levels they are 3 and 4 levels, with 1 level 0 or all of the norm.
    assert numbers(qsgd(5), [3, -4])[0] == [3, -4]
    drawn = {tuple(numbers(qsgd(1), [3, -4], key=KEY(i))[0]) for i in range(64)}
    assert drawn == {(0, 0), (5, 0), (0, -5), (5, -5)}


def test_qsgd_is_right_in_the_mean() -> None:
    x = np.float32(np.linspace(-1, 1, 200))
    found = np.mean([numbers(qsgd(2), x, key=KEY(i))[0] for i in range(1000)], axis=0)
    norm = np.sqrt(np.square(x, dtype=np.float64).sum())
    assert np.abs(found - x).max() < 5 * norm / 2 / 2 / np.sqrt(1000)  # a number's deviation is at most half a level


def test_top_k_by_hand() -> None:
    found, kept = numbers(top_k(0.5), [1, -5, 2, 4])
    assert found == [0, -5, 0, 4] and kept["float32"]["residual"].tolist() == [1, 0, 2, 0]
    found, kept = numbers(top_k(0.5), [1, 0, 0.5, 1], kept)  # with what is left: 2, 0, 2.5, 1
    assert found == [2, 0, 2.5, 0] and kept["float32"]["residual"].tolist() == [0, 0, 0, 1]
    assert numbers(top_k(0.5), [3, -3, 3, 3])[0] == [3, -3, 0, 0]  # of equal ones the first
    sent, _, _ = encoded(top_k(0.01), Params({"a": np.zeros((10, 30), np.float32), "b": np.ones(100, np.float32)}))
    assert sent["p.float32/places"].tolist() == [300, 301, 302, 303] and sent.nbytes == 4 * (4 + 4)


def test_random_k_by_hand() -> None:
    found, kept = numbers(random_k(0.5), [1, -5, 2, 4])
    assert [x for x in found if x] in ([1, 2], [1, 4], [-5, 2], [-5, 4])  # one of each two
    assert np.add(found, kept["float32"]["residual"]).tolist() == [1, -5, 2, 4]
    later, _ = numbers(random_k(1.0), [0, 0, 0, 0], kept)
    assert np.add(found, later).tolist() == [1, -5, 2, 4]
    assert encoded(random_k(0.1), Params({"w": np.zeros(1000, np.float32)}))[0].nbytes == 100 * 4 + 8


def test_random_k_takes_all_places_alike() -> None:
    assert places(7, 3, 10).tolist() == places(7, 3, 10).tolist()
    assert all(0 <= a < 3 <= b < 6 <= c < 10 for a, b, c in (places(seed, 3, 10) for seed in range(50)))
    counts = np.bincount(np.concatenate([places(seed, 2, 8) for seed in range(2000)]), minlength=8)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_powersgd_by_hand() -> None:
    # From the right factor (1, 0, 0), diag(2, 1, 0) has left factor (1, 0, 0), right factor (2, 0, 0).
    kept = {"float32": {"residual": np.zeros(9, np.float32), "right": np.float32([1, 0, 0])}}
    _, read, kept = encoded(powersgd(1), Params({"w": np.float32(np.diag([2, 1, 0]))}), kept)
    assert read["w"].tolist() == np.diag([2, 0, 0]).tolist()
    assert kept["float32"]["residual"].tolist() == np.diag([0, 1, 0]).reshape(-1).tolist()
    assert kept["float32"]["right"].tolist() == [2, 0, 0]


def test_powersgd_sends_what_has_few_ranks_as_it_is_and_vectors_whole() -> None:
    matrix = np.float32(np.outer([3, 4, 0, 1], [1, 2, 2, 0]))
    conv = np.float32(np.outer([1, 2, 0, 5], np.arange(12)).reshape(4, 3, 2, 2))
    params = Params({"m": matrix, "bias": np.float32([1, 2, 3]), "conv": conv, "thin": np.ones((2, 2), np.float32)})
    sent, read, _ = encoded(powersgd(1), params)
    for name in params:
        assert read[name] == pytest.approx(params[name], rel=1e-5, abs=1e-5)
    assert sent.nbytes == 4 * ((4 + 4) + 3 + (4 + 12) + 4)  # the thin one would not become smaller


def test_orthonormal_columns_by_hand() -> None:
    found = orthonormal(np.array([[3.0, 1.0, 6.0], [4.0, 1.0, 8.0]]))
    assert found == pytest.approx(np.array([[0.6, 0.8, 0], [0.8, -0.6, 0]]))  # (1, 1) - 1.4 (0.6, 0.8) = (0.16, -0.12)


# Whatever the numbers are.

floats = st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-60)
vectors = arrays(np.float32, st.integers(1, 40), elements=floats)


def peaks(x: Any, block: int, what: Any) -> Any:
    """For each number, `what` of its block in float64."""
    wide = x.astype(np.float64)
    return np.concatenate([np.full(len(part), what(part)) for part in np.split(wide, range(block, len(x), block))])


@pytest.mark.properties
@given(vectors)
def test_no_number_changes_by_more_than_its_quantisation_allows(x: Any) -> None:
    bounds: list[tuple[Transform, Any]] = [
        (bf16(), np.abs(x.astype(np.float64)) / 256),
        (int8(8), peaks(x, 8, lambda part: np.abs(part).max()) / 254),
        (int4(8), peaks(x, 8, lambda part: np.abs(part).max()) / 14),
        (qsgd(7, 8), peaks(x, 8, lambda part: np.sqrt(np.square(part).sum())) / 7),
        (qsgd(100, 8), peaks(x, 8, lambda part: np.sqrt(np.square(part).sum())) / 100),
    ]
    for transform, bound in bounds:
        found, _ = numbers(transform, x)
        far = np.abs(np.float64(found) - x)
        assert (far <= bound * (1 + 1e-4)).all()  # factors and results are rounded to float32


@pytest.mark.properties
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["top_k", "random_k"])
@given(st.lists(arrays(np.float32, 17, elements=st.floats(-100, 100, width=16)), min_size=1, max_size=4))
@settings(max_examples=25)
def test_what_is_sent_and_what_is_left_is_what_was_there_exactly(name: str, dtype: str, updates: Any) -> None:
    local, most = None, "float64" if dtype == "float64" else "float32"
    for x in updates:
        params = Params({"w": x.astype(DTYPES[dtype])})
        before = np.zeros(17, most) if local is None else local[dtype]["residual"]
        accumulated = params["w"].astype(most) + before
        _, read, local = encoded(MADE[name], params, local)
        assert local[dtype]["residual"].dtype == most
        assert (read["w"].astype(most) + local[dtype]["residual"]).tolist() == accumulated.tolist()
        assert np.count_nonzero(read["w"]) <= 4


@pytest.mark.properties
@given(st.lists(arrays(np.float32, (5, 6), elements=st.floats(-100, 100, width=16)), min_size=1, max_size=4))
@settings(max_examples=25)
def test_powersgd_keeps_what_it_lost(updates: Any) -> None:
    local: Any = None
    for x in updates:
        accumulated = x.reshape(-1) + (0 if local is None else local["float32"]["residual"])
        _, read, local = encoded(powersgd(2), Params({"w": x}), local)
        found = read["w"].reshape(-1) + local["float32"]["residual"]
        assert found == pytest.approx(accumulated, rel=1e-6, abs=1e-4)
        assert np.square(local["float32"]["residual"], dtype=float).sum() <= np.square(accumulated, dtype=float).sum()


@pytest.mark.parametrize("name", MADE)
def test_buffers_and_integers_travel_as_they_are_and_each_dtype_by_itself(name: str) -> None:
    rng = np.random.default_rng(0)
    given = {
        "w": rng.normal(size=(4, 5)).astype(np.float32), "mean": np.float32([1 / 3, 1e6]), "n": np.int64(3),
        "d": rng.normal(size=7), "h": rng.normal(size=6).astype(np.float16), "z": rng.normal(size=3).astype(BF16),
        "steps": np.uint8([7]), "e": np.zeros((0, 3), np.float32),
    }  # fmt: skip
    params = Params(given, {"mean": "buffer"})
    _, read, _ = encoded(MADE[name], params)
    for exact in ("mean", "n", "steps"):
        assert read[exact].tobytes() == params[exact].tobytes()
    if name not in (*FEEDBACK, "chain"):
        for near in ("w", "d", "h", "z"):
            assert np.float64(read[near]) == pytest.approx(np.float64(params[near]), abs=0.8)


@pytest.mark.parametrize("name", MADE)
def test_a_model_without_trainable_numbers_travels(name: str) -> None:
    params = Params({"n": np.int64([3])})
    assert encoded(MADE[name], params)[1] == params
    assert len(encoded(MADE[name], Params({}))[1]) == 0


def test_what_a_site_keeps_of_a_model_in_halves_is_float32() -> None:
    small = 2.0**-10  # beside 1 bfloat16 has no room for it
    params, local = Params({"w": np.array([1, small], BF16)}), None
    for _ in range(3):
        _, _, local = encoded(top_k(0.5), params, local)
    assert local["bfloat16"]["residual"].tolist() == [0, 3 * small]


# In a Job.


def test_a_compressed_round_by_hand() -> None:
    # Differences (1, 0 | 2), (4, 0 | -4), (0, 2 | 0), weights 2, 1, 5; of three numbers one is sent: 2, the first 4, 2.
    ended, _ = played(job(rounds=1, compress=top_k(0.34)), SITES)
    assert final(ended) == {"w": [0.5, 1.25], "b": 0.5}  # 4 * 1 / 8; 5 * 2 / 8; 2 * 2 / 8
    # With bf16 nothing is lost of such numbers.
    assert digest(played(job(compress=bf16()), SITES)[0].params) == digest(played(job(), SITES)[0].params)
    both, _ = played(job(compress=[bf16(), clip(1.0)][:1]), SITES)
    assert digest(both.params) == digest(played(job(), SITES)[0].params)


@pytest.mark.parametrize("compress", [top_k(0.34), random_k(0.67), qsgd(), int4(), [clip(9.0), top_k(0.67), int8()]])
def test_compressed_training_arrives(compress: Any) -> None:
    """The pooled mean is (1.5, 2.5 | 0): what was left comes later."""
    ended, _ = played(job(rounds=60, compress=compress, learner=learner(0.1), evaluate=0), SITES)
    assert ended.params["w"] == pytest.approx([1.5, 2.5], abs=0.4) and abs(float(ended.params["b"])) < 0.4


@pytest.mark.parametrize("made", [fedavg(aggregator=median()), fedavg(aggregator=krum(0)), scaffold(), fednova()])
def test_what_is_compressed_goes_with_any_algorithm_and_aggregator(made: Any) -> None:
    plain, _ = played(job(made, rounds=3), SITES)
    ended, _ = played(job(made, rounds=3, compress=int8()), SITES)
    for name, x in ended.params.items():
        assert x == pytest.approx(plain.params[name], abs=0.1)


def test_a_transformed_algorithm_may_be_compressed_again() -> None:
    ended, _ = played(job(transformed(fedavg(), top_k(0.34)), rounds=1, compress=bf16()), SITES)
    assert final(ended) == {"w": [0.5, 1.25], "b": 0.5}


def test_a_site_that_was_not_counted_keeps_what_it_had_left() -> None:
    seen: list[Any] = []
    spy = top_k(0.34)

    def encode(update: Update, local: Any, public: Any, key: Any) -> Any:
        if key.names[3] == "north":
            seen.append(None if local is None else local["float32"]["residual"].tolist())
        return spy.encode(update, local, public, key)

    def moody(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        _, update = usual()
        arrays = {"w": np.float32([0, 1]), "b": np.float32(3)}
        if site.name == "north" and site.key.names[1] == 1:
            arrays["b"] = np.float32(np.nan)
        return local, update._replace(params=Params(arrays))

    played(job(working(moody), rounds=3, evaluate=0, compress=spy._replace(encode=encode)), SITES)
    assert seen == [None, [0, 1, 0]]  # of round 1 nothing was kept, NaN least of all


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: int8(3), "a block of 3 numbers: it is an even whole number"),
        (lambda: qsgd(128), r"qsgd\(levels=128\): a whole number from 1 to 127"),
        (lambda: qsgd(7, 0), "a block of 0"),
        (lambda: top_k(0), r"top_k\(0\): the share"),
        (lambda: random_k(1.5), r"random_k\(1.5\)"),
        (lambda: powersgd(0), r"powersgd\(rank=0\)"),
        (lambda: job(compress="int8"), r"Job\(compress='int8'\): a Transform, or a list of them"),
        (lambda: job(compress=[int8]), "a Transform, or a list of them"),
        (lambda: job(compress=int8), "a Transform, or a list of them"),
    ],
)
def test_a_setting_that_is_none_is_refused(made: Any, why: str) -> None:
    with pytest.raises(JobError, match=why):
        made()


def test_what_changes_numbers_comes_before_what_packs_them() -> None:
    with pytest.raises(Incompatible, match=r"a compression and a Transform of numbers \(clip\) behind it"):
        job(compress=[int8(), clip(1.0)])
    job(compress=[clip(1.0), int8()])


# Lies.


def opened(rule: Sum | Gather, transform: Transform, params: Params) -> Sum | Gather:
    read = transform.read
    assert read is not None
    return rule._replace(opened=Opened(params.spec, lambda sent: read(sent, params.spec)))


def test_places_that_are_none_are_refused_where_updates_are_read() -> None:
    params = Params({"w": np.float32([1, -5, 2, 4])})
    sent, _, _ = encoded(top_k(0.5), params)
    rule = opened(mean(), top_k(0.5), params)
    assert combine(rule, {"a": Update(sent)})["w"].tolist() == [0, -5, 0, 4]
    for at in ([3, 1], [1, 1], [1, 4]):
        lie = Params({"p.float32/values": sent["p.float32/values"], "p.float32/places": np.uint32(at)})
        with pytest.raises(Refused, match=r"site 'a'.*cannot be read \(its places are not ascending"):
            combine(rule, {"a": Update(lie), "b": Update(sent)})


JOB = """
import numpy as np
import foedus as fd
from foedus.numpy import NumpyLearner


def gradient(p, x, y):
    return x[:, 0], {"w": p["w"]}


learner = NumpyLearner({"w": np.zeros(4, np.float32)}, gradient, lambda p, x: x[:, 0], lr=0.1)
job = fd.Job(fd.fedavg(), learner, rounds=1, evaluate=0, compress=%s)
"""
F32, U32 = np.float32, np.uint32
HONEST, FOUR = np.int8([1, 2, 3, 4]), {"p.float32/values": F32([1, 2])}
LIES = {  # the Job's compression, an honest update, a lie, and why it is refused
    "places": ("fd.top_k(0.5)", FOUR | {"p.float32/places": U32([0, 3])}, FOUR | {"p.float32/places": U32([0, 4])},
               "it cannot be read (its places are not ascending places in the model); compress with this Job's"),
    "a factor": ("fd.int8()", {"p.float32/levels": HONEST, "p.float32/scale": F32([1])},
                 {"p.float32/levels": HONEST, "p.float32/scale": F32([np.inf])}, "holds NaN or Inf"),
    "a product": ("fd.int8()", {"p.float32/levels": HONEST, "p.float32/scale": F32([1])},
                  {"p.float32/levels": HONEST, "p.float32/scale": F32([3e38])}, "array 'w' holds NaN or Inf"),
    "no compression": ("fd.bf16()", {"p.float32/half": np.zeros(4, BF16)}, {"w": np.zeros(4, F32)}, "array 'p.float32"),
}  # fmt: skip


@pytest.fixture(scope="module")
def lying(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server, and two sites that are this test."""
    made = Rig(tmp_path_factory.mktemp("lies"))
    yield made, Scripted(made, "north"), Scripted(made, "south")
    made.close()


def as_sent(arrays: Mapping[str, Any]) -> bytes:
    buffers = {name: "buffer" for name in arrays if name.endswith("scale")}
    return bytes(frames.pack(Params(arrays, buffers)).bytes())  # type: ignore[arg-type]


@pytest.mark.processes
@pytest.mark.parametrize("lie", LIES)
def test_a_packed_lie_is_refused_before_it_is_accepted(lying: Any, lie: str) -> None:
    (rig, north, south), (compress, honest, false, why) = lying, LIES[lie]
    run = rig.submit(JOB % compress)
    for site in (north, south):
        site.ready(run)
    ours, theirs = north.task(run), south.task(run)
    receipt = south.tell(south.upload(theirs, as_sent(false)))
    assert receipt["status"] == "refused" and why in receipt["why"]
    assert north.send(ours, as_sent(honest))["status"] == "accepted"
    rig.until(lambda: rig.rows(run, "step"))


# On the wire.

WIRED = """
import numpy as np
import foedus as fd
from foedus.numpy import NumpyLearner


def load(site):
    rows = np.loadtxt(site.data / "rows.csv", delimiter=",", dtype=np.float32)
    return fd.Split(train=(rows[:, :-1], rows[:, -1]))


def gradient(p, x, y):
    hidden = x @ p["a"]
    error = hidden @ p["b"] - y
    slope = 2 * error[:, None] / len(x)
    return error**2, {"a": x.T @ (slope * p["b"]), "b": hidden.T @ slope[:, 0]}


def job(how="None"):
    rng = np.random.default_rng(0)
    model = {"a": rng.normal(size=(4, 5000)).astype(np.float32) / 100, "b": rng.normal(size=5000).astype(np.float32)}
    learner = NumpyLearner(model, gradient, lambda p, x: x @ p["a"] @ p["b"], lr=1e-5, batch_size=None)
    return fd.Job(fd.fedavg(), learner, load, rounds=2, evaluate=0, compress=eval(how), privacy="none")
"""
WHOLE = 4 * 25_000
HOW = {  # bytes an update, worked out by hand, without the head of its file
    "None": WHOLE,
    "fd.bf16()": WHOLE // 2,
    "fd.int8(250)": 25_000 + 4 * 100,
    "fd.int4(250)": 12_500 + 4 * 100,
    "fd.qsgd(7, 500)": 12_500 + 4 * 50,
    "fd.top_k(0.01)": 250 * 8,
    "[fd.top_k(0.01), fd.int8(250)]": 250 * 5 + 4,
    "fd.random_k(0.01)": 250 * 4 + 8,
    "fd.powersgd(1)": 4 * (4 + 5000 + 5000),
}
HEAD = 700  # bytes at most


@pytest.mark.processes
def test_every_way_has_the_same_bits_and_the_journal_of_a_federation_has_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "code" / "job.py"
    path.parent.mkdir()
    path.write_text(WIRED)
    sites = make_sites(tmp_path / "data", ["north", "south"])
    found = set()
    with joined(tmp_path / "home", sites) as federation:
        for i, (how, expected) in enumerate(HOW.items()):
            run = federation.remote().submit(path, {"how": how})
            ended = run.wait()
            made = jobfile.load(path, {"how": how}).job
            for backend in ("local", "processes") if how.startswith("[") else ("local",):  # the others: test_algorithms
                place = tmp_path / f"{backend}-{i}"
                assert launch.run(made, dict(sites), backend=backend, workers=2, folder=place).digest == ended.digest
            sizes = {row["size"] for row in kinds(run, "accepted")}
            assert len(kinds(run, "accepted")) == 4 and all(0 < size - expected < HEAD for size in sizes), (how, sizes)
            found.add(ended.digest)
    assert len(found) == len(HOW)
