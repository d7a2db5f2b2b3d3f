"""A server, sites and strangers that cheat in a sealed Task: the right sum or a refusal, and no secret given twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from foedus.errors import FoedusError, Paused, Refused
from foedus.privacy import masking, shamir
from foedus.privacy.masking import Unsafe, server
from foedus.privacy.masking.site import SHARE, commitment, pair_mask
from foedus.privacy.masking.tables import pack, unpack
from secagg_rig import STAGES, Rig

ASKED = {  # at each stage: the function that answers, and the question that the rig then has
    "share": (masking.share, lambda rig, site: rig.keys),
    "mask": (masking.mask, lambda rig, site: rig.deliveries[site]),
    "agree": (masking.agree, lambda rig, site: rig.survivors),
    "reveal": (masking.reveal, lambda rig, site: rig.endorsement),
}
NAMES = {  # how an error names the stage
    "share": "sharing keys",
    "mask": "masking",
    "agree": "agreeing on the survivors",
    "reveal": "revealing shares",
}


def before(stage: str, n: int = 4, **more: Any) -> Rig:
    """A rig whose sites are about to be asked at this stage."""
    rig = Rig(n, **more)
    rig.run(STAGES[STAGES.index(stage) - 1])
    return rig


def ask(rig: Rig, site: str, stage: str, question: bytes, state: bytes | None = None) -> Any:
    function: Callable[..., Any] = ASKED[stage][0]
    words = [rig.plain[site].astype("<u4")] if stage == "mask" else []
    return function(rig.own[site], rig.terms, state or rig.states[site], question, *words)


def question(rig: Rig, site: str, stage: str) -> bytes:
    return ASKED[stage][1](rig, site)


def secrets_of(rig: Rig, site: str, state: bytes | None = None) -> dict[str, Any]:
    data = state or rig.states[site]
    plain = AESGCM(rig.own[site].rest).decrypt(data[:12], data[12:], b"foedus/secagg/state/1\n" + site.encode())
    return dict(json.loads(plain))


def to(kind: str, about: bytes, message: bytes) -> bytes:
    """The message with a head that says that it is about something else: what a server can always do."""
    return pack(kind, about, ()) + message[37:]


# ---- messages that are not what they should be ---------------------------------------------------------------------


MESSAGES = [*STAGES[1:], *(f"{stage} answer" for stage in STAGES if stage != "mask")]


@pytest.mark.properties
@drawn(what=st.sampled_from(MESSAGES), place=st.integers(0, 10**6), how=st.sampled_from(["flip", "cut", "longer"]))
@settings(max_examples=90)
def test_a_message_that_was_changed_costs_a_site_and_never_the_sum(what: str, place: int, how: str) -> None:
    def tamper(now: str, site: str, message: bytes) -> bytes:
        if (now, site) != (what, "s002"):
            return message
        at = place % len(message)
        flipped = bytes([message[at] ^ (1 << place % 8)])
        return {"flip": message[:at] + flipped + message[at + 1 :], "cut": message[:at], "longer": message + b"x"}[how]

    rig = Rig(5, tamper=tamper)
    try:
        found = rig.run()
    except Paused as error:  # a false share in somebody's answer or letter is found when secrets are put together
        assert "s00" in str(error) or "are needed" in str(error)
        return
    assert found.tolist() == rig.expected()


@pytest.mark.parametrize("stage", ASKED)
@pytest.mark.parametrize(
    "change", [lambda m: b"", lambda m: m[:-1], lambda m: m + b"\0", lambda m: m[:20], lambda m: b"x" + m]
)
def test_a_truncated_or_longer_message_is_refused_by_the_stages_name(
    stage: str, change: Callable[[bytes], bytes]
) -> None:
    rig = before(stage)
    with pytest.raises(Unsafe, match=f"site 's001', {NAMES[stage]}: .*drops out of the Task"):
        ask(rig, "s001", stage, change(question(rig, "s001", stage)))


@pytest.mark.parametrize("stage", ASKED)
@pytest.mark.parametrize("change", [{"round": 2}, {"attempt": 1}, {"run": "r0"}, {"task": 1}])
def test_a_message_of_another_task_is_refused(stage: str, change: dict[str, Any]) -> None:
    rig, old = before(stage), before(stage, **change)
    with pytest.raises(Unsafe, match=f"{NAMES[stage]}: it is about another run, round, attempt"):
        ask(rig, "s001", stage, question(old, "s001", stage))


@pytest.mark.parametrize("stage", ["share", "mask", "reveal"])
def test_an_old_message_with_a_new_head_is_refused_too(stage: str) -> None:
    """What is signed or encrypted in it names its Task."""
    rig, old = before(stage), before(stage, round=2)
    kind = {"share": "keys", "mask": "delivery", "reveal": "endorsement"}[stage]
    about = rig.terms.slot if stage == "share" else rig.terms.context
    with pytest.raises(Unsafe, match=f"{NAMES[stage]}: (a signature|an encrypted share|this site's own keys)"):
        ask(rig, "s001", stage, to(kind, about, question(old, "s001", stage)))


@pytest.mark.parametrize("stage", ASKED)
@pytest.mark.parametrize("other", ASKED)
def test_messages_out_of_order_are_refused(stage: str, other: str) -> None:
    if stage == other:
        return
    rig = before("reveal")
    state = {"share": "advertise", "mask": "share", "agree": "mask", "reveal": "agree"}[stage]
    early = Rig(4)
    early.run(state)
    with pytest.raises(Unsafe):
        ask(early, "s001", other, question(rig, "s001", stage))


@pytest.mark.parametrize(
    ("done", "asked"), [("advertise", "mask"), ("advertise", "agree"), ("share", "agree"), ("mask", "reveal")]
)
def test_a_stage_that_is_not_reached_is_refused_with_the_right_message(done: str, asked: str) -> None:
    rig = Rig(4)
    rig.run(done)
    later = {"mask": "delivery", "agree": "survivors", "reveal": "endorsement"}[asked]
    names: dict[str, bytes] = dict.fromkeys(rig.names, b"")
    message = pack(later, rig.terms.context, rig.names, names, *([{}] if asked == "mask" else []))
    with pytest.raises(Unsafe, match="it comes out of turn"):
        ask(rig, "s001", asked, message)


@pytest.mark.parametrize("stage", ["advertise", "share", "agree"])
def test_a_site_that_speaks_for_another_is_refused(stage: str) -> None:
    said: dict[str, bytes] = {}

    def tamper(now: str, site: str, message: bytes) -> bytes:
        if now == f"{stage} answer":
            said[site] = message
            return said.get("s001", message) if site == "s002" else message
        return message

    rig = Rig(5, tamper=tamper)
    found = rig.run()
    assert isinstance(rig.refusals[0], Refused) and "site 's002'" in str(rig.refusals[0])
    assert found.tolist() == rig.expected()


def test_a_key_that_the_pinned_register_does_not_have_is_refused() -> None:
    """The server enrols a friend under a name of the roster: sites look at the register that they pinned."""
    rig = before("share")
    impostor = Rig(4)
    impostor.own["s003"] = impostor.own["s003"]._replace(key=impostor.own["s002"].key)
    _, advert = masking.advertise(impostor.own["s003"], rig.terms)
    forged = dict(rig.adverts) | unpack("advertisement", rig.terms.slot, rig.names, advert, 129)[0]
    with pytest.raises(Unsafe, match="a signature is not of the key that the pinned register has"):
        ask(rig, "s001", "share", pack("keys", rig.terms.slot, rig.names, forged))
    del rig.publics["s003"]
    with pytest.raises(Unsafe, match="'s003' is not in the register that this site pinned"):
        ask(rig, "s001", "share", rig.keys)


def test_its_own_keys_changed_or_missing_are_noticed() -> None:
    rig, other = before("share"), before("share")
    with pytest.raises(Unsafe, match="own keys are not among them"):
        ask(
            rig, "s001", "share", pack("keys", rig.terms.slot, rig.names, rig.adverts | {"s001": other.adverts["s001"]})
        )
    rest = {site: advert for site, advert in rig.adverts.items() if site != "s001"}
    with pytest.raises(Unsafe, match="own keys are not among them"):
        ask(rig, "s001", "share", pack("keys", rig.terms.slot, rig.names, rest))


def test_a_public_key_that_gives_nothing_secret_is_refused() -> None:
    """The point of order 1: everybody would know the agreed secret. Its owner signs it, so it comes as far as here."""
    rig = before("share")
    own = rig.own["s003"]
    keys = rig.adverts["s003"][:1] + bytes(32) + rig.adverts["s003"][33:65]
    signed = keys + own.key.sign(b"foedus/maskingkeys/1\n" + rig.terms.slot + b"s003\n" + keys)
    with pytest.raises(Unsafe, match="sharing keys: a key or a number in it is none"):
        ask(rig, "s001", "share", pack("keys", rig.terms.slot, rig.names, rig.adverts | {"s003": signed}))


# ---- two models, two rosters ---------------------------------------------------------------------------------------


def test_sites_that_were_sent_two_models_do_not_take_part_in_one_sum() -> None:
    """Half of them see another model; the server puts the heads right, and the shares cannot be opened."""
    rig = before("share", n=6)
    other = rig.terms._replace(model="ee" * 32)
    views = {site: other if i % 2 else rig.terms for i, site in enumerate(rig.names)}
    shared = {}
    for site in rig.names:
        rig.states[site], message = masking.share(rig.own[site], views[site], rig.states[site], rig.keys)
        shared[site] = server.read_shares(views[site], rig.adverts, site, message)
    for site in rig.names:
        delivery = server.deliveries(views[site], shared)[site]
        words = rig.plain[site].astype("<u4")
        with pytest.raises(Unsafe, match="masking: an encrypted share was changed, or is for another Task"):
            masking.mask(rig.own[site], views[site], rig.states[site], delivery, words)
        assert words.tolist() == rig.plain[site].tolist()


@pytest.mark.parametrize(
    "change", [{"model": "ee" * 32}, {"job": "ee" * 32}, {"run": "r2"}, {"round": 4}, {"attempt": 1}]
)
def test_the_pairs_mask_is_another_one_in_another_view(change: dict[str, Any]) -> None:
    rig = before("share")
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(secrets_of(rig, "s000")["s"]))
    views = rig.terms, rig.terms._replace(**change)
    masks = [pair_mask(view, "s000", "s001", private, rig.adverts["s000"], rig.adverts["s001"]) for view in views]
    assert masks[0].key != masks[1].key


def test_one_sites_keys_serve_one_model_for_ever() -> None:
    rig = before("mask")
    other = rig.terms._replace(model="ee" * 32)
    with pytest.raises(Unsafe, match="masking: it is about another run, round, attempt, roster, model or Job"):
        masking.mask(
            rig.own["s001"], other, rig.states["s001"], rig.deliveries["s001"], rig.plain["s001"].astype("<u4")
        )


def test_keys_for_one_roster_are_refused_by_another() -> None:
    """They were made a round ahead, and then the cohort changed: they are dropped, and new ones made."""
    rig = before("share", n=5)
    smaller = masking.terms(*rig.terms[:4], rig.names[:4], rig.terms.model, rig.terms.job)
    with pytest.raises(Unsafe, match="it is about another run, round, attempt, roster"):
        masking.share(rig.own["s001"], smaller, rig.states["s001"], rig.keys)
    forged = to("keys", smaller.slot, pack("keys", rig.terms.slot, smaller.roster, rig.adverts))
    state, _ = masking.advertise(rig.own["s001"], smaller, after=rig.states["s001"])
    with pytest.raises(Unsafe, match=r"this site's own keys|a signature is not"):
        masking.share(rig.own["s001"], smaller, state, forged)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"threshold": 2}, "threshold 2 of 4 sites: it must be 3 to 4"),
        ({"roster": ("s001", "s000", "s002", "s003")}, "the Task's roster is not in order"),
        ({"roster": ("s000", "s002", "s003")}, "or this site is not in it"),
        ({"roster": ("s001",), "threshold": 1}, "a sealed Task asks 1 sites"),
    ],
)
def test_terms_from_the_server_that_protect_nobody_are_refused(change: dict[str, Any], why: str) -> None:
    rig = before("share")
    for function, told in ((masking.advertise, ()), (masking.share, (rig.states["s001"], rig.keys))):
        with pytest.raises(FoedusError, match=why):
            function(rig.own["s001"], rig.terms._replace(**change), *told)


# ---- survivors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["s000", "s002", "s003"], "lacks this one"),
        (["s000", "s001"], "2 sites are left, and this site is part of no sum of fewer than 4"),
        (["s000", "s001", "s002", "s003", "s004"], "the set has sites that shared nothing"),
    ],
)
def test_a_false_set_of_survivors_is_not_signed(names: list[str], why: str) -> None:
    rig = before("agree", n=5, lost={"s004": "share"})
    message = pack("survivors", rig.terms.context, rig.names, dict.fromkeys(names, b""))
    with pytest.raises(Unsafe, match=f"agreeing on the survivors: .*{why}"):
        ask(rig, "s001", "agree", message)


def test_a_site_signs_one_set_and_never_another() -> None:
    rig = before("reveal", n=7)
    fewer = server.survivors(rig.terms, rig.names[:6])
    with pytest.raises(Unsafe, match="agreeing on the survivors: the question was asked before, and was another one"):
        ask(rig, "s001", "agree", fewer)
    assert ask(rig, "s001", "agree", rig.survivors)[1]


def test_two_sets_never_both_find_enough_signers() -> None:
    """For every size and a colluding third: both sets need t signers, and an honest site signs one."""
    for n in range(2, 200):
        t, liars = 2 * n // 3 + 1, (n - 1) // 3
        honest = n - liars
        assert not any(a + liars >= t and honest - a + liars >= t for a in range(honest + 1)), n


def test_living_and_dead_sets_that_overlap_get_no_share() -> None:
    """The server tells some that s006 lives and others that it died, and has two liars sign both."""
    rig = before("agree", n=7)
    alive, dead = server.survivors(rig.terms, rig.names), server.survivors(rig.terms, rig.names[:6])
    told = {site: dead if i < 3 else alive for i, site in enumerate(rig.names)}
    signed: dict[bytes, dict[str, bytes]] = {alive: {}, dead: {}}
    for site, message in told.items():
        rig.states[site], answer = ask(rig, site, "agree", message)
        signed[message][site] = server.read_agreement(rig.terms, rig.publics, message, site, answer)
    liars = ["s000", "s005"]
    for message in (alive, dead):
        for site in liars:
            signature = rig.own[site].key.sign(b"foedus/survivors/1\n" + rig.terms.context + message)
            signed[message][site] = signature
    assert (len(signed[alive]), len(signed[dead]), rig.terms.threshold) == (5, 4, 5)
    for site in ("s001", "s002"):  # they were told that s006 died
        for message, why in ((dead, "4 of 5 survivors signed"), (alive, "a signature is not of the key")):
            with pytest.raises(Unsafe, match=f"revealing shares: {why}"):
                ask(rig, site, "reveal", pack("endorsement", rig.terms.context, rig.names, signed[message]))
    assert ask(rig, "s003", "reveal", pack("endorsement", rig.terms.context, rig.names, signed[alive]))


@pytest.mark.parametrize("forge", ["other set", "other key", "stranger", "too few"])
def test_an_endorsement_that_is_none_reveals_nothing(forge: str) -> None:
    rig = before("reveal", n=5, lost={"s004": "mask"})
    signatures = dict(rig.signatures)
    if forge == "other set":
        other = server.survivors(rig.terms, rig.names)
        signatures["s002"] = rig.own["s002"].key.sign(b"foedus/survivors/1\n" + rig.terms.context + other)
    elif forge == "other key":
        signatures["s002"] = signatures["s003"]
    elif forge == "stranger":
        del signatures["s002"]
        signed = b"foedus/survivors/1\n" + rig.terms.context + rig.survivors
        signatures["s004"] = rig.own["s004"].key.sign(signed)
    else:
        del signatures["s002"]
    message = pack("endorsement", rig.terms.context, rig.names, signatures)
    with pytest.raises(Unsafe, match=r"revealing shares: (a signature is not|3 of 4 survivors signed)"):
        ask(rig, "s001", "reveal", message)
    assert masking.kind(rig.own["s001"], rig.states["s001"]) == "agreed"
    assert not masking.released(rig.own["s001"], rig.states["s001"])


# ---- one secret, one way -------------------------------------------------------------------------------------------


def test_of_each_peer_one_share_is_revealed_and_the_state_keeps_no_secret() -> None:
    rig = before("reveal", n=5, lost={"s004": "mask"})
    known = secrets_of(rig, "s001")
    held = {site: bytes.fromhex(pair) for site, pair in known["held"].items()}
    rig.unmasked()
    (table,) = unpack("reveal", rig.terms.context, rig.names, rig.revealed["s001"], SHARE)
    assert table == {site: pair[:SHARE] if site == "s004" else pair[SHARE:] for site, pair in held.items()}
    hidden = [pair[SHARE:] if site == "s004" else pair[:SHARE] for site, pair in held.items()]
    left = json.dumps(secrets_of(rig, "s001"))
    assert not any(secret in left for secret in (known["b"], known["c"], known["s"], *(x.hex() for x in hidden)))
    assert set(secrets_of(rig, "s001")) == {
        "kind", "slot", "task", "context", "survivors", "released", "agreement", "reveal",
    }  # fmt: skip
    ended = masking.settled(rig.own["s001"], rig.states["s001"])
    assert set(secrets_of(rig, "s001", ended)) == {"kind", "slot", "task", "context", "survivors", "released"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_task_that_is_given_up_leaves_no_secret(stage: str) -> None:
    rig = Rig(4)
    rig.run(stage)
    own = rig.own["s001"]
    ended = masking.settled(own, rig.states["s001"])
    assert masking.kind(own, ended) == "over" and masking.released(own, ended) == (stage == "reveal")
    assert not set(secrets_of(rig, "s001", ended)) & {"b", "c", "s", "held", "mine", "reveal"}
    for asked in ASKED:
        message = rig.endorsement if asked == "reveal" and stage == "reveal" else b""
        with pytest.raises(Unsafe, match="this Task is over here"):
            ask(rig, "s001", asked, message, state=ended)


def test_fewer_shares_than_the_threshold_give_no_secret() -> None:
    """Three of ten collude with the server, which also has every share of survivors' seeds that they were told."""
    rig = before("reveal", n=10)
    liars = ["s007", "s008", "s009"]
    for victim in ("s000", "s003"):
        pairs = [(rig.names.index(liar) + 1, bytes.fromhex(secrets_of(rig, liar)["held"][victim])) for liar in liars]
        known = secrets_of(rig, victim)
        for kind, part in (("s", slice(0, SHARE)), ("b", slice(SHARE, None))):
            shares = [(x, int.from_bytes(pair[part], "little")) for x, pair in pairs]
            assert shamir.combine(shares) != int.from_bytes(bytes.fromhex(known[kind]), "little")
    rig.unmasked()
    for kind in ("c", "s", "b"):  # of honest sites only seeds came out, and they are of no use for pairwise masks
        assert all(kind not in secrets_of(rig, site) for site in rig.names)


