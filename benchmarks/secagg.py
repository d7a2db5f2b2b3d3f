"""Secure aggregation beside no protection, whole Tasks without a network, the sum compared word by word.
Prints JSON: python benchmarks/secagg.py [--repeats 5] [--only n20]."""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foedus.aggregators import fixed, mean
from foedus.core import Sum
from foedus.privacy import masking
from foedus.privacy.masking import Own, server

CASES = {  # name -> (sites, parameters, lost, milliseconds to reach at a site, at the server)
    "n20": (20, 1_000_000, 4, 36, 120),
    "n100": (100, 100_000, 10, 75, 200),
    "n10": (10, 10_000_000, 1, 240, 560),
}
ARRIVING = ("read_advert", "read_shares", "fold", "read_agreement", "read_reveal")  # one site's message, when it comes


class Clock:
    """CPU and wall-clock seconds of each function, call by call; this benchmark is one thread."""

    def __init__(self) -> None:
        self.cpu: dict[str, list[float]] = {}
        self.wall: dict[str, list[float]] = {}

    def __call__(self, name: str, function: Callable[..., Any], *given: Any) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        found = function(*given)
        self.cpu.setdefault(name, []).append(time.process_time() - cpu)
        self.wall.setdefault(name, []).append(time.perf_counter() - wall)
        return found

    def each(self, times: dict[str, list[float]], names: tuple[str, ...]) -> float:
        """Milliseconds for one site: the medians of its steps, together."""
        return 1e3 * sum(median(times[name]) for name in names)

    def all(self, times: dict[str, list[float]], names: tuple[str, ...]) -> float:
        return 1e3 * sum(sum(times[name]) for name in names)


class Sites(NamedTuple):
    own: dict[str, Own]
    publics: dict[str, bytes]
    update: dict[str, np.ndarray[Any, np.dtype[np.float32]]]
    rule: Sum


STEPS = ("encode", "advertise", "share", "mask", "agree", "reveal")
SERVING = (*ARRIVING, "keys", "deliveries", "survivors", "endorsement", "unmask")


def sites(count: int, size: int) -> Sites:
    names = [f"site{i:03}" for i in range(count)]
    keys = {name: Ed25519PrivateKey.generate() for name in names}
    publics = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    own = {name: Own(name, key, publics, masking.rest_key(key)) for name, key in keys.items()}
    bind = mean(arithmetic=fixed(8.0, 1024)).bind
    assert bind is not None
    rng, base = np.random.default_rng(0), np.random.default_rng(1).standard_normal(size, np.float32)
    update = {name: base[::-1] * np.float32(rng.uniform(0.5, 1)) if i % 2 else base for i, name in enumerate(names)}
    return Sites(own, publics, update, bind(count))


def task(here: Sites, lost: int, number: int, clock: Clock) -> tuple[int, int]:
    """One sealed Task, its sum checked; (bytes that a site sends, and gets) beside its words and the model."""
    names, sent, got = list(here.own), dict.fromkeys(here.own, 0), dict.fromkeys(here.own, 0)
    given = masking.terms("run", number, 0, 0, names, "ab" * 32, "cd" * 32)
    states, plain, total = dict[str, bytes](), None, None

    def answer(name: str, function: Callable[..., Any], asked: bytes | None = None) -> bytes:
        told = [states[name], asked] if asked is not None else []
        states[name], said = clock(function.__name__, function, here.own[name], given, *told)
        sent[name], got[name] = sent[name] + len(said), got[name] + len(asked or b"")
        return bytes(said)

    adverts = {
        name: clock("read_advert", server.read_advert, given, here.publics, name, answer(name, masking.advertise))
        for name in names
    }
    keys = clock("keys", server.keys, given, adverts)
    shares = {
        name: clock("read_shares", server.read_shares, given, adverts, name, answer(name, masking.share, keys))
        for name in names
    }
    boxes = clock("deliveries", server.deliveries, given, shares)
    alive = names[lost:]
    for name in names:
        words = clock("encode", masking.encode, here.rule, {"float32": here.update[name]}, 100.0)
        if name in alive:
            plain = clock("plain", server.fold, plain, words)
        states[name] = clock("mask", masking.mask, here.own[name], given, states[name], boxes[name], words)
        got[name] += len(boxes[name])
        if name in alive:
            total = clock("fold", server.fold, total, words)
    asked = clock("survivors", server.survivors, given, alive)
    signed = {
        name: clock(
            "read_agreement",
            server.read_agreement,
            given,
            here.publics,
            asked,
            name,
            answer(name, masking.agree, asked),
        )
        for name in alive
    }
    proof = clock("endorsement", server.endorsement, given, signed)
    reveals = {
        name: clock("read_reveal", server.read_reveal, given, shares, name, answer(name, masking.reveal, proof))
        for name in alive
    }
    sealed = server.Sealed(adverts, shares, frozenset(alive))
    clock("unmask", server.unmask, given, sealed, reveals, total)
    assert (total == plain).all()
    return max(sent.values()), max(got.values())


