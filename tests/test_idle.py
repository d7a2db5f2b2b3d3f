"""What an idle site costs: a real agent and a real server, whose requests are counted as they come."""

import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from foedus import remote
from foedus.loopback import environment, free_port
from foedus.server import owner
from foedus.server.app import App
from foedus.server.federation import Hub
from foedus.site.agent import WAIT
from foedus.site.bindings import Binding
from foedus.site.joining import enrol_site
from foedus.wire.certificate import server_context
from foedus.wire.http_server import Server
from toys import JOB, make_sites

pytestmark = pytest.mark.processes


class Counted:
    """The server's handler, which notes when each request came."""

    def __init__(self, app):
        self.app, self.asked, self.news = app, [], threading.Condition()

    def __call__(self, request):
        with self.news:
            self.asked.append((time.monotonic(), f"{request.method} {request.path}"))
            self.news.notify_all()
        return self.app(request)

    def until(self, ready, seconds):
        with self.news:
            assert self.news.wait_for(ready, seconds), self.asked

    def polls(self):
        return [at for at, what in self.asked if what == "POST /v1/poll"]


@contextmanager
def idle_site(folder, *arguments):
    """The handler of a server whose one site has nothing to do; it forgot what came before the site's first poll."""
    place = owner.found(folder, "fed", "127.0.0.1", free_port(), ())
    hub = Hub(place)
    counted = Counted(App(hub))
    tls = server_context(place.folder / "tls.pem", place.folder / "tls.key")
    server = Server(counted, "127.0.0.1", place.port, tls).start()
    (data,) = make_sites(folder / "data", ["north"]).values()
    enrol_site(owner.invitations(folder, ["north"])["north"], [Binding("data", str(data))], ["owner"], folder)
    command = [sys.executable, "-m", "foedus.site", "--home", str(folder), *arguments]
    agent = subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        counted.until(counted.polls, 30)
        with counted.news:
            del counted.asked[:-1]
        yield counted
    finally:
        agent.terminate()
        agent.wait(20)
        server.close()
        hub.close()


def test_an_idle_site_asks_once_for_each_wait_and_hears_at_once_of_news(tmp_path):
    with idle_site(tmp_path, "--wait", "0.5") as server:
        server.until(lambda: len(server.polls()) == 7, 10)
        first, last = server.polls()[0], server.polls()[-1]
        assert {what for _, what in server.asked} == {"POST /v1/poll"}
        assert last - first >= 6 * 0.5  # never before its wait is over
        assert 60 / WAIT < 2  # so that with the wait that it has by itself, these are fewer than two a minute
        with remote.connect(home=tmp_path) as owner_:
            run = owner_.submit(JOB, {"rounds": "1"})
            server.until(lambda: any(what == "POST /v1/ready" for _, what in server.asked), 10)
            run.steer("stop")


@pytest.mark.long
def test_an_idle_site_makes_fewer_than_two_requests_a_minute(tmp_path):
    """By the clock: four minutes, no fault injected, nothing shortened."""
    with idle_site(tmp_path) as server:
        began = time.monotonic()
        with server.news:
            server.news.wait_for(lambda: time.monotonic() - began >= 240, 240)
        assert 1 <= len(server.asked) - 1 < 2 * 4
