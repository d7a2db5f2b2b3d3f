"""FedAvg and FedProx against numbers worked out by hand; every algorithm on every exact backend.

One full-batch step of size 1/2 goes half the way to a site's mean m: from w, the difference is (m - w) / 2. The means
of the three sites are north (2, 0 | 4), south (8, 0 | -8), west (0, 4 | 0), with 2, 1 and 5 examples.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import foedus
from federations import joined
from foedus import fedavg, fedprox, jobfile, launch, median
from foedus.algorithms import delta, momentum, rounds
from foedus.algorithms import fedprox as module
from foedus.core import RoundContext, Task, Update
from foedus.errors import Paused
from foedus.params import Params, digest
from foedus.work import Order
from tiny import NORTH, SITES, SOUTH, final, job, learner, played, points, working
from toys import JOB, make_sites


def test_one_round_of_fedavg_is_the_mean_by_examples() -> None:
    # (2 * 1 + 1 * 4 + 5 * 0) / 8 = 0.75;  (5 * 2) / 8 = 1.25;  (2 * 2 - 1 * 4) / 8 = 0
    ended, _ = played(job(rounds=1), SITES)
    assert final(ended) == {"w": [0.75, 1.25], "b": 0.0}


def test_two_rounds_of_fedavg() -> None:
    # The pooled mean is (1.5, 2.5 | 0); each round goes half of the way that is left.
    ended, _ = played(job(rounds=2), SITES)
    assert final(ended) == {"w": [1.125, 1.875], "b": 0.0}


def test_the_rate_scales_the_step_of_the_server() -> None:
    ended, _ = played(job(fedavg(rate=0.5), rounds=1), SITES)
    assert final(ended) == {"w": [0.375, 0.625], "b": 0.0}


def test_several_local_steps() -> None:
    # After two steps a site is 3/4 of the way to its own mean.
    ended, _ = played(job(rounds=1, learner=learner(epochs=2)), SITES)
    assert final(ended) == {"w": [1.125, 1.875], "b": 0.0}


def test_fedprox_pulls_back_to_the_model_of_the_round() -> None:
    # mu = 1: at half of the way the two gradients cancel, so that the second step stays where it is.
    ended, _ = played(job(fedprox(mu=1.0), rounds=1, learner=learner(epochs=2)), SITES)
    assert final(ended) == {"w": [0.75, 1.25], "b": 0.0}


def test_two_rounds_of_fedprox_with_two_sites() -> None:
    # mu = 1/2, two steps of 1/2 towards m from w: first d/2 with d = m - w; then -g = d/2 - d/4 = d/4, in all 5/8 d.
    # north and south, weights 2 and 1: the mean of the means is (4, 0 | 0); 4 * 5/8 = 2.5, then 2.5 + 1.5 * 5/8.
    ended, _ = played(job(fedprox(mu=0.5), learner=learner(epochs=2)), {"north": NORTH, "south": SOUTH})
    assert final(ended) == {"w": [3.4375, 0.0], "b": 0.0}


def test_fedprox_with_mu_zero_is_fedavg_to_the_bit() -> None:
    ours = learner(lr=0.3, epochs=3)
    assert digest(played(job(fedprox(0.0), learner=ours), SITES)[0].params) == digest(
        played(job(fedavg(), learner=ours), SITES)[0].params
    )


def test_fedprox_is_four_lines_of_its_own() -> None:
    source = inspect.getsource(inspect.getmodule(module))  # type: ignore[arg-type]
    (function,) = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    lines = source.splitlines()[function.lineno - 1 : function.end_lineno]
    text = ast.get_docstring(function) or ""
    assert len(lines) - len(text.splitlines()) <= 4


def test_a_site_alone_goes_where_its_own_training_goes() -> None:
    ended, _ = played(job(rounds=3), {"north": NORTH})
    assert final(ended) == {"w": [1.75, 0.0], "b": 3.5}  # 7/8 of the way


def test_the_aggregator_can_be_another() -> None:
    ended, _ = played(job(fedavg(aggregator=median()), rounds=1), SITES)
    assert final(ended) == {"w": [1.0, 0.0], "b": 0.0}  # medians of (1, 4, 0), (0, 0, 2), (2, -4, 0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_half_precision_model_keeps_a_float32_master(dtype: Any) -> None:
    small = 2.0**-13  # a half cannot tell 1 + small from 1: its next number is 1 + 2**-10 (bfloat16: 2**-7)

    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        assert payload["w"].dtype == np.dtype(dtype)
        return local, Update(Params({"w": np.array([small], dtype)}))

    one = learner(model={"w": np.ones(1, dtype)})
    ended, _ = played(job(working(work), rounds=64, learner=one, evaluate=0), SITES)
    assert ended.params["w"].dtype == np.dtype(dtype)
    assert float(ended.params["w"][0]) == 1 + 64 * small == 1 + 2.0**-7
    early, _ = played(job(working(work), rounds=1, learner=one, evaluate=0), SITES)
    assert float(early.params["w"][0]) == 1.0


def test_buffers_average_integers_take_the_maximum_and_corrections_touch_neither() -> None:
    seen: list[Mapping[str, Any]] = []
    model = Params({"w": np.float32([0]), "mean": np.float32([0]), "steps": np.int64(0)}, {"mean": "buffer"})

    def fit(arrays: Mapping[str, Any], split: Any, ctx: Any) -> dict[str, float]:
        size = len(split.train)
        grads = ctx.correct({"w": np.float32([-size])}, arrays, lr=1.0)
        arrays["w"][:] -= grads["w"]
        arrays["mean"][:] = 8 * size
        arrays["steps"][...] += size
        return {}

    def spy(start: Params) -> Any:
        seen.append(dict(start))
        return lambda grads, params: grads + 0.5 * (params - start)

    own = learner(model=model, train=fit)
    sites = {"a": points([[0, 0, 0]]), "b": points([[0, 0, 0]] * 3)}
    ended, _ = played(job(fedavg(correct=spy), rounds=1, learner=own, evaluate=0), sites)
    # w: (1 * 1 + 3 * 3) / 4; mean: (1 * 8 + 3 * 24) / 4; steps: the larger
    assert final(ended) == {"w": [2.5], "mean": [20.0], "steps": 3}
    assert ended.params.kinds["mean"] == "buffer" and [set(s) for s in seen] == [{"w"}, {"w"}]


def test_a_loop_that_ignores_the_correction_is_an_error_and_never_silently_fedavg() -> None:
    ignoring = learner(train=lambda arrays, split, ctx: {})
    with pytest.raises(Paused, match=r"north: declined \(train: JobError: .* corrects gradients.*ctx\.correct"):
        played(job(fedprox(0.1), learner=ignoring, evaluate=0), SITES)
    played(job(fedavg(), learner=ignoring, evaluate=0), SITES)


def test_a_loop_may_return_its_own_weight() -> None:
    def fit(arrays: Mapping[str, Any], split: Any, ctx: Any) -> Any:
        arrays["w"][:] = split.train.x[0]
        return {}, 1

    ended, _ = played(job(rounds=1, learner=learner(train=fit), evaluate=0), SITES)
    assert final(ended)["w"] == [np.float32(10 / 3), np.float32(4 / 3)]


def test_rounds_builds_an_algorithm_from_share_work_and_step() -> None:
    """A momentum of the server, in three functions: v = v / 2 + mean; w = w + v."""

    def step(state: Any, total: Any, context: Any) -> Any:
        v = 0.5 * state["v"] + total.params
        return {"w": state["w"] + v, "v": v, "rounds": context.round + 1}

    momentum = rounds(
        lambda state: state["w"], delta(), step,
        init=lambda params: {"w": params, "v": params.zeros(), "rounds": 0}, params=lambda state: state["w"],
    )  # fmt: skip
    # towards (1.5, 2.5): half of the way is (0.75, 1.25); then v = (0.375, 0.625) + (0.375, 0.625)
    ended, _ = played(job(momentum, rounds=2), SITES)
    assert final(ended)["w"] == [1.5, 2.5]


# What docs/algorithms.md says of each.

DOC = Path(__file__).parents[1] / "docs" / "algorithms.md"
NEEDED: dict[str, tuple[Any, ...]] = {
    "hierarchical": ({"e": ["a", "b"]},),
    "fedprox": (0.1,),
    "fedopt": (momentum(),),
    "fedbn": ("head.*",),
    "pfedme": (1.0,),
}


MODEL = {"body.w": np.zeros(7_500, np.float32), "head.w": np.zeros(2_500, np.float32)}


def told() -> list[list[str]]:
    """The first table's rows: name, paper, lines, bytes, models at the server and at a site, when."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", DOC.read_text(), re.M)
    cells = [[name, *(cell.strip() for cell in rest.split("|"))] for name, rest in rows]
    return [row for row in cells if len(row) == 7]


