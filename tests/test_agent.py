"""A site's agent and worker, real processes against a fake server: the round trip, the policy, and what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_server import FakeServer
from foedus.params import Params
from foedus.wire.bundle import pack
from foedus.wire.ed25519 import new_key
from foedus.wire.identity import enrol, read_token
from site_rig import JOB, SMALL, Rig

pytestmark = pytest.mark.processes


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Rig]:
    """A site whose agent is not started yet."""
    made = Rig(tmp_path, FakeServer(tmp_path / "server"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("site")
    made = Rig(folder, FakeServer(folder / "server"))
    made.start()
    yield made
    made.close()


@pytest.fixture
def rig(shared: Rig) -> Iterator[Rig]:
    """A run of its own at a site whose agent works on."""
    shared.renew()
    yield shared
    shared.server.end(shared.run, b"")


def cli(rig: Rig, *words: str) -> dict[str, object]:
    """What a verb of the command line prints with --json; it must succeed."""
    command = [sys.executable, "-c", "import typer, foedus.cli.site as s; a = typer.Typer(); s.add_to(a); a()"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = (*words, "--home", str(rig.home), "--json")
    done = subprocess.run([*command, "site", *words], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def why(rig: Rig) -> str:
    """The newest reason for which the site is not ready."""
    answer = rig.server.until(lambda: rig.server.ready.get(rig.run))[-1]
    assert not answer["ready"]
    return str(answer["why"])


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def eventually(rig: Rig, what: str, seconds: float = 10.0) -> None:
    """Waits until the agent's log says it."""
    deadline = time.monotonic() + seconds
    while what not in rig.log():
        assert time.monotonic() < deadline, rig.log()
        time.sleep(0.02)


# ---- the round trip -------------------------------------------------------------------------------------------------
def test_a_site_gets_ready_trains_keeps_its_local_state_and_receives_the_final_model(rig: Rig) -> None:
    server = rig.server
    rig.submit()
    report = server.until(lambda: server.ready.get(rig.run))[0]["report"]
    assert (report["rows"], report["dataset"], report["approval"]) == ({"train": 18, "valid": 2}, "heart", "given")
    first = rig.task()
    update = server.until(lambda: server.updates.get(first))[0]
    assert dict(server.params(first))["w"].tolist() == [1.0, 1.0, 1.0, 1.0]
    assert (float.fromhex(update["weight"]), update["stateful"]) == (18.0, True)
    assert update["metrics"]["train_loss"]["shape"] == [2]
    server.settle(first, "counted")
    second = rig.task(SMALL, 1, base={"round": 0, "task": 0})
    server.until(lambda: server.updates.get(second))
    server.settle(second, "dropped")  # so that the next round goes on from the first one's state
    third = rig.task(SMALL, 2, base={"round": 0, "task": 0})
    server.until(lambda: server.updates.get(third))
    assert rig.lines("rounds.txt") == ["1", "2", "2"]
    assert len(set(rig.lines("trained.txt"))) == 1  # one worker, warm between rounds
    server.settle(third, "counted")
    server.end(rig.run, b"the final model")
    eventually(rig, f"run {rig.run}: finished, its state here is deleted; kept:")
    models = rig.place.folder / "models" / rig.run
    assert (models / "final.safetensors").read_bytes() == b"the final model"
    assert not (rig.place.folder / "work" / rig.run).exists()
    assert [rig.place.store.items(table, rig.run) for table in ("pending", "base", "runs")] == [[], [], []]


def test_the_job_is_imported_in_the_worker_alone_which_has_no_secrets(fresh: Rig) -> None:
    (fresh.job / "job.py").write_text(
        "import os, json, pathlib\n"
        f"OUT = pathlib.Path({str(fresh.data)!r})\n"
        "(OUT / 'imported.json').open('a').write(json.dumps([os.getpid(), dict(os.environ)]) + '\\n')\n"
        + (fresh.job / "job.py").read_text()
    )
    os.environ["HTTPS_PROXY"], os.environ["AWS_SECRET"] = "http://user:secret@127.0.0.1:1", "secret"
    try:
        agent = fresh.start()
    finally:
        del os.environ["HTTPS_PROXY"], os.environ["AWS_SECRET"]
    fresh.submit()
    fresh.server.until(lambda: fresh.server.ready.get(fresh.run))
    task = fresh.task()
    fresh.server.until(lambda: fresh.server.updates.get(task))
    imports = [json.loads(line) for line in (fresh.data / "imported.json").read_text().splitlines()]
    assert [pid for pid, _ in imports] == [int(fresh.lines("trained.txt")[0])]
    assert imports[0][0] not in (agent.pid, os.getpid())
    environment = imports[0][1]
    assert "secret" not in str(environment)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "1"
    assert environment["HOME"].startswith(str(fresh.place.folder))
    agent.kill()
    agent.wait()
    deadline = time.monotonic() + 3
    while not gone(imports[0][0]):
        assert time.monotonic() < deadline, "the worker outlived its agent"
        time.sleep(0.02)


