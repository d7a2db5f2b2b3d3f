"""A member's connections to its server: every request signed, a fresh nonce where one is needed, patience.
The HTTP client and an identity come in; JSON and files go both ways."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, TypeVar, final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foedus.errors import Denied, FoedusError, WireError
from foedus.wire.http_client import Channel, Reply
from foedus.wire.http_connection import NOTHING, FilePart, Progress, Sink, TooLarge
from foedus.wire.identity import Federation
from foedus.wire.plain import parse
from foedus.wire.signing import Claim, Target, sign_request

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing
FIRST, MOST = 0.1, 10.0  # seconds between attempts while the server is away
MOST_BYTES = 1 << 40
UNKNOWN = 401
OK = (200, 206)
CODES = {400: WireError.code, 401: Denied.code, 403: Denied.code}
Json = dict[str, Any]
T = TypeVar("T")


class Member(NamedTuple):
    """Who speaks: the federation, the name in its register, the private key, and the life of a site's agent."""

    federation: Federation
    name: str
    key: Ed25519PrivateKey
    life: int = 0


class Answer(NamedTuple):
    """The status of a reply, and its JSON body."""

    status: int
    body: Json


class Away(WireError):
    """The server cannot be reached, or is not well: the same request may succeed later."""


class Answered(Denied):
    """The server said no, in its words; `status` and `body` are what it said."""

    def __init__(self, what: str, status: int, body: Mapping[str, Any]) -> None:
        remedy = f"; {body['remedy']}" if body.get("remedy") else ""
        super().__init__(f"{body.get('error') or f'{what}: the server answered {status}'}{remedy}")
        self.status, self.body, self.code = status, body, CODES.get(status, FoedusError.code)


class Stopped(FoedusError):
    """Nobody wants the answer any more."""


@final
class Link:
    """One connection under a nonce of its own, for one thread at a time; `url` picks the federation's address.

    Raises Away or Answered.
    """

    def __init__(self, member: Member, url: str = "", timeout: float = 60.0) -> None:
        self.member, self.timeout, self.urls = member, timeout, (url,) if url else member.federation.urls
        self.turn, self.nonce, self.counter = 0, "", 0
        self.channel = self._channel()
        self.renewed = False  # whether the last request found that the server had forgotten the nonce

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: str = "",
        timeout: float | None = None,
    ) -> Json:
        """The answer to a JSON request."""
        data = json.dumps(body).encode() if body is not None else b""
        target, digest, patience = (
            Target(method, path, query),
            hashlib.sha256(data).hexdigest(),
            timeout or self.timeout,
        )

        def send(headers: Json) -> Reply:
            return self.channel.request(method, _written(target), headers, data, patience)

        return _json(self._signed(target, digest, len(data), send))

    def upload(self, path: str, file: Path, offset: int, digest: str, told: Progress | None = None) -> Answer:
        """The answer to a file's bytes from `offset` on; `digest` is that of the whole."""
        size = file.stat().st_size
        part, target = FilePart(file, offset, size - offset), Target("PUT", path)
        place = {"content-range": f"bytes {offset}-{size - 1}/{size}"}

        def send(headers: Json) -> Reply:
            return self.channel.upload("PUT", path, headers | place, part, told)

        reply = self._signed(target, digest, part.length, send)
        return Answer(reply.status, _json(reply))

    def download(
        self, path: str, query: str, into: Path, limit: int = MOST_BYTES, offset: int = 0, sink: Sink | None = None
    ) -> None:
        """Writes at most `limit` bytes of a blob from `offset` on; after Away, what came is there and `sink` saw it."""
        target = Target("GET", path, query)

        def send(headers: Json) -> Reply:
            return self.channel.download(_written(target), headers, into, offset, limit, sink)

        self._signed(target, EMPTY, 0, send)

    def patient(self, action: Callable[[], T], gone: Event) -> T:
        """What `action` returns, tried again for as long as the server is away. Stopped once `gone` is set."""
        for pause in pauses():
            try:
                return action()
            except Away:
                if gone.wait(pause):
                    break
        raise Stopped("nobody waits for this any more")

    def close(self) -> None:
        self.channel.close()

    def _channel(self) -> Channel:
        url = self.urls[self.turn % len(self.urls)]
        return Channel(url, self.member.federation.certificate.encode() or None, self.timeout)

    def _signed(self, target: Target, digest: str, length: int, send: Callable[[dict[str, str]], Reply]) -> Reply:
        self.renewed = False
        for _ in range(3):
            reply = self._sent(lambda: send(self._headers(target, digest, length)))
            if reply.status != UNKNOWN:
                break
            self.nonce, self.renewed = "", True
        if reply.status in OK:
            return reply
        raise Answered(f"{target.method} {target.path}", reply.status, _error(reply))

    def _headers(self, target: Target, digest: str, length: int) -> dict[str, str]:
        who = self.member
        if not self.nonce:
            self.nonce, self.counter = self._fresh(), 0
        self.counter += 1
        claim = Claim(who.federation.id, who.name, who.life, self.nonce, self.counter, digest, length)
        return sign_request(who.key, claim, target)

    def _fresh(self) -> str:
        reply = self.channel.request("POST", "/v1/nonce", NOTHING, json.dumps({"keyid": self.member.name}).encode())
        if reply.status not in OK:
            raise Away(f"no nonce from the server: {_error(reply).get('error', reply.status)}")
        return str(_json(reply)["nonce"])

    def _sent(self, send: Callable[[], Reply]) -> Reply:
        try:
            reply = send()
        except TooLarge:
            raise
        except WireError as error:
            self.turn += 1
            self.channel.close()
            self.channel = self._channel()
            raise Away(str(error)) from error
        if reply.status >= 500:
            raise Away(f"the server is not well: {_error(reply).get('error', reply.status)}")
        return reply


def publish(federation: Federation, path: str, body: Mapping[str, Any]) -> None:
    """Sends a statement for the register, which proves itself: nobody signs the request. Raises Away or Answered."""
    problem: WireError | None = None
    for url in federation.urls:
        channel = Channel(url, federation.certificate.encode() or None, 30.0)
        try:
            reply = channel.request("POST", path, NOTHING, json.dumps(body).encode())
        except WireError as error:
            problem = error
            continue
        finally:
            channel.close()
        if reply.status in OK:
            return
        raise Answered(f"POST {path}", reply.status, _error(reply))
    raise Away(str(problem))


def _written(target: Target) -> str:
    return target.path + (f"?{target.query}" if target.query else "")


def pauses() -> Iterator[float]:
    """Seconds to wait before each next attempt, growing and jittered so that a crowd does not come back at once."""
    wait = FIRST
    while True:
        yield wait * random.uniform(0.5, 1.0)
        wait = min(MOST, 2 * wait)


def _json(reply: Reply) -> Json:
    try:
        found = parse(reply.body) if reply.body else {}
    except WireError as error:
        raise Away(f"the server's answer cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise Away("the server answered something that is no JSON object")
    return found


def _error(reply: Reply) -> Json:
    try:
        return _json(reply)
    except Away:
        return {"error": reply.body[:200].decode("utf-8", "replace").strip()}
