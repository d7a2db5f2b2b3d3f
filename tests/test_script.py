"""Script mode: a plain script is a site's training, one process that lives from round to round."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import foedus as fd
from federations import until
from foedus import jobfile, launch, runs
from foedus.core import Algorithm, Update
from foedus.errors import FoedusError, JobError, Relayed, SiteError
from foedus.loopback import environment
from foedus.metrics import metric
from foedus.script.learner import summed
from foedus.script.models import held, same
from foedus.torch import TorchLearner
from foedus.work import Order, describe
from toys import make_sites

FOLDER = Path(__file__).parent / "jobs" / "script"
JOB = FOLDER / "job.py"
SITES = ["north", "south"]


@pytest.fixture
def sites(tmp_path):
    return make_sites(tmp_path / "data", SITES)


def run(sites, folder, rounds=3, **options):
    loaded = jobfile.load(JOB, {k: str(v) for k, v in {"rounds": rounds, **options}.items()})
    return launch.run(loaded.job, sites, folder=folder, backend="local")


def calls(site):
    """(round, process, its how manieth round) of each call of the script's training."""
    return [tuple(map(int, line.split())) for line in (site / "calls").read_text().splitlines()]


def reference(sites, rounds):
    """The script's steps and FedAvg, written down plainly."""
    w = np.zeros(4, np.float32)
    for number in range(rounds):
        found = []
        for name, place in sites.items():
            rows, here = np.loadtxt(place / "rows.csv", delimiter=",")[:40], w.copy()
            for i in fd.key(0, number, 0, name, "train")("order").numpy().permutation(40):
                error = rows[i, :4] @ here - rows[i, 4]
                here -= np.float32(0.01) * (2 * error * rows[i, :4]).astype(np.float32)
            found.append(here.astype(np.float64) - w)
        w = (w + np.mean(found, axis=0)).astype(np.float32)
    return w


