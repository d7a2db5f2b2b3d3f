"""Exact folds beside their limit, a cache-blocked float64 `acc += w * x`, as interleaved pairs on one thread; prints JSON.
Usage: python benchmarks/exact.py [--elements 25000000] [--pairs 9]."""

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
WEIGHTS = {"examples": (64.0, 413.0, 1100.0), "full_29_bits": tuple(round(w * 2**29) * 2.0**-29 for w in (0.73, 0.92, 0.51))}

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


def seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def compared(arrays: list[F32], weights: tuple[float, ...], pairs: int) -> dict[str, float]:
    """GB/s of float32 in, medians, and the median of the ratios of the pairs; the first round only makes the memory."""
    acc, bins = np.zeros(arrays[0].size), exact.empty(arrays[0].size, np.float32)
    limit, ours = [], []
    for i in range(len(arrays) + pairs):
        x, weight = arrays[i % len(arrays)], weights[i % len(weights)]
        limit.append(seconds(lambda x=x, weight=weight: plain(acc, x, weight)))
        ours.append(seconds(lambda x=x, weight=weight: exact.fold(bins, x, weight)))
    limit, ours = limit[len(arrays) :], ours[len(arrays) :]
    gigabytes = arrays[0].nbytes / 1e9
    return {
        "limit_gb_per_s": round(gigabytes / median(limit), 3),
        "exact_gb_per_s": round(gigabytes / median(ours), 3),
        "ratio": round(median(a / b for a, b in zip(limit, ours, strict=True)), 3),
        "total_gb_per_s": round(gigabytes / seconds(lambda: exact.total(bins, 1000)), 3),
    }


def small(repeats: int = 3000) -> dict[str, float]:
    """Median microseconds for one fold and one total of a small model."""
    bins, (x,) = exact.empty(SMALL, np.float32), updates(1, SMALL)
    folds = [seconds(lambda: exact.fold(bins, x, 413.0)) for _ in range(repeats)]
    totals = [seconds(lambda: exact.total(bins, 413)) for _ in range(repeats // 10)]
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
