"""The transport over real sockets: server and client against each other, and each against a peer that misbehaves.
Nothing of foedus above `wire` comes in."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foedus.errors import WireError
from foedus.wire.certificate import self_signed
from foedus.wire.http_client import Channel, Reply
from foedus.wire.http_connection import FilePart, TooLarge, Truncated
from foedus.wire.http_server import Limits, Request, Response, Server, ranged

MB = 1 << 20
SOON = 1.0
QUICK = Limits(handshake=0.4, head=0.4, idle=0.4, stall=0.4)


class Pem(NamedTuple):
    certificate: bytes
    context: ssl.SSLContext


def _pem(folder: Path) -> Pem:
    certificate, key = self_signed(["127.0.0.1"])
    (folder / "certificate.pem").write_bytes(certificate)
    (folder / "key.pem").write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return Pem(certificate, context)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    return _pem(tmp_path_factory.mktemp("pem"))


class World:
    """What the handler of these tests works on, and what it saw."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.news = threading.Condition()
        self.told = False
        self.seen: list[Request] = []
        self.polls = 0
        self.ended: list[float] = []
        self.truncated: list[Truncated] = []

    def __call__(self, request: Request) -> Response:
        self.seen.append(request)
        request.connection.tag = request.headers.get("site")
        found: Callable[[Request], Response] = getattr(self, f"on_{request.path.split('/')[1]}")
        return found(request)

    def on_echo(self, request: Request) -> Response:
        return Response(200, {"x-query": request.query}, request.body.read())

    def on_ignore(self, request: Request) -> Response:
        return Response(403, {}, b"no")

    def on_full(self, request: Request) -> Response:
        def full(_: memoryview) -> None:
            raise OSError(errno.ENOSPC, "no space left")

        with open(os.devnull, "wb") as nowhere, suppress(OSError):
            request.body.into(nowhere.fileno(), full)
        return Response(507, {}, b"disk full")

    def on_none(self, request: Request) -> Response:
        return Response(204)

    def on_boom(self, request: Request) -> Response:
        raise RuntimeError("the secret is 42")

    def on_split(self, request: Request) -> Response:
        return Response(200, {"x-evil": "a\r\nb: c"})

    def on_file(self, request: Request) -> Response:
        return ranged(self.folder / "blob", request.headers)

    def on_gone(self, request: Request) -> Response:
        return Response(200, {}, FilePart(self.folder / "blob", 5, 1 << 40))

    def on_poll(self, request: Request) -> Response:
        with self.news:
            self.polls += 1
            self.news.notify_all()
            told = request.connection.wait(self.news, lambda: self.told, 20.0)
            self.ended.append(time.monotonic())
            self.news.notify_all()
        return Response(200, {}, b"news" if told else b"none")

    def on_put(self, request: Request) -> Response:
        digest = hashlib.sha256()
        with open(self.folder / "stored", "ab", buffering=0) as file:
            try:
                stored = request.body.into(file.fileno(), digest.update)
            except Truncated as error:
                with self.news:
                    self.truncated.append(error)
                    self.ended.append(time.monotonic())
                    self.news.notify_all()
                raise
        return Response(201, {"x-stored": str(stored)}, digest.hexdigest().encode())

    def tell(self) -> None:
        with self.news:
            self.told = True
            self.news.notify_all()

    def until(self, ready: Callable[[], bool], seconds: float = 5.0) -> None:
        with self.news:
            assert self.news.wait_for(ready, seconds)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def server(world: World, pem: Pem) -> Iterator[Server]:
    with Server(world, tls=pem.context) as server:
        yield server


@pytest.fixture
def hasty(world: World, pem: Pem) -> Iterator[Server]:
    with Server(world, tls=pem.context, limits=QUICK) as server:
        yield server


@pytest.fixture
def channel(server: Server, pem: Pem) -> Iterator[Channel]:
    with closing(_channel(server.port, pem)) as channel:
        yield channel


def _channel(port: int, pem: Pem, timeout: float = 10.0) -> Channel:
    return Channel(f"https://127.0.0.1:{port}", pem.certificate, timeout)