def test_a_script_in_a_job_is_fedavg_of_its_steps_in_one_process_a_site(sites, tmp_path):
    result = run(sites, tmp_path / "run")
    w = reference(sites, 3)
    np.testing.assert_allclose(result.params["w"], w, rtol=1e-6)
    errors = [np.loadtxt(p / "rows.csv", delimiter=",")[40:50] @ [*w, -1] for p in sites.values()]
    assert result.metrics["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-6)
    for place in sites.values():
        found = calls(place)
        assert [(number, seen) for number, _, seen in found] == [(0, 1), (1, 2), (2, 3)]
        assert len({process for _, process, _ in found}) == 1
        with pytest.raises(ProcessLookupError):  # it ended with the run
            os.kill(found[0][1], 0)


def test_the_processes_end_with_a_run_that_fails(sites, tmp_path):
    def stop(row):
        raise FoedusError("stopped by the test")

    job = jobfile.load(JOB, {"rounds": "3"}).job
    with pytest.raises(FoedusError, match="stopped by the test"):
        launch.run(job, sites, folder=tmp_path / "run", backend="local", told=stop)
    for place in sites.values():
        with pytest.raises(ProcessLookupError):
            os.kill(calls(place)[0][1], 0)


@pytest.mark.long
def test_with_room_for_one_process_each_round_starts_its_own_and_the_bits_are_the_same(sites, tmp_path):
    calm = run(sites, tmp_path / "calm", 2)
    assert run(sites, tmp_path / "one", 2, alive=1).digest == calm.digest
    assert [seen for _, _, seen in calls(sites["north"])[2:]] == [1, 1]


def test_a_script_that_is_killed_in_a_round_does_it_again_and_the_bits_are_the_same(sites, tmp_path):
    killed = run(sites, tmp_path / "killed", 2, fault="kill")
    assert [number for number, _, _ in calls(sites["north"])] == [0, 1, 1]
    assert run(sites, tmp_path / "calm", 2).digest == killed.digest


FAULTS = {
    "raise": "train: train.py: ValueError: secret 42 (train.py, line",
    "exit": "it ended by itself; let it stay in its `for rnd in fd.rounds(model)`",
    "code": "exit code 3; its output ends: secret 42",
    "hang": "no progress for 0.5 s and was stopped; call rnd.progress()",
    "shape": "array 'w' is float32[4] in the global model and float32[5] in the script's",
    "loss": "rnd.report(loss=nan): lower the learning rate",
    "silent": "round 1 ended without rnd.report(examples=…)",
}


@pytest.fixture
def bench(request, sites):
    """A Bench of the job, and how north performs its round 1."""
    job = jobfile.load(JOB, {"fault": request.param, "stall": "0.5"}).job
    made = job.bench(0)
    order = Order("train", job.first(0), "north", 1, 0)
    yield lambda: made.perform(order, None, sites["north"])[1]
    job.learner.close()


@pytest.mark.parametrize("bench, said", FAULTS.items(), indirect=["bench"], ids=list(FAULTS))
def test_a_script_that_fails_says_site_stage_and_remedy(bench, said):
    with pytest.raises(SiteError) as failed:
        bench()
    assert "site 'north', train" in str(failed.value) and said in str(failed.value)
    assert "42" not in describe(failed.value.__cause__, text=False)  # what may leave a site


@pytest.mark.parametrize("bench", ["early"], indirect=True)
def test_a_script_that_fails_before_its_rounds_says_so_when_the_data_is_loaded(bench):
    with pytest.raises(SiteError, match=r"loading its data: starting its script, train\.py: ValueError: secret 42"):
        bench()


@pytest.mark.parametrize("bench", ["nan", "print"], indirect=True)
def test_nan_is_left_to_the_fold_and_much_output_hurts_nobody(bench, capfd, request):
    update = bench()
    assert isinstance(update, Update)
    if request.node.callspec.params["bench"] == "nan":
        assert np.isnan(update.params["w"][0])  # which refuses it by the array's name
    else:
        told = capfd.readouterr().err
        assert "[north] last words" in told and "bytes before that" in told and len(told) < 10_000


def test_an_update_with_nan_is_refused_by_name_and_the_round_goes_on(sites, tmp_path):
    run(sites, tmp_path / "run", 2, fault="nan")
    (close,) = [row for row in runs.journal(tmp_path / "run").all("close") if (row["round"], row["task"]) == (1, 0)]
    status = {site: (how, why) for site, how, why, _ in close["outcomes"]}
    assert status["south"][0] == "counted" and status["north"][0] == "refused" and "'w'" in status["north"][1]


def test_by_itself_it_trains_alone_and_says_so(sites):
    env = environment() | {"FOEDUS_ROUNDS": "2"}
    command = [sys.executable, str(FOLDER / "train.py")]
    done = subprocess.run(command, env=env, cwd=sites["north"], capture_output=True, text=True, check=True)
    first, *rounds = done.stderr.splitlines()
    assert "nobody federates this script" in first and "2 rounds" in first
    assert [line.partition(":")[0] for line in rounds] == ["round 1 of 2", "round 2 of 2"]
    assert all("valid loss" in line and "40 examples" in line for line in rounds)


def test_arrays_are_handed_to_a_script_as_a_file_and_own_functions_may_be_the_model(tmp_path):
    (tmp_path / "own.py").write_text(
        "import os\nimport numpy as np\nimport foedus as fd\n"
        "held = {'w': np.zeros(2)}\n"
        "read, write = lambda: {'w': held['w'], 'frozen': 1.0}, lambda arrays: held.update(arrays)\n"
        "for rnd in fd.rounds((read, write), only=lambda name: name == 'w'):\n"
        "    split = fd.load_split(rnd.data)\n"
        "    held['w'] = held['w'] + split.train.x.sum(0)\n"
        "    rnd.report(examples=len(split.train), seen=len(split.valid))\n"
    )
    x = np.arange(20.0).reshape(10, 2)
    valid = (x[:3], [0, 0, 0])
    script = fd.Script(tmp_path / "own.py")
    result = fd.Job(fd.fedavg(), script, lambda site: fd.Split((x, x[:, 0]), valid), rounds=2).run(
        {"a": 0}, backend="local"
    )
    assert dict(result.params).keys() == {"w"} and result.params["w"].tolist() == [180.0, 200.0]  # twice the sums


def test_rnd_correct_is_what_an_own_loop_of_a_torch_learner_does(tmp_path):
    sys.path.insert(0, str(FOLDER))
    try:
        import net
        import torch
    finally:
        sys.path.remove(str(FOLDER))

    def zeros():
        model = torch.nn.Linear(4, 2)
        torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
        return model

    def fit(model, split, ctx):
        order = torch.randperm(40, generator=ctx.generator)
        return {"loss": net.steps(model, *net.rows("north"), order, lambda model: ctx.correct(model, lr=0.1))}

    job = fd.Job(fd.fedprox(1.0), TorchLearner(zeros, train=fit), rounds=2, evaluate=0)
    inside = job.run({"north": (np.zeros((45, 1)), np.zeros(45))}, backend="local")
    script = fd.Script(FOLDER / "net.py", ["prox"], model=zeros)
    beside = job.replace(learner=script).run({"north": 0}, backend="local")
    assert beside.digest == inside.digest
    plain = job.replace(algorithm=fd.fedavg()).run({"north": (np.zeros((45, 1)), np.zeros(45))}, backend="local")
    assert plain.digest != inside.digest  # the term is felt


def test_sums_of_a_script_are_read_in_three_forms():
    metrics = [metric("loss"), metric("accuracy"), metric("auc")]
    outputs, targets = np.array([1.0, -1.0, 2.0]), np.array([1, 1, 1])
    found = summed([outputs, targets, None], metrics[:2], "logits")
    assert found.keys() == {"accuracy"} and found["accuracy"].tolist() == [2, 3]
    found = summed({"loss": np.array([6.0, 3.0])}, metrics, "logits")
    assert found["loss"].tolist() == [6, 3]
    found = summed({"loss": np.array(2.0), "examples": np.array(3.0)}, metrics, "logits")
    assert found["loss"].tolist() == [6, 3]
    with pytest.raises(JobError, match="'loss' as one number: give its sums"):
        summed({"loss": np.array(2.0)}, metrics, "logits")
    with pytest.raises(ValueError, match="auc"):
        summed({"auc": np.array([1.0, 3.0])}, metrics, "logits")
    with pytest.raises(JobError, match="lower the learning rate"):
        summed({"loss": np.array([np.nan, 3.0])}, metrics, "logits")


def test_wrapped_models_are_seen_through_and_sharded_ones_refused():
    import torch

    class OptimizedModule(torch.nn.Module):  # as torch.compile gives, which would compile here
        def __init__(self, inner):
            super().__init__()
            self._orig_mod = inner

    model = torch.nn.Linear(2, 1)
    found = held(OptimizedModule(model), only=lambda name: name == "weight")
    found.write(fd.Params({"weight": np.array([[3.0, 4.0]], np.float32)}))
    assert model.weight.tolist() == [[3, 4]] and found.read()["weight"].tolist() == [[3, 4]]
    with pytest.raises(JobError, match="each rank has a piece of this model"):
        held(type("FSDPLinear", (torch.nn.Linear,), {})(2, 1))


def test_what_is_no_model_and_no_script_is_said(tmp_path):
    with pytest.raises(JobError, match="give a torch module, a mapping of arrays"):
        held(3)
    with pytest.raises(JobError, match="'v' is missing in the global model and float64"):
        same(fd.Params({"w": np.zeros(1), "v": np.zeros(1)}), fd.Params({"w": np.zeros(1)}).spec)
    with pytest.raises(JobError, match=r"there is no script nothing\.py in .*: put it beside the job file"):
        fd.Script("nothing.py")
    (tmp_path / "short.py").write_text("print('hello')\n")
    with pytest.raises(Relayed, match="it ended without `for rnd in"):
        fd.Script(tmp_path / "short.py").init(fd.key(0))
    with pytest.raises(JobError, match="cannot be handed object"):
        fd.Script(tmp_path / "short.py").hold(fd.Site("a", None, fd.key(0)), object())
    assert isinstance(fd.rounds(lambda s: s, fd.delta(), lambda s, t, c: s), Algorithm)


@pytest.mark.long
def test_two_ranks_of_torchrun_are_one_site(tmp_path):
    """Rank 0 speaks; rank 1, which began with another model, hears it: together they train one model."""
    launcher = ["torchrun", "--nproc-per-node", "2"]
    job = fd.Job(fd.fedprox(0.5), fd.Script(FOLDER / "net.py", ["ranks", "prox"], launcher=launcher), rounds=2)
    result = job.run({"north": 0}, backend="local")
    weight, bias = ranks_by_hand("north", 2, 0.5)
    np.testing.assert_allclose(result.params["weight"], weight, atol=1e-6)
    np.testing.assert_allclose(result.params["bias"], bias, atol=1e-6)
    assert abs(weight).max() > 0.05


def ranks_by_hand(site, rounds, mu):
    """Steps on the mean gradient of two halves of the rows, with FedProx's term, from zeros."""
    import torch
    import torch.nn.functional as F

    x = torch.randn(40, 4, generator=fd.key(0, "rows", site).torch())
    y, w, b = (x.sum(1) > 0).long(), torch.zeros(2, 4), torch.zeros(2)
    for number in range(rounds):
        begun = w.clone(), b.clone()
        order = torch.randperm(40, generator=fd.key(0, number, 0, site, "train")("order").torch())
        order = order[order < 20]
        for rows in (order[:10], order[10:]):
            grads = []
            for rank in range(2):
                leaves = [t.clone().requires_grad_() for t in (w, b)]
                loss = F.cross_entropy(x[rank::2][rows] @ leaves[0].T + leaves[1], y[rank::2][rows])
                grads.append(torch.autograd.grad(loss, leaves))
            w, b = (
                t - 0.1 * ((g + h) / 2 + mu * (t - first)) for t, g, h, first in zip((w, b), *grads, begun, strict=True)
            )
    return w.numpy(), b.numpy()


@pytest.mark.kills
@pytest.mark.long
@pytest.mark.parametrize("rounds", [2, 1], ids=["in a round", "between rounds"])
def test_a_script_whose_job_is_killed_ends_and_leaves_no_files(sites, tmp_path, rounds):
    """The Job is a process that is killed while its script trains (it hangs in the second round), or waits for one."""
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from foedus import jobfile\n"
        "from foedus.work import Order\n"
        f"job = jobfile.load({str(JOB)!r}, {{'fault': 'hang'}}).job\n"
        "bench = job.bench(0)\n"
        f"for n in range({rounds}):\n"
        f"    bench.perform(Order('train', job.first(0), 'north', n, 0), None, Path({str(sites['north'])!r}))\n"
        "print('waits', flush=True)\n"
        "input()\n"
    )
    env = environment() | {"FOEDUS_SCRATCH": str(tmp_path)}
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as job:
        begun = sites["north"] / "calls"
        until(lambda: begun.exists() and len(begun.read_text().splitlines()) == rounds)
        if rounds == 1:
            assert job.stdout is not None and job.stdout.readline() == b"waits\n"
        job.kill()
    script = calls(sites["north"])[-1][1]
    until(lambda: not Path(f"/proc/{script}").exists())
    assert not list(tmp_path.glob("foedus-script-*"))
