"""Make, set-up and the test runner: what a newcomer sees, and where PyTorch comes from (an index on loopback)."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import venv
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pip
import pytest

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> ModuleType:
    """A file of tools/ as a module, whatever else has its name."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    return load("setup")


@pytest.fixture(scope="module")
def runner(setup: ModuleType) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "setup", setup)
        yield load("test")


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 15), (3, 10, 99)])
def test_an_old_python_is_refused_in_one_line_with_the_remedy(setup: ModuleType, version: tuple[int, ...]) -> None:
    said = setup.refusal(version)
    assert ".".join(map(str, version)) in said
    assert "3.11" in said and "make PYTHON=python3.11" in said and "\n" not in said


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 13, 1), (4, 0, 0)])
def test_a_new_enough_python_is_not_refused(setup: ModuleType, version: tuple[int, ...]) -> None:
    assert setup.refusal(version) is None


def test_an_old_python_stops_set_up_before_anything_is_made(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    pretend = "import runpy, sys; sys.version_info = (3, 9, 2); runpy.run_path('tools/setup.py', run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", pretend], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1 and "this is 3.9.2" in run.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_python_without_venv_is_told_what_to_install(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    assert "sudo apt install python3.12-venv" in setup.missing_venv("3.12")


def test_make_alone_prints_one_line_for_each_target() -> None:
    alone = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}  # `make test` started this
    run = subprocess.run(["make"], cwd=ROOT, env=alone, capture_output=True, text=True, check=True)
    named = [line.split()[1] for line in run.stdout.splitlines()]
    tests = ["test", "test-all", "lint", "bench", "bench-peers"]
    assert named == ["help", "setup", "demo", "demo-figures", *tests, "dist", "clean"]
    assert all(re.fullmatch(r"make \S+ +\S.*", line) for line in run.stdout.splitlines())


def test_ci_runs_exactly_make_test() -> None:
    script = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert script[-1] == "exec make test" and os.access(ROOT / ".ci" / "run", os.X_OK)


# --- set-up as a whole, with a pip that only takes notes -----------------------------------------------------------


class Quiet:
    """Stands for the terminal and keeps what was said."""

    name = ""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, name: str) -> None: ...
    def beat(self, last: str = "") -> None: ...

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def place(setup: ModuleType, tmp_path: Path) -> Any:
    """A project with a virtual environment that has nothing but a borrowed pip."""
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    venv.create(tmp_path / ".venv", with_pip=False)
    [packages] = tmp_path.glob(".venv/lib/python*/site-packages")
    (packages / "pip").symlink_to(Path(pip.__file__).parent)
    return setup.Place(tmp_path, Quiet())


