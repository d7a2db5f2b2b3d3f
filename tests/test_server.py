"""The server's requests in one process: who may ask what, and what a stranger, a copy or a revoked site hears."""

import contextlib
import hashlib
import json
import threading
import time

import pytest

from foedus.errors import Denied, FoedusError, WireError
from foedus.server import owner
from foedus.server.app import App
from foedus.server.federation import Hub
from foedus.server.place import create
from foedus.wire import bundle, submitter
from foedus.wire.certificate import server_context
from foedus.wire.ed25519 import load_key, new_key
from foedus.wire.freshness import Life
from foedus.wire.http_client import Channel
from foedus.wire.http_server import Server
from foedus.wire.identity import Revocation, enrol, invite, read_token, signed
from foedus.wire.link import Link, Member
from foedus.wire.plain import plain
from foedus.wire.signing import sign_envelope

pytestmark = pytest.mark.processes


class Rig:
    def __init__(self, home):
        owner.found(home, "fed", "127.0.0.1", 0, ("https://127.0.0.1:1",))
        self.home = home
        from foedus.server.place import find

        self.place = find(home)
        self.hub = Hub(self.place)
        tls = server_context(self.place.folder / "tls.pem", self.place.folder / "tls.key")
        self.server = Server(App(self.hub), "127.0.0.1", 0, tls).start()
        self.hub.cut_connections = self.server.cut
        self.url = f"https://127.0.0.1:{self.server.port}"
        self.links = []

    def token(self, name, role="site", seconds=3600):
        key = load_key(self.home / "owner" / "owner.key")
        return read_token(invite(key, self.place.federation, name, role, expires=int(time.time()) + seconds))

    def post(self, path, body):
        channel = Channel(self.url, self.place.federation.certificate.encode())
        reply = channel.request("POST", path, {}, json.dumps(body).encode())
        channel.close()
        return reply.status, json.loads(reply.body)

    def site(self, name):
        """A link of an enrolled site that has said hello."""
        key = new_key()
        assert self.post("/v1/enrol", {"entry": plain(enrol(self.token(name), key))})[0] == 200
        link = self.link(name, key, 1)
        link.call("POST", "/v1/hello", {"life": plain(Life(1, "a" * 32, ""))})
        return link

    def link(self, name, key, life=0):
        link = Link(Member(self.place.federation, name, key, life), self.url)
        self.links.append(link)
        return link

    def owner_link(self):
        member = submitter.load(self.home)
        return self.link(member.name, member.key)

    def revoke(self, name, public):
        key = load_key(self.home / "owner" / "owner.key")
        return signed(key, Revocation(self.place.federation.id, name, public, int(time.time()), "left the consortium"))

    def close(self):
        for link in self.links:
            link.close()
        self.server.close()
        self.hub.close()


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    made.close()


def test_a_token_enrols_once_and_for_one_key(rig):
    token = rig.token("north")
    entry = plain(enrol(token, new_key()))
    assert rig.post("/v1/enrol", {"entry": entry}) == (200, {"name": "north"})
    assert rig.post("/v1/enrol", {"entry": entry})[0] == 200  # a retry of the same entry is harmless
    status, said = rig.post("/v1/enrol", {"entry": plain(enrol(token, new_key()))})
    assert status == 403 and "used" in said["error"]


def test_a_stranger_hears_why_it_is_not_let_in(rig):
    with pytest.raises(Denied, match="not in the register"):
        rig.link("nobody", new_key()).call("POST", "/v1/poll", {})
    status, said = rig.post("/v1/poll", {})
    assert status == 403 and "not signed" in said["error"]


def test_a_site_is_no_submitter_and_a_submitter_no_site(rig):
    with pytest.raises(Denied, match="'north' is a site"):
        rig.site("north").call("GET", "/v1/runs")
    with pytest.raises(Denied, match="'owner' is a submitter"):
        rig.owner_link().call("POST", "/v1/poll", {})


def test_a_changed_body_and_a_replayed_request_are_refused(rig):
    link = rig.site("north")
    sent = []
    request = link.channel.request

    def listening(method, path, headers, data, timeout=None):
        sent.append((method, path, dict(headers), data))
        return request(method, path, headers, data, timeout)

    link.channel.request = listening
    link.call("POST", "/v1/accepting", {"accepting": True})
    method, path, headers, data = sent[-1]
    assert request(method, path, headers, data).status == 403  # the counter was used
    link.counter += 1
    with pytest.raises(Denied, match="body"):
        link.channel.request = lambda m, p, h, d, t=None: request(m, p, h, d.replace(b"true", b"tru "), t)
        link.call("POST", "/v1/accepting", {"accepting": True})


def test_a_revoked_site_loses_its_open_poll_within_a_second(rig):
    link = rig.site("north")
    ended = []

    def poll():
        with contextlib.suppress(FoedusError):
            link.call("POST", "/v1/poll", {"wait": 30})
        ended.append(time.monotonic())

    thread = threading.Thread(target=poll)
    thread.start()
    time.sleep(0.5)
    public = rig.hub.members.register.admit("north", int(time.time())).entry.public
    began = time.monotonic()
    assert rig.post("/v1/revoke", {"revocation": plain(rig.revoke("north", public))})[0] == 200
    thread.join(5)
    assert ended and ended[0] - began < 1.0
    with pytest.raises(Denied, match="revoked"):
        link.call("POST", "/v1/poll", {})