def test_a_server_that_restarts_or_goes_away_is_greeted_again_with_one_line_each_way(fresh: Rig) -> None:
    fresh.start()
    fresh.server.until(lambda: fresh.server.asked["poll"])
    fresh.server.restart()
    fresh.server.until(lambda: fresh.server.asked["hello"] == 2)
    eventually(fresh, "the server is away")
    eventually(fresh, "connected to")
    fresh.submit()
    fresh.server.until(lambda: fresh.server.ready.get(fresh.run))
    assert fresh.log().count("the server is away") == 1


def test_a_second_agent_on_the_same_folder_is_refused_by_the_first_ones_pid(fresh: Rig) -> None:
    agent = fresh.start()
    fresh.server.until(lambda: fresh.server.asked["poll"])
    second = fresh.start()
    assert second.wait(10) == 1
    assert f"an agent (process {agent.pid}) is at work" in (fresh.home / "stderr.txt").read_text()


def test_a_copy_of_an_agents_folder_is_found_out(fresh: Rig, tmp_path: Path) -> None:
    fresh.start()
    fresh.server.until(lambda: fresh.server.asked["poll"])
    fresh.server.lives["north"] = fresh.server.lives["north"]._replace(number=2, session="the copy's", previous="x")
    fresh.server.restart()
    assert fresh.agents[0].wait(10) == 7
    assert "another agent uses the key of site 'north'" in (fresh.home / "stderr.txt").read_text()


# ---- what a site's owner decides ------------------------------------------------------------------------------------
def test_code_that_is_not_approved_is_never_imported_and_approval_lets_it_begin(rig: Rig) -> None:
    rig.rule("trust = []")
    rig.submit()
    digest = rig.server.bundle
    assert why(rig) == f"waiting for approval: foedus site approve {digest[:12]}"
    listed: Any = cli(rig, "status")["runs"]
    assert [(r["submitter"], r["bundle"]) for r in listed if r["run"] == rig.run] == [("alice", digest)]
    assert rig.lines("loaded.txt") == []
    shown = cli(rig, "approve", rig.run)
    assert (shown["bundle"], shown["submitter"], shown["files"]) == (digest, "alice", ["job.py"])
    assert (Path(str(shown["source"])) / "job.py").read_text() == (rig.job / "job.py").read_text()
    rig.server.until(lambda: rig.server.ready[rig.run][-1]["ready"])
    assert len(rig.lines("loaded.txt")) == 1
    cli(rig, "refuse", digest[:10])
    rig.server.until(lambda: not rig.server.ready[rig.run][-1]["ready"])
    assert "refused this code" in why(rig)
    task = rig.task()
    assert "refused this code" in rig.server.until(lambda: rig.server.declines.get(task))["reason"]
    assert rig.lines("trained.txt") == []
    rig.place.store.delete("refused", digest)


def test_a_trusted_name_with_another_key_than_the_first_one_waits_for_approval(rig: Rig) -> None:
    known = rig.place.store.get("trusted", "alice") or {}
    rig.place.store.put("trusted", "alice", {"public": "QUJD"})
    rig.submit()
    assert "'alice' is trusted with another key" in why(rig)
    assert rig.lines("loaded.txt") == []
    rig.place.store.put("trusted", "alice", known)


def test_a_policy_with_a_misspelt_rule_forbids_everything_and_names_it(rig: Rig) -> None:
    rig.rule("least_example = 5")
    rig.submit()
    assert "there is no rule 'least_example'" in why(rig)
    assert rig.lines("loaded.txt") == []


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("least_examples = 100", "18 training examples, and the site's policy wants 100"),
        ('datasets = ["lungs"]', "does not allow the dataset 'heart'"),
    ],
)
def test_a_run_that_the_policy_forbids_is_not_begun(rig: Rig, rule: str, said: str) -> None:
    rig.rule(rule)
    rig.submit()
    assert said in why(rig)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("most_update_bytes = 100", "an update of 200 bytes"),
        ('metrics = ["auc"]', "does not let the metric 'train_loss' out"),
    ],
)
def test_an_update_that_the_policy_keeps_in_never_leaves(rig: Rig, rule: str, said: str) -> None:
    rig.rule(rule)
    rig.submit()
    task = rig.task()
    assert said in rig.server.until(lambda: rig.server.declines.get(task))["reason"]
    assert rig.server.taken[task] == 0 and task not in rig.server.updates


