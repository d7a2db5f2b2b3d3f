"""A site for tests: its agent in a real process, and a job whose calls are counted in files outside of foedus."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import foedus
from fake_server import FakeServer
from foedus.params import Params
from foedus.site import bindings
from foedus.site.bindings import Binding
from foedus.site.joining import enrol_site
from foedus.site.place import Place
from foedus.wire.bundle import pack

JOB = '''
"""A Job with local state: each round adds 1 to the model, and counts the rounds that counted."""
import os
import time
from pathlib import Path

import numpy as np
import foedus as fd
from foedus.core import Fit

HERE = None


def note(name, text):
    with open(HERE / name, "a") as file:
        file.write(f"{text}\\n")


def once(name):
    if (HERE / name).exists():
        return False
    (HERE / name).touch()
    return True


class Learner:
    metrics = ()

    def __init__(self, mode):
        self.mode = mode

    def init(self, key):
        return fd.Params({"w": np.zeros(4, np.float32)})

    def train(self, params, data, key, correct):
        if self.mode == "die" or self.mode == "die once" and once("died"):
            print("about to die")
            os.kill(os.getpid(), 9)
        if self.mode == "sleep" or self.mode == "sleep once" and once("slept"):
            time.sleep(600)
        if self.mode == "raise":
            raise ValueError("no such column")
        note("trained.txt", os.getpid())
        new = fd.Params({name: x + 1 for name, x in params.items()})
        if self.mode == "nan":
            new["w"][0] = np.nan
        return Fit(new, len(data.train), 1, 0.1)

    def evaluate(self, params, data, metrics):
        return {}


def work(payload, local, site):
    fit = site.train(payload, site.split, site.key("train"), None)
    rounds = (local or {"rounds": 0})["rounds"] + 1
    note("rounds.txt", rounds)
    return {"rounds": rounds}, fd.Update(fit.params - payload, fit.examples, {"train_loss": np.array([1.0, 2.0])})


def load(site):
    global HERE
    HERE = Path(site.data)
    note("loaded.txt", os.getpid())
    if (HERE / "broken").exists():
        raise KeyError("age")
    return fd.Split(train=(np.ones((20, 3)), np.zeros(20)))


def job(mode="plain", privacy="none"):
    algorithm = fd.Algorithm(lambda p: p, None, {"train": work})
    return fd.Job(algorithm, Learner(mode), load, rounds=1, evaluate=0, privacy=privacy)
'''
SMALL = Params({"w": np.zeros(4, np.float32)})


class Rig:
    """The site `north` of a fake server; `data` is the folder that is bound to its dataset."""

    def __init__(self, folder: Path, server: FakeServer, trust: tuple[str, ...] = ("alice",)) -> None:
        self.server, self.folder, self.home, self.trust = server, folder, folder / "home", trust
        self.agents: list[subprocess.Popen[bytes]] = []
        self.kills = self.runs = 0
        self.place: Place = enrol_site(server.token("north"), [], trust, self.home)
        self.renew()

    def renew(self) -> None:
        """Another run, with data, a policy and a job of its own."""
        self.runs += 1
        self.run, self.data = f"run-{self.runs}", self.folder / f"data{self.runs}"
        self.job = self.folder / f"job{self.runs}"
        self.data.mkdir()
        self.job.mkdir()
        (self.job / "job.py").write_text(JOB)
        self.rebind(heart=self.data)
        self.rule("")

    def rule(self, text: str) -> None:
        """Replaces the policy."""
        trust = "" if text.startswith("trust") else f"trust = {list(self.trust)}\n"
        trust += "" if "privacy" in text or "[dataset" in text.split("\n")[0] else 'privacy = "none"\n'
        (self.place.folder / "policy.toml").write_text(f"{trust}{text}\n")

    def submit(self, **submission: Any) -> None:
        self.server.submit(self.run, pack(self.job, "job.py"), **submission)

    def task(self, payload: Params = SMALL, round: int = 0, **changes: Any) -> str:
        return self.server.task(self.run, payload, round, **changes)

    def start(self, kill: str = "", wait: float = 20.0) -> subprocess.Popen[bytes]:
        """An agent's process; `kill` names the point at which it or its worker dies, once."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("FOEDUS")}
        env["PYTHONPATH"] = str(Path(foedus.__file__).parents[1])
        if kill:
            self.kills += 1
            env |= {"FOEDUS_KILL": kill, "FOEDUS_KILL_ONCE": str(self.data / f"kill{self.kills}")}
        command = [
            sys.executable,
            "-m",
            "foedus.site",
            "--home",
            str(self.home),
            "--name",
            "north",
            "--wait",
            str(wait),
        ]
        with (self.home / "stderr.txt").open("ab") as err:
            agent = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=err, stderr=err)
        self.agents.append(agent)
        return agent

    def rebind(self, **paths: Path) -> None:
        for binding in bindings.every(self.place.store):
            bindings.remove(self.place.store, binding.name)
        for name, path in paths.items():
            bindings.add(self.place.store, Binding(name, str(path)))

    def lines(self, name: str) -> list[str]:
        """What the Job wrote into a file beside the data."""
        path = self.data / name
        return path.read_text().split() if path.exists() else []

    def log(self) -> str:
        path = self.place.folder / "agent.log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.send_signal(signal.SIGTERM)
                try:
                    agent.wait(5)
                except subprocess.TimeoutExpired:
                    agent.kill()
                    agent.wait()
        self.place.store.close()
        with self.server.told():
            pass  # so that its waiting polls notice that nobody is there
        self.server.http.close()
