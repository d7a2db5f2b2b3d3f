"""The command line: every verb prints for people on standard error and, with --json, one object on standard output.
Each group of verbs is one file; heavy imports happen inside them."""

from __future__ import annotations

import signal
import sys
import traceback
from typing import NoReturn

NOT_BUILT, INTERRUPTED, TERMINATED = 10, 130, 143


def main() -> None:
    """Runs the command line; a failure ends in one line that names the cause, and in its documented exit code."""
    from foedus.cli.app import app
    from foedus.errors import FoedusError, explained
    from foedus.wire.pipe import end_with_parent

    end_with_parent()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _cut_short()
        raise
    except FoedusError as error:
        _last(str(error), error.code)
    except NotImplementedError as error:
        _last(str(error), NOT_BUILT)
    except Exception as error:
        known = explained(error) if isinstance(error, ImportError) else error
        if isinstance(known, FoedusError):
            _last(str(known), known.code)
        from foedus.work import describe

        traceback.print_exc()
        _last(describe(error), 1)


def _terminate(*_: object) -> NoReturn:
    """Ends as Ctrl-C does, in order; a second SIGTERM ends at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt


def _cut_short() -> NoReturn:
    from foedus.cli.show import noted_step

    terminated = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    what = "ended by SIGTERM" if terminated else "interrupted"
    _last("; ".join(filter(None, (what, noted_step()))), TERMINATED if terminated else INTERRUPTED)


def _last(line: str, code: int) -> NoReturn:
    print(f"foedus: {line}", file=sys.stderr)
    sys.exit(code)
