"""The worker as its agent sees it: started without secrets, watched for progress, killed and started again.
A pipe and /proc come in; what the worker says is data that nobody has vouched for."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, final

from foedus import build
from foedus.errors import FoedusError, WireError
from foedus.site.orders import Activity, Blob
from foedus.stall import Still, cpu_seconds
from foedus.wire.bundle import digest, unpack
from foedus.wire.link import Stopped
from foedus.wire.pipe import Pipe, pair

ARCHIVE = "bundle.zip"  # in the run's folder: the code as it was signed
GLANCE = 0.5
MOST_LOG = 5 << 20
MOST_DEATHS = 5  # of workers at one Task
Json = dict[str, Any]
T = TypeVar("T")


class Died(FoedusError):
    """The worker ended by itself, or was killed by somebody else."""


class Spent(FoedusError):
    """The worker used all the CPU time that the site's policy gives a run."""


class Stalled(FoedusError):
    """The worker made no progress for too long."""


class Raised(FoedusError):
    """The Job's code raised while it was imported or while it loaded the data."""

    def __init__(self, stage: str, why: str) -> None:
        super().__init__(f"{stage}: {why}")


@final
class WorkerHost:
    """One run's worker, kept warm between Tasks. `bundle` is its code, `loading` the message that makes it ready."""

    def __init__(self, folder: Path, bundle: Blob, log: Path, loading: Json) -> None:
        self.folder, self.bundle, self.log, self.loading = folder, bundle, log, loading
        self.process: subprocess.Popen[bytes] | None = None
        self.pipe: Pipe | None = None
        self.report: Json = {}
        self.spent = False

    def work(self, message: Json, activity: Activity, stall: float) -> Json:
        """The worker's answer; one that stalled is replaced once, one that was killed several times.

        Raises Died, Spent, Stalled, Raised, Stopped.
        """
        return self._replacing(lambda: self._once(message, activity, stall))

    def ready(self, activity: Activity, stall: float) -> Json:
        """What a loaded worker reports of the Job and its data."""
        self._replacing(lambda: self._ensure(activity, stall))
        return self.report

    def _replacing(self, action: Callable[[], T]) -> T:
        """A kill from outside changes no bit, so it is outlived; a worker that kills itself each time ends here too."""
        stalled, deaths = False, 0
        while True:
            try:
                return action()
            except Stalled:
                if stalled:
                    raise
                stalled = True
            except Died:
                deaths += 1
                if deaths == MOST_DEATHS:
                    raise

    def kill(self) -> None:
        """Ends the worker and all that it started."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.pipe is not None:
            self.pipe.close()
        self.process = self.pipe = None

    def _once(self, message: Json, activity: Activity, stall: float) -> Json:
        self._ensure(activity, stall)
        return self._ask(message, activity, stall)

    def _ensure(self, activity: Activity, stall: float) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        self.kill()
        if self.spent:
            most = self.loading["limits"]["cpu"]
            raise Spent(f"the {most} s of CPU time that the site's policy gives a run are used up (`most_cpu_seconds`)")
        self._start()
        answer = self._ask({"do": "load", "bundle": str(self.folder / "code"), **self.loading}, activity, stall)
        if "raised" in answer:
            self.kill()
            raise Raised(str(answer.get("stage")), str(answer["raised"]))
        self.report = answer

    def _start(self) -> None:
        code, scratch = self.folder / "code", self.folder / "scratch"
        for old in (code, scratch):
            shutil.rmtree(old, ignore_errors=True)
        scratch.mkdir(parents=True)
        data = (self.folder / ARCHIVE).read_bytes()
        if digest(data) != self.bundle.digest:  # checked and unpacked anew each time: the last worker could change both
            raise Raised("starting the worker", "the bundle was changed at this site; restart its agent")
        unpack(data, code)
        self.log.parent.mkdir(exist_ok=True)
        self.pipe, theirs = pair()
        with theirs, self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "foedus.site.worker", str(theirs.fileno())], pass_fds=[theirs.fileno()],
                env=build.scrubbed(scratch, FOEDUS_SCRATCH=str(scratch)), cwd=scratch,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, process_group=0,
            )  # fmt: skip

    def _ask(self, message: Json, activity: Activity, stall: float) -> Json:
        assert self.pipe is not None and self.process is not None
        watch = _Watch(self.process.pid, activity, stall)
        try:
            self.pipe.send(message)
            while True:
                if not self._readable(min(GLANCE, stall / 4)):
                    self._look(watch)
                    continue
                answer, fds = self.pipe.receive()
                for fd in fds:
                    os.close(fd)
                if not isinstance(answer, dict):
                    raise WireError("the worker answered nonsense")
                if "progress" not in answer:
                    return answer
                activity.advance(int(answer["progress"]))
        except (WireError, ValueError, TypeError) as error:
            raise Died(self._death(str(error))) from error  # where its CPU time is spent, the next attempt says so
        except (Stalled, Stopped):
            self.kill()
            raise

    def _readable(self, seconds: float) -> bool:
        assert self.pipe is not None
        poll = select.poll()
        poll.register(self.pipe.end, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _look(self, watch: _Watch) -> None:
        if watch.activity.gone.is_set():
            raise Stopped("the Task is not wanted any more")
        if self.log.exists() and self.log.stat().st_size > MOST_LOG:
            os.truncate(self.log, 0)
        watch.look()

    def _death(self, why: str) -> str:
        """What killed the worker, and the last line of its log."""
        assert self.process is not None
        try:
            code: int | None = self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        self.spent = self.spent or code == -signal.SIGXCPU
        if code is not None:
            why = f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"
        return f"worker died: {why}; its log ends: {last_line(self.log) or 'empty'}"


@final
class _Watch:
    """Progress is what was told or CPU time of the worker's process group; being alive is not."""

    def __init__(self, group: int, activity: Activity, stall: float) -> None:
        self.group, self.activity, self.stall, self.still = group, activity, stall, Still()
        self.before = activity.cpu - (cpu_seconds(group) or 0.0)  # so that the Task's figure only ever rises
        self.still.seconds(self._figure())

    def look(self) -> None:
        if self.still.seconds(self._figure()) > self.stall:
            raise Stalled(f"lost: the worker made no progress for {self.stall:g} s and was stopped")

    def _figure(self) -> tuple[int, float]:
        self.activity.cpu = self.before + (cpu_seconds(self.group) or 0.0)
        return self.activity.count, self.activity.cpu


def last_line(log: Path) -> str:
    """The last line of a file that is not blank, shortened."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode("utf-8", "replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
