"""The Jobs that a study is made of, by plain words: so that a site builds the same one from the same files.
A job file comes in; what is submitted is its folder, and beside it one file that calls `job` here."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foedus.errors import JobError
from foedus.job import Job
from foedus.remote import Remote, Run
from foedus.study import references as refs
from foedus.study.methods import built, methods
from foedus.wire import bundle

ENTRY = "foedus_study.py"
TEXT = '''"""Written by foedus: the Jobs of a study of {file}."""

from pathlib import Path

from foedus.study import variants


def job(study=""):
    return variants.read(Path(__file__).with_name({file!r}), study)
'''
Asked = Mapping[str, Any]  # method, options, and for a reference which one and without which site


def job(made: Mapping[str, Any], asked: Asked) -> Job:
    """The Job of a method under its options, or of a reference to it. Raises JobError."""
    method = built(asked["method"], made[asked["method"]], asked["options"])
    if asked.get("reference") == "alone":
        return refs.by_itself(method)
    if asked.get("reference") == "unseen-site":
        return refs.without(method, asked["site"])
    return method


def read(file: Path, study: str) -> Job:
    """The Job of a file that these words, as JSON, ask for. Raises JobError."""
    if not study:
        raise JobError(f"{ENTRY} is one of several Jobs: `foedus compare {file.name} --federation` runs them")
    return job(methods(file), json.loads(study)).replace(name=None)


def submitted(remote: Remote, file: Path, asked: Asked, seed: int, name: str) -> Run:
    """The run of that name at the server; one that is not there is submitted."""
    for line in remote.runs():
        if name in line["run"]:
            return remote.run(line["run"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name
        known = job(methods(file), asked)
        bundle.unpack(bundle.pack(file.parent, file.name, files=known.files), folder)
        (folder / ENTRY).write_text(TEXT.format(file=file.name))
        return remote.submit(folder / ENTRY, {"study": json.dumps(asked)}, seed=seed)
