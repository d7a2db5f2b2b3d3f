"""A Job from a file: imports job.py, and calls its `job` with the options given on the command line.
Only the Job may come in."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from foedus import schema
from foedus.errors import FoedusError, JobError, explained
from foedus.job import Job
from foedus.work import describe


class Loaded(NamedTuple):
    """A Job, and the sites that its file offers for simulations: as in `Job.run(sites=…)`, or a function of nothing."""

    job: Job
    sites: Any
    path: Path
    options: Mapping[str, Any]


def load(path: str | Path, options: Mapping[str, str] | None = None) -> Loaded:
    """The Job of a file: its `job`, a Job or a function of the options that returns one.

    Raises JobError with file, line and remedy.
    """
    file = Path(path).resolve()
    module = imported(path)
    made = getattr(module, "job", None)
    chosen = dict(options or {})
    if callable(made) and not isinstance(made, Job):
        chosen = typed(made, chosen)
        made = _called(made, chosen, file)
    elif chosen:
        raise JobError(
            f"{file.name} takes no options ({', '.join(chosen)}): define `def job({next(iter(chosen))}=…):` in it"
        )
    if not isinstance(made, Job):
        raise JobError(f"{file.name} defines no Job: add `job = fd.Job(…)`, or `def job(…):` that returns one")
    if isinstance(made.schema, (str, Path)):
        made = made.replace(schema=schema.read(made.schema, beside=file.parent).plain())
    made = _with_start(made, file.parent)
    return Loaded(made, getattr(module, "sites", None), file, chosen)


def _with_start(job: Job, folder: Path) -> Job:
    """A first model whose file lies beside the job file is found from anywhere, and travels with the job."""
    if not isinstance(job.start, (str, Path)) or Path(job.start).is_absolute() or not (folder / job.start).is_file():
        return job
    return job.replace(start=folder / job.start, files=[*job.files, Path(job.start).as_posix()])


def check_sent(job: Job, folder: Path) -> None:
    """Raises JobError for a first model that is a file, or a run, which does not travel with the job."""
    if isinstance(job.start, (str, Path)) and not Path(job.start).is_relative_to(folder):
        raise JobError(
            f"start={str(job.start)!r} is not beside the job file, and only what lies there is sent: copy the model "
            f"(of a run: final.safetensors in its folder) to {folder} and name that file"
        )


def found(job: Job) -> Loaded:
    """The file in which this very Job is `job`; JobError if there is none, for code travels as files only."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and getattr(module, "job", None) is job:
            path = Path(file).resolve()
            return Loaded(_with_start(job, path.parent), getattr(module, "sites", None), path, {})
    raise JobError("this Job is not the `job` of a file: put it in job.py as `job = …` and submit that file")


def typed(function: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the types of the function's defaults: `mu=0.1` for `def job(mu=0.01)` is a float."""
    known = inspect.signature(function).parameters
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise JobError(f"the job has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    return {name: _as(name, value, known[name].default) for name, value in options.items()}


def _as(name: str, value: Any, default: Any) -> Any:
    if not isinstance(value, str) or isinstance(default, str) or default is None:
        return value
    if default is inspect.Parameter.empty:
        return _guess(value)
    if isinstance(default, bool):
        if value.lower() in ("true", "yes", "1", "false", "no", "0"):
            return value.lower() in ("true", "yes", "1")
        raise JobError(f"option {name}={value}: write true or false")
    try:
        return type(default)(value) if isinstance(default, (int, float)) else value
    except ValueError:
        raise JobError(f"option {name}={value}: write a number like {default}") from None


def _guess(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def imported(path: str | Path) -> ModuleType:
    """The module of a job file, whose neighbours can be imported. Raises JobError with file, line and remedy."""
    file = Path(path).resolve()
    if not file.is_file():
        raise JobError(f"there is no job file {path}: name a Python file that defines `job`")
    if file.suffix != ".py":
        raise JobError(f"{path} is no Python file: name a *.py file that defines `job`")
    name = f"foedus_job_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except (FoedusError, NotImplementedError):
        raise
    except (Exception, SystemExit) as error:
        known = explained(error) if isinstance(error, ImportError) else error
        if isinstance(known, FoedusError):
            raise known from error
        raise JobError(f"{file.name} raised while it was imported: {describe(error)}") from error
    return module


def _called(function: Any, options: Mapping[str, Any], file: Path) -> Any:
    try:
        return function(**options)
    except (FoedusError, NotImplementedError):
        raise
    except (Exception, SystemExit) as error:
        raise JobError(f"`job` of {file.name} raised: {describe(error)}") from error