def _raw(port: int, pem: Pem) -> ssl.SSLSocket:
    context = ssl.create_default_context(cadata=pem.certificate.decode())
    plain = socket.create_connection(("127.0.0.1", port), 5.0)
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


def _said(sock: socket.socket) -> bytes:
    """Everything the peer says until it closes."""
    data = b""
    with suppress(ConnectionError):
        while piece := sock.recv(65536):
            data += piece
    return data


def _exchange(port: int, pem: Pem, request: bytes) -> bytes:
    with _raw(port, pem) as sock:
        sock.sendall(request)
        return _said(sock)


@contextmanager
def _peer(script: Callable[[socket.socket, int], None], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server that does to its n-th connection what `script(socket, n)` says, then closes it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        for number in range(100):
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError), tls.wrap_socket(sock, server_side=True) if tls else sock as wrapped:
                script(wrapped, number)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _answers(answer: bytes) -> Callable[[socket.socket, int], None]:
    def script(sock: socket.socket, _: int) -> None:
        sock.recv(65536)
        sock.sendall(answer)

    return script


def _blob(path: Path, size: int) -> bytes:
    data = hashlib.shake_256(b"blob").digest(size)
    path.write_bytes(data)
    return data


# Exchanges that go well


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, MB - 1, MB, MB + 1, 3 * MB + 7])
def test_a_body_comes_back_as_it_was_sent(channel: Channel, size: int) -> None:
    body = hashlib.shake_256(b"body").digest(size)
    reply = channel.request("POST", "/echo?a=b%20c", body=body)
    assert (reply.status, reply.headers["x-query"], reply.body) == (200, "a=b%20c", body)


def test_many_requests_share_one_connection(channel: Channel, world: World) -> None:
    for number in range(20):
        assert channel.request("PUT", "/echo", body=b"%d" % number).body == b"%d" % number
    assert len({request.connection for request in world.seen}) == 1


def test_the_handler_sees_method_path_headers_and_length(channel: Channel, world: World) -> None:
    channel.request("PUT", "/echo/a%2Fb?x=1&y", {"X-Foo": "Bar"}, b"12345")
    seen = world.seen[0]
    assert (seen.method, seen.path, seen.query, seen.length) == ("PUT", "/echo/a%2Fb", "x=1&y", 5)
    assert seen.headers["x-foo"] == "Bar"
    assert seen.connection.peer == "127.0.0.1"


def test_a_server_without_tls_answers_too(world: World) -> None:
    with Server(world) as server, closing(Channel(f"http://127.0.0.1:{server.port}")) as channel:
        assert channel.request("GET", "/echo").status == 200


def test_replies_without_a_body_leave_the_connection_usable(channel: Channel, world: World) -> None:
    _blob(world.folder / "blob", 1000)
    head = channel.request("HEAD", "/file")
    assert (head.status, head.headers["content-length"], head.body) == (200, "1000", b"")
    assert channel.request("GET", "/none") == Reply(204, {})
    assert channel.request("GET", "/echo") == Reply(200, {"x-query": "", "content-length": "0"})
    assert len({request.connection for request in world.seen}) == 1


def test_an_unread_small_body_does_not_spoil_the_next_request(channel: Channel, world: World) -> None:
    assert channel.request("POST", "/ignore", body=b"GET / HTTP/1.1\r\n" * 100).status == 403
    assert channel.request("POST", "/echo", body=b"next").body == b"next"
    assert len({request.connection for request in world.seen}) == 1


def test_requests_sent_at_once_are_answered_in_order(server: Server, pem: Pem) -> None:
    requests = b"".join(
        b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n%s\r\n%s" % (close, word)
        for close, word in ((b"", b"first"), (b"connection: close\r\n", b"other"))
    )
    said = _exchange(server.port, pem, requests)
    assert said.count(b"HTTP/1.1 200") == 2
    assert said.index(b"first") < said.index(b"other")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 300), max_size=8))
