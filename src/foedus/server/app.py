"""The server's requests: who may ask what, and which run answers. One function a route.
HTTP, members and runs come in; see docs/protocol.md for what is said."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from foedus.build import installed
from foedus.errors import Denied, FoedusError, Refused, WireError
from foedus.server import said
from foedus.server.federation import Hub
from foedus.server.run import Delivery
from foedus.server.sealing import Out
from foedus.server.tasks import read_task_id, task_id
from foedus.store.blobs import Part
from foedus.wire.freshness import Life, UnknownNonce
from foedus.wire.http_connection import TooLarge, Truncated
from foedus.wire.http_server import Request, Response, ranged
from foedus.wire.identity import Entry, Renewal, Revocation
from foedus.wire.plain import parse, plain, read
from foedus.wire.register import Pin
from foedus.wire.signing import Claim, Target, open_envelope

log = logging.getLogger(__name__)
VERSION = 1
POLL = 55.0
CHECKING = 120.0
SEALING = 25.0  # seconds that a site's message of a sealed Task waits for what comes after it
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
MOST_TEXT = 2000
MOST_REPORT = 64 << 10
Json = dict[str, Any]


class Asked(NamedTuple):
    """A request whose signature held: who asks, and the parts of the path that the route named."""

    request: Request
    claim: Claim
    name: str
    role: str
    parts: tuple[str, ...]

    def json(self) -> Json:
        """The body, which is what was signed."""
        found = body_of(self.request)
        if hashlib.sha256(found).hexdigest() != self.claim.digest:
            raise Denied("the body is not the one that was signed")
        plain = parse(found) if found else {}
        if not isinstance(plain, dict):
            raise WireError("the body must be a JSON object")
        return plain


class App:
    """The handler of the server's HTTP port."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        site, submitter, anybody = ("site",), ("submitter",), ("site", "submitter")
        self.routes: list[tuple[str, re.Pattern[str], tuple[str, ...], Callable[[Asked], Response]]] = [
            (method, re.compile(pattern), roles, act)
            for method, pattern, roles, act in (
                ("POST", "/v1/hello", anybody, self.hello),
                ("POST", "/v1/poll", site, self.poll),
                ("GET", "/v1/blobs/([0-9a-f]{64})", anybody, self.blob),
                ("GET", "/v1/uploads/([^/]+)/([0-9]+)/([0-9]+)/([0-9]+)", site, self.offset),
                ("PUT", "/v1/uploads/([^/]+)/([0-9]+)/([0-9]+)/([0-9]+)", site, self.upload),
                ("POST", "/v1/updates", site, self.update),
                ("POST", "/v1/declines", site, self.decline),
                ("POST", "/v1/ready", site, self.ready),
                ("POST", "/v1/beat", site, self.beat),
                ("POST", "/v1/seals", site, self.seals),
                ("POST", "/v1/accepting", site, self.accepting),
                ("POST", "/v1/renew", anybody, self.renew),
                ("PUT", "/v1/bundles/([0-9a-f]{64})", submitter, self.bundle),
                ("POST", "/v1/runs", submitter, self.submit),
                ("GET", "/v1/runs", submitter, self.runs),
                ("GET", "/v1/runs/([^/]+)", submitter, self.run),
                ("GET", "/v1/runs/([^/]+)/rows", submitter, self.rows),
                ("POST", "/v1/runs/([^/]+)/(stop|resume|skip)", submitter, self.steer),
                ("POST", "/v1/runs/([^/]+)/retrain", submitter, self.retrain),
                ("GET", "/v1/sites", anybody, self.sites),
                ("GET", "/v1/status", anybody, self.status),
            )
        ]

    def __call__(self, request: Request) -> Response:
        """The answer to any request; an error is one line with its remedy."""
        try:
            return self._answer(request)
        except UnknownNonce as error:
            return answer({"error": str(error), "nonce": "unknown"}, 401)
        except Denied as error:
            return answer({"error": str(error)}, 403)
        except (Truncated, TooLarge):
            raise
        except (WireError, *MALFORMED) as error:
            text = str(error) if isinstance(error, WireError) else f"malformed request: {type(error).__name__} {error}"
            return answer({"error": " ".join(text.split())[:MOST_TEXT]}, 400)
        except FoedusError as error:
            return answer({"error": str(error)}, 409)

    def _answer(self, request: Request) -> Response:
        match request.method, request.path:
            case "GET", "/v1/federation":
                facts = self.hub.place.federation
                return answer(
                    {
                        "id": facts.id,
                        "name": facts.name,
                        "owner": facts.owner,
                        "version": VERSION,
                        "foedus": installed("foedus"),
                    }
                )
            case "POST", "/v1/nonce":
                return answer({"nonce": self.hub.members.nonces.issue(str(parse(body_of(request))["keyid"]))})
            case "POST", "/v1/enrol":
                return self.enrol(request)
            case "POST", "/v1/revoke":
                return self.revoke(request)
        for method, pattern, roles, act in self.routes:
            if method == request.method and (found := pattern.fullmatch(request.path)):
                return act(self._asked(request, roles, found.groups()))
        return answer({"error": f"there is no {request.method} {request.path} here; upgrade foedus?"}, 404)

    def _asked(self, request: Request, roles: tuple[str, ...], parts: tuple[str, ...]) -> Asked:
        target = Target(request.method, request.path, request.query)
        starting, renewing = request.path == "/v1/hello", request.path == "/v1/renew"
        claim, member = self.hub.members.authenticate(target, request.headers, not (starting or renewing), renewing)
        role = member.entry.invitation.role
        if role not in roles:
            raise Denied(f"{claim.keyid!r} is a {role}: {request.method} {request.path} is not for it")
        request.connection.tag = claim.keyid
        return Asked(request, claim, claim.keyid, role, parts)

    # ---- joining and leaving ---------------------------------------------------------------------------------------
    def enrol(self, request: Request) -> Response:
        entry = read(Entry, parse(body_of(request))["entry"])
        self.hub.members.add(entry)
        self.hub.told()
        return answer({"name": entry.invitation.name})

    def revoke(self, request: Request) -> Response:
        revocation = read(Revocation, parse(body_of(request))["revocation"])
        self.hub.members.add(revocation)
        self.hub.cut(revocation.name)
        return answer({"revoked": revocation.name})

    def renew(self, asked: Asked) -> Response:
        self.hub.members.add(read(Renewal, asked.json()["renewal"]))
        return answer({})

    def hello(self, asked: Asked) -> Response:
        body = asked.json()
        if "life" in body and asked.role == "site":
            self.hub.members.hello(asked.name, read(Life, body["life"]), asked.claim.life)
            self.hub.returned(asked.name)
        pinned = body.get("pinned")
        changes = self.hub.members.since(read(Pin, pinned) if pinned else None)
        return answer({"register": {**plain(self.hub.members.register.pin), "changes": changes}})

    def accepting(self, asked: Asked) -> Response:
        body = asked.json()
        yes = bool(body["accepting"])
        self.hub.members.store.put("accepting", asked.name, {"accepting": yes, "why": str(body.get("why", ""))[:500]})
        self.hub.event("returned" if yes else "left", str(body.get("why", ""))[:500], asked.name)
        self.hub.returned(asked.name) if yes else self.hub.told()
        return answer({})

    # ---- a site's work ---------------------------------------------------------------------------------------------
    def poll(self, asked: Asked) -> Response:
        body = asked.json()
        seen = self._news(asked.name, body)
        if not self._any(seen):
            deadline = time.monotonic() + min(POLL, float(body.get("wait", POLL)))
            with self.hub.members.polling(asked.name), self.hub.news:
                while not self._any(seen := self._news(asked.name, body)) and time.monotonic() < deadline:
                    if not self._wait(asked, deadline):
                        break
        return answer(seen)

    def _wait(self, asked: Asked, deadline: float) -> bool:
        """Until something changed, or it is time; False if the peer is gone. Holds `news`."""
        version, connection = self.hub.version, asked.request.connection
        connection.wait(self.hub.news, lambda: self.hub.version != version, deadline - time.monotonic())
        return not connection.closed()

    def _news(self, site: str, body: Json) -> Json:
        with self.hub.news:
            have, prepared, ended = set(body.get("have", ())), set(body.get("prepared", ())), set(body.get("ended", ()))
            offers = {name: task for live in self.hub.runs.values() for name, task in live.offers(site).items()}
            verdicts = {text: self._verdict(site, text) for text in body.get("pending", ())}
            known = set(body.get("unknown", ()))
            return {
                "tasks": [task for name, task in offers.items() if name not in have],
                "cancel": [name for name in have - offers.keys() if name not in body.get("pending", ())],
                "prepare": self.hub.prepare(site, prepared),
                "verdicts": {t: v for t, v in verdicts.items() if not (v == "unknown" and t in known)},
                "ended": self.hub.ended_for(site, ended),
                "epoch": self.hub.members.register.pin.epoch,
            }

    def _any(self, news: Json) -> bool:
        settled = [v for v in news["verdicts"].values() if v != "unknown"]
        return bool(news["tasks"] or news["cancel"] or news["prepare"] or settled or news["ended"])

    def _verdict(self, site: str, text: str) -> str:
        run, round, number, attempt = read_task_id(text)
        live = self.hub.runs.get(run)
        return "dropped" if live is None else live.verdict(site, round, number, attempt)

    def blob(self, asked: Asked) -> Response:
        run = parse_qs(asked.request.query).get("run", [""])[0]
        path = self.hub.granted(asked.parts[0], run, asked.name, asked.role)
        if path is None:
            raise Denied(f"{asked.name!r} may not read this blob; only what a run granted can be read")
        return ranged(path, asked.request.headers)

    def offset(self, asked: Asked) -> Response:
        self.hub.run(asked.parts[0])
        run, *at = asked.parts
        with self.hub.updates(asked.name).part(task_id(run, *map(int, at))) as part:
            found = part.offset
            if not found:
                part.discard()  # who only asks leaves no file behind, which nobody would delete
            return answer({"offset": found})

    def upload(self, asked: Asked) -> Response:
        """The rest of an update; digest (of all of it) and length were signed before the first byte is taken."""
        request, claim = asked.request, asked.claim
        begin, total = _range(request)
        round, number, attempt = map(int, asked.parts[1:])
        at = asked.name, round, number, attempt
        with self.hub.news:
            live = self.hub.run(asked.parts[0])
            known = live.journal.find("accepted", round, number, asked.name, attempt)
            name = live.upload(*at, claim.digest)
            if known is None and not name:
                return answer({"status": "dropped"}, 410)
        blobs = self.hub.updates(asked.name)
        if known is not None or blobs.has(claim.digest):
            return answer({"offset": total})
        blobs.require(total - begin)
        try:
            with blobs.part(name) as part:
                if part.offset != begin:
                    return answer({"offset": part.offset, "error": "go on from this offset"}, 409)
                _pour(request, part)
                part.finish(claim.digest, total)
        finally:  # where the sender left, too: nobody may wait for it any more
            with self.hub.news:
                wanted = live.wants(*at)
            if not wanted:
                live.drop(*at, claim.digest)
        return answer({"offset": total} if wanted else {"status": "dropped"}, 200 if wanted else 410)

    def update(self, asked: Asked) -> Response:
        envelope = asked.json()["envelope"]
        body = said.update(self._opened(asked, envelope, "foedus/update/1"))
        metrics = json.dumps(body["metrics"], sort_keys=True).encode() if body.get("metrics") else b""
        blobs = self.hub.updates(asked.name)
        if not blobs.has(body["digest"]) and not self._known(asked.name, body):
            return answer({"status": "send", "why": "its bytes are not here: upload them first"}, 409)
        stored = blobs.put(metrics) if metrics else ""
        with self.hub.news:
            if stored and not blobs.has(stored):  # equal ones of a settled round were deleted meanwhile
                blobs.put(metrics)
            live = self.hub.run(body["run"])
            found = live.deliver(asked.name, body, stored)
            if isinstance(found, Delivery):
                until = time.monotonic() + CHECKING
                while found.receipt is None and time.monotonic() < until and self.hub.at_work(live):
                    self.hub.news.wait(1.0)
                ended = live.over and self.hub.runs.get(live.id) is live
                if found.receipt is None and not ended:
                    return answer({"error": "the run's worker is not there to check it; send it again later"}, 503)
            else:
                self.hub.forget(asked.name, (body["digest"], stored))  # nobody will look at them
                return answer(found)
        if found.receipt is None:
            live.clear()  # the run ended while it waited
        return answer(found.receipt)

    def _known(self, site: str, body: Json) -> bool:
        with self.hub.news:
            live = self.hub.runs.get(body["run"])
            verdict = live and live.book.verdict(site, body["round"], body["task"], body["attempt"], live.over)
            return verdict != "send"

    def _opened(self, asked: Asked, envelope: Json, purpose: str) -> Json:
        public = self.hub.members.register.admit(asked.name, int(time.time())).entry.public
        body = open_envelope(envelope, purpose, public)
        if body.get("site") != asked.name:
            raise Denied(f"{asked.name!r} sent an envelope of {body.get('site')!r}; a site speaks for itself only")
        return body

    def decline(self, asked: Asked) -> Response:
        body = said.place(self._opened(asked, asked.json()["envelope"], "foedus/decline/1"))
        with self.hub.news:
            found = self.hub.run(body["run"]).decline(asked.name, body)
            self.hub.told()
            return answer(found)

    def ready(self, asked: Asked) -> Response:
        body = asked.json()
        answered: Json = {
            "ready": bool(body["ready"]),
            "why": str(body.get("why", ""))[:MOST_TEXT],
            "report": _report(body),
        }
        with self.hub.news:
            live = self.hub.run(body["run"])
            before = live.answer(asked.name)
            self.hub.members.store.put("ready", f"{live.id}/{asked.name}", answered)
            if answered["report"].get("build") != ((before or {}).get("report") or {}).get("build"):
                live.told_build(asked.name, answered["report"].get("build"))
            found = live.answer(asked.name) or answered
            if before is None or before["ready"] != found["ready"]:
                live.event("joined" if found["ready"] else "not ready", found["why"], asked.name)
            self.hub.told()
        return answer({})

    def beat(self, asked: Asked) -> Response:
        body = said.place(asked.json())
        with self.hub.news:
            live = self.hub.runs.get(body["run"])
            task = live.book.tasks.get((body["round"], body["task"])) if live and not live.over else None
            if task is None or not task.wants(asked.name, body["attempt"]):
                return answer({"go_on": False})
            task.told(asked.name, float(body["progress"]) + float(body.get("cpu", 0)))
            return answer({"go_on": True})

    def seals(self, asked: Asked) -> Response:
        """A site's message of a sealed Task; the answer is what comes after it, or {} while others are awaited."""
        body = said.place(asked.json())
        (kind, message), ahead = said.sealing(body), said.ahead(body)
        with self.hub.news:
            live, until = self.hub.run(body["run"]), time.monotonic() + SEALING
            task = live.book.tasks.get((body["round"], body["task"]))
            try:
                sealing = live.sealed(asked.name, task, body["attempt"])
                sealing.hear(asked.name, kind, message, body.get("figures"))
                if task is not None and kind == "reveal" and ahead is not None:
                    live.keys_ahead(task)[asked.name] = (ahead, body.get("figures"))
                self.hub.told()
                while (found := sealing.reply(asked.name, kind)) is None and time.monotonic() < until:
                    if not self._wait(asked, until) or not self.hub.at_work(live):
                        break
                    live.sealed(asked.name, task, body["attempt"])
            except Out as error:
                return answer({"error": str(error)}, 410)
            except Refused as error:
                if task is not None and task.wants(asked.name, body["attempt"]):
                    live.settle_row("refused", task, asked.name, str(error))
                self.hub.told()
                return answer({"error": str(error)}, 409)
            return answer({} if found is None else found | {"data": base64.b64encode(found["data"]).decode()})

    # ---- a submitter's requests ------------------------------------------------------------------------------------
    def bundle(self, asked: Asked) -> Response:
        digest = asked.parts[0]
        if digest != asked.claim.digest:
            raise Denied("the bundle's address is not the digest that was signed")
        if not self.hub.blobs.has(digest):
            data = asked.request.body.read(64 << 20)
            if hashlib.sha256(data).hexdigest() != digest:
                raise Denied("the bundle is not the one that was signed")
            self.hub.blobs.put(data)
        return answer({"digest": digest})

    def submit(self, asked: Asked) -> Response:
        envelope = asked.json()["envelope"]
        public = self.hub.members.register.admit(asked.name, int(time.time())).entry.public
        body = open_envelope(envelope, "foedus/submission/1", public)
        return answer({"run": self.hub.submit(asked.name, body, envelope)})

    def retrain(self, asked: Asked) -> Response:
        without = asked.json()["without"]
        if type(without) is not list or not without or not all(type(site) is str for site in without):
            raise WireError("retrain names the sites to leave out: a list of at least one name")
        return answer({"run": self.hub.retrain(asked.parts[0], without, asked.name)})

    def runs(self, asked: Asked) -> Response:
        with self.hub.news:
            return answer({"runs": [self.hub.runs[run].status() for run in sorted(self.hub.runs)]})

    def run(self, asked: Asked) -> Response:
        with self.hub.news:
            return answer(self.hub.find(asked.parts[0]).status())

    def rows(self, asked: Asked) -> Response:
        query = parse_qs(asked.request.query)
        after, wait = int(query.get("after", ["0"])[0]), min(POLL, float(query.get("wait", ["0"])[0]))
        live, until = self.hub.find(asked.parts[0]), time.monotonic() + wait
        with self.hub.news:
            while not (rows := self.hub.members.store.rows(live.id, after)) and time.monotonic() < until:
                if live.over or not self._wait(asked, until):
                    break
            return answer(
                {"rows": [list(row) for row in rows[:2000]], "state": live.state, "why": live.why, "run": live.id}
            )

    def steer(self, asked: Asked) -> Response:
        run, verb = asked.parts
        self.hub.steer(run, verb, asked.json(), asked.name)
        return answer({"run": run})

    def sites(self, asked: Asked) -> Response:
        return answer({"sites": self.hub.table()})

    def status(self, asked: Asked) -> Response:
        return answer(self.hub.figures())


def answer(found: Any, status: int = 200) -> Response:
    return Response(status, {"content-type": "application/json"}, json.dumps(found).encode())


def _report(body: Json) -> Json:
    """What a site reports of itself to the submitter."""
    found = body.get("report") or {}
    if not isinstance(found, dict) or len(json.dumps(found)) > MOST_REPORT:
        raise WireError(f"a site's report is a JSON object of at most {MOST_REPORT} characters")
    return found


def body_of(request: Request) -> bytes:
    return request.body.read()


def _range(request: Request) -> tuple[int, int]:
    """(first byte, total size) of an upload; without a Content-Range it is whole."""
    text = request.headers.get("content-range")
    if text is None:
        return 0, request.length
    found = re.fullmatch(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})", text)
    if found is None or int(found[2]) - int(found[1]) + 1 != request.length or int(found[2]) + 1 != int(found[3]):
        raise WireError(f"Content-Range {text!r} does not fit a body of {request.length} bytes")
    return int(found[1]), int(found[3])


def _pour(request: Request, part: Part) -> None:
    """The body into the part, which keeps what came if the sender leaves."""
    with open(os.devnull, "wb") as nowhere:
        request.body.into(nowhere.fileno(), part.append)
