"""Private set intersection against plain arithmetic on the curve and plain sets, and between sites by Tasks."""

from __future__ import annotations

import sys
from itertools import combinations
from typing import Any

import pytest

from foedus import linkage
from foedus.errors import FoedusError, Missing
from foedus.wire.ed25519 import derived, key_from_seed

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493  # RFC 8032, 5.1
D = -121665 * pow(121666, -1, P) % P
BASE = (4 * pow(5, -1, P) % P).to_bytes(32, "little")  # y = 4/5, x even
SECRETS = {"bank": b"b" * 32, "shop": b"s" * 32, "clinic": b"c" * 32}


def decoded(point: bytes) -> tuple[int, int]:
    """(x, y) of RFC 8032, 5.1.3."""
    y = int.from_bytes(point, "little") & (2**255 - 1)
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    x = x if x * x % P == square else x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    return (x if x % 2 == point[31] >> 7 else P - x), y


def encoded(x: int, y: int) -> bytes:
    return (y | (x % 2) << 255).to_bytes(32, "little")


def added(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    t = D * a[0] * b[0] * a[1] * b[1] % P
    return (a[0] * b[1] + b[0] * a[1]) * pow(1 + t, -1, P) % P, (a[1] * b[1] + a[0] * b[0]) * pow(1 - t, -1, P) % P


def times(n: int, point: bytes) -> bytes:
    """The slow, plain way: double and add."""
    sum_, twice = (0, 1), decoded(point)
    while n:
        sum_ = added(sum_, twice) if n % 2 else sum_
        twice, n = added(twice, twice), n // 2
    return encoded(*sum_)


def test_blinding_is_multiplication_on_the_curve() -> None:
    number = linkage.scalar(b"x" * 32)
    n = int.from_bytes(number, "little")
    assert 0 < n < ORDER
    points = [BASE, linkage.hashed(b"ann")]
    assert linkage.blinded(points, number) == [times(n, point) for point in points]


def test_hashed_ids_are_points_of_the_group_of_prime_order_and_all_different() -> None:
    points = [linkage.hashed(str(i).encode()) for i in range(20)]
    assert len(set(points)) == 20
    assert all(times(ORDER, point) == encoded(0, 1) for point in points[:3])


def test_the_order_of_blinding_does_not_count() -> None:
    point, a, b = [linkage.hashed(b"ann")], linkage.scalar(b"a" * 32), linkage.scalar(b"b" * 32)
    assert linkage.blinded(linkage.blinded(point, a), b) == linkage.blinded(linkage.blinded(point, b), a)


def test_what_is_no_point_of_the_group_is_refused_and_named() -> None:
    number, low = linkage.scalar(b"x" * 32), encoded(0, P - 1)  # (0, -1) has order 2
    for bad in (low, (2).to_bytes(32, "little"), b"short"):
        with pytest.raises(FoedusError, match="point 1 is none of the group"):
            linkage.blinded([BASE, bad], number)


def test_ids_are_compared_as_text() -> None:
    assert linkage.identifier(7) == linkage.identifier("7") == linkage.identifier(b"7") == b"7"
    assert linkage.identifier("e\u0301") == linkage.identifier("\u00e9")  # é, in two pieces and in one
    for bad in (7.0, None, True):
        with pytest.raises(FoedusError, match="convert it at every site"):
            linkage.identifier(bad)


@pytest.mark.parametrize("count", [2, 3])
def test_the_intersection_and_the_union_are_those_of_plain_sets(count: int) -> None:
    people = {"bank": list(range(0, 24, 2)), "shop": list(range(0, 24, 3)), "clinic": list(range(23, 3, -1))}
    here = dict(list(people.items())[:count])
    found = linkage.intersection(here, SECRETS)
    common = set.intersection(*map(set, here.values()))
    assert found.common == len(common) == {2: 4, 3: 3}[count]  # 0 6 12 18, of which 0 is not in the clinic
    assert found.union == len(set().union(*here.values())) == {2: 16, 3: 23}[count]  # 12 + 8 - 4; all but 1
    for site, ids in here.items():
        assert [ids[i] for i in found.positions[site]] == [x for x in ids if x in common]


def test_a_person_twice_a_short_secret_and_nobody_at_all_are_refused() -> None:
    with pytest.raises(FoedusError, match="site 'shop' sent a point twice"):
        linkage.intersection({"bank": [1], "shop": [2, 2]}, SECRETS)
    with pytest.raises(FoedusError, match="secret of 4 bytes can be guessed"):
        linkage.scalar(b"1234")
    with pytest.raises(FoedusError, match="no site"):
        linkage.matched({})


def test_nothing_but_the_blinded_points_is_in_common_between_two_secrets() -> None:
    """What one site sends in two runs says nothing of who is in both: the points have nothing in common."""
    points = [linkage.hashed(x) for x in (b"ann", b"bob")]
    sent = [set(linkage.blinded(points, linkage.scalar(secret))) for secret in SECRETS.values()]
    assert not any(a & b for a, b in combinations([*sent, set(points)], 2))


def test_without_the_library_the_error_says_how_to_install_it(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "nacl", None)
    with pytest.raises(Missing, match=r"pip install 'foedus\[linkage\]'"):
        linkage.hashed(b"ann")


def test_a_sites_secret_comes_from_its_key_and_is_another_in_every_run() -> None:
    key = key_from_seed(bytes(32))
    one, other = derived(key, "run-1"), derived(key, "run-2")
    assert one == derived(key_from_seed(bytes(32)), "run-1") and len(bytes.fromhex(one)) == 32
    assert len({one, other, derived(key_from_seed(bytes(31) + b"1"), "run-1"), key.private_bytes_raw().hex()}) == 4