def test_it_does_not_matter_in_which_pieces_requests_arrive(server: Server, pem: Pem, cuts: list[int]) -> None:
    one = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 60\r\n\r\n" + b"1" * 60
    requests = one + one.replace(b"host", b"connection: close\r\nhost").replace(b"1" * 60, b"2" * 60)
    with _raw(server.port, pem) as sock:
        for start, end in pairwise([0, *sorted(cuts), len(requests)]):
            sock.sendall(requests[start:end])
        said = _said(sock)
    assert said.count(b"HTTP/1.1 200") == 2
    assert said.count(b"1" * 60) == said.count(b"2" * 60) == 1


def test_two_hundred_polls_wait_at_once_and_all_hear_the_news(server: Server, pem: Pem, world: World) -> None:
    socks = [_raw(server.port, pem) for _ in range(200)]
    for sock in socks:
        sock.sendall(b"GET /poll HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    world.until(lambda: world.polls == 200, 15.0)
    world.tell()
    for sock in socks:
        assert _said(sock).endswith(b"news")
        sock.close()


# Files


def test_an_upload_streams_a_part_of_a_file_and_counts_its_bytes(channel: Channel, world: World) -> None:
    data = _blob(world.folder / "source", 3 * MB)
    sent: list[int] = []
    reply = channel.upload("PUT", "/put", {}, FilePart(world.folder / "source", 1000, 2 * MB), sent.append)
    part = data[1000 : 1000 + 2 * MB]
    assert (reply.status, reply.headers["x-stored"]) == (201, str(2 * MB))
    assert reply.body.decode() == hashlib.sha256(part).hexdigest()
    assert (world.folder / "stored").read_bytes() == part
    assert sum(sent) == 2 * MB
    assert len(sent) > 1


def test_a_download_goes_on_where_the_file_ends(channel: Channel, world: World) -> None:
    data = _blob(world.folder / "blob", 3 * MB + 5)
    into, digest = world.folder / "into", hashlib.sha256(data[:MB])
    into.write_bytes(data[:MB])
    reply = channel.download("/file", {}, into, MB, 3 * MB, digest.update)
    assert (reply.status, reply.headers["content-range"]) == (206, f"bytes {MB}-{3 * MB + 4}/{3 * MB + 5}")
    assert into.read_bytes() == data
    assert digest.digest() == hashlib.sha256(data).digest()


def test_a_download_that_is_refused_leaves_the_file_alone(channel: Channel, world: World) -> None:
    _blob(world.folder / "blob", 10)
    into = world.folder / "into"
    assert channel.download("/file", {}, into, 10, 100).status == 416
    assert channel.download("/ignore", {}, into, 0, 100).body == b"no"
    with pytest.raises(TooLarge, match="10 bytes where at most 9"):
        channel.download("/file", {}, into, 0, 9)
    assert not into.exists()


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("", 200, (0, 10)),
        ("bytes=0-", 206, (0, 10)),
        ("bytes=3-", 206, (3, 7)),
        ("bytes=3-5", 206, (3, 3)),
        ("bytes=9-99", 206, (9, 1)),
        ("bytes=10-", 416, None),
        ("bytes=-3", 200, (0, 10)),
        ("bytes=0-1,3-4", 200, (0, 10)),
        ("lines=1-2", 200, (0, 10)),
        ("bytes=" + "9" * 5000 + "-", 200, (0, 10)),
    ],
)
def test_a_range_names_its_bytes(tmp_path: Path, asked: str, status: int, part: tuple[int, int] | None) -> None:
    (tmp_path / "ten").write_bytes(b"0123456789")
    response = ranged(tmp_path / "ten", {"range": asked})
    assert response.status == status
    assert response.body == (FilePart(tmp_path / "ten", *part) if part else b"")


def test_a_file_that_cannot_be_read_is_a_500_and_no_half_answer(channel: Channel, world: World) -> None:
    assert channel.request("GET", "/file").status == 500
    _blob(world.folder / "blob", 10)
    assert channel.request("GET", "/gone").status == 500
    with pytest.raises(WireError, match=r"missing, send: No such file"):
        channel.upload("PUT", "/put", {}, FilePart(world.folder / "missing", 0, 5))


