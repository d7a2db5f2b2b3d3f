"""Where foedus keeps things on this machine: FOEDUS_HOME with server/, sites/NAME/, owner/ and runs/ID/.
Only the standard library may come in."""

from __future__ import annotations

import os
from pathlib import Path

from foedus.errors import FoedusError, NoRun


def folder(given: str | os.PathLike[str] | None = None) -> Path:
    """`given`, else the environment's FOEDUS_HOME, else ~/.foedus; absolute, for workers have folders of their own."""
    return Path(given or os.environ.get("FOEDUS_HOME") or Path.home() / ".foedus").expanduser().absolute()


def find_run(run: str | os.PathLike[str], given: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a RUN: a path, an id or a unique prefix of one."""
    path = Path(run).expanduser()
    if (path / "run.db").exists():
        return path.absolute()
    runs = folder(given) / "runs"
    found = [p.parent for p in sorted(runs.glob("*/run.db")) if p.parent.name.startswith(str(run))]
    if len(found) == 1 or (found and found[0].name == str(run)):
        return found[0]
    if found:
        names = ", ".join(p.name for p in found[:5])
        raise FoedusError(f"{run!r} is the beginning of several runs ({names}): write more of it")
    raise NoRun(f"there is no run {str(run)!r} in {runs}: `foedus runs` lists them")


def model_file(start: str | os.PathLike[str]) -> Path:
    """The file of a first global model: a safetensors file, or the final model of an earlier RUN."""
    path = Path(start).expanduser()
    return path if path.is_file() else find_run(start) / "final.safetensors"
