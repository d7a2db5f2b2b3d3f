"""Submitters of a real federation: how they log in, what is wrong with a token, and whose code runs at a site."""

import base64
import time

import pytest

from federations import foedus, kinds, started, until
from foedus import remote
from foedus.errors import Denied, WireError
from foedus.server import owner
from foedus.server.place import find
from foedus.wire.ed25519 import new_key, public_text
from foedus.wire.identity import invite
from toys import JOB, calls

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """A server, and a site whose owner trusts the federation's owner alone."""
    with started(tmp_path_factory.mktemp("login"), ["north"]) as found:
        yield found


def token(made, name, role="submitter"):
    return owner.invitations(made.home, [name], role)[name]


def test_who_logs_in_can_ask_the_server_and_a_token_is_good_for_one_login(federation, tmp_path):
    made, _ = federation
    code, told = foedus(made.home, "federation", "invite", "alice", "--submitter")
    assert (code, list(told["tokens"])) == (0, ["alice"])
    assert foedus(tmp_path, "login", told["tokens"]["alice"]) == (0, {"submitter": "alice"})
    assert (tmp_path / "submitter" / "key.pem").stat().st_mode & 0o777 == 0o600
    assert [site["site"] for site in foedus(tmp_path, "sites")[1]["sites"]] == ["north"]
    code, last = foedus(tmp_path / "thief", "login", told["tokens"]["alice"])
    assert code == 7 and "this token or key was used or revoked before; ask the owner for a new invitation" in last
    code, last = foedus(tmp_path / "thief", "sites")
    assert code == 1 and "nobody has logged in from" in last and "`foedus login TOKEN`" in last


def test_a_login_that_was_cut_off_goes_on_with_the_same_token(federation, tmp_path):
    made, _ = federation
    given = token(made, "bob")
    assert remote.login(tmp_path, given) == "bob"
    (tmp_path / "submitter" / "identity.json").unlink()  # as if it had died before the answer came
    assert remote.login(tmp_path, given) == "bob"
    with remote.connect(home=tmp_path) as connected:
        assert connected.status()["federation"] == "loopback"


def test_a_home_has_one_submitter_and_a_second_login_keeps_its_token(federation, tmp_path):
    made, _ = federation
    given = token(made, "carol")
    with pytest.raises(Denied, match=r"'owner' of 'loopback' has logged in from .*: choose another --home"):
        remote.login(made.home, given)
    assert remote.login(tmp_path, given) == "carol"


def test_a_sites_token_is_no_login_and_stays_unused(federation, tmp_path):
    made, _ = federation
    with pytest.raises(Denied, match="the token of 'south' is for a site: use it with `foedus site join`"):
        remote.login(tmp_path, token(made, "south", "site"))
    assert [site["site"] for site in made.remote().sites()] == ["north"]


def damaged(made, mine):
    text = token(made, "dave")
    return text[:40] + ("A" if text[40] != "A" else "B") + text[41:]


def without_its_end(made, mine):
    return token(made, "dave")[:-20]


def something_else(made, mine):
    return base64.b64encode(b"a password").decode()


def of_another_owner(made, mine):
    """Somebody invites himself: the address and certificate are right, the owner's key is his own."""
    federation = find(made.home).federation._replace(owner=public_text(mine))
    return invite(mine, federation, "dave", "submitter", expires=int(time.time()) + 60)


def expired(made, mine):
    return owner.invitations(made.home, ["dave"], "submitter", seconds=-60)["dave"]


def of_another_federation(made, mine):
    """Another federation said to be at this address: its pinned certificate is not this server's."""
    place = owner.found(made.home / "other", "other", "127.0.0.1", made.port, ())
    return owner.invitations(place.folder.parent, ["dave"], "submitter")["dave"]


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (damaged, Denied, "the token is damaged"),
        (without_its_end, Denied, "the token is damaged"),
        (something_else, Denied, "this is no token of foedus"),
        (of_another_owner, Denied, "the invitation of 'dave': the signature does not match"),
        (expired, Denied, "the invitation of 'dave' expired on"),
        (of_another_federation, WireError, "certificate"),
    ],
)
def test_a_wrong_token_is_refused_with_its_reason_and_the_home_stays_free(federation, tmp_path, wrong, error, said):
    made, _ = federation
    with pytest.raises(error, match=said):
        remote.login(tmp_path, wrong(made, new_key()))
    assert remote.login(tmp_path, token(made, f"after.{wrong.__name__.replace('_', '-')}"))


def test_code_of_a_trusted_submitter_runs_and_that_of_others_waits_for_approval(federation, tmp_path):
    made, sites = federation
    made.remote().submit(JOB, {"rounds": "1"}).wait()
    assert calls(sites) == {"north": 1}
    remote.login(tmp_path, token(made, "stranger"))
    job = tmp_path / "job.py"
    job.write_text(JOB.read_text() + "# other bytes than those of a submitter who is trusted\n")
    with remote.connect(home=tmp_path) as stranger:
        run = stranger.submit(job, {"rounds": "2"})
        answer = until(lambda: run.status()["answers"].get("north"))
        bundle = kinds(run, "submitted")[0]["bundle"]["digest"]
        assert (answer["ready"], answer["why"]) == (
            False,
            f"waiting for approval: foedus site approve {bundle[:12]}",
        )
        until(lambda: run.status()["state"] == "paused")
        assert calls(sites, "begin") == {"north": 1}, "code ran that nobody approved"
        code, told = foedus(made.site_home("north"), "site", "approve", bundle[:12])
        assert (code, told["submitter"], told["decision"]) == (0, "stranger", "approved")
        assert run.wait().rounds == 2
    assert calls(sites) == {"north": 3}
