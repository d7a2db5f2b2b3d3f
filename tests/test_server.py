"""The server's requests in one process: who may ask what, and what a stranger, a copy or a revoked site hears."""

import contextlib
import threading
import time

import pytest

from foedus.errors import Denied, FoedusError, WireError
from foedus.server.place import create
from foedus.wire.ed25519 import new_key
from foedus.wire.freshness import Life
from foedus.wire.http_client import Channel
from foedus.wire.identity import enrol, signed
from foedus.wire.plain import plain
from foedus.wire.signing import sign_envelope
from server_rig import Rig

pytestmark = pytest.mark.processes


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


def test_who_asks_where_to_go_on_leaves_no_file_behind(rig):
    run, link = submitted(rig), rig.site("north")
    assert link.call("GET", f"/v1/uploads/{run}/0/0/0") == {"offset": 0}
    folder = rig.hub.updates("north").root
    assert folder.is_dir() and not [path for path in folder.rglob("*") if path.is_file()]


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
    """A run that only prepares, so that no worker starts."""
    return rig.submit("job = 1\n", check=True)
