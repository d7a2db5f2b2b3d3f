"""A federated round with nothing around it: blocking TLS sockets in threads, 1 MB buffers, mapped files, float64.
Broadcast, both send back, hash and fsync at both ends; the mean becomes the model of the next round, durable."""

from __future__ import annotations

import multiprocessing
import os
import socket
import ssl
import tempfile
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from time import perf_counter

import numpy as np
from transfer import plain_send, plain_take

from foedus.wire.certificate import self_signed

BLOCK = 1 << 15
PIECE = 1 << 18


def site(folder: Path, port: int, name: str, rounds: int) -> None:
    context = ssl.create_default_context(cafile=folder / "certificate.pem")
    plain = socket.create_connection(("127.0.0.1", port))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
        for _ in range(rounds):
            plain_take(sock, folder / f"{name}.model")
            plain_send(sock, folder / f"{name}.model")


def exchange(sock: ssl.SSLSocket, model: Path, update: Path) -> None:
    plain_send(sock, model)
    plain_take(sock, update)


def mean(updates: list[Path], weight: float, into: Path) -> None:
    """Cache-blocked float64 `acc += w * x` over the files."""
    rows = [np.memmap(path, np.float32, "r") for path in updates]
    with open(into, "wb", buffering=0) as file:
        for start in range(0, rows[0].size, PIECE):
            out = np.empty(min(PIECE, rows[0].size - start), np.float32)
            for at in range(0, out.size, BLOCK):
                acc = np.zeros(min(BLOCK, out.size - at))
                for row in rows:
                    acc += np.multiply(row[start + at : start + at + acc.size], weight, dtype=np.float64)
                out[at : at + acc.size] = acc / (weight * len(rows))
            file.write(out)
        os.fsync(file.fileno())


def seconds(mb: float, sites: int, rounds: int) -> list[float]:
    """Seconds of each round, the first left out."""
    names, spawn = [f"s{i}" for i in range(sites)], multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        certificate, key = self_signed(["127.0.0.1"])
        (folder / "certificate.pem").write_bytes(certificate)
        (folder / "key.pem").write_bytes(key)
        np.random.default_rng(0).standard_normal(int(mb * 1e6 / 4), np.float32).tofile(folder / "model")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        processes = [spawn.Process(target=site, args=(folder, listener.getsockname()[1], n, rounds)) for n in names]
        for process in processes:
            process.start()
        socks = [stack.enter_context(tls.wrap_socket(listener.accept()[0], server_side=True)) for _ in names]
        times = [one_round(folder, dict(zip(names, socks, strict=True))) for _ in range(rounds)]
        for process in processes:
            process.join()
    return times[1:]


def one_round(folder: Path, socks: dict[str, ssl.SSLSocket]) -> float:
    for sock in socks.values():
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    began = perf_counter()
    updates = [folder / f"{name}.update" for name in socks]
    threads = [
        Thread(target=exchange, args=(sock, folder / "model", update))
        for sock, update in zip(socks.values(), updates, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mean(updates, 3.0, folder / "next")
    os.replace(folder / "next", folder / "model")
    return perf_counter() - began