def test_a_revoked_site_loses_its_upload_within_a_second(rig):
    run, link, size = submitted(rig), rig.site("north"), 256 << 20
    task = {"round": 0, "task": 0, "asked": ["north"], "quorum": None, "least": 1, "late": "drop"}
    rig.hub.run(run).book.publish(task)
    with open(rig.home / "update", "wb") as file:
        file.truncate(size)
    under_way, revoked = threading.Event(), []

    def revoke():
        under_way.wait(20)
        public = rig.hub.members.register.admit("north", int(time.time())).entry.public
        revoked.append(time.monotonic())
        assert rig.post("/v1/revoke", {"revocation": plain(rig.revoke("north", public))})[0] == 200

    thread = threading.Thread(target=revoke)
    thread.start()
    with pytest.raises(FoedusError):
        link.upload(f"/v1/uploads/{run}/0/0/0", rig.home / "update", 0, "0" * 64, lambda count: under_way.set())
    took = time.monotonic() - revoked[0]
    thread.join()
    assert took < 1.0
    with pytest.raises(Denied, match="revoked"):
        link.call("POST", "/v1/poll", {})


def test_a_revocation_that_the_owner_did_not_sign_is_refused(rig):
    rig.site("north")
    public = rig.hub.members.register.admit("north", int(time.time())).entry.public
    forged = signed(new_key(), rig.revoke("north", public))
    assert rig.post("/v1/revoke", {"revocation": plain(forged)})[0] == 403


def test_a_copy_of_a_site_is_found_by_its_life(rig):
    link = rig.site("north")
    copy = rig.link("north", link.member.key, 2)
    with pytest.raises(Denied, match="another agent uses the key"):
        copy.call("POST", "/v1/hello", {"life": plain(Life(2, "b" * 32, "c" * 32))})


def test_knowing_a_digest_gives_nothing(rig, tmp_path):
    link, run = rig.site("north"), submitted(rig)
    secret = rig.hub.blobs.put(b"an update of somebody else")
    for name in (run, "another-run"):
        with pytest.raises(Denied, match="may not read"):
            link.download(f"/v1/blobs/{secret}", f"run={name}", tmp_path / "stolen", 1000)
    assert not (tmp_path / "stolen").exists()


def test_an_oversized_message_is_refused_before_it_is_read(rig):
    channel = Channel(rig.url, rig.place.federation.certificate.encode())
    reply = channel.request("POST", "/v1/nonce", {}, b"x" * (9 << 20))
    channel.close()
    assert reply.status == 413


def test_nonsense_gets_an_answer_of_one_line_and_the_server_lives(rig):
    link = rig.site("north")
    for path, body in (
        ("/v1/updates", {}),
        ("/v1/updates", {"envelope": 3}),
        ("/v1/beat", {"run": []}),
        ("/v1/poll", {"have": 3}),
    ):
        with pytest.raises((WireError, Denied, FoedusError)) as caught:
            link.call("POST", path, body)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(FoedusError, match="there is no"):
        link.call("POST", "/v1/nothing", {})
    assert link.call("GET", "/v1/sites")["sites"][0]["site"] == "north"


def test_a_site_speaks_for_itself_only(rig):
    north, run = rig.site("north"), submitted(rig)
    rig.site("south")
    body = {"run": run, "round": 0, "task": 0, "attempt": 0, "site": "south", "reason": "x", "kind": "declined"}
    with pytest.raises(Denied, match="speaks for itself only"):
        north.call("POST", "/v1/declines", {"envelope": sign_envelope(north.member.key, "foedus/decline/1", body)})


def test_a_second_federation_in_one_home_is_refused(rig):
    with pytest.raises(FoedusError, match="holds a federation already"):
        create(rig.home, "again")


def submitted(rig):
    """A run that only prepares (so that no worker starts), by the owner."""
    folder = rig.home / "code"
    folder.mkdir()
    (folder / "job.py").write_text("job = 1\n")
    data = bundle.pack(folder, "job.py")
    digest, link = hashlib.sha256(data).hexdigest(), rig.owner_link()
    (rig.home / "bundle.zip").write_bytes(data)
    assert link.upload(f"/v1/bundles/{digest}", rig.home / "bundle.zip", 0, digest).status == 200
    body = {
        "name": "j",
        "bundle": {"digest": digest, "size": len(data)},
        "entry": "job.py",
        "options": {},
        "seed": 0,
        "datasets": [],
        "schema": None,
        "requires": [],
        "min_sites": 1,
        "rounds": 1,
        "privacy": "none",
        "check": True,
    }
    envelope = sign_envelope(link.member.key, "foedus/submission/1", body)
    first = link.call("POST", "/v1/runs", {"envelope": envelope})["run"]
    assert link.call("POST", "/v1/runs", {"envelope": envelope})["run"] == first  # a retry starts no second run
    return first
