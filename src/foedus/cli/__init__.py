"""The command line: every verb prints for people on standard error and, with --json, one object on standard output.
Each group of verbs is one file; heavy imports happen inside them."""

from __future__ import annotations

import sys
import traceback
from typing import NoReturn

NOT_BUILT, INTERRUPTED = 10, 130


def main() -> None:
    """Runs the command line; a failure ends in one line that names the cause, and in its documented exit code."""
    from foedus.cli.app import app
    from foedus.errors import FoedusError

    try:
        app(standalone_mode=True)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _last("interrupted; `foedus resume` goes on where a run stands", INTERRUPTED)
        raise
    except FoedusError as error:
        _last(str(error), error.code)
    except NotImplementedError as error:
        _last(str(error), NOT_BUILT)
    except Exception as error:
        from foedus.work import describe

        traceback.print_exc()
        _last(describe(error), 1)


def _last(line: str, code: int) -> NoReturn:
    print(f"foedus: {line}", file=sys.stderr)
    sys.exit(code)
