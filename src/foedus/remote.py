"""A real federation from a submitter's side: `fd.connect(URL).submit(job)`, and what the command line's verbs ask.
The wire and the Job come in; the server's own code does not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foedus import home as homes
from foedus.errors import Denied, FoedusError, JobError
from foedus.files import write_atomic
from foedus.wire import bundle, submitter
from foedus.wire.identity import enrol, read_token
from foedus.wire.link import Link, Member, publish
from foedus.wire.plain import plain
from foedus.wire.signing import sign_envelope

if TYPE_CHECKING:  # most of what is asked needs no Job, whose import takes longer than the answer
    from foedus.job import Job
    from foedus.result import Result

Json = dict[str, Any]
log = logging.getLogger("foedus")


def login(home: Path, token: str) -> str:
    """Enrols as a submitter with a one-time token; returns the name. After a failure, doing it again goes on."""
    found = read_token(token)
    name, federation = found.invitation.name, found.federation
    if found.invitation.role != "submitter":
        raise Denied(f"the token of {name!r} is for a site: use it with `foedus site join`")
    publish(federation, "/v1/enrol", {"entry": plain(enrol(found, submitter.key(home)))})
    submitter.save(home, name, federation)
    return name


def connect(url: str | None = None, home: str | Path | None = None) -> Remote:
    """The federation that this home's submitter belongs to; `url` picks one of its addresses."""
    remote = Remote(submitter.load(homes.folder(home)), url or "", homes.folder(home))
    remote.renew()
    return remote