# Bodies that are refused or break off


def test_a_terabyte_is_refused_before_it_is_read_or_allocated(server: Server, pem: Pem, channel: Channel) -> None:
    said = _exchange(server.port, pem, b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1099511627776\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 413")
    assert b"1099511627776 bytes where at most 8388608" in said
    assert channel.request("GET", "/echo").status == 200


def test_an_upload_that_is_not_wanted_does_not_send_its_bytes(channel: Channel, world: World) -> None:
    _blob(world.folder / "source", 2 * MB)
    sent: list[int] = []
    part = FilePart(world.folder / "source", 0, 2 * MB)
    assert channel.upload("PUT", "/ignore", {}, part, sent.append) == Reply(
        403, {"connection": "close", "content-length": "2"}, b"no"
    )
    assert not sent
    assert channel.upload("PUT", "/put", {}, part, sent.append).status == 201


def test_continue_is_said_when_the_body_is_read_and_only_then(server: Server, pem: Pem) -> None:
    head = b"PUT /%s HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n%s\r\n"
    with _raw(server.port, pem) as sock:
        sock.sendall(head % (b"echo", b"connection: close\r\n"))
        assert sock.recv(65536).startswith(b"HTTP/1.1 100")
        sock.sendall(b"hi")
        assert _said(sock).endswith(b"hi")
    said = _exchange(server.port, pem, head % (b"ignore", b""))
    assert said.startswith(b"HTTP/1.1 403")
    assert b"connection: close" in said


def test_who_sends_without_asking_still_hears_the_refusal(server: Server, pem: Pem) -> None:
    head = b"PUT /ignore HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (4 * MB)
    assert _exchange(server.port, pem, head + bytes(4 * MB)).endswith(b"no")


def test_a_server_that_gives_up_in_the_middle_is_heard(channel: Channel, world: World) -> None:
    _blob(world.folder / "source", 16 * MB)
    reply = channel.upload("PUT", "/full", {}, FilePart(world.folder / "source", 0, 16 * MB))
    assert (reply.status, reply.body) == (507, b"disk full")


def test_a_server_that_hangs_up_in_the_middle_is_heard(tmp_path: Path) -> None:
    def script(sock: socket.socket, _: int) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        sock.recv(1000)
        sock.sendall(b"HTTP/1.1 507 Full\r\ncontent-length: 0\r\n\r\n")

    _blob(tmp_path / "source", 16 * MB)
    with _peer(script) as port, closing(Channel(f"http://127.0.0.1:{port}")) as channel:
        assert channel.upload("PUT", "/", {}, FilePart(tmp_path / "source", 0, 16 * MB)).status == 507


def test_a_truncated_upload_leaves_its_bytes_and_can_be_resumed(
    server: Server, pem: Pem, channel: Channel, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    data = _blob(world.folder / "source", 3 * MB)
    sent = MB + MB // 2 + 3
    with _raw(server.port, pem) as sock:
        sock.sendall(b"PUT /put HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(data) + data[:sent])
        socket.socket.shutdown(sock, socket.SHUT_WR)  # a close would reset, for this end has not read its TLS tickets
        world.until(lambda: bool(world.truncated))
    assert (world.truncated[0].stored, world.truncated[0].missing) == (sent, len(data) - sent)
    assert (world.folder / "stored").read_bytes() == data[:sent]
    rest = FilePart(world.folder / "source", sent, len(data) - sent)
    assert channel.upload("PUT", "/put", {}, rest).status == 201
    assert (world.folder / "stored").read_bytes() == data
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_upload_that_falls_silent_is_truncated(hasty: Server, pem: Pem, world: World) -> None:
    with _raw(hasty.port, pem) as sock:
        sock.sendall(b"PUT /put HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\nabc")
        world.until(lambda: bool(world.truncated))
    assert world.truncated[0].stored == 3


def test_an_upload_that_drips_is_truncated(hasty: Server, pem: Pem, world: World) -> None:
    with _raw(hasty.port, pem) as sock:
        sock.sendall(b"PUT /put HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n")
        with suppress(OSError):
            for _ in range(30):
                sock.sendall(b"x")
                time.sleep(0.1)
    world.until(lambda: bool(world.truncated))
    assert 0 < world.truncated[0].stored < 30


def test_a_truncated_download_leaves_its_bytes(pem: Pem, tmp_path: Path) -> None:
    half = _answers(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234")
    with _peer(half, pem.context) as port, closing(_channel(port, pem)) as channel:
        with pytest.raises(Truncated, match="5 bytes, 5 missing") as caught:
            channel.download("/file", {}, tmp_path / "into", 0, 10)
        assert caught.value.stored == 5
    assert (tmp_path / "into").read_bytes() == b"01234"


def test_a_range_that_begins_elsewhere_is_refused(pem: Pem, tmp_path: Path) -> None:
    whole = _answers(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc")
    told = pytest.raises(WireError, match="does not begin at byte 7")
    with _peer(whole, pem.context) as port, closing(_channel(port, pem)) as channel, told:
        channel.download("/file", {}, tmp_path / "into", 7, 10)
    assert not (tmp_path / "into").exists()


# Requests that make no sense


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nhost: x\r\nbad header: y\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nhost: x\r\na: b\r\n c\x00: d\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"GET /echo HTTP/1.1\r\nhost: x\r\nlong: " + b"y" * 200_000, 431),
    ],
)
def test_a_request_that_is_no_request_is_refused_and_hung_up_on(
    server: Server, pem: Pem, world: World, request_: bytes, status: int
) -> None:
    began = time.monotonic()
    said = _exchange(server.port, pem, request_)
    assert said.startswith(b"HTTP/1.1 %d" % status)
    assert b"connection: close" in said.lower()
    assert not world.seen
    assert time.monotonic() - began < 2 * SOON


def test_a_head_that_drips_is_cut(hasty: Server, pem: Pem) -> None:
    began = time.monotonic()
    with _raw(hasty.port, pem) as sock, suppress(OSError):
        for byte in b"GET /echo HTTP/1.1\r\nhost: " + b"x" * 1000:
            sock.sendall(bytes([byte]))
            time.sleep(0.05)
    assert time.monotonic() - began < 5 * SOON


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"])
def test_a_handshake_that_does_not_happen_is_cut(hasty: Server, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), 5.0) as sock:
        sock.sendall(said)
        began = time.monotonic()
        _said(sock)
        assert time.monotonic() - began < 2 * SOON


def test_an_idle_connection_is_closed_and_the_client_makes_a_new_one(hasty: Server, pem: Pem, world: World) -> None:
    with closing(_channel(hasty.port, pem)) as channel:
        assert channel.request("POST", "/echo").status == 200
        time.sleep(0.7)
        assert channel.request("POST", "/echo").status == 200
    assert len({request.connection for request in world.seen}) == 2


# Handlers that fail


def test_a_handler_that_raises_is_a_bare_500(channel: Channel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        reply = channel.request("GET", "/boom")
    assert (reply.status, reply.body) == (500, b"internal error\n")
    assert "the secret is 42" in caplog.text
    assert channel.request("GET", "/echo").status == 200


def test_a_response_that_breaks_http_is_not_sent(channel: Channel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(WireError, match="connection was lost"):
        channel.request("GET", "/split")
    assert "Illegal header value" in caplog.text
    assert channel.request("GET", "/echo").status == 200


# Cutting, closing, crowds


def test_a_poll_ends_soon_after_its_client_has_gone(server: Server, pem: Pem, world: World) -> None:
    with _raw(server.port, pem) as sock:
        sock.sendall(b"GET /poll HTTP/1.1\r\nhost: x\r\n\r\n")
        world.until(lambda: world.polls == 1)
    world.until(lambda: bool(world.ended), SOON)


def test_cut_ends_the_open_poll_of_one_site_and_of_no_other(server: Server, pem: Pem, world: World) -> None:
    south, north = _raw(server.port, pem), _raw(server.port, pem)
    for sock, site in ((south, b"south"), (north, b"north")):
        sock.sendall(b"GET /poll HTTP/1.1\r\nhost: x\r\nconnection: close\r\nsite: %s\r\n\r\n" % site)
    world.until(lambda: world.polls == 2)
    began = time.monotonic()
    assert server.cut("south") == 1
    assert _said(south) == b""
    world.until(lambda: len(world.ended) == 1)
    assert time.monotonic() - began < SOON
    world.tell()
    assert _said(north).endswith(b"news")
    south.close()
    north.close()


def test_cut_ends_a_running_upload(server: Server, pem: Pem, world: World) -> None:
    with _raw(server.port, pem) as sock:
        sock.sendall(b"PUT /put HTTP/1.1\r\nhost: x\r\nsite: south\r\ncontent-length: 99\r\n\r\nabc")
        while not world.seen:
            time.sleep(0.01)
        began = time.monotonic()
        assert server.cut("south") == 1
        world.until(lambda: bool(world.truncated))
        assert time.monotonic() - began < SOON
        assert _said(sock) == b""


def test_a_sender_hears_at_once_that_it_was_cut_even_while_nobody_takes_its_bytes(pem: Pem, tmp_path: Path) -> None:
    taking, done = threading.Event(), threading.Event()

    def busy(request: Request) -> Response:
        request.connection.tag = "south"
        request.body._take(memoryview(bytearray(MB)))
        taking.set()
        done.wait(20)  # a disk that is slow: the sender's window closes
        return Response(200)

    _blob(tmp_path / "blob", 64 * MB)
    with Server(busy, tls=pem.context) as server, closing(_channel(server.port, pem, 60.0)) as channel:
        when: list[float] = []

        def cut() -> None:
            taking.wait(20)
            time.sleep(0.5)  # the sender has filled all buffers by then
            when.append(time.monotonic())
            server.cut("south")

        thread = threading.Thread(target=cut)
        thread.start()
        with pytest.raises(WireError, match=r"connection was lost|no answer in time"):
            channel.upload("PUT", "/", {}, FilePart(tmp_path / "blob", 0, 64 * MB))
        took = time.monotonic() - when[0]
        done.set()
        thread.join()
    assert took < SOON


def test_a_sender_waits_for_a_peer_that_takes_nothing_for_a_while(pem: Pem, tmp_path: Path) -> None:
    found = hashlib.sha256()

    def slow(request: Request) -> Response:
        request.body._take(memoryview(first := bytearray(MB)))
        found.update(first)
        threading.Event().wait(1.2)  # two looks of the sender at its peer
        with open(os.devnull, "wb") as nowhere:
            request.body.into(nowhere.fileno(), found.update)
        return Response(200)

    data = _blob(tmp_path / "blob", 32 * MB)
    with Server(slow, tls=pem.context) as server, closing(_channel(server.port, pem)) as channel:
        assert channel.upload("PUT", "/", {}, FilePart(tmp_path / "blob", 0, 32 * MB)).status == 200
    assert found.digest() == hashlib.sha256(data).digest()


def test_cut_ends_a_running_download(server: Server, pem: Pem, world: World) -> None:
    _blob(world.folder / "blob", 64 * MB)
    with _raw(server.port, pem) as sock:
        sock.sendall(b"GET /file HTTP/1.1\r\nhost: x\r\nsite: south\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        assert server.cut("south") == 1
        got = len(_said(sock))
        assert time.monotonic() - began < SOON
    assert got < 64 * MB


def test_closing_ends_open_polls_and_frees_the_port(pem: Pem, world: World) -> None:
    with Server(world, tls=pem.context) as server:
        sock = _raw(server.port, pem)
        sock.sendall(b"GET /poll HTTP/1.1\r\nhost: x\r\n\r\n")
        world.until(lambda: world.polls == 1)
        began = time.monotonic()
    assert time.monotonic() - began < SOON
    assert len(world.ended) == 1
    with sock:
        assert _said(sock) == b""
    Server(world, port=server.port).close()


def test_a_client_can_cut_its_own_poll_from_another_thread(server: Server, pem: Pem, world: World) -> None:
    channel = _channel(server.port, pem)
    channel.request("GET", "/echo")

    def cut() -> None:
        world.until(lambda: world.polls == 1)
        channel.cut()

    thread = threading.Thread(target=cut)
    thread.start()
    with pytest.raises(WireError, match="cut"):
        channel.request("GET", "/poll")
    thread.join()
    world.until(lambda: len(world.ended) == 1, SOON)
    assert world.polls == 1


def test_one_connection_too_many_hears_a_503(world: World, pem: Pem) -> None:
    with (
        Server(world, tls=pem.context, limits=Limits(connections=1)) as server,
        closing(_channel(server.port, pem)) as first,
        closing(_channel(server.port, pem)) as second,
    ):
        assert first.request("GET", "/echo").status == 200
        assert second.request("GET", "/echo").status == 503
        first.close()
        time.sleep(0.2)
        assert second.request("GET", "/echo").status == 200


def test_a_port_that_is_taken_is_said_with_the_remedy(server: Server, world: World) -> None:
    with pytest.raises(WireError, match=rf"127\.0\.0\.1:{server.port}: .*in use.*; .* another port with --port"):
        Server(world, port=server.port)
    with pytest.raises(WireError, match="an address of this machine"):
        Server(world, host="192.0.2.1")
    with pytest.raises(WireError, match="from 0 to 65535"):
        Server(world, port=70000)


# The client and the world


def test_a_certificate_that_is_not_the_pinned_one_is_refused(server: Server, tmp_path: Path) -> None:
    with closing(_channel(server.port, _pem(tmp_path))) as channel, pytest.raises(WireError) as caught:
        channel.request("GET", "/echo")
    assert f"https://127.0.0.1:{server.port}, TLS handshake" in str(caught.value)
    assert "not the one in the token" in str(caught.value)


def test_a_certificate_that_nobody_vouches_for_is_refused(server: Server) -> None:
    with pytest.raises(WireError, match="nor vouched for by an authority"):
        Channel(f"https://127.0.0.1:{server.port}").request("GET", "/echo")


def test_a_server_that_is_not_there_is_named(pem: Pem) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(WireError, match=rf"https://127\.0\.0\.1:{port}, connect: .*nothing listens there"):
        _channel(port, pem).request("GET", "/")


def test_a_server_that_does_not_speak_tls_or_http_is_named(pem: Pem) -> None:
    with _peer(_answers(b"SSH-2.0-OpenSSH_9.6\r\n")) as port:
        with pytest.raises(WireError, match=r"TLS handshake: .*no TLS server of ours"):
            _channel(port, pem).request("GET", "/")
        with pytest.raises(WireError, match=r"GET /: .*the connection was lost"):
            Channel(f"http://127.0.0.1:{port}").request("GET", "/")


def test_a_server_that_does_not_answer_is_given_up(server: Server, pem: Pem, world: World) -> None:
    with closing(_channel(server.port, pem)) as channel:
        assert channel.request("GET", "/echo").status == 200
        with pytest.raises(WireError, match=r"GET /poll: .*no answer in time"):
            channel.request("GET", "/poll", timeout=0.3)
        assert world.polls == 1
        assert channel.request("GET", "/echo").status == 200


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://x", "https://", "https://x:99999", "https://[::1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(WireError, match="give one like https://host:port"):
        Channel(url)


def test_a_header_with_a_line_break_is_refused(channel: Channel) -> None:
    with pytest.raises(WireError, match="HTTP forbids"):
        channel.request("GET", "/echo", {"a": "b\r\nc: d"})


def _once_then_hang_up(sock: socket.socket, number: int) -> None:
    sock.recv(65536)
    sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n%d" % number)
    sock.recv(65536)


def test_a_stale_connection_is_made_anew_for_what_may_be_said_twice() -> None:
    with _peer(_once_then_hang_up) as port, closing(Channel(f"http://127.0.0.1:{port}")) as channel:
        assert [channel.request("GET", "/").body for _ in range(3)] == [b"0", b"1", b"2"]
        with pytest.raises(WireError, match="POST"):
            channel.request("POST", "/")


def test_a_reply_in_chunks_is_read_up_to_its_limit(tmp_path: Path) -> None:
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    with _peer(_answers(chunked)) as port, closing(Channel(f"http://127.0.0.1:{port}")) as channel:
        assert channel.request("GET", "/", limit=5).body == b"abcde"
        with pytest.raises(TooLarge):
            channel.request("GET", "/", limit=4)
        with pytest.raises(WireError, match="length is not told"):
            channel.download("/", {}, tmp_path / "into", 0, 10)


def test_a_reply_that_ends_with_its_connection_is_read() -> None:
    with (
        _peer(_answers(b"HTTP/1.1 200 OK\r\n\r\nabc")) as port,
        closing(Channel(f"http://127.0.0.1:{port}")) as channel,
    ):
        assert channel.request("GET", "/").body == b"abc"


def test_a_reply_beyond_its_limit_is_not_read(channel: Channel) -> None:
    with pytest.raises(TooLarge, match="10 bytes where at most 9"):
        channel.request("POST", "/echo", body=b"0123456789", limit=9)
    assert channel.request("POST", "/echo", body=b"012345678", limit=9).body == b"012345678"


# Proxies


class Proxy:
    """A proxy that knows CONNECT, takes every host for this machine, and notes what it was asked."""

    def __init__(self, port: int, status: bytes = b"200 OK") -> None:
        self.heads: list[bytes] = []
        self._port, self._status = port, status

    def __call__(self, sock: socket.socket, _: int) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(1)
        self.heads.append(head)
        sock.sendall(b"HTTP/1.1 " + self._status + b"\r\n\r\n")
        if self._status.startswith(b"200"):
            with socket.create_connection(("127.0.0.1", self._port)) as far:
                back = threading.Thread(target=_pump, args=(far, sock))
                back.start()
                _pump(sock, far)
                back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def test_https_goes_through_the_proxy_of_the_environment(
    server: Server, pem: Pem, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy(server.port)
    with _peer(proxy) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@127.0.0.1:{port}")
        with closing(Channel(f"https://server.invalid:{server.port}", pem.certificate)) as channel:
            assert channel.request("POST", "/echo", body=b"hi").body == b"hi"
    assert proxy.heads[0].startswith(b"CONNECT server.invalid:%d HTTP/1.1\r\n" % server.port)
    assert b"proxy-authorization: Basic bWU6cEBzcw==\r\n" in proxy.heads[0]  # base64 of me:p@ss


def test_a_proxy_that_refuses_is_named_with_the_remedy(pem: Pem, monkeypatch: pytest.MonkeyPatch) -> None:
    for status, remedy in ((b"407 Who are you", "name and password"), (b"403 No", "check HTTPS_PROXY and NO_PROXY")):
        with _peer(Proxy(0, status)) as port:
            monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{port}")
            with pytest.raises(WireError, match=rf"proxy 127\.0\.0\.1:{port}.*{status[:3].decode()}.*{remedy}"):
                Channel("https://server.invalid", pem.certificate).request("GET", "/")


def test_loopback_and_no_proxy_do_not_go_through_it(server: Server, pem: Pem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    with closing(_channel(server.port, pem)) as channel:
        assert channel.request("GET", "/echo").status == 200
    with pytest.raises(WireError, match="write it as http://host:port"):
        Channel("https://server.invalid", pem.certificate).request("GET", "/")
    monkeypatch.setenv("NO_PROXY", ".invalid")
    here = socket.getaddrinfo("127.0.0.1", server.port)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: here)
    with closing(Channel(f"https://server.invalid:{server.port}", pem.certificate)) as channel:
        assert channel.request("GET", "/echo").status == 200
