"""Every verb of a real federation as a command of its own: its JSON, its exit code, and what people read.

One federation for all of it: a server, two sites (south trusts the owner alone), and alice, who submits.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from federations import simulated, until
from foedus import runs
from foedus.loopback import environment, free_port
from foedus.remote import connect
from toys import JOB, make_sites

pytestmark = pytest.mark.processes
MISTAKE, JOB_ERROR, SITE, PAUSED, DIFFERS, DENIED, WIRE = 1, 3, 4, 5, 6, 7, 8


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0 and self.out.count("\n") == 1, self.err
        return json.loads(self.out)

    @property
    def last(self) -> str:
        return self.err.strip().splitlines()[-1]


def command(home: Path, *words: object) -> list[str]:
    return [sys.executable, "-m", "foedus", *map(str, words), "--home", str(home)]


def foedus(home: Path, *words: object) -> Said:
    done = subprocess.run(
        command(home, *words), check=False, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr
    return Said(done.returncode, done.stdout, done.stderr)


class Federation(NamedTuple):
    """Its homes by name, the sites' data, what each long-lived command printed first, and its process."""

    root: Path
    data: dict[str, Path]
    first: dict[str, Any]
    processes: dict[str, subprocess.Popen[str]]

    def home(self, name: str) -> Path:
        return self.root / name

    def begin(self, name: str, *words: object) -> Any:
        """Starts a long-lived command; returns the one JSON object that it prints."""
        with (self.root / f"{name}.err").open("ab") as err:
            self.processes[name] = subprocess.Popen(
                command(self.home(name), *words, "--json"),
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
            )
        out = self.processes[name].stdout
        assert out is not None
        self.first[name] = json.loads(out.readline() or "null")
        return self.first[name]

    def ended(self, name: str) -> int:
        """The exit code of a long-lived command that is about to end."""
        process = self.processes.pop(name)
        process.communicate(timeout=30)
        return process.returncode

    def state(self, site: str) -> str:
        with connect(home=self.home("owner")) as remote:
            return next((line["state"] for line in remote.sites() if line["site"] == site), "")

    def rounds(self, run: str) -> int:
        with connect(home=self.home("owner")) as remote:
            return int(remote.run(run).status()["rounds"])

    def log(self, name: str) -> str:
        return (self.root / f"{name}.err").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    root = tmp_path_factory.mktemp("verbs")
    found = Federation(root, make_sites(root / "data", ["north", "south"]), {}, {})
    owner = found.home("owner")
    found.first["create"] = foedus(owner, "federation", "create", "demo", "--port", free_port(), "--json").json
    try:
        assert found.begin("owner", "server", "start") is not None, found.log("owner")
        sites = foedus(owner, "federation", "invite", "north", "south", "--json").json["tokens"]
        alice = foedus(owner, "federation", "invite", "alice", "--submitter", "--json").json["tokens"]["alice"]
        found.first["login"] = foedus(found.home("alice"), "login", alice, "--json").json
        for name, trusted in (("north", ["alice", "owner"]), ("south", ["owner"])):
            trust = [word for who in trusted for word in ("--trust", who)]
            bound = f"data={found.data[name]}"
            assert found.begin(name, "site", "join", sites[name], "--data", bound, *trust), found.log(name)
        until(lambda: found.state("north") == found.state("south") == "reachable")
        yield found
    finally:
        for process in found.processes.values():
            process.terminate()
        for process in found.processes.values():
            process.communicate(timeout=30)


def submitted(made: Federation, *words: object, who: str = "alice") -> str:
    return str(foedus(made.home(who), "submit", *words, "--no-wait", "--json").json["run"])


def job_of(folder: Path, comment: str) -> Path:
    """The toy job with other bytes, which nobody has approved."""
    path = folder / "job.py"
    path.write_text(f"{JOB.read_text()}\n# {comment}\n")
    return path


# ---- the owner's verbs and the server's ---------------------------------------------------------------------------


def test_create_says_where_everything_is_and_makes_one_federation_a_home(made: Federation) -> None:
    found, home = made.first["create"], made.home("owner")
    assert found["federation"] == "demo" and found["server"] == str(home / "server")
    assert found["url"].startswith("https://127.0.0.1:") and found["owner"] == str(home / "owner")
    said = foedus(home, "federation", "create", "again")
    assert (said.code, said.out) == (MISTAKE, "")
    assert said.last == f"foedus: {home}/server holds a federation already: choose another --home, or remove it"


