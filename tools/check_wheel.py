"""Installs the wheel of dist/ into a fresh virtual environment and runs it outside this folder.
Run by `make dist`; only what the core needs is installed, so a forgotten file or dependency shows."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOOK = """
import sys, foedus
[getattr(foedus, name) for name in foedus.__all__]
heavy = {"torch", "sqlalchemy", "pandas", "sklearn"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else None if sys.prefix in foedus.__file__ else f"found {foedus.__file__}")
"""


def steps(venv: Path, wheel: Path) -> list[list[str | Path]]:
    """The commands that have to work."""
    quiet = ("--quiet", "--no-compile", "--disable-pip-version-check")
    return [
        [sys.executable, "-m", "venv", venv],
        [venv / "bin/pip", "install", *quiet, "--constraint", ROOT / "constraints.txt", wheel],
        [venv / "bin/python", "-c", LOOK],
        [venv / "bin/foedus", "--help"],
    ]


def main() -> int:
    """0 if the wheel installs, imports all its public names and prints its help; the first failure ends it."""
    wheel = max((ROOT / "dist").glob("foedus-*.whl"), key=lambda path: path.stat().st_mtime)
    with tempfile.TemporaryDirectory() as folder:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environ["FOEDUS_HOME"] = str(Path(folder, "home"))
        for command in steps(Path(folder, "venv"), wheel):
            run = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
            if run.returncode:
                print(f"✗ {wheel.name}: {' '.join(map(str, command))}\n{run.stdout}{run.stderr}")
                return 1
    print(f"✓ {wheel.name} ({wheel.stat().st_size / 1e3:.0f} kB) installs and runs outside the clone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