def measured(count: int, size: int, lost: int, at_site: int, at_server: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of the best of `repeats` Tasks; on a shared machine the CPU's are what means something."""
    here, rounds = sites(count, size), list[dict[str, float]]()
    for number in range(repeats):
        clock = Clock()
        sent, got = task(here, lost, number, clock)
        for kind, times in (("cpu", clock.cpu), ("wall", clock.wall)):
            rounds.append({
                f"site_{kind}_ms": clock.each(times, STEPS),
                f"server_{kind}_ms": clock.all(times, SERVING),
                f"unprotected_site_{kind}_ms": clock.each(times, ("encode",)),
                f"unprotected_server_{kind}_ms": clock.all(times, ("plain",)),
            })  # fmt: skip
    best = {name: round(min(r[name] for r in rounds if name in r), 2) for name in (*rounds[0], *rounds[1])}
    ratios = {
        f"{who}_ratio": round(best[f"{who}_cpu_ms"] / max(best[f"unprotected_{who}_cpu_ms"], 1e-2), 1)
        for who in ("site", "server")
    }
    wire = {
        "sent_bytes": sent,
        "got_bytes": got,
        "sent_per_parameter": (4 * (size + masking.words.LIMBS) + sent) / size,
    }
    return {
        "sites": count, "parameters": size, "lost": lost, "sum": "exact", **best, **ratios, **wire,
        "to_reach_ms": {"site": at_site, "server": at_server},
    }  # fmt: skip


def homomorphic(repeats: int, sites: int = 4, size: int = 204_800) -> dict[str, Any]:
    """What `fd.he` takes: milliseconds a million numbers, of a site and, for each site, the server."""
    from foedus.privacy import ckks

    key, rng, rounds = ckks.new_key(), np.random.default_rng(0), list[dict[str, float]]()
    words = [rng.integers(-(2**28), 2**28, size).astype("<i4").view("<u4") for _ in range(sites)]
    for _ in range(repeats):
        clock = Clock()
        texts = [clock("encrypt", ckks.encrypted, key, row) for row in words]
        total = clock("add", ckks.added, texts)
        found = clock("decrypt", ckks.decrypted, key, total, size)
        assert (found.view("<i4") == sum(row.view("<i4") for row in words)).all()
        million = 1e6 / size
        rounds.append({
            "site_cpu_ms": clock.each(clock.cpu, ("encrypt",)) * million,
            "server_cpu_ms": clock.each(clock.cpu, ("add",)) * million / sites,
            "decrypting_cpu_ms": clock.each(clock.cpu, ("decrypt",)) * million,
        })  # fmt: skip
    best = {name: round(min(r[name] for r in rounds), 1) for name in rounds[0]}
    return {"numbers": 1_000_000, "sum": "exact", **best, "sent_per_parameter": texts[0].size / size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=CASES)
    options = parser.parse_args()
    chosen = [options.only] if options.only else list(CASES)
    found = {name: measured(*CASES[name], options.repeats) for name in chosen}
    print(json.dumps(found if options.only else {**found, "he": homomorphic(options.repeats)}, indent=2))


if __name__ == "__main__":
    main()