def test_the_server_prints_one_object_when_it_answers_and_a_second_one_names_the_first(made: Federation) -> None:
    first, process = made.first["owner"], made.processes["owner"]
    assert first["federation"] == "demo" and first["pid"] == process.pid
    assert first["url"] == made.first["create"]["url"] == f"https://127.0.0.1:{first['port']}"
    said = foedus(made.home("owner"), "server", "start", "--json")
    assert (said.code, said.out) == (MISTAKE, "")
    assert f"is at work already, process {process.pid}: stop it (`kill {process.pid}`)" in said.last


def test_a_port_that_is_taken_is_named_with_the_process_that_has_it(made: Federation, tmp_path: Path) -> None:
    port, pid = made.first["owner"]["port"], made.processes["owner"].pid
    foedus(tmp_path, "federation", "create", "other", "--port", port)
    said = foedus(tmp_path, "server", "start", "--json")
    assert (said.code, said.out) == (WIRE, "")
    assert f"listen on 127.0.0.1:{port}: the port is taken by process {pid} (" in said.last
    assert "foedus server start" in said.last and "stop that, or give the server another with --port" in said.last


def test_status_tells_the_servers_figures(made: Federation) -> None:
    found = foedus(made.home("owner"), "federation", "status", "--json").json
    assert (found["federation"], found["sites"]) == ("demo", 2) and found["up"] > 0
    said = foedus(made.home("owner"), "server", "status")
    assert said.code == 0 and "2 sites are enrolled" in said.out


def test_tokens_are_all_that_invite_prints_on_standard_output(made: Federation) -> None:
    said = foedus(made.home("owner"), "federation", "invite", "east", "west", "--days", 2)
    assert said.code == 0 and [line[:13] for line in said.out.splitlines()] == ["east foedus1.", "west foedus1."]
    assert "good for 2 days" in said.err and "on its machine: `foedus site join TOKEN`" in said.err
    alone = foedus(made.home("owner"), "federation", "invite", "bob", "--submitter").out.splitlines()
    assert len(alone) == 1 and alone[0].startswith("foedus1.")


def test_a_server_that_is_away_is_named_with_the_remedy(tmp_path: Path) -> None:
    foedus(tmp_path, "federation", "create", "asleep", "--port", free_port())
    said = foedus(tmp_path, "sites", "--json")
    assert (said.code, said.out) == (WIRE, "") and "nothing listens there: start the server" in said.last


# ---- joining and what a site's owner may do --------------------------------------------------------------------------


def test_login_and_join_say_who_one_is_now(made: Federation) -> None:
    assert made.first["login"] == {"submitter": "alice"}
    joined = made.first["north"]
    assert joined["site"] == "north" and joined["federation"] == "demo"
    assert joined["folder"] == str(made.home("north") / "sites" / "north") and len(joined["key"].split("-")) == 8
    listed = foedus(made.home("alice"), "sites", "--json").json["sites"]
    assert [(line["site"], line["state"]) for line in listed] == [("north", "reachable"), ("south", "reachable")]


def test_a_sites_status_says_what_its_agent_does(made: Federation) -> None:
    found = foedus(made.home("north"), "site", "status", "--json").json
    assert found["agent"] == made.processes["north"].pid and found["connected"] and found["state"] == "takes part"
    assert found["data"] == {"data": {"path": str(made.data["north"]), "adapter": ""}}
    said = foedus(made.home("north"), "site", "start")
    assert said.code == MISTAKE and f"an agent (process {found['agent']}) is at work in" in said.last


def test_data_is_added_listed_and_removed(made: Federation, tmp_path: Path) -> None:
    home = made.home("north")
    found = foedus(home, "site", "data", "add", f"more={tmp_path}", "--json").json
    assert found["site"] == "north" and found["data"]["more"] == {"path": str(tmp_path), "adapter": ""}
    assert set(foedus(home, "site", "data", "list", "--json").json["data"]) == {"data", "more"}
    assert set(foedus(home, "site", "data", "remove", "more", "--json").json["data"]) == {"data"}
    said = foedus(home, "site", "data", "remove", "more")
    assert said.code == MISTAKE and said.last == "foedus: no dataset 'more' is bound here; bound: data"


