"""An upload that a broken connection cuts, through a real proxy that counts what its sockets carry."""

import socket
import threading
from contextlib import closing, contextmanager, suppress

import numpy as np
import pytest

from federations import until
from foedus import key, runs
from foedus.loopback import federation
from foedus.server import owner
from foedus.wire.identity import read_token, write_token
from toys import JOB, make_sites

pytestmark = pytest.mark.processes
BIG = JOB.parents[3] / "benchmarks" / "jobs" / "big.py"
MB, SIZE = 10**6, 200


class Proxy:
    """Carries TCP connections to a port; the one that has sent `cut_at` bytes there is cut, once."""

    def __init__(self, port, cut_at):
        self.port, self.cut_at = port, cut_at
        self.sent = self.before = 0  # bytes towards the port, in all, and when the connection was cut
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self.listener.getsockname()[1]}"
        self.lock, self.ends = threading.Lock(), []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                mine, _ = self.listener.accept()
            except OSError:
                return
            theirs = socket.create_connection(("127.0.0.1", self.port))
            self.ends += [mine, theirs]
            for source, target, up in ((mine, theirs, True), (theirs, mine, False)):
                threading.Thread(target=self.carry, args=(source, target, up), daemon=True).start()

    def carry(self, source, target, up):
        """Until an end is closed or cut. The bytes counted are those that the kernel gave out of the socket."""
        buffer, here = memoryview(bytearray(MB)), 0
        try:
            while count := source.recv_into(buffer):
                here += count
                if up and self.counted(count, here):
                    break
                target.sendall(buffer[:count])
        except OSError:
            pass
        for end in (source, target):
            hang_up(end)

    def counted(self, count, here):
        """Whether the connection that brought these bytes, `here` in all, is to be cut."""
        with self.lock:
            self.sent += count
            if self.before or here < self.cut_at:
                return False
            self.before = self.sent
            return True

    def close(self):
        hang_up(self.listener)
        for end in self.ends:
            hang_up(end)
            end.close()
        self.listener.close()


def hang_up(end):
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@contextmanager
def behind_a_proxy(folder, cut_at):
    """A federation whose one site reaches the server by a proxy."""
    (data,) = make_sites(folder / "data", ["north"]).values()
    with federation(folder / "home") as made, closing(Proxy(made.port, cut_at)) as proxy:
        made.start_server()
        token = read_token(owner.invitations(made.home, ["north"])["north"])
        token = write_token(token._replace(federation=token.federation._replace(urls=(proxy.url,))))
        made.start_site("north", "join", token, "--data", f"data={data}", "--trust", "owner")
        made.await_sites(["north"])
        yield made, proxy


def test_an_upload_that_is_cut_at_60_percent_sends_at_most_45_percent_again(tmp_path):
    size = SIZE * MB
    with behind_a_proxy(tmp_path, round(0.6 * size)) as (made, proxy):
        run = made.remote().submit(BIG, {"mb": str(SIZE), "rounds": "1"})
        until(lambda: run.status()["state"] == "finished", 60)
        result = run.wait()
    (accepted,) = runs.journal(result.folder).all("accepted")
    assert accepted["size"] >= size
    assert 0.6 * size <= proxy.before < 0.65 * size, "the connection was not cut inside the upload"
    assert proxy.sent - proxy.before <= 0.45 * size
    draw = key(0, 0, 0, "server", "init").numpy()  # the model is sent back and added to itself
    assert all(np.array_equal(x, 2 * draw.standard_normal(x.size, np.float32)) for x in result.params.values())
