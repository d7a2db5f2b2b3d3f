"""What a launcher starts in place of a script: runs it as `__main__`, exact and seeded, and tells how it failed.
The script's own imports come in; it is called with the script's path and arguments."""

from __future__ import annotations

import json
import os
import random
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

HERE = str(Path(__file__).parent)
sys.path[:] = [place for place in sys.path if place != HERE]  # Python put it first; the script's folder takes its place

from foedus import build  # noqa: E402
from foedus.work import describe  # noqa: E402


def main(script: str, *arguments: str) -> None:
    """Runs the script to its end; what it raises is written down for the Job, and raised."""
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    seed = int(os.environ["FOEDUS_SCRIPT_SEED"])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    with (
        build.exactly(int(os.environ["FOEDUS_SCRIPT_THREADS"])),
        build.imported("torch", lambda t: t.manual_seed(seed)),
    ):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as error:
            if error.code not in (None, 0):
                _tell(error)
            raise
        except BaseException as error:
            _tell(error)
            raise


def _tell(error: BaseException) -> None:
    """The first that fails, of all ranks, says why."""
    said: dict[str, Any] = {"whole": describe(error), "told": describe(error, text=False)}
    with suppress(FileExistsError, OSError):
        new = Path(os.environ["FOEDUS_SCRIPT"]) / f"raised.{os.getpid()}"
        new.write_text(json.dumps(said))
        os.link(new, new.with_name("raised.json"))


if __name__ == "__main__":
    main(*sys.argv[1:])
