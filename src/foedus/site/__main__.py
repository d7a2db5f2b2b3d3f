"""`python -m foedus.site --home … --name …`: the agent of a site that has joined.
The agent comes in."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from foedus.errors import FoedusError
from foedus.site.agent import WAIT
from foedus.site.place import find
from foedus.site.service import start


def main() -> None:
    parser = argparse.ArgumentParser(prog="foedus site start")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--name")
    parser.add_argument("--wait", type=float, default=WAIT, help="seconds that a poll may take")
    found = parser.parse_args()
    try:
        start(find(found.home, found.name), found.wait)
    except FoedusError as error:
        print(f"foedus: {error}", file=sys.stderr)
        sys.exit(error.code)


if __name__ == "__main__":
    main()
