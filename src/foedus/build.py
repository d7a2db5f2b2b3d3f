"""What a build is: everything besides Job, seed and decisions that the bits of a run depend on.
Only numpy may come in; torch is described where it is loaded already."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

KERNELS = (  # of the environment: which of a library's kernels compute, and so the bits
    *("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "NPY_DISABLE_CPU_FEATURES"),
    *("NPY_ENABLE_CPU_FEATURES", "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA"),
)
GPUS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")  # with which the owner says which of them jobs may use
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
place = 0  # which of the workers of its machine this process is: of several GPUs it takes its own
LIBRARIES = ("torch", "sklearn", "xgboost", "jax", "lightgbm", "transformers", "peft", "lightning", "monai")


def scrubbed(scratch: Path, **more: str) -> dict[str, str]:
    """The environment of a worker: no secrets, proxies or more threads than one; faults that a test asked for pass."""
    names = ("PATH", "LANG", "LC_ALL", *KERNELS, *GPUS)
    kept = {k: v for k, v in os.environ.items() if k in names or k.startswith("FOEDUS_KILL")}
    fixed = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    made = {"HOME": str(scratch), "PYTHONPATH": str(Path(__file__).parents[1])}
    return kept | made | fixed | dict.fromkeys(THREADS, "1") | more


def describe(threads: int = 1) -> dict[str, Any]:
    """Versions, CPU level, the kernels of numpy's BLAS, threads per worker and flags, with a short `hash` of them."""
    found: dict[str, Any] = {
        "foedus": installed("foedus"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cpu": _cpu(),
        "blas": _blas(),
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


def _blas() -> str:
    """The kernels that OpenBLAS (or another library of its kind) chose, "" where it does not say."""
    from threadpoolctl import threadpool_info

    found = {str(x.get("architecture") or "") for x in threadpool_info() if x["user_api"] == "blas" and _numpys(x)}
    return ", ".join(sorted(found))


def _numpys(library: dict[str, Any]) -> bool:
    return "numpy" in str(library["filepath"])


def _torch() -> dict[str, Any]:
    torch = sys.modules["torch"]
    return {
        "torch_cpu": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "onednn": bool(torch.backends.mkldnn.enabled),
    }


@contextmanager
def exactly(threads: int = 1) -> Iterator[None]:
    """Inside the block, numpy's and torch's libraries have `threads` threads, and torch is deterministic.

    A torch that is imported inside the block is made so at once, and as it was when the block ends.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads), ExitStack() as stack:
        stack.enter_context(imported("torch", partial(_settle, stack, threads)))
        yield


@contextmanager
def imported(name: str, act: Callable[[Any], object]) -> Iterator[None]:
    """Calls `act` with the module of that name: now if it is there, else when it is imported inside the block."""
    if name in sys.modules:
        act(sys.modules[name])
        yield
        return
    watch = _Imported(name, act)
    sys.meta_path.insert(0, watch)
    try:
        yield
    finally:
        sys.meta_path.remove(watch)


def _settle(stack: ExitStack, threads: int, torch: Any) -> None:
    """Makes torch exact until the stack is left."""
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    stack.callback(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms imports the compiler too, for 1 s


class _Imported(MetaPathFinder):
    """Calls `act` with the module of that name when it was imported; the other finders find it."""

    def __init__(self, name: str, act: Callable[[Any], object]) -> None:
        self.name, self.act = name, act

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        later = sys.meta_path[sys.meta_path.index(self) + 1 :]  # another of these may be among them
        others = (finder.find_spec(name, path, target) for finder in later)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            setattr(spec.loader, "exec_module", partial(self._exec, spec.loader.exec_module))  # noqa: B010
        return spec

    def _exec(self, exec_module: Callable[[ModuleType], None], module: ModuleType) -> None:
        exec_module(module)
        self.act(module)
