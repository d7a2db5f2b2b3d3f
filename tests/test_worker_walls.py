"""What a Job's code may do in a real federation: it is imported in workers alone, and has no network unless allowed."""

import errno
import os
import socket
import subprocess
import sys

import pytest

from federations import started
from foedus.loopback import environment
from toys import JOB

pytestmark = pytest.mark.processes
WALLS = JOB.parents[1] / "walls" / "job.py"
NOTES_WHO_IMPORTS = """
import os, socket
try:
    socket.socket().close()
    network = True
except PermissionError:
    network = False
with open(NOTES, 'a') as file:
    file.write(f'{os.getpid()} {os.getppid()} {network:d}\\n')
"""


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with started(tmp_path_factory.mktemp("walls"), ["north", "south"]) as found:
        yield found


def test_a_job_is_imported_by_a_run_worker_and_a_worker_a_site_and_by_no_server_or_agent(federation, tmp_path):
    made, _ = federation
    job, notes = tmp_path / "job.py", tmp_path / "imports"
    job.write_text(NOTES_WHO_IMPORTS.replace("NOTES", repr(str(notes)), 1) + JOB.read_text())
    made.remote().submit(job, {"rounds": "1"}).wait()
    imports = {pid: more for pid, *more in (map(int, line.split()) for line in notes.read_text().splitlines())}
    assert imports.pop(os.getpid()) == [os.getppid(), 1]  # the submitter is this process
    longlived = {process.pid for process in made.processes.values()}
    assert len(imports) == 3 and longlived.isdisjoint(imports)
    assert {parent for parent, _ in imports.values()} == longlived  # a child of the server, and one of each agent
    assert {network for _, network in imports.values()} == {0}


def test_a_sites_worker_and_its_children_have_no_network_unless_the_policy_says_so(federation):
    """North keeps the policy that joining wrote, south allows the network; at both, processes share their data."""
    made, sites = federation
    policy = made.site_home("south") / "sites" / "south" / "policy.toml"
    policy.write_text(policy.read_text() + "network = true\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made.remote().submit(WALLS, {"port": str(listener.getsockname()[1])}).wait()
    tried = {name: (path / "tried").read_text().split() for name, path in sites.items()}
    assert tried == {
        "north": ["python:no", "native:no", "child:no", "unix:yes", "loader:0"],
        "south": ["python:yes", "native:yes", "child:yes", "unix:yes", "loader:4"],
    }


def test_a_job_that_needs_the_network_is_told_who_can_allow_it(federation, tmp_path):
    made, _ = federation
    job = tmp_path / "job.py"
    reads = "def load(site):\n    urllib.request.urlopen('http://127.0.0.1:1/')"
    job.write_text("import urllib.request\n" + JOB.read_text().replace("def load(site):", reads, 1))
    north, _ = made.remote().check(job)
    assert not north["ready"] and "`network = true` in the site's policy.toml" in north["why"]


def test_where_the_kernel_takes_no_filter_a_network_of_ones_own_is_empty():
    code = "import socket, sys; from foedus.wire.offline import _alone as alone; "
    code += "print(alone(), socket.socket().connect_ex(('127.0.0.1', int(sys.argv[1]))))"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", code, str(listener.getsockname()[1])]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() in (f"True {errno.ENETUNREACH}", "False 0")  # the kernel may allow neither