def code_lines(name: str) -> int:
    """Lines of the method's file without docstrings, imports, comments and blank ones."""
    source = Path(inspect.getfile(delta)).with_name(f"{name}.py").read_text()
    nodes = list(ast.walk(ast.parse(source)))
    texts = [n for n in nodes if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    left = [*texts, *(n for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom)))]
    gone = {i for n in left for i in range(n.lineno, (n.end_lineno or n.lineno) + 1)}
    lines = [line.strip() for i, line in enumerate(source.splitlines(), 1) if i not in gone]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def nbytes(tree: Any) -> int:
    """Of the Params in plain data."""
    if isinstance(tree, Params):
        return tree.nbytes
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (list, tuple)) else ()
    return sum(map(nbytes, parts))


@pytest.mark.parametrize("row", told(), ids=lambda row: row[0])
def test_the_docs_say_how_long_and_how_heavy_an_algorithm_is(row: list[str]) -> None:
    name, _, lines, sent, server, site, _ = row
    made, model = getattr(foedus, name)(*NEEDED.get(name, ())), Params(MODEL)
    state = made.init(model)
    asked = next(made.round(state, RoundContext(0, 0, ["a", "b"], ["a", "b"])))
    task = asked if isinstance(asked, Task) else asked[0]

    def fit(arrays: Any, split: Any, ctx: Any) -> None:
        ctx.correct(dict(arrays), arrays, lr=1.0)

    own = learner(model=model, train=None if "elsewhere" in made.traits else fit)
    own.gradient, own.predict = lambda p, x, y: (np.zeros(len(x)), dict(p)), None
    local, update = (
        job(made._replace(traits=()), learner=own)
        .bench(0)
        .perform(Order(task.work, task.payload, "a", 0, 0, task.returns), None, NORTH)
    )
    assert code_lines(name) == int(lines)
    down, _, up = sent.partition(" / ")
    assert round(task.payload.nbytes / model.nbytes, 2) == float(down)
    assert round(update.params.nbytes / model.nbytes, 2) == float(up or down)
    assert nbytes(state) == int(server) * model.nbytes and nbytes(local) == float(site) * model.nbytes