def test_pause_return_and_leave_are_told_to_the_server_and_leaving_ends_the_agent(fresh: Rig) -> None:
    agent = fresh.start()
    fresh.server.until(lambda: fresh.server.asked["poll"])
    cli(fresh, "pause")
    assert fresh.server.until(lambda: fresh.server.accepting)[-1] == {"accepting": False, "why": "paused by its owner"}
    cli(fresh, "return")
    assert fresh.server.until(lambda: fresh.server.accepting[1:])[-1]["accepting"] is True
    cli(fresh, "leave")
    assert fresh.server.accepting[-1] == {"accepting": False, "why": "left"}
    assert agent.wait(5) == 0
    assert cli(fresh, "status")["agent"] is None
    fresh.start()  # who starts again wants to take part
    assert fresh.server.until(lambda: fresh.server.accepting[3:])[-1]["accepting"] is True


def test_leaving_without_an_agent_tells_the_server_too(fresh: Rig) -> None:
    assert cli(fresh, "leave")["told"] is True
    assert fresh.server.accepting == [{"accepting": False, "why": "left"}]


def test_a_submitter_who_came_after_the_site_is_known_when_his_run_arrives(fresh: Rig) -> None:
    fresh.trust = ("alice", "bob")
    fresh.rule("")
    fresh.start()
    fresh.server.until(lambda: fresh.server.asked["poll"])
    bob = new_key()
    fresh.server.add(enrol(read_token(fresh.server.token("bob", "submitter")), bob))
    fresh.server.author = bob
    fresh.submit()
    assert fresh.server.until(lambda: fresh.server.ready.get(fresh.run)) == [fresh.server.ready[fresh.run][0]]
    assert fresh.server.ready[fresh.run][0]["ready"], fresh.server.ready


def test_a_change_that_does_not_concern_a_run_leaves_its_worker_and_its_answer_alone(rig: Rig) -> None:
    rig.submit()
    rig.server.until(lambda: rig.server.ready.get(rig.run))
    cli(rig, "refuse", rig.server.bundle[:10])
    rig.server.until(lambda: rig.server.ready[rig.run][1:])
    cli(rig, "approve", rig.run)
    rig.server.until(lambda: rig.server.ready[rig.run][2:])
    assert [answer["ready"] for answer in rig.server.ready[rig.run]] == [True, False, True]
    assert len(rig.lines("loaded.txt")) == 1
    rig.place.store.delete("approved", rig.server.bundle)


# ---- privacy and resources ------------------------------------------------------------------------------------------
def test_a_job_without_the_privacy_that_the_policy_demands_is_declined_by_name(rig: Rig) -> None:
    rig.rule('privacy = "secagg"')
    rig.submit()
    demanded = "the job's privacy is 'none', and the site's policy demands 'secagg' (`privacy`): submit it with"
    assert why(rig).startswith(demanded) and rig.lines("loaded.txt") == []
    rig.rule("")
    rig.place.change()
    rig.server.until(lambda: rig.server.ready[rig.run][-1]["ready"])
    rig.rule('privacy = "secagg"')
    task = rig.task()  # a policy is read again before each Task
    assert rig.server.until(lambda: rig.server.declines.get(task))["reason"].startswith(demanded)
    assert rig.lines("trained.txt") == []


@pytest.mark.long
def test_a_run_whose_privacy_is_not_the_one_that_was_signed_is_declined(rig: Rig) -> None:
    rig.submit(privacy="secagg")
    assert why(rig) == "the submitter signed privacy 'secagg', and the Job has 'none': submit it anew"


def test_a_task_without_a_seal_of_a_run_whose_submitter_signed_one_is_declined(rig: Rig) -> None:
    rig.rule('privacy = "secagg"')
    rig.submit(privacy="secagg", options={"privacy": "secagg"})
    rig.server.until(lambda: rig.server.ready.get(rig.run))
    task = rig.task()
    said = rig.server.until(lambda: rig.server.declines.get(task))["reason"]
    assert said.startswith("the submitter signed privacy 'secagg', and the Task has no seal: nothing leaves this site")
    assert rig.lines("trained.txt") == [] and task not in rig.server.updates


