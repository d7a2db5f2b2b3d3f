"""A federation's server for tests of a site: the protocol over the real HTTP server, decisions left to the test.
Everything is in memory except uploads and blobs; `restart` forgets what a real one would."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foedus import frames
from foedus.params import Params
from foedus.wire.certificate import self_signed, server_context
from foedus.wire.ed25519 import new_key, public_text, write_secret
from foedus.wire.freshness import Life, Nonces, UnknownNonce, check_alive, check_life
from foedus.wire.http_connection import Truncated
from foedus.wire.http_server import Request, Response, Server, ranged
from foedus.wire.identity import Entry, enrol, invite, new_federation, read_token
from foedus.wire.plain import parse, plain, read
from foedus.wire.register import Pin, Register
from foedus.wire.signing import Claim, Target, open_envelope, sign_envelope, verify_request

Json = dict[str, Any]
SEED = 7


class FakeServer:
    """`updates`, `declines`, `ready` hold what sites said; `asked` counts requests, `taken` bytes of uploads."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.news = folder, threading.Condition()
        (folder / "blobs").mkdir(parents=True)
        certificate, key = self_signed(["127.0.0.1"])
        (folder / "tls.pem").write_bytes(certificate)
        write_secret(folder / "tls.key", key)
        self.nonces, self.key, self.owner, self.author = Nonces(), new_key(), new_key(), new_key()
        self.http = Server(self._answer, tls=server_context(folder / "tls.pem", folder / "tls.key")).start()
        url = f"https://127.0.0.1:{self.http.port}"
        self.federation = new_federation(
            "test", (url,), public_text(self.owner), public_text(self.key), certificate.decode()
        )
        self.register, self.changes = Register(self.federation.id, self.federation.owner), list[Json]()
        self.lives: dict[str, Life] = {}
        self.offers, self.tasks, self.verdicts = dict[str, Json](), dict[str, Json](), dict[str, str]()
        self.over: list[Json] = []
        self.updates: dict[str, list[Json]] = {}
        self.declines: dict[str, Json] = {}
        self.ready: dict[str, list[Json]] = {}
        self.asked, self.taken = Counter[str](), Counter[str]()
        self.accepting: list[Json] = []
        self.beats: list[Json] = []
        self.cut_after = 0  # bytes after which the next upload is cut, once
        self.clears = 0  # how often the bytes of an upload are cleared away before its envelope is read
        self.add(enrol(read_token(self.token("alice", "submitter")), self.author))

    # ---- what a test does ------------------------------------------------------------------------------------------
    def token(self, name: str, role: str = "site") -> str:
        return invite(self.owner, self.federation, name, role, expires=int(time.time()) + 3600)  # type: ignore[arg-type]

    def add(self, statement: Any) -> None:
        if not self.register.holds(statement):
            change = self.register.draft(statement, int(time.time()))
            self.register.apply(change)
            self.changes.append({"kind": type(statement).__name__.lower(), **plain(change)})

    def put(self, data: bytes) -> Json:
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs" / digest).write_bytes(data)
        return {"digest": digest, "size": len(data)}

    def submit(self, run: str, bundle: bytes, **submission: Any) -> None:
        """Offers a run to every site."""
        about = {"name": run, "bundle": self.put(bundle), "entry": "job.py", "options": {}, "seed": SEED}
        rules = {"datasets": [], "schema": None, "requires": [], "min_sites": 1, "rounds": 1, "privacy": None}
        body: Json = about | rules | submission
        inner = sign_envelope(self.author, "foedus/submission/1", body)
        offer = {"run": run, "name": run, "bundle": body["bundle"], "entry": body["entry"], "submission": inner}
        with self.told():
            self.offers[run] = sign_envelope(self.key, "foedus/prepare/1", offer)
            self.bundle = body["bundle"]["digest"]

    def task(self, run: str, payload: Params, round: int = 0, site: str = "north", **changes: Any) -> str:
        """Offers a Task; its TASKID."""
        place = {"run": run, "round": round, "task": 0, "attempt": 0, "site": site}
        what = {"work": "train", "returns": [list(leaf) for leaf in payload.spec], "bundle": self.bundle, "seed": SEED}
        rules = {"late": "drop", "deadline": {"stall": float(60).hex(), "total": None}, "base": None, "verdicts": {}}
        body = place | what | rules | {"payload": self.put(frames.pack(payload).bytes())} | changes
        text = "/".join(str(body[k]) for k in ("run", "round", "task", "attempt"))
        with self.told():
            self.tasks[text] = sign_envelope(self.key, "foedus/task/1", body)
        return text

    def settle(self, text: str, verdict: str) -> None:
        with self.told():
            self.tasks.pop(text, None)
            self.verdicts[text] = verdict

    def end(self, run: str, model: bytes) -> None:
        """Ends a run that is not over, and forgets its Tasks."""
        with self.told():
            if self.offers.pop(run, None):
                final = self.put(model)["digest"]
                self.over.append({"run": run, "state": "finished", "digest": "", "final": final, "best": None})
                self.tasks = {text: task for text, task in self.tasks.items() if not text.startswith(f"{run}/")}

    def until(self, ready: Callable[[], Any], seconds: float = 20.0) -> Any:
        """What `ready` returns as soon as it is true; AssertionError after a while."""
        with self.news:
            assert self.news.wait_for(ready, seconds), (
                f"nothing came: {[*self.declines.values()][-1:]} {dict(self.asked)}"
            )
            return ready()

    def params(self, text: str) -> Any:
        """The arrays of an accepted update."""
        return frames.unpack((self.folder / "blobs" / self.updates[text][0]["digest"]).read_bytes())

    def restart(self) -> None:
        """Forgets what a server keeps in memory."""
        self.nonces = Nonces()
        self.http.cut("site")

    def told(self) -> Any:
        return _Told(self.news)

    # ---- the protocol ------------------------------------------------------------------------------------------------
    def _answer(self, request: Request) -> Response:
        try:
            return self._routed(request)
        except Truncated:
            raise
        except UnknownNonce as error:
            return _json({"error": str(error), "nonce": "unknown"}, 401)
        except Exception as error:
            return _json({"error": f"{type(error).__name__}: {error}"}, 403)

    def _routed(self, request: Request) -> Response:
        if request.path == "/v1/nonce":
            return _json({"nonce": self.nonces.issue(parse(request.body.read())["keyid"])})
        if request.path == "/v1/enrol":
            self.add(read(Entry, parse(request.body.read())["entry"]))
            return _json({})
        target = Target(request.method, request.path, request.query)
        claim = verify_request(
            lambda name: self.register.admit(name, 0).entry.public, self.federation.id, target, request.headers
        )
        self.nonces.accept(claim.keyid, claim.nonce, claim.counter)
        if request.path != "/v1/hello":
            check_alive(claim.keyid, self.lives.get(claim.keyid), claim.life)
        request.connection.tag = "site"
        verb = request.path.split("/")[2]
        with self.told():
            self.asked[verb] += 1
        if verb in ("uploads", "blobs"):
            return (self._upload if verb == "uploads" else self._blob)(request, claim)
        data = request.body.read()
        assert hashlib.sha256(data).hexdigest() == claim.digest
        found = getattr(self, f"_{verb}")(request, claim, parse(data))
        return _json(found, 409 if found.get("status") == "send" else 200)

    def _hello(self, request: Request, claim: Claim, body: Json) -> Json:
        self.lives[claim.keyid] = check_life(claim.keyid, self.lives.get(claim.keyid), read(Life, body["life"]))
        pin = read(Pin, body["pinned"])
        self.register.check_extends(pin)
        return {"register": {**plain(self.register.pin), "changes": self.changes[pin.epoch :]}}

    def _poll(self, request: Request, claim: Claim, body: Json) -> Json:
        def found() -> Json:
            told = {t: self.verdicts.get(t, "unknown" if t in self.updates else "send") for t in body["pending"]}
            done = self.declines.keys() | self.updates.keys()
            return {
                "tasks": [e for t, e in self.tasks.items() if t not in body["have"] and t not in done],
                "prepare": [e for run, e in self.offers.items() if run not in body["prepared"]],
                "verdicts": {t: v for t, v in told.items() if v != "unknown"},
                "cancel": [t for t in body["have"] if self.verdicts.get(t) == "dropped" and t not in body["pending"]],
                "ended": [e for e in self.over if e["run"] not in body["ended"]],
            }

        with self.news:
            request.connection.wait(self.news, lambda: any(found().values()), body["wait"])
            return {**found(), "epoch": self.register.pin.epoch}

    def _blob(self, request: Request, claim: Claim) -> Response:
        assert re.fullmatch("run=[a-z0-9-]+", request.query)
        return ranged(self.folder / "blobs" / request.path.split("/")[3], request.headers)

    def _upload(self, request: Request, claim: Claim) -> Response:
        text = request.path.removeprefix("/v1/uploads/")
        part = self.folder / text.replace("/", "_")
        part.touch()
        if request.method == "GET":
            return _json({"offset": part.stat().st_size})
        if self.verdicts.get(text) == "dropped":
            return _json({"status": "dropped"}, 410)
        begin, last, total = map(int, re.findall("[0-9]+", request.headers["content-range"]))
        if begin != part.stat().st_size or last + 1 != total:
            return _json({"offset": part.stat().st_size}, 409)
        with part.open("ab") as file:
            request.body.into(file.fileno(), lambda piece: self._took(text, len(piece)))
        if hashlib.sha256(part.read_bytes()).hexdigest() != claim.digest:
            part.unlink()
            return _json({"error": "other bytes than were announced"}, 400)
        part.rename(self.folder / "blobs" / claim.digest)
        return _json({"offset": total})

    def _took(self, text: str, count: int) -> None:
        self.taken[text] += count
        if self.cut_after and self.taken[text] >= self.cut_after:
            self.cut_after = 0
            raise Truncated("the test", self.taken[text], 1)

    def _updates(self, request: Request, claim: Claim, body: Json) -> Json:
        update = self._opened(claim, body, "update")
        text = _text(update)
        if self.clears:
            self.clears -= 1
            (self.folder / "blobs" / update["digest"]).unlink()
            return {"status": "send"}
        with self.told():
            known = self.updates.setdefault(text, [])
            if update not in known:
                known.append(update)
        return {"status": "accepted", "why": ""}

    def _declines(self, request: Request, claim: Claim, body: Json) -> Json:
        decline = self._opened(claim, body, "decline")
        with self.told():
            self.declines[_text(decline)] = decline
        return {"status": "accepted", "why": ""}

    def _opened(self, claim: Claim, body: Json, purpose: str) -> Json:
        public = self.register.admit(claim.keyid, 0).entry.public
        found = open_envelope(body["envelope"], f"foedus/{purpose}/1", public)
        assert found["site"] == claim.keyid
        return found

    def _ready(self, request: Request, claim: Claim, body: Json) -> Json:
        with self.told():
            self.ready.setdefault(body["run"], []).append(body)
        return {}

    def _beat(self, request: Request, claim: Claim, body: Json) -> Json:
        with self.told():
            self.beats.append(body)
        return {"go_on": self.verdicts.get(_text(body)) != "dropped"}

    def _accepting(self, request: Request, claim: Claim, body: Json) -> Json:
        with self.told():
            self.accepting.append(body)
        return {}


class _Told:
    """A change that waiting polls and tests hear of."""

    def __init__(self, news: threading.Condition) -> None:
        self.news = news

    def __enter__(self) -> None:
        self.news.acquire()

    def __exit__(self, *_: object) -> None:
        self.news.notify_all()
        self.news.release()


def _json(found: Json, status: int = 200) -> Response:
    return Response(status, {"content-type": "application/json"}, json.dumps(found).encode())


def _text(body: Json) -> str:
    return "/".join(str(body[k]) for k in ("run", "round", "task", "attempt"))
