"""What a build is: everything besides Job, seed and decisions that the bits of a run depend on.
Only numpy may come in; torch is described where it is loaded already."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

LIBRARIES = ("torch", "sklearn", "xgboost", "jax", "lightgbm")


def describe(threads: int = 1) -> dict[str, Any]:
    """Versions, CPU capability level, threads per worker and flags, with a short `hash` of them all."""
    found: dict[str, Any] = {
        "foedus": installed("foedus"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cpu": _cpu(),
        "threads": threads,
    }
    found |= {name: installed(name) for name in LIBRARIES if name in sys.modules}
    if "torch" in sys.modules:
        found |= _torch()
    return found | {"hash": hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]}


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What tells two builds apart, as `cpu: AVX2 against AVX512`."""
    return [
        f"{k}: {a.get(k)} against {b.get(k)}" for k in sorted((a.keys() | b.keys()) - {"hash"}) if a.get(k) != b.get(k)
    ]


def installed(name: str) -> str:
    try:
        return version("scikit-learn" if name == "sklearn" else name)
    except PackageNotFoundError:
        return "0"


def _cpu() -> str:
    features = import_module("numpy._core._multiarray_umath").__cpu_features__

    levels = ("AVX512_SPR", "AVX512_ICL", "AVX512_SKX", "AVX512F", "AVX2", "AVX", "SSE42", "SVE", "NEON")
    return next((level for level in levels if features.get(level)), "baseline")


def _torch() -> dict[str, Any]:
    torch = sys.modules["torch"]
    return {
        "torch_cpu": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "onednn": bool(torch.backends.mkldnn.enabled),
    }


@contextmanager
def exactly(threads: int = 1) -> Iterator[None]:
    """Inside the block, numpy's and torch's libraries have `threads` threads, and torch is deterministic."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads):
        torch = sys.modules.get("torch")
        if torch is None:
            yield
            return
        before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms imports the compiler too, for 1 s
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.set_deterministic_debug_mode(before[1])
