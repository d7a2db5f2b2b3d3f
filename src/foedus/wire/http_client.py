"""The client of `http_server`: one connection, asked one thing after another, through a proxy where there is one.
URLs, PEM and files come in; Replies, and WireErrors that name URL, stage and remedy, go out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import NamedTuple, final
from urllib.parse import SplitResult, urlsplit

import h11

from foedus.errors import WireError
from foedus.wire.http_connection import (
    CONTROL,
    MOST_HEAD,
    NOTHING,
    Body,
    Connection,
    Content,
    FilePart,
    Progress,
    Sink,
    TooLarge,
    size,
)
from foedus.wire.http_dial import CONNECT, Address, dial, staged, tls_context

_INVITATION = 3.0
_LAST_WORDS = 2.0
_WORTH_ASKING = 1 << 20  # a body for which a round trip, to hear first whether it is wanted, costs little
_IDEMPOTENT = frozenset(("GET", "HEAD", "PUT", "DELETE", "OPTIONS"))


class Reply(NamedTuple):
    """What the server answered; header names are lower case, `body` is empty after a download."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class _Ask(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    content: Content
    timeout: float
    progress: Progress | None = None


class _Answer(NamedTuple):
    """A reply whose body is unread: of known length, or (None) whatever `parser` finds; `last` of its connection."""

    reply: Reply
    body: Body | None
    parser: h11.Connection
    last: bool