def test_a_site_pauses_leaves_and_returns(made: Federation) -> None:
    home = made.home("north")
    found = foedus(home, "site", "pause", "--json").json
    assert found == {"site": "north", "state": "paused", "told": True}
    until(lambda: made.state("north") == "left")
    assert foedus(home, "site", "return", "--json").json["state"] == "takes part again"
    until(lambda: made.state("north") == "reachable")
    assert foedus(home, "site", "leave", "--json").json == {"site": "north", "state": "left", "told": True}
    assert made.ended("north") == 0 and made.state("north") == "left"
    assert made.begin("north", "site", "start") == {"site": "north", "folder": str(home / "sites" / "north")}
    until(lambda: made.state("north") == "reachable")


# ---- a submitter's verbs -----------------------------------------------------------------------------------------


def test_code_waits_for_approval_is_approved_or_refused_and_check_says_so(made: Federation, tmp_path: Path) -> None:
    job, south = job_of(tmp_path, "for south to judge"), made.home("south")
    said = foedus(made.home("alice"), "submit", job, "--check", "--json")
    rows = {row["site"]: row for row in json.loads(said.out)["sites"]}
    assert said.code == SITE and rows["north"]["ready"] and not rows["south"]["ready"]
    assert "waiting for approval: foedus site approve" in rows["south"]["why"]
    assert f"sends {len(list(tmp_path.glob('*.py')))} file of {tmp_path}: job.py" in said.err
    listed = {line["run"]: line for line in foedus(made.home("alice"), "runs", "--json").json["runs"]}
    (check,) = (line for name, line in listed.items() if line["why"] == "it was a check: nothing was trained")
    refused = foedus(south, "site", "refuse", check["run"], "--json").json  # its code outlives the check
    assert Path(refused["source"], "job.py").read_text() == job.read_text()
    assert foedus(south, "site", "refuse", "no-such-run").code == MISTAKE
    run = submitted(made, job, "rounds=1", "min_sites=2")
    until(lambda: any(r["run"] == run for r in foedus(south, "site", "status", "--json").json["runs"]))
    assert f"its code: {refused['source']}" in foedus(south, "site", "status").out
    found = foedus(south, "site", "approve", run, "--json").json
    assert (found["decision"], found["submitter"]) == ("approved", "alice") and "job.py" in found["files"]
    assert foedus(made.home("alice"), "watch", run, "--json").json["state"] == "finished"
    said = foedus(made.home("alice"), "submit", job, "--check")
    assert said.code == 0 and said.out.splitlines()[-1] == "2 of 2 sites could take part"
    assert foedus(south, "site", "refuse", found["bundle"][:12], "--json").json["decision"] == "refused"
    said = foedus(made.home("alice"), "submit", job, "--check")
    last = said.out.splitlines()[-1]
    assert said.code == SITE and last.startswith("south: ") and "refused" in last


def test_a_submitted_run_is_pulled_by_itself_and_verified_with_the_sites_data(made: Federation, tmp_path: Path) -> None:
    """By the owner, whom both sites trust; then by alice, who has the run but not the sites' data."""
    found = foedus(made.home("owner"), "submit", JOB, "rounds=2", "--seed", 0, "--json").json
    assert found["digest"] == simulated(made.data, tmp_path / "sim", rounds=2) and found["backend"] == "network"
    assert found["intervals"]["test_rmse"][0] < found["metrics"]["test_rmse"] < found["intervals"]["test_rmse"][1]
    alice, run = made.home("alice"), found["run"]
    model = made.home("owner") / "server" / "runs" / run / "final.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    said = foedus(alice, "pull", run, "--json")
    assert said.code == JOB_ERROR and said.last.endswith("was damaged on its way: pull it again")
    assert not (alice / "runs" / run).exists()
    model.write_bytes(whole)
    assert foedus(alice, "pull", run, "--json").json["digest"] == found["digest"]
    (line,) = (line for line in foedus(alice, "runs", "--json").json["runs"] if line["run"] == run)
    assert line["where"] == "here, server"
    assert foedus(alice, "logs", run, "--json").json["rows"][0][2] == "submitted"  # of the copy here
    sent = foedus(made.home("north"), "site", "sent", run, "--json").json["sent"]
    weights = [(line["round"], line["work"], line["status"]) for line in sent]
    assert weights[:-1] == [(0, "train", "counted"), (0, "evaluate", "counted"), (1, "train", "counted")]
    assert weights[-1][:2] == (1, "evaluate") and weights[-1][2] in ("counted", "unsettled")  # the run is over with it
    assert all(line["bytes"] > 0 and line["weight"] > 0 for line in sent)
    said = foedus(alice, "verify", run, "--json")
    told = json.loads(said.out)
    assert said.code == 0 and (told["same"], told["needs"]) == (None, ["north", "south"])
    assert said.last.endswith(f"foedus verify {run} --site north=PATH --site south=PATH")
    given = [word for name, path in made.data.items() for word in ("--site", f"{name}={path}")]
    told = foedus(alice, "verify", run, *given, "--json").json
    assert told["same"] is True and told["replayed"] == found["digest"]
    wrong = ["--site", f"north={made.data['south']}", "--site", f"south={made.data['south']}"]
    said = foedus(alice, "verify", run, *wrong, "--json")
    assert said.code == DIFFERS and json.loads(said.out)["why"].startswith("round 0")
    empty = ["--site", f"north={made.data['north']}", "--site", f"south={tmp_path}"]
    assert "south: loading its data: FileNotFoundError" in foedus(alice, "verify", run, *empty).err
    said = foedus(alice, "resume", run, "--json")
    assert said.json["digest"] == found["digest"] and f"run {run} is finished already" in said.err


