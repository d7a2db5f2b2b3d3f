"""foedus.jax, in processes of their own: jax has threads, and what is loaded beside it may not fork any more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes
HERE = Path(__file__).parent


def passed(*arguments: str) -> int:
    """How many tests of a pytest process passed, none of which failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=--strict-markers --doctest-modules", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    count = re.search(r"(\d+) passed", found.stdout)
    assert found.returncode == 0 and count, found.stdout + found.stderr
    return int(count[1])


def test_the_cases_in_jax_pass() -> None:
    assert passed(str(HERE / "jax_cases.py"), str(HERE.parent / "src" / "foedus" / "jax"), "-m", "not long") == 23


@pytest.mark.long
def test_the_long_cases_in_jax_pass() -> None:
    assert passed(str(HERE / "jax_cases.py"), "-m", "long") == 2
