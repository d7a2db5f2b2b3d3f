"""A Ray cluster as a run finds it: the user's by its address, or one on this machine that ends with the run.
Ray comes in when it is needed, and not before: how it starts depends on the environment that it finds."""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from foedus.backends.processes.workers import cores
from foedus.errors import JobError, WireError

PLAIN = {"cpu": "CPU", "gpu": "GPU", "memory": "memory"}  # ours -> Ray's
ALONE = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # tells nobody; loopback only
PLACE = "/tmp" if os.path.isdir("/tmp") else None  # short: the path of a socket has at most 107 bytes
CLOSE = 1e-9
KNOCK = 10.0  # seconds


def needed(resources: Mapping[str, float] | None) -> dict[str, float]:
    """What a site's work takes, by Ray's names; a core where nothing is said of it. Raises JobError."""
    found = {PLAIN.get(name, name): amount for name, amount in {"cpu": 1.0, **(resources or {})}.items()}
    odd = [name for name, x in found.items() if isinstance(x, bool) or not isinstance(x, (int, float)) or not x > 0]
    if odd or not all(map(math.isfinite, found.values())):
        raise JobError(f"resources={resources}: give numbers above 0, such as {{'cpu': 1, 'gpu': 0.25}}")
    return found


def options(needs: Mapping[str, float]) -> dict[str, Any]:
    """The same as an actor's options."""
    known = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    plain = {known[name]: x for name, x in needs.items() if name in known}
    return plain | {"resources": {name: x for name, x in needs.items() if name not in known}}


@contextmanager
def joined(address: str | None, workers: int | None, needs: Mapping[str, float]) -> Iterator[None]:
    """Inside the block Ray is connected. A connection that was there before is used, and stays."""
    address = address or os.environ.get("RAY_ADDRESS")
    import ray

    if ray.is_initialized():
        yield
        return
    with _there(address) if address else _here(max(cores(), math.ceil((workers or 1) * needs["CPU"]))):
        yield


def room(needs: Mapping[str, float]) -> int:
    """For how many workers the nodes have room when nothing else runs there. Raises JobError where it is none."""
    nodes = _nodes()
    found = sum(min(int(node.get(name, 0.0) / x + CLOSE) for name, x in needs.items()) for node in nodes)
    if not found:
        raise JobError(f"no node of the Ray cluster has room for a site: {lacking(needs)}")
    return found


def lacking(needs: Mapping[str, float]) -> str:
    """What is asked of a node and what the nodes have, with the remedy."""
    have = [", ".join(f"{name} {node.get(name, 0.0):g}" for name in needs) for node in _nodes()]
    asked = ", ".join(f"{name} {x:g}" for name, x in needs.items())
    return (
        f"it needs {asked}, and the nodes have {'; '.join(have) or 'died'}: ask for less by resources=…, or add a node"
    )


def _nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextmanager
def _there(address: str) -> Iterator[None]:
    import ray

    try:
        _knock(address)
        ray.init(address, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "start one by `ray start --head`, or give no address, and a run has one on this machine"
        raise WireError(f"no Ray cluster answers at {address} ({said}): {remedy}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT: Ray would try for a quarter of an hour."""
    import ray

    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        own = host in ("localhost", "127.0.0.1", "::1")  # Ray, too, then takes the name under which others know it
        socket.create_connection(
            (ray.util.get_node_ip_address() if own else host.strip("[]"), int(port)), KNOCK
        ).close()


@contextmanager
def _here(cpus: int) -> Iterator[None]:
    """A cluster of this machine alone, on loopback; nothing of it stays."""
    import ray

    place = tempfile.mkdtemp(prefix="foedus-ray-", dir=PLACE)
    try:
        with _alone():
            ray.init("local", num_cpus=cpus, include_dashboard=False, logging_level=logging.ERROR, _temp_dir=place)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _alone() -> Iterator[None]:
    """A Ray that starts inside the block listens on loopback alone, as it does where it knows of no other machines."""
    from ray._private import ray_constants as constants

    before, known = {name: os.environ.get(name) for name in ALONE}, constants.ENABLE_RAY_CLUSTER
    os.environ.update(ALONE)
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = known
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