def test_a_worker_has_the_memory_and_the_priority_of_the_policy_and_leaves_no_dump(rig: Rig) -> None:
    rig.rule("most_memory_bytes = 1000000000\nnice = 5")
    limits = "note('limits.txt', [resource.getrlimit(k)[1] for k in (2, 4)] + [os.nice(0)])"
    large(rig, limits, "np.zeros(1 << 27)")
    nice = os.nice(0)
    said = why(rig)
    assert said.startswith("loading its data: ") and "MemoryError (job.py, line" in said
    assert said.endswith("; the site's policy gives a job 1000000000 bytes of memory (`most_memory_bytes`)")
    assert rig.lines("limits.txt") == ["[1000000000,", "0,", f"{nice + 5}]"]
    rig.rule("")  # and without the rule there is room
    rig.place.change()
    rig.server.until(lambda: rig.server.ready[rig.run][-1]["ready"])


def test_a_run_that_used_its_cpu_time_gets_no_more_of_this_site(rig: Rig) -> None:
    rig.rule("most_cpu_seconds = 2")
    large(rig, "from itertools import count", "next(i for i in count() if (HERE / 'enough').exists())")
    spent = "the 2 s of CPU time that the site's policy gives a run are used up (`most_cpu_seconds`)"
    assert why(rig) == spent
    assert len(rig.lines("loaded.txt")) == 1  # it was not tried again
    (rig.data / "enough").touch()
    rig.rule("most_cpu_seconds = 3")
    rig.place.change()
    rig.server.until(lambda: rig.server.ready[rig.run][-1]["ready"])


def large(rig: Rig, *lines: str) -> None:
    """Submits the job, whose `load` does this, too."""
    head, load, rest = JOB.partition('    note("loaded.txt", os.getpid())\n')
    more = "".join(f"    {line}\n" for line in ("import resource", *lines))
    (rig.job / "job.py").write_text(head + load + more + rest)
    rig.submit()


# ---- data and packages ----------------------------------------------------------------------------------------------
def test_a_wrong_dataset_name_and_an_ambiguous_one_are_answered_with_the_line_that_mends_them(rig: Rig) -> None:
    rig.submit(datasets=["lungs"])
    assert why(rig) == "no data is bound to 'lungs' (bound: heart): foedus site data add lungs=PATH"
    cli(rig, "data", "add", f"lungs={rig.data}")
    rig.server.until(lambda: rig.server.ready[rig.run][-1]["ready"])
    rig.server.end(rig.run, b"")
    rig.run += "-again"
    rig.submit()
    assert "has 2 (bound: heart, lungs): name one with Job(datasets=[…])" in why(rig)


def test_missing_packages_are_answered_with_the_line_that_installs_them(rig: Rig) -> None:
    rig.submit(requires=["numpy>=1.0", "no-such-package>=2.1", "numpy>=99"])
    assert why(rig) == "packages are missing: pip install 'no-such-package>=2.1' 'numpy>=99'"


def test_an_adapter_of_the_owner_runs_in_the_worker_before_load(rig: Rig) -> None:
    adapter = rig.data / "adapt.py"
    adapter.write_text(
        "import os\nfrom pathlib import Path\n"
        "def adapt(path, name):\n    (path / 'adapted.txt').write_text(f'{name} {os.getpid()}')\n    return str(path)\n"
    )
    rig.rebind()
    cli(rig, "data", "add", f"heart={rig.data}", "--adapter", f"heart={adapter}")
    rig.submit()
    rig.server.until(lambda: rig.server.ready.get(rig.run))
    assert (rig.data / "adapted.txt").read_text().split() == ["heart", *rig.lines("loaded.txt")]
    adapter.write_text("def adapt(path, name):\n    return path.no_such_thing\n")
    rig.server.end(rig.run, b"")
    rig.run += "-again"
    rig.submit()
    assert "adapting its data: AttributeError" in why(rig) and "adapt.py, line 2" in why(rig)


