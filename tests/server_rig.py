"""The real server for tests, in this process: its HTTP port, its runs and run workers; and sites whose agent is a test.
A scripted site signs as an agent does, and says whatever the test wants."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from foedus import frames
from foedus.params import Params
from foedus.server import owner
from foedus.server.app import App
from foedus.server.federation import Hub
from foedus.server.place import find
from foedus.wire import bundle, submitter
from foedus.wire.certificate import server_context
from foedus.wire.ed25519 import load_key, new_key
from foedus.wire.freshness import Life
from foedus.wire.http_client import Channel
from foedus.wire.http_server import Server
from foedus.wire.identity import Revocation, enrol, invite, read_token, signed
from foedus.wire.link import Link, Member
from foedus.wire.plain import plain
from foedus.wire.signing import open_envelope, sign_envelope

Json = dict[str, Any]
SUBMISSION = {
    "name": "j", "entry": "job.py", "options": {}, "seed": 0, "datasets": [], "schema": None, "requires": [],
    "min_sites": 1, "rounds": 1, "privacy": "none", "check": False,
}  # fmt: skip


class Rig:
    """A federation of this home; `restart` is what a crash of the server and its next start look like."""

    def __init__(self, home: Path) -> None:
        owner.found(home, "fed", "127.0.0.1", 0, ("https://127.0.0.1:1",))
        self.home, self.place, self.links = home, find(home), list[Link]()
        self._serve()

    def _serve(self) -> None:
        self.hub = Hub(self.place)
        tls = server_context(self.place.folder / "tls.pem", self.place.folder / "tls.key")
        self.server = Server(App(self.hub), "127.0.0.1", 0, tls).start()
        self.hub.cut_connections = self.server.cut
        self.url = f"https://127.0.0.1:{self.server.port}"

    def restart(self) -> None:
        self.server.close()
        self.hub.close()
        self._serve()
        self.hub.start()

    def token(self, name, role="site", seconds=3600):
        key = load_key(self.home / "owner" / "owner.key")
        return read_token(invite(key, self.place.federation, name, role, expires=int(time.time()) + seconds))

    def post(self, path, body):
        channel = Channel(self.url, self.place.federation.certificate.encode())
        reply = channel.request("POST", path, {}, json.dumps(body).encode())
        channel.close()
        return reply.status, json.loads(reply.body)

    def site(self, name):
        """A link of an enrolled site that has said hello."""
        key = new_key()
        assert self.post("/v1/enrol", {"entry": plain(enrol(self.token(name), key))})[0] == 200
        link = self.link(name, key, 1)
        link.call("POST", "/v1/hello", {"life": plain(Life(1, "a" * 32, ""))})
        return link

    def link(self, name, key, life=0):
        link = Link(Member(self.place.federation, name, key, life), self.url)
        self.links.append(link)
        return link

    def owner_link(self):
        member = submitter.load(self.home)
        return self.link(member.name, member.key)

    def revoke(self, name, public):
        key = load_key(self.home / "owner" / "owner.key")
        return signed(key, Revocation(self.place.federation.id, name, public, int(time.time()), "left the consortium"))

    def submit(self, code: str, **changes: Any) -> str:
        """The id of a new run of this job file, by the owner."""
        digest = hashlib.sha256(code.encode()).hexdigest()
        folder, link = self.home / f"code-{digest[:8]}", self.owner_link()
        folder.mkdir(exist_ok=True)
        (folder / "job.py").write_text(code)
        data = bundle.pack(folder, "job.py")
        (self.home / "bundle.zip").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        assert link.upload(f"/v1/bundles/{digest}", self.home / "bundle.zip", 0, digest).status == 200
        body = SUBMISSION | {"bundle": {"digest": digest, "size": len(data)}, "at": time.time_ns()} | changes
        envelope = sign_envelope(link.member.key, "foedus/submission/1", body)
        first = link.call("POST", "/v1/runs", {"envelope": envelope})["run"]
        assert link.call("POST", "/v1/runs", {"envelope": envelope})["run"] == first  # a retry starts no second run
        return str(first)

    def rows(self, run: str, kind: str) -> list[Json]:
        """The bodies of the journal's rows of one kind."""
        return [row.body for row in self.hub.store.rows(run, kinds=[kind])]

    def until(self, what: Any, seconds: float = 20.0) -> Any:
        """What `what` returns, as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < deadline, f"it did not happen within {seconds} s"
            with self.hub.news:
                self.hub.news.wait(0.1)
        return found

    def close(self):
        for link in self.links:
            link.close()
        self.server.close()
        self.hub.close()


class Scripted:
    """A site whose agent is the test. `task` waits for an order, `send` uploads an update and returns the receipt."""

    def __init__(self, rig: Rig, name: str, link: Link | None = None) -> None:
        self.rig, self.name, self.link = rig, name, link or rig.site(name)
        self.done = set[str]()

    @classmethod
    def again(cls, old: Scripted) -> Scripted:
        """The same site, at a server that was started again; it has forgotten which Tasks it fetched."""
        return cls(old.rig, old.name, old.rig.link(old.name, old.link.member.key, old.link.member.life))

    def ready(self, run: str, yes: bool = True, **report: Any) -> None:
        body = {"run": run, "ready": yes, "why": "", "report": report}
        self.link.call("POST", "/v1/ready", body)

    def task(self, run: str) -> Json:
        """The body of this run's next Task that was not fetched yet."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            said = {"have": sorted(self.done), "prepared": [run], "ended": [], "pending": [], "wait": 1.0}
            for envelope in self.link.call("POST", "/v1/poll", said)["tasks"]:
                order = open_envelope(envelope, "foedus/task/1", self.rig.place.federation.server)
                if order["run"] == run:
                    self.done.add(task_id(order))
                    return order
        raise AssertionError(f"no task for {self.name!r} in run {run}: {self.rig.hub.runs[run].status()}")

    def send(self, order: Json, data: bytes, **said: Any) -> Json:
        """The receipt of an update of these bytes; `said` is what the envelope says besides."""
        return self.tell(self.upload(order, data) | said)

    def tell(self, body: Json) -> Json:
        return self.link.call("POST", "/v1/updates", {"envelope": self.signed(body)})

    def upload(self, order: Json, data: bytes) -> Json:
        """The honest envelope of an update of these bytes, which are at the server now."""
        file, digest = self.rig.home / f"{self.name}.update", hashlib.sha256(data).hexdigest()
        file.write_bytes(data)
        found = self.link.upload(f"/v1/uploads/{task_id(order)}", file, 0, digest)
        assert found.status == 200, found
        place = {k: order[k] for k in ("run", "round", "task", "attempt", "site")}
        about = {"digest": digest, "size": len(data), "weight": (1.0).hex(), "metrics": {}}
        return place | about | {"stateful": False, "build": ""}

    def signed(self, body: Json, what: str = "update") -> Json:
        return sign_envelope(self.link.member.key, f"foedus/{what}/1", body)


def task_id(order: Json) -> str:
    return "/".join(str(order[k]) for k in ("run", "round", "task", "attempt"))


def packed(**arrays: Any) -> bytes:
    """The bytes of an update with these arrays."""
    return frames.pack(Params(arrays)).bytes()


def sums(dtype: str, *numbers: float, shape: Any = None) -> Json:
    """A metric as it travels."""
    x = np.array(numbers, dtype)
    shape = list(x.shape) if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data": base64.b64encode(x.tobytes()).decode()}
