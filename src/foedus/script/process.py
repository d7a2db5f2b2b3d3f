"""One site's script as its Job sees it: started, asked round by round over a socket, watched, ended.
Pipes and frames come in; what the script says is data that nobody has vouched for."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, Self, final

import foedus
from foedus import build, frames
from foedus.errors import Relayed, WireError
from foedus.params import Params
from foedus.progress import progress
from foedus.wire.pipe import GRACE, Pipe

SCRATCH = "FOEDUS_SCRATCH"  # in a site worker's environment: where its files may lie
PLACE, SITE, DATA = "FOEDUS_SCRIPT", "FOEDUS_SITE", "FOEDUS_SITE_DATA"  # in the script's
GLANCE = 0.2
MOST_LOG = 5 << 20
TOLD = 4096  # bytes of its output that are passed on after each round
RUN = Path(__file__).with_name("run.py")
STAYS = "let it stay in its `for rnd in fd.rounds(model)` until that ends"
NEVER = "it ended without `for rnd in fd.rounds(model)`: add that loop around its training"
WALLS = "processes of one launcher speak over the network: `network = true` in the site's policy.toml allows it"
Json = dict[str, Any]
Corrected = Callable[[Params, Params], Params]  # (grads, params) -> grads


class Command(NamedTuple):
    """How a site's script is started; `site` is "" where only its first model is wanted."""

    script: Path
    args: Sequence[str]
    launcher: Sequence[str]
    threads: int
    stall: float
    site: str
    data: str
    seed: str


class Killed(Relayed):
    """A signal from outside ended the script's process."""


