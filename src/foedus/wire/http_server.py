"""One HTTPS server on one port: a thread and a blocking TLS socket per connection, and one function that answers.
Requests come in, Responses go out; it knows nothing of jobs or federations."""

from __future__ import annotations

import errno
import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import NamedTuple, Self, final

import h11

from foedus.errors import WireError
from foedus.wire.http_connection import (
    MOST_HEAD,
    NOTHING,
    Body,
    Connection,
    Content,
    FilePart,
    TooLarge,
    Truncated,
    size,
)

log = logging.getLogger(__name__)

_STACK = 512 << 10
_SPARE = 64  # connections past the limit that still hear a 503 instead of being dropped
_DRAIN = 1 << 20
_start_lock = threading.Lock()


class Request(NamedTuple):
    """A request whose head was read; `path` and `query` are as sent, still percent-encoded, header names lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    length: int
    body: Body
    connection: Connection


class Response(NamedTuple):
    """A status, headers (the length is added) and a body: bytes, or a part of a file that is streamed."""

    status: int
    headers: Mapping[str, str] = NOTHING
    body: Content = b""


Handler = Callable[[Request], Response]


class Limits(NamedTuple):
    """What a peer may cost: connections, and seconds for a handshake, a head, idleness and a stalled body."""

    connections: int = 1024
    handshake: float = 10.0
    head: float = 10.0
    idle: float = 75.0
    stall: float = 60.0


LIMITS = Limits()


def ranged(path: Path, headers: Mapping[str, str]) -> Response:
    """A file, or the range of it that the headers ask for (RFC 9110, section 14; a single range): 200, 206 or 416."""
    total = path.stat().st_size
    if not (asked := re.fullmatch(r"bytes=([0-9]{1,18})-([0-9]{0,18})", headers.get("range", ""))):
        return Response(200, {"accept-ranges": "bytes"}, FilePart(path, 0, total))
    first, last = int(asked[1]), min(int(asked[2] or total), total - 1)
    if first > last:
        return Response(416, {"content-range": f"bytes */{total}"})
    return Response(206, {"content-range": f"bytes {first}-{last}/{total}"}, FilePart(path, first, last - first + 1))


@final
class Server:
    """Answers every request on `host:port` (0: any free port) by `handler`, each connection in a thread of its own.

    A handler blocks as long as it likes; where it waits for news it uses `request.connection.wait`. An exception in it
    is logged and becomes a bare 500. WireError if the port cannot be had.
    """

    def __init__(
        self,
        handler: Handler,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        self._handler, self._tls, self._limits = handler, tls, limits
        self._listener = _listen(host, port)
        self.port: int = self._listener.getsockname()[1]
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._threads: dict[Connection, threading.Thread] = {}
        self._acceptor = threading.Thread(target=self._accept, name="accept", daemon=True)

    def start(self) -> Self:
        """Begins to answer, in background threads."""
        self._acceptor.start()
        return self

    def close(self, seconds: float = 5.0) -> None:
        """Stops accepting, cuts every connection, and waits up to `seconds` for the handlers to notice."""
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # close alone does not wake a thread in accept
        self._listener.close()
        if self._acceptor.is_alive():
            self._acceptor.join()
        threads = self._cut(lambda _: True)
        deadline = monotonic() + seconds
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))

    def cut(self, tag: Hashable) -> int:
        """How many connections with this tag were ended, whatever they were doing."""
        return len(self._cut(lambda connection: connection.tag == tag))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cut(self, chosen: Callable[[Connection], bool]) -> list[threading.Thread]:
        with self._lock:
            found = {connection: thread for connection, thread in self._threads.items() if chosen(connection)}
            for connection in found:
                connection.cut()
        return list(found.values())

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                sock, address = self._listener.accept()
            except OSError as error:
                if not self._closing.wait(0.1):  # out of descriptors, say: connections that end make room
                    log.warning("server, accept: %s", error)
            else:
                self._admit(sock, str(address[0]))

    def _admit(self, sock: socket.socket, peer: str) -> None:
        count = len(self._threads)
        if count >= self._limits.connections + _SPARE:
            return sock.close()
        try:
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            connection = Connection(sock, peer, self._limits.stall)
        except OSError:
            return sock.close()
        busy = count >= self._limits.connections
        thread = threading.Thread(target=self._serve, args=(connection, busy), name=f"http {peer}", daemon=True)
        with self._lock:
            self._threads[connection] = thread
        try:
            _start(thread)
        except RuntimeError as error:
            log.warning("server, accept: %s; raise the limit on threads or lower that on connections", error)
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        with self._lock:
            del self._threads[connection]
        connection.close()

    def _serve(self, connection: Connection, busy: bool) -> None:
        wait = self._limits.head  # a new connection owes its first head at once
        try:
            connection.handshake(self._limits.handshake)
            while self._exchange(connection, wait, busy):
                wait = self._limits.idle
        except (OSError, WireError) as error:
            log.debug("%s: connection ended: %s", connection.peer, error)
        except Exception:
            log.exception("server, answer to %s: failed; the connection is given up", connection.peer)
        finally:
            self._forget(connection)

    def _exchange(self, connection: Connection, wait: float, busy: bool) -> bool:
        parser = h11.Connection(h11.SERVER, MOST_HEAD)
        try:
            head = connection.event(parser, wait, self._limits.head)
        except h11.RemoteProtocolError as error:
            return _last(connection, parser, Response(error.error_status_hint, {}, b"not a request of HTTP/1.1\n"))
        if not isinstance(head, h11.Request):
            return False
        request = _request(connection, parser, head)
        if busy:
            return _last(connection, parser, Response(503, {"retry-after": "5"}, b"too many connections\n"))
        if "transfer-encoding" in request.headers:
            return _last(connection, parser, Response(411, {}, b"a body needs a content-length\n"))
        return self._answer(request, parser, _keeps(head))

    def _answer(self, request: Request, parser: h11.Connection, keep: bool) -> bool:
        response = self._handle(request)
        body = request.body
        if not keep or body.uninvited or body.left > _DRAIN:
            return _last(request.connection, parser, response, request.method)
        _send(request.connection, parser, response, request.method)
        body.skip()
        return True

    def _handle(self, request: Request) -> Response:
        try:
            response = self._handler(request)
            if isinstance(response.body, FilePart):
                response.body.open().close()
            return response
        except Truncated:
            raise
        except TooLarge as error:
            return Response(413, {}, f"{error}\n".encode())
        except Exception:
            log.exception("server, %s %s: the handler failed", request.method, request.path)
            return Response(500, {}, b"internal error\n")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if not 0 <= port < 1 << 16:
            raise OSError("no such port")
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise WireError(f"server, listen on {host}:{port}: {error}; {_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "stop the process that has it, or choose another port with --port"
        case errno.EACCES:
            return "choose a port above 1023 with --port, or grant this process the right to bind"
    return "choose an address of this machine, and a port from 0 to 65535"


def _start(thread: threading.Thread) -> None:
    with _start_lock:  # the size of stacks is a setting of the whole process
        before = threading.stack_size(_STACK)
        try:
            thread.start()
        finally:
            threading.stack_size(before)


def _request(connection: Connection, parser: h11.Connection, head: h11.Request) -> Request:
    connection.pending = parser.trailing_data[0]
    headers: dict[str, str] = {}
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    path, _, query = head.target.decode("ascii").partition("?")
    length = int(headers.get("content-length", "0"))
    invite = (lambda: _continue(connection, parser)) if parser.they_are_waiting_for_100_continue else None
    body = Body(connection, length, invite)
    return Request(head.method.decode("ascii"), path, query, headers, length, body, connection)


def _continue(connection: Connection, parser: h11.Connection) -> None:
    connection.send(parser.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")


def _keeps(head: h11.Request) -> bool:
    options = b",".join(value for name, value in head.headers if name == b"connection")
    return head.http_version >= b"1.1" and b"close" not in options.lower()


def _last(connection: Connection, parser: h11.Connection, response: Response, method: str = "") -> bool:
    """Sends the response as the last of its connection; False: there is no next one."""
    _send(connection, parser, response._replace(headers={**response.headers, "connection": "close"}), method)
    connection.linger()
    return False


def _send(connection: Connection, parser: h11.Connection, response: Response, method: str) -> None:
    bare = response.status in (204, 304)
    length = [] if bare else [("content-length", str(size(response.body)))]
    head = h11.Response(status_code=response.status, headers=[*response.headers.items(), *length])
    start = parser.send(head) or b""
    body = b"" if bare or method == "HEAD" else response.body
    if isinstance(body, bytes):
        return connection.send(start + body)
    connection.send(start)
    connection.send_part(body)
