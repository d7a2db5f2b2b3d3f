"""`foedus new`: writes a project around one algorithm, from the texts beside this file.
The algorithms are looked at; nothing is run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from string import Template

from foedus.errors import FoedusError, JobError, Missing

HERE = Path(__file__).parent
FILES = ("job.py", "test_job.py", "README.md", "pyproject.toml")
LEARNERS = ("torch", "numpy")
CALLS = {  # what a method is called with, where it has to be told something
    "fedprox": "mu=0.01",
    "fedadam": "rate=0.03",
    "fedyogi": "rate=0.03",
    "feddyn": "alpha=0.1",
    "afl": "rate=0.02",
    "fedbuff": "buffer=4",
    "moon": "represent=lambda logits: logits",
    "pfedme": "lam=1.0, eta=0.1",
}
TORCH = {"moon", "fedbn", "fedper", "fedrep", "lg_fedavg", "pfedme"}  # they ask for a loss with a term, or for layers
OWN = {"fedbn", "fedper", "fedrep", "lg_fedavg", "ifca"}  # there is no model for all that could be the best
EVERYBODY = {"afl", "fedbuff", "fedasync"}  # a cohort makes no sense
METHODS = (
    "fedavg fedavgm fedadam fedyogi fedadagrad fedprox scaffold fednova feddyn moon fedexp qffl afl "
    "fedbn fedper fedrep lg_fedavg ditto apfl pfedme ifca fedbuff fedasync"
)


def write(folder: Path, algorithm: str, learner: str | None = None) -> list[str]:
    """The names of the files that were written into the new `folder`. Raises FoedusError, and writes nothing."""
    known = [name for name in METHODS.split() if _there(name)]
    if algorithm not in known:
        raise JobError(f"there is no project for {algorithm!r}: choose from {', '.join(known)}")
    kind = _learner(algorithm, learner)
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise FoedusError(f"{folder} is there already: choose another name, or empty it")
    told = _told(folder, algorithm, kind)
    texts = {name: Template(_source(name, kind)).substitute(told) for name in FILES}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return list(texts)


def _there(name: str) -> bool:
    from foedus import algorithms

    return hasattr(algorithms, name)


def _learner(algorithm: str, asked: str | None) -> str:
    there = importlib.util.find_spec("torch") is not None
    kind = asked or ("torch" if there or algorithm in TORCH else "numpy")
    if kind not in LEARNERS:
        raise JobError(f"--learner {kind}: choose from {', '.join(LEARNERS)}")
    if kind == "numpy" and algorithm in TORCH:
        raise JobError(f"{algorithm} works on layers or losses of torch: --learner torch")
    if kind == "torch" and not there:
        raise Missing("torch", "torch")
    return kind


def _told(folder: Path, algorithm: str, kind: str) -> dict[str, str]:
    call = f"fd.{algorithm}({CALLS.get(algorithm, '')})"
    others = "" if algorithm == "fedavg" else '    "fedavg": partial(job, fd.fedavg()),\n'
    return {
        "name": folder.resolve().name,
        "algorithm": algorithm,
        "call": call,
        "cohort": "" if algorithm in EVERYBODY else ", cohort=0.5",
        "best": "" if algorithm in OWN else ', best="accuracy"',
        "baseline": others,
        "extra": "" if kind == "numpy" else "[torch]",
    }


def _source(name: str, kind: str) -> str:
    own = HERE / f"{name}.{kind}.txt"
    return (own if own.exists() else HERE / f"{name}.txt").read_text()