def test_a_second_set_up_has_nothing_to_do_until_a_requirement_changes(
    setup: ModuleType, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def noted(name: str, _: Any) -> str:
        done.append(name)
        return name

    monkeypatch.setattr(setup, "STEPS", {name: functools.partial(noted, name) for name in setup.STEPS})
    assert not setup.is_ready(place)
    setup.set_up(place)
    assert done == ["virtual environment", "PyTorch", "foedus and its tools", "first start"]
    assert place.show.lines == [f"✓ Python {sys.version.split()[0]}", *(f"✓ {name}" for name in done)]
    assert setup.is_ready(place)
    project = place.root / "pyproject.toml"
    project.write_text(project.read_text().replace("line-length = 120", "line-length = 99"))
    assert setup.is_ready(place), "a linter's setting is no reason to install"
    project.write_text(project.read_text().replace('"h11>=0.16"', '"h11>=0.15"'))
    assert not setup.is_ready(place)


def test_a_moved_project_is_set_up_anew(setup: ModuleType, place: Any, tmp_path: Path) -> None:
    place.stamp.write_text(f"{place.root}\n{setup.fingerprint(place)}\n")
    assert setup.is_ready(place)
    place.root.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    moved = setup.Place(tmp_path.with_name(f"{tmp_path.name}-moved"))
    assert not setup.is_ready(moved) and not setup.is_usable(moved)


def test_a_failed_step_shows_its_last_lines_and_the_remedy(
    setup: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = setup.Place(tmp_path, show=setup.Show())
    place.show.start("PyTorch")
    script = "print(*range(100), sep='\\n'); print('OSError: [Errno 28] No space left on device'); exit(1)"
    with pytest.raises(setup.Failed) as failure:
        place.run(sys.executable, "-c", script)
    setup.explain(place.show, failure.value)
    said = capsys.readouterr().out.splitlines()
    assert said[:12] == ["✗ PyTorch", *(f"    {line}" for line in range(89, 100))]
    assert "No space left" in said[12] and "free about 3 GB" in said[13] and "setup.log" in said[14]
    assert place.log.read_text().startswith(f"$ {sys.executable} -c print(")


def test_a_long_step_without_a_terminal_says_something_every_eight_seconds(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(setup.time, "monotonic", lambda: now[0])
    show = setup.Show()
    show.start("PyTorch")
    for _ in range(30):
        now[0] += 1
        show.beat("Downloading")
    said = capsys.readouterr().out.splitlines()
    assert said == [f"  … PyTorch  {seconds} s  Downloading" for seconds in (8, 16, 24)]


# --- where PyTorch comes from --------------------------------------------------------------------------------------


def wheel(folder: Path, version: str, *, needs: str = "") -> None:
    """Writes a wheel named torch with nothing in it but its metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n{needs}")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serves tmp_path/www on loopback: /simple is pip's default index, /cpu is PyTorch's. Yields what was asked."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            asked.append(self.path)

        def log_error(self, *_: Any) -> None: ...

    (tmp_path / "www").mkdir()
    serve = functools.partial(Handler, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
        monkeypatch.setenv("FOEDUS_TORCH_INDEX", f"{url}/cpu")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield asked
        server.shutdown()


def test_a_local_cpu_build_is_taken_before_any_index_is_asked(
    setup: ModuleType, place: Any, index: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path / "wheels", "2.13.0")
    wheel(tmp_path / "www/cpu/torch", "2.13.0+cpu")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    assert setup.install_torch(place) == "PyTorch 2.13.0 (CPU)"
    assert setup.torch_version(place) == "2.13.0"
    assert index == [] and place.show.lines == []


def test_a_local_cuda_build_is_passed_over_for_the_cpu_index(
    setup: ModuleType, place: Any, index: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path / "wheels", "2.13.0", needs="Requires-Dist: nvidia-cudnn-cu13==9.20\n")
    wheel(tmp_path / "www/cpu/torch", "2.13.0+cpu")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    assert setup.install_torch(place) == "PyTorch 2.13.0 (CPU)"
    assert setup.torch_version(place) == "2.13.0+cpu"


def test_a_local_index_counts_as_local(
    setup: ModuleType, place: Any, index: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path / "mirror/torch", "2.13.0+cpu")
    page = tmp_path / "mirror/torch/index.html"
    page.write_text(
        '<!DOCTYPE html><a href="torch-2.13.0%2Bcpu-py3-none-any.whl">torch-2.13.0+cpu-py3-none-any.whl</a>'
    )
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", (tmp_path / "mirror").as_uri())
    assert setup.install_torch(place) == "PyTorch 2.13.0 (CPU)"
    assert setup.torch_version(place) == "2.13.0+cpu" and index == []


def test_without_a_local_build_the_cpu_index_is_taken_and_not_the_default_one(
    setup: ModuleType, place: Any, index: list[str], tmp_path: Path
) -> None:
    wheel(tmp_path / "www/cpu/torch", "2.13.0+cpu")
    wheel(tmp_path / "www/cpu/torch", "2.14.0+cpu")
    wheel(tmp_path / "www/simple/torch", "2.13.0")
    assert setup.install_torch(place) == "PyTorch 2.13.0 (CPU)"
    assert setup.torch_version(place) == "2.13.0+cpu"
    assert not [path for path in index if path.startswith("/simple")] and place.show.lines == []
    index.clear()
    assert setup.install_torch(place) == "PyTorch 2.13.0 (CPU)"
    assert index == [], "what is installed is not asked for again"


def test_without_the_cpu_index_the_default_build_is_taken_with_a_warning_that_names_its_size(
    setup: ModuleType, place: Any, index: list[str], tmp_path: Path
) -> None:
    wheel(tmp_path / "www/simple/torch", "2.13.0")
    assert setup.install_torch(place) == "PyTorch 2.13.0 (default build)"
    assert setup.torch_version(place) == "2.13.0"
    [warning] = place.show.lines
    assert re.search(r"/cpu gave no PyTorch 2\.13\.0: .* about \d\.\d GB", warning)


def test_no_pytorch_anywhere_ends_set_up_with_a_remedy(setup: ModuleType, place: Any, index: list[str]) -> None:
    with pytest.raises(setup.Failed, match="no build for this Python") as failure:
        setup.install_torch(place)
    assert "torch==2.13.0" in failure.value.output


# --- the test runner -----------------------------------------------------------------------------------------------


def test_the_first_line_has_the_count_and_the_minutes(runner: ModuleType) -> None:
    counts = {"lint": 4, "core": 300, "kills": 20}
    past = {"lint": 6.0, "core": 0.1, "kills": 9.0}  # 24 + 30 + 180 s = 3.9 minutes
    assert runner.headline(counts, past) == "324 tests, about 4 minutes"
    assert runner.headline({"core": 300}, {"core": 0.2}) == "300 tests, about 1.0 minutes"


@pytest.mark.parametrize(
    ("marks", "stage"),
    [
        (set(), "core"),
        ({"parametrize"}, "core"),
        ({"properties", "long"}, "properties"),
        ({"processes", "kills"}, "kills"),
        ({"data", "core"}, "data"),
    ],
)
def test_a_test_belongs_to_the_last_stage_that_its_marks_name(runner: ModuleType, marks: set[str], stage: str) -> None:
    assert runner.stage_of(marks) == stage


def test_long_tests_are_chosen_only_when_they_are_asked_for(runner: ModuleType) -> None:
    assert runner.choice("processes", long=False) == "processes and not kills and not data and not long"
    assert runner.choice("processes", long=True) == "processes and not kills and not data"
    assert runner.choice("core", long=True) == "not properties and not processes and not kills and not data"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of three tests in two stages, with this one's runner and pytest's settings."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("src", "tests", ".venv"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tests/test_a.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    kills = "import pytest\npytestmark = pytest.mark.kills\ndef test_c(): pass\n@pytest.mark.long\ndef test_d(): pass\n"
    (tmp_path / "tests/test_k.py").write_text(kills)
    return tmp_path


def staged(project: Path, *arguments: str) -> tuple[int, list[str]]:
    command = [sys.executable, "tools/test.py", *arguments]
    run = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout.splitlines()


def test_a_green_run_prints_one_line_for_each_stage_and_the_sum(project: Path) -> None:
    code, lines = staged(project, "core", "kills")
    assert code == 0 and len(lines) == 4
    assert re.fullmatch(r"3 tests, about \d+(\.\d)? minutes", lines[0])
    assert re.fullmatch(r"core +2 passed +\d+\.\d s", lines[1])
    assert re.fullmatch(r"kills +1 passed +\d+\.\d s", lines[2])
    assert lines[3] == "3 passed, 0 failed"


def test_a_failure_a_skip_and_a_warning_are_red_and_end_the_run(project: Path) -> None:
    bad = (
        "import pytest\ndef test_f(): assert 1 == 2\ndef test_s(): pytest.skip('no')\ndef test_w(): open('/dev/null')\n"
    )
    (project / "tests/test_bad.py").write_text(bad)
    code, lines = staged(project, "core", "kills")
    assert code == 1 and lines[-1] == "2 passed, 3 failed"
    assert not [line for line in lines if line.startswith("kills")]
    said = "\n".join(lines)
    assert all(name in said for name in ("test_f", "test_s", "test_w", "assert 1 == 2", "ResourceWarning"))


def test_ctrl_c_ends_the_tests_that_run(project: Path) -> None:
    (project / "tests/test_a.py").write_text(
        "import pathlib, time\ndef test_a():\n    pathlib.Path('began').touch()\n    time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "tools/test.py", "core"], cwd=project, stderr=subprocess.DEVNULL)
    for _ in range(300):
        if (project / "began").exists():
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    assert run.wait(20) != 0
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and at_work(pid, project)]


def at_work(pid: str, folder: Path) -> bool:
    """Whether that process lives in the folder."""
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(folder)
    except OSError:
        return False


def test_a_file_that_cannot_be_imported_is_red(project: Path) -> None:
    (project / "tests/test_a.py").write_text("import nowhere\n")
    code, lines = staged(project, "core")
    assert code == 1 and lines[-1] == "0 passed, 1 failed"
    assert "No module named 'nowhere'" in "\n".join(lines)


# --- the wheel -----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_wheel_installs_and_runs_outside_the_clone() -> None:
    run = subprocess.run(["make", "dist"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "installs and runs outside the clone" in run.stdout