class Remote:
    """A federation's server, as a submitter sees it."""

    def __init__(self, member: Member, url: str, home: Path) -> None:
        self.home, self.member = home, member
        self.link = Link(member, url)

    def renew(self) -> None:
        """Stays in the register, where it is time; if that fails, what is asked next says more."""
        renewal = submitter.due(self.home)
        if renewal is not None:
            with suppress(FoedusError):
                self.link.call("POST", "/v1/renew", {"renewal": plain(renewal)})
                submitter.save(self.home, self.member.name, self.member.federation, renewal.number)

    def submit(
        self,
        job: Job | str | Path,
        options: Mapping[str, str] | None = None,
        *,
        seed: int = 0,
        rounds: int | None = None,
        privacy: str | None = None,
        say: Callable[[str], object] = lambda text: None,
    ) -> Run:
        """Starts a run of a job file (or of a Job that was built in one); see `Run.wait` for its Result.

        `privacy`: "none", "secagg" or "hospital", in place of the Job's own; JobError where neither says any. `say`
        hears what that means in full, and which files are sent.
        """
        return self._submitted(job, options, seed, rounds, privacy, say=say)

    def _submitted(
        self,
        job: Job | str | Path,
        options: Mapping[str, str] | None = None,
        seed: int = 0,
        rounds: int | None = None,
        privacy: str | None = None,
        check: bool = False,
        say: Callable[[str], object] = lambda text: None,
    ) -> Run:
        from foedus import jobfile, schema
        from foedus.job import Job
        from foedus.privacy import presets

        loaded = jobfile.load(job, options) if not isinstance(job, Job) else jobfile.found(job)
        chosen = stated(loaded.job, rounds, privacy, say)
        jobfile.check_sent(chosen, loaded.path.parent)
        data = bundle.pack(loaded.path.parent, loaded.path.name, files=chosen.files)
        digest, names = bundle.digest(data), bundle.listed(data)
        say(f"sends {len(names)} file{'s' * (len(names) > 1)} of {loaded.path.parent}: {_few(names)}")
        body: Json = {
            "name": chosen.name or loaded.path.parent.name.replace("_", "-"),
            "bundle": {"digest": digest, "size": len(data)},
            "entry": loaded.path.name,
            "options": dict(loaded.options),
            "seed": seed,
            "datasets": list(chosen.datasets),
            "schema": schema.read(chosen.schema, beside=loaded.path.parent).plain(),
            "requires": list(chosen.requires),
            "min_sites": self._least(chosen),
            "purpose": chosen.purpose,
            "rounds": chosen.rounds,
            "override_rounds": rounds,
            "metrics": chosen.declared() if chosen.learner else None,
            "override_privacy": privacy,
            "privacy": presets.stated(chosen.protections),
            "check": check,
            "at": int(time.time() * 1e6),
        }
        self._upload(digest, data)
        envelope = sign_envelope(self.member.key, "foedus/submission/1", body)
        return Run(self, self.link.call("POST", "/v1/runs", {"envelope": envelope})["run"])

    def _least(self, job: Job) -> int:
        """How many sites a run waits for; an exact analysis waits for all that are enrolled and have not left."""
        if "exact" not in job.algorithm.traits or job.min_sites > 1:
            return job.least
        enrolled = [site for site in self.sites() if site["state"] != "left"]
        return max(int(job.least), len(enrolled))

    def check(
        self,
        job: Job | str | Path,
        options: Mapping[str, str] | None = None,
        patience: float = 30.0,
        privacy: str | None = None,
        say: Callable[[str], object] = lambda text: None,
    ) -> list[Json]:
        """One row a site: reachable, dataset, schema, rows, packages, approval, and `why` it is not ready.

        The sites load their data as for a run; nothing is trained. A site that says nothing for `patience` seconds is
        not waited for.
        """
        run = self._submitted(job, options, privacy=privacy, check=True, say=say)
        until = time.monotonic() + patience
        try:
            while True:
                sites, answers = self.sites(), run.status()["answers"]
                missing = [s["site"] for s in sites if s["state"] == "reachable" and s["site"] not in answers]
                if not missing or time.monotonic() > until:
                    return [_checked(site, answers.get(site["site"])) for site in sites]
                time.sleep(0.2)
        finally:
            run.steer("stop")

    def _upload(self, digest: str, data: bytes) -> None:
        file = self.home / "submitter" / f"{digest[:16]}.zip"
        write_atomic(file, data)
        try:
            self.link.upload(f"/v1/bundles/{digest}", file, 0, digest)
        finally:
            file.unlink()

    def run(self, run: str) -> Run:
        """A run by its id or a unique prefix."""
        return Run(self, self.link.call("GET", f"/v1/runs/{run}")["run"])

    def runs(self) -> list[Json]:
        return list(self.link.call("GET", "/v1/runs")["runs"])

    def sites(self) -> list[Json]:
        return list(self.link.call("GET", "/v1/sites")["sites"])

    def status(self) -> Json:
        return self.link.call("GET", "/v1/status")

    def close(self) -> None:
        self.link.close()

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stated(job: Job, rounds: int | None, privacy: str | None, say: Callable[[str], object]) -> Job:
    """The Job as it is submitted, once its privacy was said in full. Raises JobError for one that has none."""
    from foedus.privacy import presets
    from foedus.privacy.dp_sgd import check_rounds

    chosen = job.given(rounds=rounds, privacy=privacy)
    if chosen.privacy is None:
        raise JobError(presets.UNSTATED)
    check_rounds(chosen.dp_sgd, job.rounds, rounds)
    for line in presets.said(chosen.privacy, chosen.method.traits):
        say(f"privacy: {line}")
    return chosen


