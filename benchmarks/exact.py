"""Exact folds beside their limit, a cache-blocked float64 `acc += w * x`, in interleaved pairs on one thread.
Prints JSON: python benchmarks/exact.py [--elements 25000000] [--pairs 9]."""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import argparse
import json
from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from foedus.aggregators import exact

BLOCK = 1 << 15  # the limit's own best
SMALL = 5_000
DISCOUNTS = tuple(round(share * 2**29) * 2.0**-29 for share in (0.73, 0.92, 0.51))
WEIGHTS = {"examples": (64.0, 413.0, 1100.0), "all_29_bits": DISCOUNTS}

F32 = NDArray[np.float32]


def plain(acc: NDArray[np.float64], x: F32, weight: float) -> None:
    product = np.empty(BLOCK)
    for start in range(0, x.size, BLOCK):
        into, part = acc[start : start + BLOCK], product[: min(BLOCK, x.size - start)]
        np.multiply(x[start : start + BLOCK], weight, out=part, dtype=np.float64)
        np.add(into, part, out=into)


def updates(sites: int, size: int) -> list[F32]:
    generator = np.random.default_rng(1)
    return [generator.standard_normal(size, np.float32) * np.float32(0.01 * 1.3**site) for site in range(sites)]


def seconds(call: Callable[..., object], *args: object) -> float:
    start = perf_counter()
    call(*args)
    return perf_counter() - start


def compared(arrays: list[F32], weights: tuple[float, ...], pairs: int) -> dict[str, float]:
    """Medians of GB/s of float32 in and of the pairs' ratios; the first folds make the memory and do not count."""
    acc, bins = np.zeros(arrays[0].size), exact.empty(arrays[0].size, np.float32)
    times: list[tuple[float, float]] = []
    for i in range(len(arrays) + pairs):
        x, weight = arrays[i % len(arrays)], weights[i % len(weights)]
        times.append((seconds(plain, acc, x, weight), seconds(exact.fold, bins, x, weight)))
    limit, ours = zip(*times[len(arrays) :], strict=True)
    gigabytes = arrays[0].nbytes / 1e9
    return {
        "limit_gb_per_s": round(gigabytes / median(limit), 3),
        "exact_gb_per_s": round(gigabytes / median(ours), 3),
        "ratio": round(median(a / b for a, b in zip(limit, ours, strict=True)), 3),
        "total_gb_per_s": round(gigabytes / seconds(exact.total, bins, 1000), 3),
    }


def small(repeats: int = 3000) -> dict[str, float]:
    """Median microseconds for one fold and one total of a small model."""
    bins, (x,) = exact.empty(SMALL, np.float32), updates(1, SMALL)
    folds = [seconds(exact.fold, bins, x, 413.0) for _ in range(repeats)]
    totals = [seconds(exact.total, bins, 413) for _ in range(repeats // 10)]
    return {"fold_us": round(median(folds) * 1e6, 1), "total_us": round(median(totals) * 1e6, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=25_000_000)
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    arrays = updates(3, options.elements)
    report: dict[str, object] = {"elements": options.elements, "pairs": options.pairs}
    report |= {name: compared(arrays, weights, options.pairs) for name, weights in WEIGHTS.items()}
    print(json.dumps(report | {f"{SMALL}_parameters": small()}, indent=2))


if __name__ == "__main__":
    main()
