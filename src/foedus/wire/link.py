"""A signed line to the server: every request carries a signature, a nonce and a counter; an answer is plain data.
A channel and a key come in. One Link is for one thread; a process makes as many as it needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foedus.errors import Denied, FoedusError, WireError
from foedus.wire.http_client import Channel, Reply
from foedus.wire.http_connection import FilePart
from foedus.wire.identity import Federation
from foedus.wire.signing import Claim, Target, sign_request

EMPTY = hashlib.sha256(b"").hexdigest()
Json = dict[str, Any]


class Answer(NamedTuple):
    """The status of a reply, and its JSON body."""

    status: int
    body: Json


class Member(NamedTuple):
    """Who speaks: the federation, the name in its register, the private key, and the life of a site's agent."""

    federation: Federation
    name: str
    key: Ed25519PrivateKey
    life: int = 0


class Link:
    """Signed requests of one member over one connection; a new nonce is taken when the server forgot the old one."""

    def __init__(self, member: Member, url: str = "", timeout: float = 60.0) -> None:
        self.member = member
        ca = member.federation.certificate.encode() or None
        self.channel = Channel(url or member.federation.urls[0], ca, timeout)
        self.nonce, self.counter = "", 0

    def call(
        self, method: str, path: str, body: Json | None = None, query: str = "", timeout: float | None = None
    ) -> Json:
        """The answer's body. Denied, WireError or FoedusError, in the server's words, for any status but 2xx."""
        data = b"" if body is None else json.dumps(body).encode()
        digest = hashlib.sha256(data).hexdigest()
        reply = self._signed(
            Target(method, path, query),
            digest,
            len(data),
            lambda headers, target: self.channel.request(method, target, headers, data, timeout),
        )
        return checked(reply).body

    def upload(
        self, path: str, file: Path, offset: int, digest: str, progress: Callable[[int], object] | None = None
    ) -> Answer:
        """Sends a file from `offset` on; `digest` is of all of it. The answer may be an error of the server's."""
        size = file.stat().st_size
        part = FilePart(file, offset, size - offset)
        span = {"Content-Range": f"bytes {offset}-{size - 1}/{size}"} if offset else {}
        reply = self._signed(
            Target("PUT", path),
            digest,
            part.length,
            lambda headers, target: self.channel.upload("PUT", target, headers | span, part, progress),
        )
        return answered(reply)

    def download(self, path: str, query: str, into: Path, limit: int) -> None:
        """Fetches a blob into a file, from where the file ends."""
        offset = into.stat().st_size if into.exists() else 0
        if offset >= limit:
            return
        reply = self._signed(
            Target("GET", path, query),
            EMPTY,
            0,
            lambda headers, target: self.channel.download(target, headers, into, offset, limit),
        )
        if reply.status not in (200, 206):
            checked(reply)

    def cut(self) -> None:
        """Ends what is under way; the one call that another thread may make."""
        self.channel.cut()

    def close(self) -> None:
        self.channel.close()

    def _signed(self, target: Target, digest: str, length: int, send: Callable[[Json, str], Reply]) -> Reply:
        for again in (False, True):
            if not self.nonce or again:
                self._renew_nonce()
            self.counter += 1
            who = self.member
            claim = Claim(who.federation.id, who.name, who.life, self.nonce, self.counter, digest, length)
            headers = {k: v for k, v in sign_request(who.key, claim, target).items() if k != "Content-Length"}
            reply = send(headers, target.path + (f"?{target.query}" if target.query else ""))
            if reply.status != 401 or again:
                break
        return reply

    def _renew_nonce(self) -> None:
        body = json.dumps({"keyid": self.member.name}).encode()
        reply = self.channel.request("POST", "/v1/nonce", {}, body)
        self.nonce, self.counter = checked(reply).body["nonce"], 0


def answered(reply: Reply) -> Answer:
    """A reply as plain data."""
    try:
        body = json.loads(reply.body or b"{}")
    except ValueError as error:
        raise WireError(f"the server answered {reply.status} without JSON; is a proxy in between?") from error
    return Answer(reply.status, body if isinstance(body, dict) else {})


def checked(reply: Reply) -> Answer:
    """The same, an error raised in the server's words."""
    found = answered(reply)
    if 200 <= found.status < 300:
        return found
    text = str(found.body.get("error", f"the server answered {found.status}"))
    raise {403: Denied, 401: Denied, 400: WireError}.get(found.status, FoedusError)(text)