def test_no_survivors_pairwise_key_can_be_put_together_from_all_that_was_revealed() -> None:
    rig = Rig(6, lost={"s005": "mask"})
    rig.run("agree")
    private = {site: secrets_of(rig, site)["s"] for site in rig.names}
    rig.unmasked()
    tables = [unpack("reveal", rig.terms.context, rig.names, m, SHARE)[0] for m in rig.revealed.values()]
    places = [rig.names.index(site) + 1 for site in rig.revealed]
    for site in rig.names:
        shares = [(x, int.from_bytes(table[site], "little")) for x, table in zip(places, tables, strict=True)]
        found = shamir.combine(shares) == int.from_bytes(bytes.fromhex(private[site]), "little")
        assert found == (site == "s005")  # of the lost site, whose own seed nobody gets


def test_false_shares_of_one_holder_are_left_aside() -> None:
    """Five of six hold enough: the server tries them round about, and knows the right seed by its commitment."""

    def tamper(now: str, site: str, message: bytes) -> bytes:
        return message[:-40] + bytes(40) if (now, site) == ("reveal answer", "s002") else message

    rig = Rig(6, tamper=tamper)
    assert rig.run().tolist() == rig.expected()


def test_false_shares_of_too_many_end_in_a_refusal_and_leave_the_sum_as_it_was() -> None:
    def tamper(now: str, site: str, message: bytes) -> bytes:
        if now != "reveal answer" or site > "s003":
            return message
        return message[:-SHARE] + bytes([message[-SHARE] ^ int(site[1:]) + 1]) + message[1 - SHARE :]  # s005's share

    rig = Rig(6, tamper=tamper)
    rig.run("agree")
    masked = rig.total.copy()
    with pytest.raises(Paused, match="the shares of 's005' do not fit"):
        rig.unmasked()
    assert (rig.total == masked).all()


