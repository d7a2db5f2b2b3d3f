"""`python -m foedus.server`: opens the federation in a home and answers until it is told to stop.
Everything of the server comes in here and nowhere above."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from foedus.errors import FoedusError
from foedus.server.app import App
from foedus.server.federation import Hub
from foedus.server.place import Place, find
from foedus.server.ports import listening
from foedus.store import Held
from foedus.wire.certificate import server_context
from foedus.wire.pipe import end_with_parent

Ready = Callable[[dict[str, Any]], object]


def serve(home: Path, host: str | None = None, port: int | None = None, ready: Ready = lambda found: None) -> None:
    """Runs the server of this home until SIGTERM or SIGINT; `ready` is told once it answers, and where."""
    place = find(home)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection a site, and the usual limit is 1024
    logging.getLogger("alembic").setLevel(logging.WARNING)
    hub = _hub(place)
    tls = server_context(place.folder / "tls.pem", place.folder / "tls.key")
    server = listening(App(hub), host or place.host, place.port if port is None else port, tls)
    hub.cut_connections = server.cut
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    hub.start()  # before anybody is answered: of a run that is not open yet, a site would hear that it is over
    with server, contextlib.closing(hub):
        logging.getLogger("foedus").info(
            "federation %s on https://%s:%d", place.federation.name, place.host, server.port
        )
        facts = place.federation
        ready({"federation": facts.name, "url": facts.urls[0], "port": server.port, "pid": os.getpid()})
        done.wait()


def _hub(place: Place) -> Hub:
    try:
        return Hub(place)
    except Held as error:
        host, pid = error.holder.split(":")[:2]
        where = "" if host == socket.gethostname() else f" on {host}"
        raise FoedusError(
            f"a server of {place.folder} is at work already, process {pid}{where}: stop it (`kill {pid}`{where}), "
            "or name another --home"
        ) from error


def main() -> None:
    parser = argparse.ArgumentParser(prog="foedus server")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--ready", type=Path)
    found = parser.parse_args()
    end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        serve(found.home.absolute(), found.host, found.port, partial(_write, found.ready))
    except FoedusError as error:
        print(f"foedus: {error}", file=sys.stderr)
        sys.exit(error.code)


def _write(path: Path | None, found: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(str(found["port"]))


if __name__ == "__main__":
    main()
