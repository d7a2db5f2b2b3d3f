"""A real federation on this machine for one run: a server and an agent per site, each with a folder and key of its own.
The command line of server and sites is what is started; nothing is shared but the port."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import foedus
from foedus import runs
from foedus.data import Split, save_split
from foedus.errors import FoedusError, JobError
from foedus.job import Job
from foedus.remote import Remote, Run, connect
from foedus.result import Result
from foedus.wire.pipe import PARENT

STARTED = 60.0
Told = Callable[[Mapping[str, Any]], None]


class Federation:
    """A server and agents that are processes of this one; `stop` ends what is still there.

    They end with this process, too, however it ends. A federation that is in `home` already goes on.
    """

    def __init__(self, home: Path, port: int | None = None) -> None:
        self.home = home
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.alive = list(os.pipe())  # its second end closes with this process
        self._remote: Remote | None = None
        known = home / "server" / "federation.json"
        self.port = json.loads(known.read_bytes())["port"] if known.exists() else port or free_port()
        if not known.exists():
            self._foedus("federation", "create", "loopback", "--port", str(self.port))

    def start_server(self) -> None:
        """Starts the server and returns when it answers."""
        ready = self.home / "ready"
        ready.unlink(missing_ok=True)
        self._start("server", "-m", "foedus.server", "--home", str(self.home), "--ready", str(ready))
        self._until(ready.exists, "server")

    def join(self, name: str, data: Mapping[str, Path], trust: str = "owner", more: Sequence[str] = ()) -> None:
        """Invites a site and starts its agent, in a home of its own."""
        token = self._foedus("federation", "invite", name).strip()
        bound = [text for dataset, path in data.items() for text in ("--data", f"{dataset}={path}")]
        self.start_site(name, "join", token, *bound, "--trust", trust, *more)

    def joined(self, name: str) -> bool:
        """Whether this site has a key and its data here already."""
        return (self.site_home(name) / "sites" / name / "policy.toml").exists()

    def start_site(self, name: str, *arguments: str) -> None:
        """Starts a site's agent: `join TOKEN …` the first time, `start` later."""
        self._start(name, "-m", "foedus", "site", *(arguments or ("start",)), "--home", str(self.site_home(name)))

    def await_sites(self, names: Iterable[str]) -> None:
        """Returns when all these sites are enrolled and reachable."""
        for name in names:
            self._until(partial(self._reachable, name), name)

    def _reachable(self, name: str) -> bool:
        return any(site["site"] == name and site["state"] == "reachable" for site in self.remote().sites())

    def site_home(self, name: str) -> Path:
        return self.home / "homes" / name

    def site(self, name: str, *arguments: str) -> str:
        """Runs a `foedus site` verb for a site and returns what it prints."""
        return self._foedus("site", *arguments, home=self.site_home(name))

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Ends one process, by default as a power cut would."""
        process = self.processes[name]
        if process.poll() is None:
            process.send_signal(number)
        process.wait(20)

    def remote(self) -> Remote:
        """The submitter's connection, closed with the federation."""
        if self._remote is None:
            self._remote = connect(home=self.home)
        return self._remote

    def stop(self) -> None:
        """Ends every process: agents first, so that they do not miss the server."""
        if self._remote is not None:
            self._remote.close()
        for name in sorted(self.processes, key=lambda name: name == "server"):
            process = self.processes[name]
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + 10
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        while self.alive:
            os.close(self.alive.pop())

    def log(self, name: str) -> str:
        """The end of what a process wrote."""
        path = self.home / f"{name}.log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def _foedus(self, *arguments: str, home: Path | None = None) -> str:
        command = [sys.executable, "-m", "foedus", *arguments, "--home", str(home or self.home)]
        found = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
        if found.returncode:
            raise FoedusError(
                f"foedus {' '.join(arguments[:2])}: {found.stderr.strip().splitlines()[-1:] or found.returncode}"
            )
        return found.stdout

    def _start(self, name: str, *arguments: str) -> None:
        with (self.home / f"{name}.log").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                env=environment() | {PARENT: str(self.alive[0])},
                pass_fds=self.alive[:1],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def _until(self, ready: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + STARTED
        while not ready():
            if self.processes[name].poll() is not None or time.monotonic() > deadline:
                raise FoedusError(
                    f"{name} did not start: {self.log(name).strip().splitlines()[-1:] or 'it said nothing'}"
                )
            time.sleep(0.02)


@contextmanager
def federation(home: Path) -> Iterator[Federation]:
    """A federation whose processes end with the block."""
    home.mkdir(parents=True, exist_ok=True)
    made = Federation(home)
    try:
        yield made
    finally:
        made.stop()


def run(
    job: Job,
    data: Mapping[str, Any],
    *,
    seed: int,
    folder: Path,
    source: Mapping[str, Any],
    told: Told,
    say: Callable[[str], object] = lambda text: None,
    heard: Callable[[str], object] = lambda text: None,
    show: bool | None = False,
) -> Result:
    """Runs a job file over these sites in a federation that ends with the run; its folder keeps all logs.

    `heard` is told of pauses and of sites that take no part. Where the folder holds a federation that was
    interrupted, it and its run go on.
    """
    file = source.get("file")
    if not file:
        raise JobError("the backend 'network' sends code as files: put the Job into job.py and run that file")
    folder.mkdir(parents=True, exist_ok=True)
    privacy = source.get("privacy") or ("none" if job.privacy is None else None)  # all of it is on this machine
    runs.sources(folder, file, source.get("options"), source.get("rounds"), source.get("sites"), privacy)
    with federation(folder / "federation") as made:
        made.start_server()
        for name, held in data.items():
            _take_part(made, name, held, list(job.datasets) or ["data"])
        made.await_sites(data)
        asked = {"seed": seed, "rounds": source.get("rounds"), "privacy": privacy, "say": say}
        return _started(made.remote(), file, source.get("options"), asked).wait(told, folder, heard, show)


def _take_part(made: Federation, name: str, held: Any, datasets: Sequence[str]) -> None:
    if made.joined(name):
        made.start_site(name)
    else:
        made.join(name, dict.fromkeys(datasets, bound(made.home / "data" / name, name, held)))


def _started(remote: Remote, file: str, options: Mapping[str, str] | None, asked: Mapping[str, Any]) -> Run:
    """The one run of this federation, begun or going on."""
    for known in remote.runs():
        run = remote.run(known["run"])
        if known["state"] in ("stopped", "failed"):
            run.steer("resume")
        return run
    return remote.submit(file, options, **asked)


def bound(place: Path, name: str, held: Any) -> Path:
    """What a site's owner would bind: a path as it is, a Split as a file."""
    if isinstance(held, (str, Path)):
        return Path(held).expanduser().resolve()
    if isinstance(held, tuple):
        held = Split(train=held)
    if not isinstance(held, Split):
        raise JobError(f"site {name!r}: on a network, data is a path or a Split of arrays, not {type(held).__name__}")
    place.parent.mkdir(parents=True, exist_ok=True)
    path = place.with_suffix(".split")
    save_split(path, held)
    return path


def environment() -> dict[str, str]:
    """This process's environment, in which foedus is found."""
    code = str(Path(foedus.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH", ""))))}


PORTS = range(20_000, 32_000)  # below those that a kernel gives to whoever asks for any, which may be gone again soon


def free_port() -> int:
    """A port of this machine that nobody listens on, and that no other program will be given by chance."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise FoedusError(f"none of the ports {PORTS[0]} to {PORTS[-1]} of 127.0.0.1 is free: stop what holds them")