# ---- restarts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ASKED)
def test_a_site_that_restarts_says_the_same_again(stage: str) -> None:
    """The state is on the disk and the answer was lost, or nobody knows: asked again, it sends the same bytes."""
    rig = before(stage)
    asked = question(rig, "s001", stage)
    if stage == "mask":
        first, second = rig.plain["s001"].astype("<u4"), rig.plain["s001"].astype("<u4")
        state = masking.mask(rig.own["s001"], rig.terms, rig.states["s001"], asked, first)
        again = masking.mask(rig.own["s001"], rig.terms, state, asked, second)
        assert (first == second).all() and state == again
        return
    state, said = ask(rig, "s001", stage, asked)
    _, again = ask(rig, "s001", stage, asked, state=state)
    assert said == again


def test_a_restart_at_every_stage_changes_nothing() -> None:
    """Each site answers each question twice, the second time from the state that the first one left."""
    rig = Rig(5, lost={"s004": "agree"})
    plain = rig.ask

    def twice(stage: str, function: Any, asked: Any, *more: Any) -> Any:
        if stage == "advertise":
            return plain(stage, function, asked, *more)
        if stage == "mask":
            plain(stage, function, asked, {site: x.astype("<u4") for site, x in rig.plain.items()})
            return plain(stage, function, asked, *more)
        first = plain(stage, function, asked, *more)
        assert plain(stage, function, asked, *more) == first
        return first

    rig.ask = twice  # type: ignore[method-assign]
    assert rig.run().tolist() == rig.expected()


