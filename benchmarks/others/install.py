"""Makes an environment for each other framework: python install.py FOLDER. One that is there is left as it is."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

TORCH = "torch==2.13.0"  # before what pulls it; set PIP_EXTRA_INDEX_URL for a CPU build
NEEDED = {
    "flower": [[TORCH], ["flwr[simulation]==1.41.0"]],
    "pfl": [[TORCH], ["pfl==0.6.0"]],
    "fedjax": [["fedjax==0.0.17"]],
    "nvflare": [[TORCH], ["nvflare==2.9.0"]],
}


def main() -> None:
    for name, steps in NEEDED.items():
        place = Path(sys.argv[1]) / name
        if (place / "done").exists():
            print(f"✓ {name}")
            continue
        print(f"… {name}", flush=True)
        venv.create(place, with_pip=True)
        for words in steps:
            subprocess.run([place / "bin" / "pip", "install", "--quiet", *words], check=True)
        (place / "done").touch()


if __name__ == "__main__":
    main()
