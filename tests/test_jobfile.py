"""Job files: what one must define, options from the command line, and errors that name file and line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foedus.errors import Incompatible, JobError
from foedus.jobfile import load

HEAD = """
import foedus as fd
from foedus.numpy import NumpyLearner
learner = NumpyLearner({"w": [0.0]}, train=lambda params, split, ctx: {})
"""
OPTIONS = """
def job(mu=0.01, rounds=3, deep=False, name="plain", depth=None, free: int = 0):
    global seen
    seen = (mu, rounds, deep, name, depth)
    return fd.Job(fd.fedprox(mu), learner, rounds=rounds)
"""


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    before = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before[0]
    for name in set(sys.modules) - before[1]:
        del sys.modules[name]


def written(folder: Path, text: str, name: str = "job.py") -> Path:
    path = folder / name
    path.write_text(HEAD + text)
    return path


def test_a_file_that_defines_a_job(tmp_path: Path) -> None:
    loaded = load(written(tmp_path, "job = fd.Job(fd.fedavg(), learner, rounds=3)\nsites = 3"))
    assert loaded.job.rounds == 3 and loaded.sites == 3 and loaded.path == tmp_path / "job.py" and loaded.options == {}


def test_sites_are_not_made_until_they_are_wanted(tmp_path: Path) -> None:
    loaded = load(written(tmp_path, "job = fd.Job(fd.fedavg(), learner, rounds=3)\ndef sites(): return 1 / 0"))
    with pytest.raises(ZeroDivisionError):
        loaded.sites()


def test_options_take_the_types_of_their_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, OPTIONS)
    given = {"mu": "0.1", "rounds": "7", "deep": "yes", "name": "1", "depth": "2"}
    loaded = load(path, given)
    seen: Any = sys.modules["foedus_job_job"].seen  # type: ignore[attr-defined]
    assert seen == (0.1, 7, True, "1", "2")
    assert loaded.job.rounds == 7 and loaded.options["mu"] == 0.1
    assert load(path, loaded.options).job.digest == loaded.job.digest  # as `resume` does
    assert load(path).job.digest != loaded.job.digest


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nu": "1"}, "the job has no option 'nu'; it has mu, rounds, deep, name, depth, free"),
        ({"rounds": "many"}, "option rounds=many: write a number like 3"),
        ({"mu": "high"}, "option mu=high: write a number like 0.01"),
        ({"deep": "perhaps"}, "option deep=perhaps: write true or false"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(JobError, match=said):
        load(written(tmp_path, OPTIONS), options)


def test_an_option_without_a_default_is_guessed(tmp_path: Path) -> None:
    text = "def job(rounds, mu): return fd.Job(fd.fedprox(mu), learner, rounds=rounds)"
    assert load(written(tmp_path, text), {"rounds": "4", "mu": "0.5"}).job.rounds == 4
    with pytest.raises(JobError, match=r"`job` of job.py raised: TypeError: .*'mu'"):
        load(written(tmp_path, text), {"rounds": "4"})


WRONG = {
    "x = 1": "job.py defines no Job: add `job = fd.Job",
    "job = 3": "job.py defines no Job",
    "def job(): return 3": "job.py defines no Job",
    "1 / 0": r"job.py raised while it was imported: ZeroDivisionError: .* \(job.py, line 5, in <module>\)",
    "def job(): return 1 / 0": r"`job` of job.py raised: ZeroDivisionError: .* \(job.py, line 5, in job\)",
    "import no_such_module": r"ModuleNotFoundError: No module named 'no_such_module' \(job.py, line 5",
    "def (": r"job.py raised while it was imported: SyntaxError: .*job.py, line 5",
    "import sys; sys.exit(0)": r"job.py raised while it was imported: SystemExit: 0 \(job.py, line 5",
    "def job(): raise SystemExit": r"`job` of job.py raised: SystemExit \(job.py, line 5",
    "import json; json.loads('{')": r"JSONDecodeError: .* \(job.py, line 5, in <module>\)",
    "raise ValueError('two\\nlines')": r"ValueError: two \(job.py, line 5, in <module>\)$",
    "job = fd.Job(fd.fedavg(), learner)": "a Job needs rounds",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_file_that_raises_is_told_with_its_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(JobError, match=WRONG[text]):
        load(written(tmp_path, text))


def test_our_own_errors_come_through_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(Incompatible):
        load(written(tmp_path, "job = fd.Job(fd.fedavg(), learner, rounds=3, over_select=2.0)"))
    with pytest.raises(NotImplementedError, match="track"):
        load(written(tmp_path, "job = fd.Job(fd.fedavg(), learner, rounds=3, track=1)"))


def test_options_of_a_job_that_takes_none(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"job.py takes no options \(mu\): define `def job\(mu=…\):` in it"):
        load(written(tmp_path, "job = fd.Job(fd.fedavg(), learner, rounds=3)"), {"mu": "1"})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"there is no job file .*nowhere.py: name a Python file that defines `job`"):
        load(tmp_path / "nowhere.py")


def test_files_beside_the_job_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("ROUNDS = 8")
    loaded = load(written(tmp_path, "from beside_it import ROUNDS\njob = fd.Job(fd.fedavg(), learner, rounds=ROUNDS)"))
    assert loaded.job.rounds == 8