def _few(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _checked(site: Json, answer: Json | None) -> Json:
    """A site's row of the table that `check` returns."""
    report, why = (answer or {}).get("report", {}), (answer or {}).get("why", "")
    return {
        "site": site["site"],
        "reachable": site["state"],
        "ready": bool(answer and answer["ready"]),
        "why": why if answer else "it did not answer",
        **{name: report.get(name) for name in ("dataset", "schema", "rows", "packages", "approval")},
    }


class Run:
    """One run at a server."""

    def __init__(self, remote: Remote, run: str) -> None:
        self.remote, self.id = remote, run

    def status(self) -> Json:
        return self.remote.link.call("GET", f"/v1/runs/{self.id}")

    def steer(self, verb: str, **body: Any) -> None:
        """stop, resume, or skip(site=…)."""
        self.remote.link.call("POST", f"/v1/runs/{self.id}/{verb}", body)

    def retrain(self, without: Sequence[str]) -> Run:
        """The new run in which these sites never joined; rounds before they did are taken over."""
        body = {"without": list(without)}
        return Run(self.remote, self.remote.link.call("POST", f"/v1/runs/{self.id}/retrain", body)["run"])

    def rows(self, after: int = 0, wait: float = 0.0) -> tuple[list[list[Any]], str, str]:
        """The journal's rows after one, the run's state and why it is so."""
        found = self.remote.link.call(
            "GET", f"/v1/runs/{self.id}/rows", query=f"after={after}&wait={wait:g}", timeout=wait + 30
        )
        return found["rows"], found["state"], found["why"]

    def watch(self, patience: float = 600.0) -> Iterator[tuple[str, Any]]:
        """("row", row) for every row as it comes, ("state", (state, why)) when that changes; ends with the run.

        A server that is restarted meanwhile is waited for, `patience` seconds long.
        """
        after, known, since = 0, ("", ""), time.monotonic()
        while True:
            try:
                rows, state, why = self.rows(after, 20.0)
                since = time.monotonic()
            except FoedusError:
                if time.monotonic() - since > patience:
                    raise
                time.sleep(0.2)
                continue
            for row in rows:
                after = row[0]
                yield "row", row
            if (state, why) != known:
                known = state, why
                yield "state", known
            if state in ("finished", "failed", "stopped") and not rows:
                return

    def wait(
        self,
        told: Callable[[Mapping[str, Any]], None] = lambda line: None,
        folder: Path | None = None,
        say: Callable[[str], object] = log.warning,
        progress: bool | None = None,
    ) -> Result:
        """The Result, when the run is finished; FoedusError with the cause if it failed or was stopped.

        `told` hears of each round, `say` (by default Python's log) of a pause and, once each, of what keeps a site from
        taking part. `progress`: as that of `Job.run`.
        """
        from foedus.absent import Teller
        from foedus.report import live

        state, why, absent = "", "", Teller(say)
        with live.shown(progress) as seen:
            for kind, found in self.watch():
                if kind == "state":
                    state, why = found
                    if state == "paused":
                        say(f"paused: {why}: `foedus resume {self.id}`")
                    continue
                absent.hear(found[2], found[3])
                if seen:
                    seen.hear(found[2], found[3])
                if found[2] == "step":
                    told({"round": found[3]["round"], "seconds": found[3]["seconds"], **found[3]["metrics"]})
        if state != "finished":
            raise FoedusError(f"run {self.id} {state}: {why}; `foedus resume {self.id}` goes on with it")
        return self.pull(folder)

    def pull(self, folder: Path | None = None) -> Result:
        """Fetches journal, models and code into `folder` (this home's runs/ID), where every local verb finds them.

        All of them or, after an error, nothing.
        """
        from foedus import runs

        folder, rows = folder or self.remote.home / "runs" / self.id, self._all_rows()
        bodies = {kind: body for _, _, kind, body, _ in rows}
        if "end" not in bodies:
            raise FoedusError(f"run {self.id} is not finished: `foedus watch {self.id}` shows where it stands")
        with runs.arriving(folder) as place:
            runs.import_rows(place / "run.db", self.id, rows)
            for name, digest in bodies["end"].get("models", {}).items():
                self._fetch(place / f"{name}.safetensors", digest)
            self._fetch_code(place / "bundle", bodies["submitted"])
            if not (folder / runs.SOURCE).exists():  # it does where the run was started from its own folder
                told = bodies["submitted"]
                over = told["override_rounds"], None, told.get("override_privacy")
                runs.sources(place, f"bundle/{told['entry']}", told["options"], *over)
        return runs.result(folder)

    def _all_rows(self) -> list[list[Any]]:
        rows: list[list[Any]] = []
        while new := self.rows(rows[-1][0] if rows else 0)[0]:
            rows += new
        return rows

    def _fetch_code(self, into: Path, told: Mapping[str, Any]) -> None:
        """The job file and its neighbours as the sites approved them."""
        archive = into.with_suffix(".zip")
        self._fetch(archive, told["bundle"]["digest"])
        bundle.unpack(archive.read_bytes(), into)
        archive.unlink()

    def _fetch(self, path: Path, digest: str) -> None:
        self.remote.link.download(f"/v1/blobs/{digest}", f"run={self.id}", path)
        if bundle.digest(path.read_bytes()) != digest:
            raise JobError(f"{path.name} of run {self.id} was damaged on its way: pull it again")