@final
class Channel:
    """One connection to `url`, made when it is needed and made again after it broke. For one thread at a time.

    `ca`: the PEM that alone is trusted (None: the system's authorities). `timeout`: seconds until an answer begins, and
    that a transfer may stand still. HTTPS_PROXY and NO_PROXY hold for https, never for loopback. Whatever fails on the
    way is a WireError.
    """

    def __init__(self, url: str, ca: bytes | None = None, timeout: float = 60.0) -> None:
        parts, self._address = _parsed(url)
        self.url, self._timeout = url.rstrip("/"), timeout
        self._host, self._root = parts.netloc.rpartition("@")[2], parts.path.rstrip("/")
        self._tls = tls_context((ca or b"").decode()) if parts.scheme == "https" else None
        self._connection: Connection | None = None
        self._lock, self._cut = Lock(), False

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] = NOTHING,
        body: Content = b"",
        timeout: float | None = None,
        limit: int = CONTROL,
    ) -> Reply:
        """The reply with its body of at most `limit` bytes; `timeout`: seconds until it begins (a long poll's)."""
        with self._asking(_Ask(method, path, headers, body, timeout or self._timeout)) as answer:
            return self._read(answer, limit)

    def upload(
        self, method: str, path: str, headers: Mapping[str, str], part: FilePart, progress: Progress | None = None
    ) -> Reply:
        """The reply to a streamed part of a file; `progress` is told the bytes of each piece handed to the network."""
        with self._asking(_Ask(method, path, headers, part, self._timeout, progress)) as answer:
            return self._read(answer, CONTROL)

    def download(
        self, path: str, headers: Mapping[str, str], into: Path, offset: int, limit: int, sink: Sink | None = None
    ) -> Reply:
        """The reply; its body, from byte `offset` on, went to the same place in `into` and was shown to `sink`.

        A reply other than 200 or 206 comes with its own body, and `into` is left alone. WireError if the body is of
        unknown length, longer than `limit` or begins elsewhere; Truncated: what came is in `into`. Nothing is fsynced.
        """
        asked = {**headers, "range": f"bytes={offset}-"} if offset else headers
        with self._asking(_Ask("GET", path, asked, b"", self._timeout)) as answer:
            if answer.reply.status not in (200, 206):
                return self._read(answer, CONTROL)
            _store(self._checked(answer, path, offset, limit), into, offset, sink)
            return answer.reply

    def cut(self) -> None:
        """Ends what is under way, and this channel for good: the one call that another thread may make."""
        with self._lock:
            self._cut = True
            if self._connection:
                self._connection.cut()

    def close(self) -> None:
        """Gives the connection back; the next request makes a new one."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection:
                connection.close()

    @contextmanager
    def _asking(self, ask: _Ask) -> Iterator[_Answer]:
        try:
            with staged(self.url, f"{ask.method} {ask.path}"):
                answer = self._ask(ask)
            yield answer
        except BaseException:
            self.close()
            raise
        if answer.last or answer.body is None or answer.body.left:
            self.close()

    def _ask(self, ask: _Ask) -> _Answer:
        reused = self._reusable()
        connection = reused or self._connect()
        heard = connection.received
        try:
            return self._once(connection, ask)
        except (OSError, h11.RemoteProtocolError) as error:
            stale = reused and connection.received == heard and not isinstance(error, TimeoutError)
            if not stale or ask.method not in _IDEMPOTENT:
                raise
        self.close()
        return self._ask(ask)

    def _reusable(self) -> Connection | None:
        if self._connection and self._connection.closed():
            self.close()
        return self._connection

    def _connect(self) -> Connection:
        connection = Connection(dial(self.url, self._address, self._tls), self.url, self._timeout)
        with self._lock:
            self._connection = connection
        if self._cut:
            raise WireError(f"{self.url}, connect: this channel was cut; make a new one")
        with staged(self.url, "TLS handshake"):
            connection.handshake(CONNECT)
        return connection

    def _once(self, connection: Connection, ask: _Ask) -> _Answer:
        parser = h11.Connection(h11.CLIENT, MOST_HEAD)
        response, whole = self._deliver(connection, parser, ask)
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in response.headers}
        closes = response.http_version < b"1.1" or "close" in headers.get("connection", "").lower()
        body = None
        if (length := _length(ask.method, response.status_code, headers)) is not None:
            connection.pending = parser.trailing_data[0]
            body = Body(connection, length)
        return _Answer(Reply(response.status_code, headers), body, parser, closes or not whole)

    def _deliver(self, connection: Connection, parser: h11.Connection, ask: _Ask) -> tuple[h11.Response, bool]:
        """The response's head, and whether the request was sent as a whole before it came."""
        content = ask.content
        expects = isinstance(content, FilePart) and content.length >= _WORTH_ASKING
        head = parser.send(self._head(ask, expects)) or b""
        if isinstance(content, bytes):
            connection.send(head + content)
            return connection.response(parser, ask.timeout), True
        content.open().close()
        connection.send(head)
        if expects and (refusal := _invitation(connection, parser)):
            return refusal, False
        try:
            connection.send_part(content, ask.progress)
        except OSError:  # the server hung up: it may have said why
            return connection.response(parser, _LAST_WORDS), False
        return connection.response(parser, ask.timeout), True

    def _head(self, ask: _Ask, expects: bool) -> h11.Request:
        headers = [("host", self._host), *ask.headers.items()]
        if size(ask.content) or ask.method in ("POST", "PUT", "PATCH"):
            headers.append(("content-length", str(size(ask.content))))
        if expects:
            headers.append(("expect", "100-continue"))
        return h11.Request(method=ask.method, target=self._root + ask.path, headers=headers)

    def _read(self, answer: _Answer, limit: int) -> Reply:
        body = answer.body.read(limit) if answer.body else self._unmeasured(answer.parser, limit)
        return answer.reply._replace(body=body)

    def _unmeasured(self, parser: h11.Connection, limit: int) -> bytes:
        data, connection = bytearray(), self._connection
        with staged(self.url, "body"):
            while connection and isinstance(event := connection.event(parser, self._timeout, self._timeout), h11.Data):
                data += event.data
                if len(data) > limit:
                    raise TooLarge(f"{self.url}, body: longer than the {limit} bytes that are taken")
        return bytes(data)

    def _checked(self, answer: _Answer, path: str, offset: int, limit: int) -> Body:
        stage = f"{self.url}, download {path}"
        if answer.body is None:
            raise WireError(f"{stage}: the length is not told; let no proxy between change bodies")
        if answer.body.length > limit:
            raise TooLarge(f"{stage}: {answer.body.length} bytes where at most {limit} were announced; ask for it anew")
        began = re.match(r"bytes ([0-9]{1,18})-", answer.reply.headers.get("content-range", "bytes 0-"))
        if began is None or int(began[1]) != offset:
            raise WireError(f"{stage}: the reply does not begin at byte {offset}; ask for the whole from byte 0")
        return answer.body


def _parsed(url: str) -> tuple[SplitResult, Address]:
    try:
        parts = urlsplit(url)
        if parts.hostname and (default := {"http": 80, "https": 443}.get(parts.scheme)):
            return parts, (parts.hostname, parts.port or default)
    except ValueError:
        pass
    raise WireError(f"{url!r}, connect: this is no address; give one like https://host:port")


def _invitation(connection: Connection, parser: h11.Connection) -> h11.Response | None:
    """The refusal of a body that was announced, or None: the server invites it, or does not know the custom."""
    try:
        event = connection.event(parser, _INVITATION, _INVITATION)
    except TimeoutError:
        return None
    return event if isinstance(event, h11.Response) else None


def _length(method: str, status: int, headers: Mapping[str, str]) -> int | None:
    if method == "HEAD" or status in (204, 304):
        return 0
    if "transfer-encoding" in headers or "content-length" not in headers:
        return None
    return int(headers["content-length"])


def _store(body: Body, into: Path, offset: int, sink: Sink | None) -> None:
    fd = os.open(into, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        body.into(fd, sink)
    finally:
        os.close(fd)
