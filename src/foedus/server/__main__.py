"""`python -m foedus.server`: opens the federation in a home and answers until it is told to stop.
Everything of the server comes in here and nowhere above."""

from __future__ import annotations

import argparse
import contextlib
import logging
import resource
import signal
import sys
import threading
from pathlib import Path

from foedus.errors import FoedusError
from foedus.server.app import App
from foedus.server.federation import Hub
from foedus.server.place import find
from foedus.wire.certificate import server_context
from foedus.wire.http_server import Server


def serve(home: Path, host: str | None = None, port: int | None = None, ready: Path | None = None) -> None:
    """Runs the server of this home until SIGTERM or SIGINT; `ready` names a file that is written once it answers."""
    place = find(home)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection a site, and the usual limit is 1024
    hub = Hub(place)
    tls = server_context(place.folder / "tls.pem", place.folder / "tls.key")
    server = Server(App(hub), host or place.host, place.port if port is None else port, tls)
    hub.cut_connections = server.cut
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    with server, contextlib.closing(hub):
        hub.start()
        logging.getLogger("foedus").info(
            "federation %s on https://%s:%d", place.federation.name, place.host, server.port
        )
        if ready is not None:
            ready.write_text(str(server.port))
        done.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="foedus server")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--ready", type=Path)
    found = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        serve(found.home, found.host, found.port, found.ready)
    except FoedusError as error:
        print(f"foedus: {error}", file=sys.stderr)
        sys.exit(error.code)


if __name__ == "__main__":
    main()
