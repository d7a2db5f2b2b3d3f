"""Set-up: makes .venv in the project's root and installs foedus and its tools there, one ticked line a step.
Only the standard library may come in, in words that an old Python can read far enough to be told that it is too old."""

import ast
import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

LEAST = (3, 11)
ROOT = Path(__file__).resolve().parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
EXTRAS = "server,torch,sklearn,privacy,plot,examples,dev"
NOISE = ("$", "import", "WARNING")  # lines of the log that say nothing about progress
FIRST_START = """import sys; sys.dont_write_bytecode = False
import alembic.command, cryptography.x509, hypothesis.extra.numpy, matplotlib.pyplot, nilearn.datasets, pandas, pytest
import rich.progress, scipy.stats, sklearn.linear_model, sqlalchemy.dialects.postgresql, torch._dynamo, typer.testing
"""


def refusal(version: "tuple[int, ...]") -> "str | None":
    """One line with the remedy where Python `version` is too old for foedus, otherwise None."""
    if version[:2] >= LEAST:
        return None
    have, least = ".".join(map(str, version[:3])), ".".join(map(str, LEAST))
    return f"foedus needs Python {least} or newer, this is {have}: install one and name it, `make PYTHON=python{least}`"


if __name__ == "__main__" and refusal(sys.version_info[:3]):
    sys.exit(refusal(sys.version_info[:3]))


class Failed(Exception):
    """A step that cannot go on: the end of what it printed, and the remedy."""

    def __init__(self, remedy: str, output: str = "") -> None:
        super().__init__(remedy)
        self.output = output


class Show:
    """One line a step; between its start and its tick something moves at least every 8 s."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.name, self.began, self.spoke = "", 0.0, 0.0

    def start(self, name: str) -> None:
        self.name, self.began, self.spoke = name, time.monotonic(), time.monotonic()
        self.beat()

    def beat(self, last: str = "") -> None:
        now = time.monotonic()
        text = f"… {self.name}  {now - self.began:.0f} s  {last}"
        if self.live:
            print(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        elif now - self.spoke >= 8:
            print(f"  {text}", flush=True)
            self.spoke = now

    def line(self, text: str) -> None:
        print(f"\r\033[K{text}" if self.live else text, flush=True)


class Place:
    """Where set-up works: the project's root, its .venv, and the pip that installs there."""

    def __init__(self, root: Path, show: Show | None = None) -> None:
        self.root, self.venv, self.show = root, root / ".venv", show or Show()
        self.python = self.venv / "bin" / "python"
        self.pip = [str(self.python), "-m", "pip"]
        self.log, self.stamp = self.venv / "setup.log", self.venv / "setup.stamp"
        self.constraints = root / "constraints.txt"

    def run(self, *command: str | Path) -> None:
        """Runs a command into the log, with a sign of life every second; a failure carries what it printed."""
        self.venv.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            log.write(f"$ {' '.join(map(str, command))}\n".encode())
            log.flush()
            start = log.tell()
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.root) as process:
                while not ended(process):
                    self.show.beat(last_line(self.log))
        if process.returncode:
            output = self.log.read_bytes()[start:].decode(errors="replace")
            raise Failed(remedy(output), output)

    def install(self, *arguments: str | Path) -> None:
        quick = ("--no-input", "--no-compile", "--progress-bar=off", "--disable-pip-version-check")
        self.run(*self.pip, "install", *quick, *arguments)


def ended(process: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)
    return process.returncode is not None


def last_line(log: Path) -> str:
    lines = log.read_bytes()[-2000:].decode(errors="replace").split("\n")
    return next((line[:60] for line in map(str.strip, reversed(lines)) if line and not line.startswith(NOISE)), "")


def remedy(output: str) -> str:
    """What to do about a failed step, judged by what pip printed."""
    no_build = "no build for this Python or machine: `rm -r .venv` and name another, `make PYTHON=python3.12 setup`"
    signs = {
        "No space left": "free about 3 GB of disk space and run the same command again",
        "ProxyError": "check the proxy (HTTPS_PROXY) and run the same command again",
        "SSLError": "check the certificates (PIP_CERT) and run the same command again",
        "Retrying (": "check the network (HTTPS_PROXY, PIP_INDEX_URL) and run the same command again",
        "No matching distribution": no_build,
        "ResolutionImpossible": no_build,
    }
    return next((cure for sign, cure in signs.items() if sign in output), "read .venv/setup.log and run it again")


def pinned(name: str, constraints: Path) -> str:
    """The version that constraints.txt pins `name` to."""
    lines = constraints.read_text().splitlines()
    return next(line.partition("==")[2].strip() for line in lines if line.startswith(f"{name}=="))