# ---- what goes wrong ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("rule", "text"), [("", ""), ("error_texts = true\n", ": 'age'")])
def test_load_that_raises_is_told_with_stage_file_and_line_and_its_text_stays_here(
    rule: str, text: str, rig: Rig
) -> None:
    """A text may quote the data; the site's owner may let it out."""
    policy = rig.place.folder / "policy.toml"
    policy.write_text(policy.read_text() + rule)
    (rig.data / "broken").touch()
    rig.submit()
    line = (rig.job / "job.py").read_text().split("\n").index('        raise KeyError("age")') + 1
    assert why(rig) == f"loading its data: KeyError{text} (job.py, line {line}, in load)"
    if not rule:
        logs = [path.read_text() for path in rig.place.folder.rglob("*.log")]
        assert any("loading its data: KeyError: 'age'" in log for log in logs)


def test_a_job_file_that_raises_when_imported_is_told_with_file_and_line(rig: Rig) -> None:
    (rig.job / "job.py").write_text("import foedus as fd\nx = 1 / 0\n")
    rig.submit()
    assert "importing job.py: job.py raised while it was imported: ZeroDivisionError" in why(rig)
    assert "job.py, line 2" in why(rig)


def test_training_that_raises_is_declined_with_stage_file_and_line_and_the_next_task_goes_on(rig: Rig) -> None:
    rig.submit(options={"mode": "raise"})
    task = rig.task()
    decline = rig.server.until(lambda: rig.server.declines.get(task))
    line = (rig.job / "job.py").read_text().split("\n").index('            raise ValueError("no such column")') + 1
    assert decline["reason"] == f"train: ValueError (job.py, line {line}, in train)"
    assert decline["kind"] == "declined"
    again = rig.task(SMALL, 1)
    rig.server.until(lambda: rig.server.declines.get(again))
    assert len(rig.lines("loaded.txt")) == 1  # the same worker


def test_an_update_with_nan_or_of_other_arrays_is_refused_at_the_site_and_never_leaves(rig: Rig) -> None:
    rig.submit(options={"mode": "nan"})
    task = rig.task()
    decline = rig.server.until(lambda: rig.server.declines.get(task))
    assert decline["kind"] == "refused" and "array 'w' holds NaN or Inf" in decline["reason"]
    other = rig.task(SMALL, 1, returns=[["v", [4], "float32", "trainable", ""]])
    decline = rig.server.until(lambda: rig.server.declines.get(other))
    assert decline["kind"] == "refused" and "the Task announced" in decline["reason"]
    assert not {task, other} & (rig.server.updates.keys() | rig.server.taken.keys())


def test_code_that_a_worker_changed_at_the_site_is_not_run_again(rig: Rig) -> None:
    rig.submit(options={"mode": "die once"})
    rig.server.until(lambda: rig.server.ready.get(rig.run))
    archive = rig.place.folder / "work" / rig.run / "bundle.zip"
    archive.write_bytes(pack(rig.job, "job.py", requires=["other"]))
    task = rig.task()
    decline = rig.server.until(lambda: rig.server.declines.get(task))
    assert decline["reason"] == "starting the worker: the bundle was changed at this site; restart its agent"
    assert len(rig.lines("loaded.txt")) == 1


def test_a_worker_that_dies_once_is_replaced_and_its_task_computed_again(rig: Rig) -> None:
    rig.submit(options={"mode": "die once"})
    task = rig.task()
    rig.server.until(lambda: rig.server.updates.get(task))
    assert len(rig.lines("loaded.txt")) == 2 and len(rig.lines("trained.txt")) == 1


def test_a_worker_that_dies_again_and_again_is_declined_with_its_signal_and_last_words(rig: Rig) -> None:
    rig.submit(options={"mode": "die"})
    task = rig.task()
    decline = rig.server.until(lambda: rig.server.declines.get(task))
    assert decline["reason"] == "worker died: signal 9 (Killed); its log ends: about to die"
    assert len(rig.lines("loaded.txt")) == 5


@pytest.mark.parametrize(("mode", "settled"), [("sleep once", "updates"), ("sleep", "declines")])
def test_a_worker_without_progress_is_stopped_tried_once_more_and_then_lost(rig: Rig, mode: str, settled: str) -> None:
    rig.submit(options={"mode": mode})
    task = rig.task(SMALL, deadline={"stall": (1.0).hex(), "total": None})
    found = rig.server.until(lambda: getattr(rig.server, settled).get(task))
    if mode == "sleep":
        assert found["reason"] == "lost: the worker made no progress for 1 s and was stopped"
    assert len(rig.lines("loaded.txt")) == 2