def test_a_run_is_stopped_resumed_skipped_watched_and_a_pull_too_soon_leaves_nothing(made: Federation) -> None:
    home = made.home("owner")
    (made.data["south"] / "slow").write_text("1")
    run = submitted(made, JOB, "rounds=200", who="owner")
    until(lambda: made.rounds(run))
    assert foedus(home, "stop", run, "--json").json == {"run": run, "done": "stop"}
    said = foedus(home, "pull", run, "--json")
    assert (said.code, said.out) == (MISTAKE, "") and "is not finished" in said.last
    assert not (home / "runs" / run).exists()
    said = foedus(home, "verify", run)
    assert said.code == MISTAKE and said.last.endswith(f"if it is at the server, `foedus pull {run}` fetches it")
    said = foedus(home, "watch", run, "--json")
    assert said.code == PAUSED and json.loads(said.out)["state"] == "stopped"
    assert foedus(home, "resume", run, "--json").json["run"] == run
    said = foedus(home, "skip", run, "nobody")
    assert said.code == MISTAKE and said.last == f"foedus: nobody waits for 'nobody' in run {run}"
    until(lambda: foedus(home, "skip", run, "south", "--json").code == 0)
    rows = foedus(home, "logs", run, "--json").json["rows"]
    assert [body["site"] for _, _, kind, body, _ in rows if kind == "lost"] == ["south"]
    assert "lost" in foedus(home, "logs", run).out
    foedus(home, "stop", run)
    (made.data["south"] / "slow").write_text("0")


def test_a_run_that_nobody_knows_is_an_error_of_every_verb(made: Federation) -> None:
    for verb in ("watch", "resume", "pull"):
        said = foedus(made.home("owner"), verb, "yesterday", "--json")
        assert (said.code, said.out) == (MISTAKE, ""), verb
        assert said.last == "foedus: 0 runs begin with 'yesterday': `foedus runs` lists them"


# ---- last, for it ends with a site less --------------------------------------------------------------------------


def test_a_revoked_site_ends_and_says_why_in_words(made: Federation) -> None:
    found = foedus(made.home("owner"), "federation", "revoke", "north", "--reason", "left the study", "--json").json
    assert found == {"revoked": "north"}
    assert made.ended("north") == DENIED
    last = made.log("north").strip().splitlines()[-1]
    assert last.startswith("foedus: site 'north': the entry of 'north' was revoked on ")
    assert "(left the study); ask the federation's owner for a new invitation" in last
    assert "ConnectionClosed" not in made.log("north")
    until(lambda: made.state("north") == "")
    shown = foedus(made.home("north"), "site", "status", "--json").json
    assert shown["state"].startswith("is not let in any more: the entry of 'north' was revoked on ")
    said = foedus(made.home("owner"), "federation", "revoke", "nobody")
    assert (
        said.code == MISTAKE and said.last == "foedus: there is no 'nobody' in the register: `foedus sites` lists them"
    )


def test_the_server_ends_in_order_on_sigterm(made: Federation) -> None:
    made.processes["owner"].send_signal(signal.SIGTERM)
    assert made.ended("owner") == 0 and "Traceback" not in made.log("owner")
    assert runs.listed(made.home("alice"))[0]["state"] == "finished"