@final
class Process:
    """A script that runs; `ready` is what it said when it came to fd.rounds. Its files lie in a folder of its own.

    Raises Relayed (with `remedy` where it names one) for a script that raises, ends, hangs or is not there in time.
    """

    def __init__(self, command: Command, stage: str, remedy: str = "") -> None:
        self.command, self.stage, self.remedy = command, stage, remedy
        self.folder = Path(tempfile.mkdtemp(prefix="foedus-script-", dir=os.environ.get(SCRATCH)))
        self.log = self.folder / "log"
        self.pipe: Pipe | None = None
        with _listening(self.folder) as listener:
            with self.log.open("ab") as out:
                line, env = _line(command), _environment(command, self.folder)
                self.process = subprocess.Popen(line, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            try:
                self._await(listener)
                self.pipe = Pipe(listener.accept()[0])
                self.ready: Json = self._answer(None)
            except BaseException:
                self.end()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ask(self, do: str, params: Params, more: Mapping[str, Any], correct: Corrected | None) -> Json:
        """What the script answers to one Task, with `params` or `found` read from its files."""
        assert self.pipe is not None
        self.stage = ""
        into = self.folder / "into"
        _write(self.folder / "model", params)
        self._send({"do": do, "model": str(self.folder / "model"), "into": str(into), **more})
        answer = self._answer(correct)
        self._tell()
        if do == "train":
            return answer | {"params": _params(frames.read(into))}
        return answer | {"found": frames.read(into)}

    def end(self) -> None:
        """Ends the script: in order where it waits for a round, else by force, with all that it started."""
        asked = self.pipe is not None and self.process.poll() is None
        if asked:
            with suppress(WireError):
                self._send({"do": "end"})
        if self.pipe is not None:
            self.pipe.close()
        children = _descendants(self.process.pid)
        try:
            if not asked:
                self.process.terminate()
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
            self.process.kill()
            self.process.wait()
        for pid in children:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._tell()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _send(self, message: Json) -> None:
        assert self.pipe is not None
        try:
            self.pipe.send(message)
        except WireError as error:
            raise self._gone() from error

    def _answer(self, correct: Corrected | None) -> Json:
        """The next answer that is neither progress nor a gradient to be corrected."""
        assert self.pipe is not None
        while True:
            self._await(self.pipe.end)
            try:
                answer = self.pipe.receive()[0]
            except WireError as error:
                raise self._gone() from error
            if "progress" in answer:
                progress(int(answer["progress"]))
            elif "correct" in answer and correct is not None:
                grads, params = frames.read(answer["correct"])
                try:
                    _write(Path(answer["correct"]), correct(grads, params))
                finally:
                    del grads, params
                self._send({"corrected": answer["correct"]})
            else:
                return dict(answer)

    def _await(self, end: socket.socket) -> None:
        """Returns when there is something to read. Raises Relayed for a script that ended, or makes no progress."""
        poll = select.poll()
        poll.register(end, select.POLLIN)
        seen, since = _cpu(self.process.pid), monotonic()
        while not poll.poll(GLANCE * 1000):
            if self.process.poll() is not None and not poll.poll(0):
                raise self._gone()
            if self.log.stat().st_size > MOST_LOG:
                os.truncate(self.log, 0)
            cpu = _cpu(self.process.pid)
            if cpu != seen:
                progress()
                seen, since = cpu, monotonic()
            elif monotonic() - since > self.command.stall:
                raise self._error(
                    f"the script made no progress for {self.command.stall:g} s and was stopped",
                    "call rnd.progress() where it waits for long, or raise fd.Script(stall=…)",
                )

    def _gone(self) -> Relayed:
        """Why the script is not there any more."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        said = self.folder / "raised.json"
        if said.exists():
            raised = json.loads(said.read_text())
            return self._error(raised["told"], "", raised["whole"])
        code = self.process.poll()
        last = _last_line(self.log)
        if code is not None and code < 0:
            why = f"its process was ended by signal {-code} ({signal.strsignal(-code)})"
            return self._error(why, "-9 is often a lack of memory" if code == -9 else "", f"{why}; {last}", Killed)
        if self.command.launcher and ("ermission denied" in last or "rrno: 13" in last or "EACCES" in last):
            return self._error(f"exit code {code}", WALLS, f"exit code {code}; {last}")
        if code == 0:
            return self._error("it ended by itself", STAYS if self.pipe else NEVER)
        return self._error(f"exit code {code}", "", f"exit code {code}; its output ends: {last or 'with nothing'}")

    def _error(self, told: str, remedy: str, whole: str = "", kind: type[Relayed] = Relayed) -> Relayed:
        name = f"{self.stage}, {self.command.script.name}" if self.stage else self.command.script.name
        more = f"; {remedy or self.remedy}".rstrip("; ")
        return kind(f"{name}: {whole or told}{more}", f"{name}: {told}{more}")

    def _tell(self) -> None:
        """Passes the end of the script's output on, and keeps none of it."""
        try:
            size = self.log.stat().st_size
            with self.log.open("rb") as file:
                file.seek(max(0, size - TOLD))
                lines = file.read().decode("utf-8", "replace").splitlines()
            os.truncate(self.log, 0)
        except OSError:
            return
        if size > TOLD:
            lines[:1] = [f"… {size - TOLD} bytes before that"]
        for line in lines:
            sys.stderr.write(f"[{self.command.site or 'first model'}] {line}\n")


def _line(command: Command) -> list[str]:
    """The command line: the launcher, or Python, and what runs the script."""
    launcher = list(command.launcher) or [sys.executable]
    beside = Path(sys.executable).parent / launcher[0]
    launcher[0] = str(beside) if beside.exists() else shutil.which(launcher[0]) or launcher[0]
    return [*launcher, str(RUN), str(command.script), *command.args]


def _environment(command: Command, folder: Path) -> dict[str, str]:
    """This process's own, with what the script has to know of foedus."""
    paths = [str(Path(foedus.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    made = {PLACE: str(folder), "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONHASHSEED": "0"}
    made |= {"FOEDUS_SCRIPT_SEED": command.seed, "FOEDUS_SCRIPT_THREADS": str(command.threads), "PYTHONUNBUFFERED": "1"}
    if command.site:
        made |= {SITE: command.site, DATA: command.data}
    if command.launcher:
        port = 20000 + int.from_bytes(os.urandom(4), "little") % 12000
        made |= {"PET_MASTER_PORT": str(port)}  # torchrun would take the same one for every site
    kept = {k: v for k, v in os.environ.items() if k not in (SITE, DATA)}
    return kept | made | dict.fromkeys(build.THREADS, str(command.threads))


def _listening(folder: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with at(folder) as address:
        made.bind(address)
    made.listen(1)
    return made


class at:
    """The address of the folder's socket, short enough for the kernel wherever the folder is."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fd = folder, -1

    def __enter__(self) -> str:
        if len(str(self.folder)) < 90 or sys.platform != "linux":
            return str(self.folder / "s")
        self.fd = os.open(self.folder, os.O_RDONLY)
        return f"/proc/self/fd/{self.fd}/s"

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def _write(path: Path, params: Any) -> None:
    """Writes a tree under a new inode: what was read before may still be mapped."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        for piece in frames.pack(params):
            file.write(piece)
    new.replace(path)


def _params(found: Any) -> Params:
    if not isinstance(found, Params):
        raise WireError(f"the script's file holds {type(found).__name__}, not Params")
    return found


def _stats() -> dict[int, tuple[int, int]]:
    """pid -> (its parent's, ticks of CPU time); empty where the machine does not say."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            found[int(stat.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))  # proc(5): with waited-for ones
    return found


def _descendants(pid: int, stats: Mapping[int, tuple[int, int]] | None = None) -> list[int]:
    stats = _stats() if stats is None else stats
    found, new = [], [pid]
    while new:
        new = [child for child, (parent, _) in stats.items() if parent in new]
        found += new
    return found


def _cpu(pid: int) -> int:
    stats = _stats()
    return sum(stats[p][1] for p in (pid, *_descendants(pid, stats)) if p in stats)


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TOLD))
        lines = file.read().decode("utf-8", "replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
