"""What every test starts from: a home of its own, one thread for each library, the same examples every time.
Nothing of foedus comes in."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

for _library in ("OMP", "OPENBLAS", "MKL"):  # nothing above imports numpy, which reads them once
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background it is ignored, by children too

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
if DATA.is_dir():
    os.environ.setdefault("FOEDUS_DATA", str(DATA))

settings.register_profile("repeat", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "repeat")
settings.load_profile(PROFILE)


HEAVY = (
    "test_transformers.py",
    "test_lightning.py",
    "test_monai.py",
)  # long tests of libraries that take seconds to import


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves files alone whose very import is long, where long tests are not asked for."""
    return True if collection_path.name in HEAVY and "not long" in (config.option.markexpr or "") else None


def pytest_report_header() -> str:
    """Says how hypothesis draws its examples."""
    return f"hypothesis: {PROFILE} (repeat: the same examples every time; HYPOTHESIS_PROFILE=explore: new ones)"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the tests on real data out where there is none; nothing is ever skipped."""
    left_out = [item for item in items if (mark := item.get_closest_marker("data")) and not _there(*mark.args)]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def _there(*names: str) -> bool:
    """Whether there is real data; of these `names` one, as a folder in FOEDUS_DATA or as an installed package."""
    place = os.environ.get("FOEDUS_DATA")
    if not names:
        return place is not None
    return any((place is not None and (Path(place) / name).is_dir()) or find_spec(name) is not None for name in names)


@pytest.fixture(scope="session", autouse=True)
def _session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps every test away from the user's own FOEDUS_HOME."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOEDUS_HOME", str(tmp_path_factory.mktemp("foedus-home")))
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A FOEDUS_HOME for one test."""
    folder = tmp_path / "home"
    monkeypatch.setenv("FOEDUS_HOME", str(folder))
    return folder