def test_the_docs_name_every_algorithm() -> None:
    known = {name for name in foedus.__all__ if foedus._NAMES[name] == "foedus.algorithms"} - {"rounds", "delta"}
    assert {row[0] for row in told()} == known - {"swarm"}  # whose first Task introduces sites: it has no such row
    assert "**`swarm(base)`**" in DOC.read_text()


def test_the_docs_name_every_rule_attack_and_compression() -> None:
    text, rooms = DOC.read_text(), ("foedus.aggregators", "foedus.attacks", "foedus.transforms")
    known = {name for name in foedus.__all__ if foedus._NAMES[name] in rooms}
    plain = {"combine", "fixed", "mean", "chain", "transformed"}  # what is no rule, attack or compression itself
    assert [name for name in sorted(known - plain) if f"{name}(" not in text] == []


# Every algorithm on every exact backend.

EVERY = jobfile.load(JOB.parents[1] / "every" / "job.py").job
NAMES = sorted(EVERY.algorithm.init(Params({})))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_sites(tmp_path_factory.mktemp("data"), ["north", "south", "west"])


@pytest.fixture(scope="module")
def models(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Params]:
    """backend -> all models in the end."""

    @cache
    def run(backend: str) -> Params:
        folder = tmp_path_factory.mktemp(backend)
        if backend != "network":
            return launch.run(EVERY, dict(data), backend=backend, workers=2, folder=folder).params
        with joined(folder, data) as federation:
            return federation.remote().submit(JOB.parents[1] / "every" / "job.py", {}).wait().params

    return run


@pytest.mark.processes
@pytest.mark.parametrize("backend", ["processes", "network"])
@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_ends_with_one_digest_on_every_exact_backend(
    models: Callable[[str], Params], name: str, backend: str
) -> None:
    assert digest(models(backend).part(name)) == digest(models("local").part(name))


@pytest.mark.processes
def test_no_two_algorithms_are_the_same(models: Callable[[str], Params]) -> None:
    """Otherwise the test above shows less than it says."""
    found = {name: digest(models("local").part(name)) for name in NAMES}
    assert len(set(found.values())) == len(NAMES)