def fingerprint(place: Place) -> str:
    """What an installed .venv depends on: the place, its Python, the project's requirements and pins, this file."""
    import tomllib  # not at the top: an old Python has none, and is to be told so

    project = tomllib.loads((place.root / "pyproject.toml").read_text())
    needs = json.dumps([project["project"], project["build-system"]])
    config = (place.venv / "pyvenv.cfg").read_text()
    parts = [str(place.root), config, needs, place.constraints.read_text(), Path(__file__).read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def is_ready(place: Place) -> bool:
    """Whether the last set-up here went to its end and nothing that it depends on has changed since."""
    try:
        return place.stamp.read_text().splitlines() == [str(place.root), fingerprint(place)]
    except OSError:
        return False


def is_usable(place: Place) -> bool:
    """Whether .venv has a new enough Python with pip, and was not moved here from elsewhere."""
    if place.stamp.exists() and place.stamp.read_text().splitlines()[:1] != [str(place.root)]:
        return False
    check = f"import sys, pip; sys.exit(sys.version_info < {LEAST})"
    try:
        return subprocess.run([place.python, "-c", check], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def missing_venv(version: str) -> str | None:
    """One line with the remedy where Python came without the parts that make a virtual environment."""
    if all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        return None
    return f"this Python cannot make virtual environments: `sudo apt install python{version}-venv` (Debian, Ubuntu)"


def make_venv(place: Place) -> str:
    """The tick of the virtual environment, made where there is none that works."""
    if is_usable(place):
        return "virtual environment in .venv"
    lack = missing_venv("{}.{}".format(*sys.version_info))
    if lack:
        raise Failed(lack)
    shutil.rmtree(place.venv, ignore_errors=True)
    place.run(sys.executable, "-m", "venv", place.venv)
    return "virtual environment in .venv"


def torch_version(place: Place) -> str:
    """The version of PyTorch that .venv has, "" without one."""
    question = [str(place.python), "-c", "import importlib.metadata as about; print(about.version('torch'))"]
    return subprocess.run(question, capture_output=True, text=True, check=False).stdout.strip()


def local_sources(place: Place) -> list[str]:
    """Options of pip for the folders and file: indexes of its configuration, so for nothing beyond this disk."""
    listed = subprocess.run([*place.pip, "config", "list"], capture_output=True, text=True, check=False).stdout
    links: list[str] = []
    indexes: list[str] = []
    for name, _, value in (line.partition("=") for line in listed.splitlines()):
        option = name.rpartition(".")[2]
        if option in ("find-links", "index-url", "extra-index-url"):
            (links if option == "find-links" else indexes).extend(ast.literal_eval(value).split())
    links = [link for link in links if "://" not in link or link.startswith("file:")]
    indexes = [index for index in indexes if index.startswith("file:")]
    found = [f"--find-links={link}" for link in links] + [f"--extra-index-url={index}" for index in indexes[1:]]
    return [*found, f"--index-url={indexes[0]}" if indexes else "--no-index"]


def local_torch(place: Place, pin: str) -> str | None:
    """Where a CPU build of PyTorch lies on this disk, if pip is set up with a folder or file: index that has one."""
    report = place.venv / "torch.json"
    question = ["--isolated", "install", "--dry-run", "--ignore-installed", "--no-deps", f"--report={report}"]
    try:
        place.run(*place.pip, *question, *local_sources(place), f"torch=={pin}")
    except Failed:
        return None
    wheel = json.loads(report.read_text())["install"][0]
    on_cuda = any(need.startswith(("nvidia-", "cuda-")) for need in wheel["metadata"].get("requires_dist", ()))
    return None if on_cuda else wheel["download_info"]["url"]


def default_size() -> str:
    """What pip downloads for torch 2.13.0 from the default index (measured on PyPI)."""
    return "2.7 GB with its CUDA libraries" if sys.platform == "linux" else "0.1 GB"


def install_torch(place: Place) -> str:
    """The tick of PyTorch: what is there, else a local CPU build, else the CPU index, else the default index."""
    pin = pinned("torch", place.constraints)
    have = torch_version(place)
    if have.partition("+")[0] == pin:
        return f"PyTorch {pin}{' (CPU)' if have.endswith('+cpu') else ''}"
    url = local_torch(place, pin)
    if url:
        place.install("--no-deps", url)
        return f"PyTorch {pin} (CPU)"
    index = os.environ.get("FOEDUS_TORCH_INDEX", CPU_INDEX)
    try:
        place.install("--no-deps", "--retries=1", "--timeout=20", f"--index-url={index}", f"torch=={pin}")
        return f"PyTorch {pin} (CPU)"
    except Failed:
        place.show.line(f"! {index} gave no PyTorch {pin}: taking the default build, about {default_size()}")
    place.install("--constraint", place.constraints, f"torch=={pin}")
    return f"PyTorch {pin} (default build)"


def install_foedus(place: Place) -> str:
    """The tick of the rest: foedus itself, editable, with every extra and the tools of its tests."""
    place.install("--constraint", place.constraints, "--editable", f"{place.root}[{EXTRAS}]")
    return "foedus and its tools"


def first_start(place: Place) -> str:
    """The tick of a first import, which shows that all of it starts and compiles what runs need of it (and only that:
    pip would compile every file, which takes four times as long)."""
    place.run(place.python, "-c", FIRST_START)
    return "first start"


STEPS = {
    "virtual environment": make_venv,
    "PyTorch": install_torch,
    "foedus and its tools": install_foedus,
    "first start": first_start,
}


def set_up(place: Place) -> None:
    """Runs the steps, each ended by its ticked line, and notes at last that they are done."""
    place.show.line(f"✓ Python {'.'.join(map(str, sys.version_info[:3]))}")
    for name, step in STEPS.items():
        place.show.start(name)
        place.show.line(f"✓ {step(place)}")
    place.stamp.write_text(f"{place.root}\n{fingerprint(place)}\n")


def explain(show: Show, failure: Failed) -> None:
    show.line(f"✗ {show.name}")
    for line in failure.output.splitlines()[-12:]:
        print(f"    {line}")
    print(f"{failure}" + ("\nall of it: .venv/setup.log" if failure.output else ""))


def main(arguments: list[str]) -> int:
    """Sets up; 0 when everything is there. With --quiet nothing is said where nothing is to do."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    place = Place(ROOT)
    if is_ready(place):
        if "--quiet" not in arguments:
            place.show.line("✓ everything is set up in .venv")
        return 0
    try:
        set_up(place)
    except Failed as failure:
        explain(place.show, failure)
        return 1
    except KeyboardInterrupt:
        place.show.line(f"✗ {place.show.name}: interrupted; the same command goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
