"""Register entries of a real federation that were recorded long ago: who renews by himself, and who may no more."""

import json
import time

import pytest

from federations import submit
from foedus.errors import Denied
from foedus.loopback import Federation
from foedus.server import owner
from foedus.server.members import REGISTER
from foedus.server.place import find
from foedus.site import bindings, policy
from foedus.site.bindings import Binding
from foedus.site.place import Place
from foedus.site.trust import Roll
from foedus.store.lease import this_process
from foedus.store.sql import SqlStore
from foedus.wire import submitter
from foedus.wire.ed25519 import load_key, public_text
from foedus.wire.identity import Renewal, Revocation, enrol, read_token, renew, signed
from foedus.wire.link import Link, Member
from foedus.wire.plain import plain, read
from foedus.wire.register import Change, Register
from toys import make_sites

pytestmark = pytest.mark.processes
DAY = 86_400
# Days since an entry was recorded. It lasts 90, renews in its last 45, and may do that alone for 90 more.
RECORDED = {"fresh": 1, "due": 46, "expired": 179, "late": 181, "revoked": 46}
RENEWED = {"owner": 1, "due": 1, "expired": 1}
GONE = {"late": "ask the owner for a new invitation", "revoked": r"was revoked on .* \(left the consortium\)"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A server whose register is old, its sites (not started), and a submitter who was away for 100 days."""
    folder = tmp_path_factory.mktemp("renewal")
    federation = Federation(folder / "home")
    sites = make_sites(folder / "data", list(RECORDED))
    changes = rewrite(federation.home, {name: entry(federation, name, path) for name, path in sites.items()})
    for name in sites:
        pin(federation, name, changes)
    identity = federation.home / "submitter" / "identity.json"
    facts = json.loads(identity.read_text())
    identity.write_text(json.dumps(facts | {"due": facts["due"] - 100 * DAY}))
    federation.start_server()
    yield federation
    federation.stop()


def entry(made, name, data):
    """What a site signs to join; its folder is as `foedus site join` makes it."""
    token = read_token(owner.invitations(made.home, [name])[name])
    place = Place.make(made.site_home(name) / "sites" / name, token.federation)
    policy.write(place.folder / "policy.toml", ["owner"])
    bindings.add(place.store, Binding("data", str(data)))
    place.store.close()
    return enrol(token, place.key())


def rewrite(home, entries):
    """A register in which all was recorded days ago: the owner's entry, then the sites', and a revocation."""
    place, now = find(home), int(time.time())
    store = SqlStore(place.url)
    (first,) = [read(Change, row.body).statement for row in store.rows(REGISTER)]
    store.close()
    for file in place.folder.glob("state.db*"):
        file.unlink()
    revoked = Revocation(place.federation.id, "revoked", entries["revoked"].public, now, "left the consortium")
    statements = [(first, 100), *((entries[name], days) for name, days in RECORDED.items())]
    statements.append((signed(load_key(home / "owner" / "owner.key"), revoked), 0))
    found, changes, store = Register(place.federation.id, place.federation.owner), [], SqlStore(place.url)
    for statement, days in statements:
        changes.append(found.draft(statement, now - days * DAY))
        found.apply(changes[-1])
    epoch = store.acquire(REGISTER, this_process(), 60.0)
    store.append(REGISTER, [("change", plain(change)) for change in changes], epoch)
    store.release(REGISTER, epoch)
    store.close()
    return changes


def pin(made, name, changes):
    """The site's agent was at work when its entry was recorded, and knows the register up to there."""
    place = Place(made.site_home(name) / "sites" / name)
    known = [change for change in changes if getattr(change.statement, "invitation", None) is not None]
    roll = Roll(place.store, place.federation())
    digest = changes[len(known)].previous
    roll.extend({"changes": [plain(change) for change in known], "epoch": len(known), "digest": digest})
    place.store.close()


def link(made, name):
    """A connection of a site's key, without an agent."""
    place = find(made.home)
    return Link(Member(place.federation, name, load_key(made.site_home(name) / "sites" / name / "key.pem"), 1))


def register(made):
    """(the register as the server tells it, name -> number of each renewal in it)."""
    changes = [read(Change, body) for body in made.remote().link.call("POST", "/v1/hello", {})["register"]["changes"]]
    found = Register(find(made.home).federation.id, find(made.home).federation.owner)
    for change in changes:
        found.apply(change)
    return found, {c.statement.name: c.statement.number for c in changes if isinstance(c.statement, Renewal)}


def test_entries_renew_by_themselves_up_to_90_days_after_their_end_unless_they_are_revoked(made):
    who = submitter.load(made.home)
    expired = Link(who)
    with pytest.raises(Denied, match=r"the entry of 'owner' expired on .*; it can still renew with the same key"):
        expired.call("GET", "/v1/sites")
    expired.close()
    assert [site["site"] for site in made.remote().sites()] == ["due", "fresh"]  # whoever asks has renewed before
    for name in RECORDED:
        made.start_site(name)
    made.await_sites(["fresh", "due", "expired"])
    found, renewals = register(made)
    assert renewals == RENEWED
    ends = {name: found.admit(name, int(time.time())).valid_until - time.time() for name in RENEWED}
    assert ends == pytest.approx(dict.fromkeys(RENEWED, 90 * DAY), abs=120)
    assert set(submit(made, rounds=1).wait().per_site) == {"fresh", "due", "expired"}
    for name, said in GONE.items():
        assert made.processes[name].wait(20) == 7
        assert said.split(" on ")[0] in made.log(name).splitlines()[-1]


@pytest.mark.parametrize(("name", "said"), [*GONE.items(), ("fresh", "renewal 1 of 'fresh' is not due")])
def test_the_server_takes_no_renewal_that_comes_too_late_too_early_or_from_a_revoked_key(made, name, said):
    connection = link(made, name)
    wish = renew(connection.member.key, connection.member.federation.id, name, 1)
    with pytest.raises(Denied, match=said):
        connection.call("POST", "/v1/renew", {"renewal": plain(wish)})
    connection.close()


def test_nobody_renews_the_entry_of_another(made):
    connection, other = link(made, "due"), link(made, "fresh")
    forged = renew(other.member.key, other.member.federation.id, "due", 1)
    with pytest.raises(Denied, match="the renewal of 'due' is by another key than its entry"):
        connection.call("POST", "/v1/renew", {"renewal": plain(forged)})
    assert public_text(other.member.key) == forged.public
    connection.close()