def test_keys_of_this_attempt_are_advertised_again_as_they_were() -> None:
    rig = Rig(3)
    state, said = masking.advertise(rig.own["s000"], rig.terms)
    assert masking.advertise(rig.own["s000"], rig.terms, after=state)[1] == said
    assert masking.advertise(rig.own["s000"], rig.terms)[1] != said


def test_another_update_under_the_same_masks_is_zeroed_and_refused() -> None:
    """The difference of two masked updates is the difference of the updates."""
    rig = before("agree")
    words = (rig.plain["s001"] + 1).astype("<u4")
    with pytest.raises(Unsafe, match="another update was masked for this Task before"):
        masking.mask(rig.own["s001"], rig.terms, rig.states["s001"], rig.deliveries["s001"], words)
    assert not words.any()


@pytest.mark.parametrize("words", [np.zeros(3, "<i4"), np.zeros((2, 2), "<u4"), np.zeros(6, "<u4")[::2]])
def test_words_of_another_kind_are_refused(words: Any) -> None:
    rig = before("mask")
    with pytest.raises(Unsafe, match="give a flat array of uint32"):
        masking.mask(rig.own["s001"], rig.terms, rig.states["s001"], rig.deliveries["s001"], words)


def test_a_retry_before_any_share_left_has_new_keys_and_the_right_sum() -> None:
    rig = Rig(4, lost={"s002": "agree", "s003": "agree"})
    with pytest.raises(Paused, match="2 of 4 sites are there, and 3 are needed"):
        rig.run()
    again = Rig(4, attempt=1)
    for site, own in again.own.items():
        ended = masking.settled(own, rig.states[site])
        again.states[site], _ = masking.advertise(own, again.terms, after=ended)
    assert again.run().tolist() == again.expected()


