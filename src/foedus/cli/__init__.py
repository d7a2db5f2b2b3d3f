"""The command line: every verb prints for people on standard error and, with --json, one object on standard output.
Each group of verbs is one file; heavy imports happen inside them."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; a failure ends in one line that names the cause, and in its documented exit code."""
    from foedus.cli.app import app
    from foedus.errors import FoedusError

    try:
        app(standalone_mode=True)
    except FoedusError as error:
        print(f"foedus: {error}", file=sys.stderr)
        sys.exit(error.code)
    except NotImplementedError as error:
        print(f"foedus: {error}", file=sys.stderr)
        sys.exit(10)
    except KeyboardInterrupt:
        print("foedus: interrupted; `foedus resume` goes on where the run stands", file=sys.stderr)
        sys.exit(130)
