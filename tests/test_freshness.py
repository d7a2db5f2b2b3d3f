"""Replays are refused without a clock and in bounded memory, and a copied agent is found."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foedus.errors import Denied
from foedus.wire.freshness import Life, Nonces, UnknownNonce, check_alive, check_life, next_life

# Nonces


def test_counters_must_rise_but_may_skip() -> None:
    nonces = Nonces()
    nonce = nonces.issue("north")
    for counter in (1, 2, 10):
        nonces.accept("north", nonce, counter)
    for counter in (10, 2, 9, 1, 0, -1):
        with pytest.raises(Denied, match=r"'north': counter -?\d+ was used \(replay\); count on from 10"):
            nonces.accept("north", nonce, counter)
    nonces.accept("north", nonce, 11)


def test_counters_start_at_one() -> None:
    nonces = Nonces()
    with pytest.raises(Denied, match="replay"):
        nonces.accept("north", nonces.issue("north"), 0)


def test_two_connections_of_a_site_count_apart() -> None:
    nonces = Nonces()
    first, second = nonces.issue("north"), nonces.issue("north")
    assert first != second
    nonces.accept("north", second, 5)
    nonces.accept("north", first, 1)
    nonces.accept("north", second, 6)


def test_a_replay_is_no_unknown_nonce_so_that_no_site_retries_it() -> None:
    nonces = Nonces()
    nonce = nonces.issue("north")
    nonces.accept("north", nonce, 1)
    with pytest.raises(Denied) as caught:
        nonces.accept("north", nonce, 1)
    assert not isinstance(caught.value, UnknownNonce)


def test_after_a_restart_of_the_server_a_site_is_told_to_ask_for_a_new_nonce() -> None:
    before, after = Nonces(), Nonces()
    nonce = before.issue("north")
    before.accept("north", nonce, 1)
    after.issue("north")
    for counter in (1, 2):
        with pytest.raises(UnknownNonce, match="ask for a new one and sign again"):
            after.accept("north", nonce, counter)
    after.accept("north", after.issue("north"), 1)


def test_the_nonce_of_one_site_is_unknown_for_another() -> None:
    nonces = Nonces()
    with pytest.raises(UnknownNonce):
        nonces.accept("south", nonces.issue("north"), 1)


def test_a_nonce_with_any_character_changed_is_unknown() -> None:
    nonces = Nonces()
    nonce = nonces.issue("north")
    for i, old in enumerate(nonce):
        for letter in {"A", "b", "=", "\n", "ü", chr(ord(old) ^ 1)} - {old}:
            with pytest.raises(UnknownNonce):
                nonces.accept("north", nonce[:i] + letter + nonce[i + 1 :], 1)
    nonces.accept("north", nonce, 1)


@given(st.text())
def test_no_text_makes_the_book_fail_in_another_way(text: str) -> None:
    with pytest.raises(UnknownNonce):
        Nonces().accept("north", text, 1)


def test_a_new_life_or_a_revocation_closes_the_nonces_before_it() -> None:
    nonces = Nonces()
    used, unused, south = nonces.issue("north"), nonces.issue("north"), nonces.issue("south")
    nonces.accept("north", used, 1)
    nonces.close("north")
    for nonce in (used, unused):
        with pytest.raises(UnknownNonce):
            nonces.accept("north", nonce, 2)
    nonces.accept("north", nonces.issue("north"), 1)
    nonces.accept("south", south, 1)


def test_strangers_who_ask_for_nonces_fill_no_memory_and_close_no_nonce() -> None:
    nonces = Nonces(open_per_key=4)
    nonce = nonces.issue("north")
    nonces.accept("north", nonce, 1)
    tracemalloc.start()
    try:
        for i in range(5_000):
            nonces.issue("north")
            nonces.issue(f"stranger-{i}")
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 20_000
    nonces.accept("north", nonce, 2)


def test_only_the_newest_nonces_in_use_stay_open_and_a_closed_one_never_opens_again() -> None:
    nonces = Nonces(open_per_key=3)
    issued = [nonces.issue("north") for _ in range(6)]
    for nonce in issued[1:]:
        nonces.accept("north", nonce, 7)
    for nonce in issued[:3]:
        for counter in (7, 8):
            with pytest.raises(UnknownNonce):
                nonces.accept("north", nonce, counter)
    for nonce in issued[3:]:
        nonces.accept("north", nonce, 8)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5))))
def test_no_request_is_taken_twice_and_fresh_ones_on_the_newest_nonces_always(calls: list[tuple[int, int]]) -> None:
    nonces = Nonces(open_per_key=3)
    issued = [nonces.issue("north") for _ in range(7)]
    taken: dict[int, list[int]] = {}
    for index, counter in calls:
        fresh = counter > max(taken.get(index, [0]))
        try:
            nonces.accept("north", issued[index], counter)
        except Denied:
            assert not fresh or index not in sorted({*taken, index})[-3:]
        else:
            assert fresh
            taken.setdefault(index, []).append(counter)


def test_of_many_threads_with_the_same_request_one_is_served() -> None:
    nonces = Nonces()
    nonce = nonces.issue("north")

    def served(counter: int) -> int:
        try:
            nonces.accept("north", nonce, counter)
        except Denied:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        for counter in range(1, 201):
            assert sum(pool.map(served, [counter] * 8)) == 1


# Lives


class Server:
    """What a server stores of one site."""

    def __init__(self) -> None:
        self.life: Life | None = None

    def start(self, life: Life) -> None:
        self.life = check_life("north", self.life, life)


class Agent:
    """What an agent keeps on its disk; a copy of the disk is a copy of the agent."""

    def __init__(self, disk: Life | None = None) -> None:
        self.disk = disk

    def start(self, server: Server | None, *, answered: bool = True) -> Life:
        self.disk = next_life(self.disk)
        if server is not None:
            server.start(self.disk)
            if answered:
                self.disk = self.disk._replace(confirmed=True)
        return self.disk

    def copy(self) -> Agent:
        return Agent(self.disk)


def test_each_start_of_an_agent_is_one_life_further() -> None:
    server, agent = Server(), Agent()
    assert [agent.start(server).number for _ in range(3)] == [1, 2, 3]
    check_alive("north", server.life, 3)


def test_a_start_whose_message_or_answer_was_lost_is_no_false_alarm() -> None:
    server, agent = Server(), Agent()
    for _ in range(3):
        agent.start(None)
        agent.start(server, answered=False)
        agent.start(None)
        agent.start(server)
        agent.start(server, answered=False)


def test_a_copy_is_found_at_the_next_start_of_either_and_stays_refused() -> None:
    server, agent = Server(), Agent()
    agent.start(server)
    clone = agent.copy()
    agent.start(server)
    for _ in range(5):  # as a service manager would: no number of restarts overtakes
        with pytest.raises(Denied, match=r"another agent uses the key of site 'north'.*Stop the copy"):
            clone.start(server)
        clone.disk = clone.disk._replace(confirmed=True) if clone.disk else None
    agent.start(server)


def test_where_the_copy_starts_first_the_original_is_refused_with_its_next_request() -> None:
    server, agent = Server(), Agent()
    life = agent.start(server)
    check_alive("north", server.life, life.number)
    agent.copy().start(server)
    with pytest.raises(Denied, match="this one is in life 1, the server knows life 2"):
        check_alive("north", server.life, life.number)
    with pytest.raises(Denied, match="another agent uses the key of site 'north'"):
        agent.start(server)


def test_of_many_agents_from_one_image_only_the_first_is_served() -> None:
    server, image = Server(), Agent()
    image.copy().start(server)
    for _ in range(3):
        with pytest.raises(Denied, match="another agent"):
            image.copy().start(server)


def test_an_agent_restored_from_an_old_backup_goes_back_and_is_told_the_remedy() -> None:
    server, agent = Server(), Agent()
    agent.start(server)
    backup = agent.copy()
    agent.start(server)
    agent.start(server)
    with pytest.raises(Denied, match=r"life 2, the server knows life 3.*old backup.*the owner revokes the key"):
        backup.start(server)


def test_a_request_before_any_start_is_refused_with_the_remedy() -> None:
    with pytest.raises(Denied, match="has not told this server of its start; restart its agent"):
        check_alive("north", None, 1)
