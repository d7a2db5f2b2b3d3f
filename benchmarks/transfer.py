"""GB/s of one file over loopback TLS, up and down, by Server and Channel, beside plain TLS sockets in the same run.
Both ends stream; the receiver hashes, writes and fsyncs. Usage: transfer.py [--mb 100] [--repeats 5] [--out FILE]."""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import multiprocessing
import os
import platform
import socket
import ssl
import tempfile
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from statistics import median
from threading import Thread
from time import perf_counter

from foedus.wire.certificate import self_signed
from foedus.wire.http_client import Channel
from foedus.wire.http_connection import FilePart
from foedus.wire.http_server import Request, Response, Server, ranged

MB = 1 << 20


def serve(folder: Path, tls: ssl.SSLContext) -> Server:
    """A Server that stores what is PUT and gives the source to whoever asks."""

    def answer(request: Request) -> Response:
        if request.method == "GET":
            return ranged(folder / "source", request.headers)
        digest = hashlib.sha256()
        with open(folder / "taken", "wb", buffering=0) as file:
            request.body.into(file.fileno(), digest.update)
            os.fsync(file.fileno())
        return Response(201, {}, digest.digest())

    return Server(answer, tls=tls).start()


def upload(channel: Channel, source: Path) -> bytes:
    """The digest that the server found."""
    return channel.upload("PUT", "/", {}, FilePart(source, 0, source.stat().st_size)).body


def download(channel: Channel, into: Path) -> bytes:
    """The digest that the client found."""
    digest = hashlib.sha256()
    channel.download("/", {}, into, 0, 1 << 40, digest.update)
    with open(into, "rb") as file:
        os.fsync(file.fileno())
    return digest.digest()


# The reference: what the same transfer costs with nothing around it.


def plain_send(sock: ssl.SSLSocket, source: Path) -> None:
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        sock.sendall(len(mapped).to_bytes(8, "big"))
        with memoryview(mapped) as view:
            for start in range(0, len(view), MB):
                sock.sendall(view[start : start + MB])


def plain_take(sock: ssl.SSLSocket, into: Path) -> bytes:
    left, buffer, digest = int.from_bytes(sock.recv(8), "big"), memoryview(bytearray(MB)), hashlib.sha256()
    with open(into, "wb", buffering=0) as file:
        while left:
            filled, asked = 0, min(left, MB)
            while filled < asked:
                filled += sock.recv_into(buffer[filled:asked]) or asked
            file.write(buffer[:asked])
            digest.update(buffer[:asked])
            left -= asked
        os.fsync(file.fileno())
    return digest.digest()


def plain_serve(listener: socket.socket, folder: Path, tls: ssl.SSLContext) -> None:
    with tls.wrap_socket(listener.accept()[0], server_side=True) as sock:
        while order := sock.recv(1):
            if order == b"u":
                sock.sendall(plain_take(sock, folder / "taken"))
            else:
                plain_send(sock, folder / "source")


def plain_upload(sock: ssl.SSLSocket, source: Path) -> bytes:
    sock.sendall(b"u")
    plain_send(sock, source)
    return sock.recv(32)


def plain_download(sock: ssl.SSLSocket, into: Path) -> bytes:
    sock.sendall(b"d")
    return plain_take(sock, into)


# The run


def far_end(folder: Path, pipe: Pipe) -> None:
    """The process with both servers; tells their ports and lives until the pipe closes."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    listener = socket.create_server(("127.0.0.1", 0))
    Thread(target=plain_serve, args=(listener, folder, tls), daemon=True).start()
    server = serve(folder, tls)
    pipe.send((server.port, listener.getsockname()[1]))
    pipe.poll(None)
    server.close()


def measure(folder: Path, ports: tuple[int, int], repeats: int) -> dict[str, list[float]]:
    """Seconds of every transfer by name; the order alternates, and a first round is thrown away."""
    pem, source, taken = (folder / "certificate.pem").read_bytes(), folder / "source", folder / "taken"
    digest = hashlib.sha256(source.read_bytes()).digest()
    context = ssl.create_default_context(cadata=pem.decode())
    plain = context.wrap_socket(socket.create_connection(("127.0.0.1", ports[1])), server_hostname="127.0.0.1")
    with closing(Channel(f"https://127.0.0.1:{ports[0]}", pem)) as channel, plain:
        ways: dict[str, Callable[[], bytes]] = {
            "upload": lambda: upload(channel, source),
            "upload, reference": lambda: plain_upload(plain, source),
            "download": lambda: download(channel, taken),
            "download, reference": lambda: plain_download(plain, taken),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(repeats + 1):
            for name in list(ways) if repeat % 2 else reversed(list(ways)):
                seconds[name].append(timed(ways[name], digest))
                taken.unlink()
    return {name: times[1:] for name, times in seconds.items()}


def timed(way: Callable[[], bytes], digest: bytes) -> float:
    """Seconds of one transfer, whose digest must be right."""
    began = perf_counter()
    found = way()
    took = perf_counter() - began
    if found != digest:
        raise SystemExit("a transfer changed the bytes")
    return took


def summary(seconds: dict[str, list[float]], size: int) -> dict[str, object]:
    """GB/s (median, lowest, highest) of each way, and the median of the pairwise ratios to the reference."""
    speeds = {name: sorted(size / 1e9 / t for t in times) for name, times in seconds.items()}
    table = {name: {"median": median(s), "lowest": s[0], "highest": s[-1]} for name, s in speeds.items()}
    ratios = {
        name: median(r / t for t, r in zip(seconds[name], seconds[f"{name}, reference"], strict=True))
        for name in ("upload", "download")
    }
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION}
    return {"bytes": size, "GB/s": table, "ratio to reference": ratios, "seconds": seconds, "machine": machine}


def main() -> None:
    """Writes the summary as JSON to the file named, or prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificate, key = self_signed(["127.0.0.1"])
        (folder / "certificate.pem").write_bytes(certificate)
        (folder / "key.pem").write_bytes(key)
        (folder / "source").write_bytes(os.urandom(options.mb * 1_000_000))
        here, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=far_end, args=(folder, there))
        process.start()
        seconds = measure(folder, here.recv(), options.repeats)
        here.send(None)
        process.join()
    text = json.dumps(summary(seconds, options.mb * 1_000_000), indent=1)
    options.out.write_text(text + "\n") if options.out else print(text)


if __name__ == "__main__":
    main()