def test_a_task_that_comes_before_its_run_was_offered_is_done_afterwards(rig: Rig) -> None:
    """As it may where a run is stopped and resumed: the server thinks that the site still knows the run."""
    task = rig.task(bundle=rig.server.put(pack(rig.job, "job.py"))["digest"])
    before = rig.server.asked["poll"]
    rig.server.until(lambda: rig.server.asked["poll"] >= before + 2)
    rig.submit()
    rig.server.until(lambda: rig.server.updates.get(task) or rig.server.declines.get(task))
    assert task not in rig.server.declines


def test_a_task_that_is_cancelled_is_given_up_and_the_next_one_done(rig: Rig) -> None:
    rig.submit(options={"mode": "sleep once"})
    task = rig.task()
    eventually(rig, f"{task}: train")
    rig.server.settle(task, "dropped")
    after = rig.task(SMALL, 1)
    rig.server.until(lambda: rig.server.updates.get(after))
    assert task not in rig.server.updates and task not in rig.server.declines


def test_a_base_that_is_not_here_is_declined_as_lost_local_state(rig: Rig) -> None:
    rig.submit()
    task = rig.task(SMALL, 3, base={"round": 2, "task": 0})
    assert rig.server.until(lambda: rig.server.declines.get(task))["reason"] == "local state lost"
    assert rig.lines("trained.txt") == []


def test_a_damaged_bundle_is_not_unpacked(rig: Rig) -> None:
    data = pack(rig.job, "job.py")
    rig.server.submit(rig.run, data.replace(b"raise ValueError", b"raise TypeError_", 1))
    assert why(rig).startswith("bundle: ") and why(rig).endswith("fetch it again")
    assert rig.lines("loaded.txt") == []


def test_a_task_that_was_changed_on_its_way_is_not_done(rig: Rig) -> None:
    server = rig.server
    rig.submit()
    text = rig.task()
    server.until(lambda: server.updates.get(text))
    with server.told():
        forged = {**server.tasks[text], "body": {**server.tasks[text]["body"], "round": 1}}
        server.tasks[f"{rig.run}/1/0/0"] = forged
    eventually(rig, "a task is not done: envelope for foedus/task/1: the signature does not match")
    assert len(rig.lines("trained.txt")) == 1
    server.settle(f"{rig.run}/1/0/0", "dropped")


def test_a_submission_by_somebody_who_is_no_submitter_is_refused(rig: Rig) -> None:
    author, rig.server.author = rig.server.author, rig.server.key
    rig.submit()
    assert "belongs to no submitter of this federation" in why(rig)
    rig.server.author = author


# ---- transfers ------------------------------------------------------------------------------------------------------
def test_an_upload_that_is_cut_goes_on_where_it_was(rig: Rig) -> None:
    rig.submit()
    big = Params({"w": np.zeros(8 << 20, np.float32)})
    size = 32 << 20
    rig.server.cut_after = round(0.6 * size)
    task = rig.task(big)
    update = rig.server.until(lambda: rig.server.updates.get(task), 40)[0]
    assert update["size"] - size < 1000
    assert rig.server.taken[task] - size < 0.45 * size
    assert (rig.server.params(task)["w"] == 1).all()
    assert rig.lines("trained.txt") == rig.lines("loaded.txt")


def test_bytes_that_a_restarting_server_cleared_away_are_sent_again_at_once(rig: Rig) -> None:
    """The poll that is open meanwhile says nothing of this update: who waits for its answer waits long."""
    rig.server.clears = 2
    rig.submit()
    task = rig.task()
    rig.server.until(lambda: rig.server.updates.get(task))
    assert rig.server.clears == 0 and len(rig.lines("trained.txt")) == 1
    assert len(rig.server.params(task)) > 0


def test_an_agent_at_work_beats_and_stops_on_sigterm_within_seconds_taking_its_worker_along(fresh: Rig) -> None:
    agent = fresh.start()
    fresh.submit(options={"mode": "sleep once"})
    task = fresh.task()
    eventually(fresh, f"{task}: train")
    beat = fresh.server.until(lambda: fresh.server.beats)[0]
    assert {k: beat[k] for k in ("run", "round", "task", "attempt")} == {
        "run": fresh.run,
        "round": 0,
        "task": 0,
        "attempt": 0,
    }
    assert (type(beat["progress"]), type(beat["cpu"])) == (int, float)
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(5) == 0
    assert gone(int(fresh.lines("loaded.txt")[0]))