def test_after_a_share_has_left_the_same_update_is_not_masked_again() -> None:
    rig = Rig(4)
    rig.run()
    own, later = rig.own["s001"], rig.terms._replace(attempt=1)
    ended = masking.settled(own, rig.states["s001"])
    with pytest.raises(Unsafe, match="its update is not masked a second time"):
        masking.advertise(own, later, after=ended)
    assert masking.advertise(own, later, after=ended, anew=True)
    with pytest.raises(Unsafe, match="is not over here, or is no earlier one"):
        masking.advertise(own, rig.terms, after=ended, anew=True)
    with pytest.raises(Unsafe, match="is not over here"):
        masking.advertise(own, later, after=rig.states["s001"], anew=True)
    assert masking.advertise(own, rig.terms._replace(round=4), after=ended)


# ---- states at rest, secrets in texts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [lambda s: s[:-1], lambda s: s[:5], lambda s: b"", lambda s: s[:30] + b"\0" + s[31:]]
)
def test_a_damaged_state_is_refused(change: Callable[[bytes], bytes]) -> None:
    rig = before("mask")
    with pytest.raises(Unsafe, match="reading its state: the file is damaged"):
        masking.kind(rig.own["s001"], change(rig.states["s001"]))


def test_a_state_is_of_one_site_and_shows_nothing() -> None:
    rig = before("mask")
    state = rig.states["s001"]
    with pytest.raises(Unsafe):
        masking.kind(rig.own["s002"], state)
    with pytest.raises(Unsafe):
        masking.kind(rig.own["s001"]._replace(name="s002"), state)
    known = secrets_of(rig, "s001")
    for name in ("b", "c", "s"):
        assert known[name].encode() not in state and bytes.fromhex(known[name]) not in state


