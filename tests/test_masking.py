"""Secure aggregation without a network: known answers, a plain reference, exact sums whoever is lost and when."""

from __future__ import annotations

import hashlib
import hmac
import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import example, settings
from hypothesis import given as drawn
from hypothesis import strategies as st

from foedus.aggregators import Folding, fixed, mean
from foedus.aggregators.fixed import OutOfBound
from foedus.core import Origin, Update
from foedus.errors import FoedusError, Paused
from foedus.params import Params
from foedus.privacy import masking
from foedus.privacy.masking import server, streams
from foedus.privacy.masking.terms import WHOLE, degree, majority
from foedus.privacy.masking.words import LIMBS, joined, limbs
from secagg_rig import STAGES, Rig, given

# ---- known answers -------------------------------------------------------------------------------------------------


def test_the_stream_of_a_known_key() -> None:
    assert masking.stream(bytes(range(32)), 4).tolist() == [3053490418, 3500099882, 1788539817, 2155294429]


def test_the_other_stream_is_chacha20() -> None:
    """RFC 8439, appendix A.1, test vector 1: all-zero key and nonce."""
    first = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    assert masking.stream(bytes(32), 8, aes=False).tobytes() == first


def test_a_stream_does_not_depend_on_how_it_is_cut() -> None:
    key, long = bytes(range(32)), 3 * streams.BLOCK + 7
    whole = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(4 * long))
    assert masking.stream(key, long).tobytes() == whole


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256 for one block, without salt."""
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def test_derived_keys_are_hkdf_with_framed_parts() -> None:
    assert streams.derived(b"secret", b"a", b"bc") == hkdf(b"secret", b"\x00\x01a\x00\x02bc")
    assert streams.derived(b"secret", b"ab", b"c") != streams.derived(b"secret", b"a", b"bc")


def test_the_context_covers_every_fact() -> None:
    base = given(["a", "b", "c", "d"])
    others = [
        given(["a", "b", "c", "e"]),
        *(base._replace(**change) for change in (
            {"run": "r2"}, {"round": 4}, {"task": 1}, {"attempt": 1}, {"model": "00"}, {"job": "00"}, {"threshold": 4},
        )),
    ]  # fmt: skip
    assert len({base.context, *(other.context for other in others)}) == 9
    assert len({base.slot, *(other.slot for other in others)}) == 6  # model, Job and threshold come later


# ---- a plain reference ---------------------------------------------------------------------------------------------


def test_masked_words_are_those_of_a_plain_reference() -> None:
    rig = Rig(4)
    rig.run("mask")
    context, states = rig.terms.context, {}
    for site, own in rig.own.items():
        data = rig.states[site]
        states[site] = json.loads(
            AESGCM(own.rest).decrypt(data[:12], data[12:], b"foedus/secagg/state/1\n" + site.encode())
        )
    private = {site: X25519PrivateKey.from_private_bytes(bytes.fromhex(state["s"])) for site, state in states.items()}
    aes = streams.has_aes()

    def words(secret: bytes, *info: bytes) -> list[int]:
        key = hkdf(secret, b"".join(len(part).to_bytes(2, "big") + part for part in info))
        cipher = (
            Cipher(algorithms.AES(key), modes.CTR(bytes(16)))
            if aes
            else Cipher(algorithms.ChaCha20(key, bytes(16)), None)
        )
        drawn = cipher.encryptor().update(bytes(4 * 5))
        return [int.from_bytes(drawn[i : i + 4], "little") for i in range(0, 20, 4)]

    for site in rig.names:
        expected = rig.plain[site].tolist()
        seed = words(bytes.fromhex(states[site]["b"]), b"foedus/secagg/1/own", context, site.encode())
        expected = [x + y for x, y in zip(expected, seed, strict=True)]
        for peer in rig.names:
            if peer != site:
                public = X25519PublicKey.from_public_bytes(private[peer].public_key().public_bytes_raw())
                pair = sorted([site.encode(), peer.encode()])
                mask = words(private[site].exchange(public), b"foedus/secagg/1/pair", context, *pair)
                sign = 1 if site < peer else -1
                expected = [x + sign * y for x, y in zip(expected, mask, strict=True)]
        assert rig.words[site].tolist() == [x % 2**32 for x in expected]


# ---- sums ----------------------------------------------------------------------------------------------------------


@pytest.mark.properties
@drawn(n=st.integers(2, 7), data=st.data())
@settings(max_examples=60)
def test_the_sum_is_exact_whoever_is_lost_and_when(n: int, data: st.DataObject) -> None:
    stages = st.sampled_from([None, None, None, *STAGES])
    lost = {f"s{i:03}": stage for i in range(n) if (stage := data.draw(stages))}
    _right_or_paused(n, lost)


@pytest.mark.properties
@pytest.mark.parametrize("first", STAGES)
@pytest.mark.parametrize("second", STAGES)
def test_two_of_ten_lost_at_any_two_stages(first: str, second: str) -> None:
    assert _right_or_paused(10, {"s003": first, "s007": second})


def _right_or_paused(n: int, lost: dict[str, str]) -> bool:
    """Whether the sum came out; that it does exactly where two thirds go to the end."""
    rig = Rig(n, lost=lost)
    enough = len(rig.there("reveal")) >= majority(n)
    try:
        found = rig.run()
    except Paused:
        assert not enough
        return False
    assert enough and rig.refusals == []
    assert found.tolist() == rig.expected()
    return True


def test_all_three_of_three_are_needed_and_their_sum_is_right() -> None:
    rig = Rig(3, size=streams.BLOCK + 3)
    assert rig.run().tolist() == rig.expected()


def test_masked_words_look_like_nothing() -> None:
    """Zeros of one site become words whose bits are half ones, within six standard deviations."""
    rig = Rig(4, size=20_000)
    rig.plain["s001"][:] = 0
    rig.run("mask")
    ones = int(np.unpackbits(rig.words["s001"].view(np.uint8)).sum())
    assert abs(ones - 320_000) < 6 * 400  # sqrt(640,000 / 4)


@pytest.mark.properties
def test_above_64_sites_the_graph_is_sparse_and_the_sum_exact() -> None:
    lost = dict(zip([f"s{i:03}" for i in range(0, 70, 9)], [*STAGES, *STAGES], strict=False))
    rig = Rig(70, lost=lost)
    found = rig.run()
    assert found.tolist() == rig.expected() and rig.refusals == []
    picks = {site: len(theirs.sealed) for site, theirs in rig.shares.items()}
    assert max(picks.values()) <= degree(70) < 69


@pytest.mark.long
@pytest.mark.properties
def test_two_hundred_sites_of_which_thirty_are_lost() -> None:
    lost = {f"s{i:03}": STAGES[i % 5] for i in range(0, 180, 6)}
    rig = Rig(200, lost=lost)
    assert rig.run().tolist() == rig.expected()


def test_a_machine_without_aes_takes_the_other_stream_with_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(4, lost={"s003": "mask"})
    answers = iter([True, False, True, True])
    monkeypatch.setattr("foedus.privacy.masking.site.has_aes", lambda: next(answers))
    assert rig.run().tolist() == rig.expected()
    assert [advert[0] for advert in rig.adverts.values()] == [1, 0, 1, 1]


def test_keys_may_be_made_a_round_ahead() -> None:
    """They ride on the last message of the round before, when the next model is not known yet."""
    ahead = given(Rig(4).names, round=4, model="")
    rig = Rig(4, round=4, lost={"s003": "share"})
    for site, own in rig.own.items():
        rig.states[site], message = masking.advertise(own, ahead)
        rig.adverts[site] = server.read_advert(ahead, rig.publics, site, message)
    rig.keys = server.keys(ahead, rig.adverts)
    for step in (rig.shared, rig.masked, rig.agreed):
        step()
    assert rig.unmasked().tolist() == rig.expected() and rig.alive == ["s000", "s001", "s002"]


# ---- words ---------------------------------------------------------------------------------------------------------


def update(seed: int, weight: float) -> Update:
    rng = np.random.default_rng(seed)
    arrays = {"w": rng.uniform(-7, 7, 40_000).astype(np.float32), "d": rng.uniform(-1, 1, 3), "b": np.float32([seed])}
    return Update(Params(arrays, {"b": "buffer"}), weight)


def test_a_sealed_sum_has_the_bits_of_the_same_sum_with_masks_off() -> None:
    rig, weights = Rig(5, lost={"s002": "mask"}), [1.0, 130.0, 99.0, 2.0**-64, 1024.0]
    updates = {site: update(i, w) for i, (site, w) in enumerate(zip(rig.names, weights, strict=True))}
    rule = mean(arithmetic=fixed(8.0, 1024))
    assert rule.bind is not None
    bound = rule.bind(5)
    rig.plain = {site: masking.encode(bound, u.params.flats, u.weight) for site, u in updates.items()}
    total = rig.run()
    open_sum = Folding(rule, updates["s000"].params.spec, 5)
    for site in rig.alive:
        open_sum.add(updates[site], Origin(site, 0, 0))
    sizes = {group: (x.dtype.name, x.size) for group, x in updates["s000"].params.flats.items()}
    acc, weight = masking.decode(bound, sizes, total)
    assert weight == open_sum.weight() == sum(map(Fraction, [1.0, 130.0, 2.0**-64, 1024.0]))
    assert rig.alive == ["s000", "s001", "s003", "s004"]
    found, expected = bound.finish(acc, weight), open_sum.total().params.flats
    assert list(found) == list(expected) and len(found) == 3
    assert all(found[group].tobytes() == expected[group].tobytes() for group in expected)


def test_the_words_of_known_numbers() -> None:
    rule = mean(arithmetic=fixed((2**31 - 1) * 2.0**-16, 1.0))
    assert rule.bind is not None
    words = masking.encode(rule.bind(1), {"float32": np.float32([0.5, -0.5, 1, -1])}, 1.0)
    assert words[:4].tolist() == [32768, 4294934528, 65536, 4294901760]
    assert words[4:].tolist() == [0, 0, 0, 0, 0, 2**12, 0, 0, 0, 0]  # 1 is 2**92 units: bit 12 of the sixth limb


@pytest.mark.properties
@drawn(st.lists(st.tuples(st.integers(1, 2**29 - 1), st.integers(-92, 34)), min_size=1, max_size=20))
@example([(2**29 - 1, 35)] * 20)
def test_weights_add_up_exactly(parts: list[tuple[int, int]]) -> None:
    weights = [Fraction(m) * Fraction(2) ** e for m, e in parts]
    total = np.zeros(LIMBS, "<u4")
    for weight in weights:
        total = total + limbs(int(weight * 2**92))
    assert Fraction(joined(total), 2**92) == sum(weights)


def test_the_limbs_of_65536_sites_have_room() -> None:
    assert 65_536 * (2**16 - 1) < 2**32


@pytest.mark.parametrize(
    ("values", "weight", "why"),
    [
        ([8.1], 1.0, "8.1 is above bound=8"),
        ([float("nan")], 1.0, "nan is above bound=8"),
        ([1.0], 1025.0, "weight 1025 is above wmax=1024"),
    ],
)
def test_what_has_no_room_is_refused_at_the_site_and_never_clipped(
    values: list[float], weight: float, why: str
) -> None:
    rule = mean(arithmetic=fixed(8.0, 1024))
    assert rule.bind is not None
    with pytest.raises(OutOfBound, match=why):
        masking.encode(rule.bind(3), {"float32": np.float32(values)}, weight)


@pytest.mark.parametrize("weight", [1 / 3 * 2.0**-60, 0.0, -1.0])
def test_a_weight_that_has_no_units_is_refused(weight: float) -> None:
    rule = mean(arithmetic=fixed(8.0, 1024))
    assert rule.bind is not None
    with pytest.raises(FoedusError, match="at most 29 significant bits"):
        masking.encode(rule.bind(3), {"float32": np.float32([1])}, weight)


def test_only_sums_in_fixed_arithmetic_can_be_masked() -> None:
    with pytest.raises(FoedusError, match="only sums in fixed arithmetic"):
        masking.encode(mean(), {"float32": np.float32([1])}, 1.0)


@pytest.mark.parametrize("words", [np.zeros(12, "<u4"), np.zeros(11, "<u8")])
def test_a_sum_of_another_length_is_refused(words: Any) -> None:
    rule = mean(arithmetic=fixed(8.0, 1024))
    assert rule.bind is not None
    with pytest.raises(FoedusError, match="it has 11 words"):
        masking.decode(rule.bind(3), {"float32": ("float32", 1)}, words)


# ---- terms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "t"), [(2, 2), (3, 3), (4, 3), (5, 4), (10, 7), (20, 14), (64, 43), (100, 67)])
def test_the_threshold_by_hand(n: int, t: int) -> None:
    assert given([f"s{i}" for i in range(n)]).threshold == t == 2 * n // 3 + 1


@pytest.mark.parametrize(("names", "threshold", "why"), [
    (["a"], None, "2 to 65,536, each once"), (["a", "a"], None, "each once"),
    (list("abcd"), 2, "must be 3 to 4"), (list("abcd"), 5, "must be 3 to 4"),
])  # fmt: skip
def test_terms_that_protect_nobody_are_refused(names: list[str], threshold: int | None, why: str) -> None:
    with pytest.raises(FoedusError, match=why):
        given(names, threshold=threshold)


def test_a_higher_threshold_is_kept() -> None:
    assert given(list("abcdef"), threshold=6).threshold == 6
    with pytest.raises(Paused, match="5 of 6 sites are there, and 6 are needed"):
        Rig(6, lost={"s000": "mask"}, threshold=6).run()


def test_up_to_64_sites_everybody_shares_with_everybody() -> None:
    assert WHOLE == 64 and [degree(n) for n in (2, 3, 64)] == [1, 2, 63]
    assert degree(65) < 64


def test_messages_are_small() -> None:
    """Twenty sites: what one sends and gets beside its masked words is less than 20 KB."""
    rig = Rig(20)
    sizes: dict[str, int] = {}

    def count(what: str, site: str, message: bytes) -> bytes:
        sizes[site] = sizes.get(site, 0) + len(message)
        return message

    rig.tamper = count
    rig.run()
    assert max(sizes.values()) < 20_000
    assert server.fold(None, rig.words["s000"]).nbytes == 4 * 5  # 4 bytes a parameter
