"""How a site's agent is started, stopped, and told what its owner wants.
The agent and its folder come in; the command line and `python -m foedus.site` call this."""

from __future__ import annotations

import logging
import logging.handlers
import signal
import sys
from typing import Any

from foedus.errors import FoedusError
from foedus.site.agent import WAIT, Agent
from foedus.site.place import Place

MOST_LOG = 5 << 20


def start(place: Place, wait: float = WAIT) -> None:
    """Runs the agent of this folder in the foreground until SIGTERM, Ctrl-C or its owner's word. FoedusError."""
    signal.signal(signal.SIGTERM, _stop)
    with place.alone():
        if not place.wish()["accepting"] and place.wish()["stop"]:
            place.change(accepting=True, why="", stop=False)  # who starts again after leaving wants to take part
        agent = Agent(place, _log(place), wait)
        try:
            agent.run()
        except (KeyboardInterrupt, SystemExit):
            agent.stop()


def _stop(*_: object) -> None:
    raise SystemExit(0)


def say(place: Place, **wishes: Any) -> bool:
    """Whether the server was told of the wishes, by a short life of its own where no agent is at work."""
    place.change(**wishes)
    if place.agent() is not None:
        return True
    try:
        with place.alone():
            Agent(place, _log(place)).greet()
        return True
    except (FoedusError, OSError):
        return False


def _log(place: Place) -> logging.Logger:
    log = logging.getLogger(f"foedus.site.{place.name}")
    log.setLevel(logging.INFO)
    log.propagate = False
    for old in log.handlers[:]:
        log.removeHandler(old)
    form = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")
    file = logging.handlers.RotatingFileHandler(place.folder / "agent.log", maxBytes=MOST_LOG, backupCount=1)
    for handler in (file, logging.StreamHandler(sys.stderr)):
        handler.setFormatter(form)
        log.addHandler(handler)
    return log