def test_no_secret_is_in_a_repr() -> None:
    rig = before("mask")
    own, known = rig.own["s001"], secrets_of(rig, "s001")
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(known["s"]))
    mask = pair_mask(rig.terms, "s001", "s000", private, rig.adverts["s001"], rig.adverts["s000"])
    assert repr(own) == "Own('s001', least=2)" and repr(own.rest) not in repr(own)
    assert repr(mask).startswith("Mask(") and mask.key.hex() not in repr(mask) and repr(mask.key) not in repr(mask)


def test_the_commitment_says_which_seed_and_of_whom() -> None:
    rig = before("share")
    seeds = {commitment(rig.terms, site, bytes([i]) * 32) for site in ("s000", "s001") for i in (0, 1)}
    assert len(seeds) == 4


def test_a_site_takes_part_in_no_sum_of_fewer_than_it_says() -> None:
    rig = Rig(5, lost={"s003": "advertise"})
    rig.own["s001"] = rig.own["s001"]._replace(least=5)
    found = None
    with pytest.raises(Paused):
        found = rig.run()
    assert found is None and "sharing keys: only 4 sites have sent keys" in str(rig.refusals[0])


def test_a_stranger_in_the_servers_hands_is_an_error_of_the_server() -> None:
    rig = before("agree")
    with pytest.raises(FoedusError, match="'eve' was not asked"):
        server.survivors(rig.terms, [*rig.names, "eve"])
