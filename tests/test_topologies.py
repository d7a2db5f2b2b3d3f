"""Cyclic, gossip and hierarchical training against numbers worked out by hand, and what a leaver does to each.

One full-batch step of size 1/2 goes half of the way to a site's mean: north (2, 0 | 4), south (8, 0 | -8),
west (0, 4 | 0), with 2, 1 and 5 examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as sampled
from hypothesis import strategies as st

from foedus import (
    Algorithm,
    Decline,
    cyclic,
    fedavg,
    fedavgm,
    fedprox,
    gossip,
    grid,
    hierarchical,
    key,
    median,
    random_rings,
    ring,
)
from foedus.algorithms.graphs import Edges, Graph, given, metropolis
from foedus.algorithms.hierarchical import divided
from foedus.algorithms.mixing import mixed
from foedus.errors import JobError, Paused
from foedus.journal import Journal, Memory
from foedus.params import Params, digest, join
from tiny import NORTH, SITES, SOUTH, final, job, learner, many, played, points, working

HERE = key(0, 0, 0, "server", "graph")
PATH = {"south": ["north", "west"]}


def models(base: Algorithm | None = None, rounds: int = 2, sites: Mapping[str, Any] = SITES, **more: Any) -> Any:
    """site -> its own model after gossip, as plain lists; `graph=` and what the Job takes."""
    made = gossip(base, more.pop("graph", ring))
    shown = made._replace(params=lambda state: join(**state["models"]))
    found = played(job(shown, rounds=rounds, evaluate=0, **more), sites)[0].params
    return {site: {name: x.tolist() for name, x in found.part(site).items()} for site in sites}


def approx(w: Sequence[float], b: float) -> Any:
    return {"w": pytest.approx(w, rel=1e-6), "b": pytest.approx(b, rel=1e-6)}


# Cyclic.


def test_two_rounds_of_cyclic_training() -> None:
    # north (1, 0 | 2), south (4.5, 0 | -3), west (2.25, 2 | -1.5);
    # north (2.125, 1 | 1.25), south (5.0625, 0.5 | -3.375), west half of the way from there to (0, 4 | 0)
    ended, _ = played(job(cyclic()), SITES)
    assert final(ended) == {"w": [2.53125, 2.25], "b": -1.6875}


def test_cyclic_fedprox_pulls_back_to_the_model_that_arrived() -> None:
    # mu = 1: after half of the way the gradients cancel, so that two steps go as far as one does above.
    ended, _ = played(job(cyclic(fedprox(1.0)), learner=learner(epochs=2)), SITES)
    assert final(ended) == {"w": [2.53125, 2.25], "b": -1.6875}


def test_what_the_server_keeps_travels_along() -> None:
    # north: v = w = (1, 0 | 2); south: half of (7, 0 | -10) and half of v: v = (4, 0 | -4), w = (5, 0 | -2)
    ended, _ = played(job(cyclic(fedavgm(beta=0.5)), rounds=1), {"north": NORTH, "south": SOUTH})
    assert final(ended) == {"w": [5.0, 0.0], "b": -2.0}


def test_shuffled_cyclic_training_draws_its_way_by_key() -> None:
    rounds, sites = range(8), sorted(SITES)
    _, journal = played(job(cyclic(shuffle=True), rounds=8, evaluate=0), SITES)
    ways = [[journal.find("close", r, t)["counted"][0][0] for t in range(3)] for r in rounds]  # type: ignore[index]
    for r, way in enumerate(ways):
        wanted = list(sites)
        key(0, r, 0, "server", "way").numpy().shuffle(wanted)
        assert way == wanted
    assert len({tuple(way) for way in ways}) > 1


def test_who_declines_is_passed_by_and_training_goes_on() -> None:
    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        return (local, Decline("no power")) if site.name == "south" else usual()

    # north (1, 0 | 2), west (0.5, 2 | 1)
    ended, journal = played(job(cyclic(working(work)), rounds=1), SITES)
    assert final(ended) == {"w": [0.5, 2.0], "b": 1.0}
    assert [row["outcomes"][0][1] for row in journal.all("close")[:3]] == ["counted", "declined", "counted"]


@pytest.mark.parametrize("wrap", [cyclic, lambda base: hierarchical({"a": ["north"]}, base=base), gossip])
def test_where_nobody_trains_the_run_pauses_says_why_and_goes_on(wrap: Any) -> None:
    broken = [True]

    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        return (local, Decline("no power")) if broken[0] else usual()

    journal, made = Journal(Memory()), job(wrap(working(work)), rounds=1)
    with pytest.raises(Paused, match=r"north: declined \(no power\)"):
        played(made, SITES, journal=journal)
    broken[0] = False
    played(made, SITES, journal=journal)


# Gossip.


def test_two_rounds_of_gossip_over_a_path() -> None:
    # Degrees 1, 2, 1: the weights are (2/3, 1/3, 0), (1/3, 1/3, 1/3), (0, 1/3, 2/3). After round 0 the models are
    # (1, 0 | 2), (4, 0 | -4), (0, 2 | 0); averaged (2, 0 | 0), (5/3, 2/3 | -2/3), (4/3, 4/3 | -4/3); then half way.
    assert models(graph=PATH) == {
        "north": approx([2, 0], 2),
        "south": approx([29 / 6, 1 / 3], -13 / 3),
        "west": approx([2 / 3, 8 / 3], -2 / 3),
    }


def test_the_global_model_of_gossip_is_the_mean_of_all() -> None:
    # (2 + 29/6 + 2/3) / 3, (0 + 1/3 + 8/3) / 3, (2 - 13/3 - 2/3) / 3, whatever the graph
    for graph in (PATH, ring, random_rings(1)):
        ended, _ = played(job(gossip(graph=graph)), SITES)
        assert final(ended) == approx([2.5, 1.0], -1.0)


def test_gossip_over_a_whole_graph_is_fedavg_of_equal_sites() -> None:
    equal = {name: points([[i, -i, i * i]]) for i, name in enumerate("abc")}
    mine, theirs = (played(job(made, rounds=4), equal)[0] for made in (gossip(), fedavg()))
    assert final(mine) == approx(*final(theirs).values())


def test_gossip_takes_a_schedule_by_the_round_and_a_local_state() -> None:
    # The rate is 1 in round 0 and 1/2 in round 1: a quarter of the way from (2, 0 | 0) to (2, 0 | 4).
    assert models(fedavg(rate=lambda round: 1 / (1 + round)), graph=PATH)["north"] == approx([2, 0], 1)


@pytest.mark.parametrize("graph", [ring, grid, random_rings(1), given({"s00": ["s01", "s02", "s03"]})])
def test_averaging_is_a_product_with_the_weights_that_keeps_the_mean_and_comes_to_agree(graph: Graph) -> None:
    once = fedavg(rate=lambda round: float(round == 0))  # trains in round 0, and only averages afterwards
    sites = many(7)

    def stacked(rounds: int) -> Any:
        found = models(once, rounds, sites, graph=graph)
        return np.array([[*x["w"], x["b"]] for x in found.values()])

    first, last = stacked(1), stacked(12)
    wanted = first
    for r in range(1, 12):
        rows = metropolis(graph(list(sites), key(0, r, 0, "server", "graph")), list(sites))
        wanted = np.array([[rows[a].get(b, 0.0) for b in sites] for a in sites]) @ wanted
    np.testing.assert_allclose(last, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last.mean(0), first.mean(0), rtol=1e-5)
    assert (np.ptp(last, 0) < np.ptp(first, 0) / 2).all()


def test_who_declines_keeps_its_model_and_its_neighbours_go_on_with_it() -> None:
    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        return (local, Decline("no power")) if site.name == "west" and site.key.names[1] > 0 else usual()

    found = models(working(work), graph=PATH)
    assert found["west"] == {"w": [0.0, 2.0], "b": 0.0}
    assert found["south"] == approx([29 / 6, 1 / 3], -13 / 3)


def test_a_cohort_gossips_among_itself_and_the_others_keep_their_models() -> None:
    sites, made = many(6), gossip()
    shown = made._replace(params=lambda state: join(**state["models"]))
    early, late = (played(job(shown, rounds=r, cohort=2, evaluate=0), sites)[0].params for r in (3, 4))
    _, journal = played(job(made, rounds=4, cohort=2, evaluate=0), sites)
    asked = {site for site, _, _ in journal.find("close", 3, 0)["counted"]}  # type: ignore[index]
    same = {name for name in sites if early.part(name).spec and early.part(name) == late.part(name)}
    assert len(asked) == 2 and not same & asked and same


# Graphs.


def test_a_ring_closes_where_a_site_is_gone() -> None:
    assert ring(["a", "c", "d"]) == {("a", "c"), ("c", "d"), ("a", "d")}
    assert ring(["a", "b"]) == {("a", "b")} and ring(["a"]) == ring([]) == set()


def test_neighbours_of_who_is_gone_are_linked_and_who_is_new_is_linked_to_names_beside_it() -> None:
    star = given({"hub": ["a", "b", "c"]})
    assert star(["a", "b", "c", "hub"], HERE) == {("a", "hub"), ("b", "hub"), ("c", "hub")}
    assert star(["a", "b", "c"], HERE) == {("a", "b"), ("b", "c")}
    assert star(["a", "b", "bb", "hub"], HERE) == {("a", "hub"), ("b", "hub"), ("b", "bb"), ("bb", "hub")}
    assert star(["A", "a", "hub"], HERE) == {("A", "a"), ("a", "hub")}


def test_random_rings_are_others_in_each_round_and_hang_together() -> None:
    names = [f"s{i}" for i in range(12)]
    drawn = [random_rings(2)(names, key(0, r, 0, "server", "graph")) for r in range(5)]
    assert len({frozenset(edges) for edges in drawn}) == 5
    assert all(len(reached(edges, names[0])) == 12 for edges in drawn)
    with pytest.raises(JobError, match="whole number of rings"):
        random_rings(0)


def reached(edges: Edges, start: str) -> set[str]:
    known = {start}
    while more := {x for edge in edges if known & set(edge) for x in edge} - known:
        known |= more
    return known


@pytest.mark.properties
@sampled(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_the_weights_are_symmetric_and_rows_and_columns_add_up_to_one(drawn: tuple[int, set[tuple[int, int]]]) -> None:
    names = [str(i) for i in range(drawn[0])]
    rows = metropolis({(str(min(e)), str(max(e))) for e in drawn[1] if e[0] != e[1]}, names)
    w = np.array([[rows[a].get(b, 0.0) for b in names] for a in names])
    assert (w == w.T).all() and (w >= 0).all() and (w.diagonal() > 0).all()
    np.testing.assert_allclose(w.sum(0), 1, rtol=1e-12)


@pytest.mark.properties
@sampled(st.sets(st.sampled_from("abcdefgh"), min_size=1), st.sets(st.sampled_from("abcdefgh"), min_size=1))
def test_a_connected_graph_stays_connected_whoever_is_gone_or_new(named: set[str], there: set[str]) -> None:
    chain, names = sorted(named), sorted(there)
    graph = given({a: [b] for a, b in pairwise(chain)} | {chain[-1]: []})
    if set(names) & set(chain):
        assert reached(graph(names, HERE), names[0]) == there


# Hierarchical.


def test_edges_average_on_their_own_before_they_meet() -> None:
    # land: mean (4, 0 | 0) by examples (2, 1), so (2, 0 | 0) and then (3, 0 | 0); sea: (0, 2 | 0) and (0, 3 | 0);
    # together by 3 and 5 examples: (9/8, 15/8 | 0). In round 1 an edge goes 3/4 of the way from there to its mean.
    groups = {"land": ["north", "south"], "sea": ["west"]}
    first, _ = played(job(hierarchical(groups), rounds=1), SITES)
    assert final(first) == {"w": [1.125, 1.875], "b": 0.0}
    # land: (4 - 23/32, 15/32), sea: (9/32, 4 - 17/32); (3 * 105/32 + 5 * 9/32) / 8, (3 * 15/32 + 5 * 111/32) / 8
    second, _ = played(job(hierarchical(groups)), SITES)
    assert final(second) == {"w": [1.40625, 2.34375], "b": 0.0}


def test_one_round_at_the_edges_is_a_tree_of_exact_folds() -> None:
    flat, tree = fedavg(), hierarchical({"land": ["north", "south"]}, rounds=1)
    assert digest(played(job(flat), SITES)[0].params) == digest(played(job(tree), SITES)[0].params)


def test_one_group_of_all_is_twice_as_many_rounds() -> None:
    one, flat = hierarchical({"all": sorted(SITES)}, 3), fedavg()
    assert final(played(job(one), SITES)[0]) == final(played(job(flat, rounds=6), SITES)[0])


def test_an_edge_may_take_a_median_and_who_is_in_no_group_is_one_of_its_own() -> None:
    # the median of north and south is their mean: (5, 0 | -2), half of it and then 3/4; west is alone: (0, 3 | 0)
    base = fedavg(aggregator=median())
    ended, _ = played(job(hierarchical({"land": ["north", "south"]}, base=base), rounds=1), SITES)
    assert final(ended) == {"w": [(3 * 3.75) / 8, 15 / 8], "b": (3 * -1.5) / 8}
    assert divided({"x": ["b", "a"], "y": ["gone"]}, ["a", "b", "c", "d"]) == [["a", "b"], ["c"], ["d"]]


def test_a_group_that_declines_is_passed_by() -> None:
    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        return (local, Decline("no power")) if site.name == "west" else usual()

    ended, _ = played(job(hierarchical({"a": ["north", "south"]}, base=working(work)), rounds=1), SITES)
    assert final(ended) == {"w": [3.0, 0.0], "b": 0.0}


def test_groups_are_checked_when_the_algorithm_is_made() -> None:
    with pytest.raises(JobError, match="site 'x' is in two groups"):
        hierarchical({"a": ["x", "y"], "b": ["x"]})
    with pytest.raises(JobError, match="rounds=0"):
        hierarchical({"a": ["x"]}, 0)


def test_what_a_topology_wraps_is_a_part_of_the_job() -> None:
    made = [
        *(wrap(base) for wrap in (cyclic, gossip) for base in (fedavg(), fedprox(0.1), fedprox(0.2))),
        *(gossip(graph=graph) for graph in (grid, random_rings(1), random_rings(2), PATH, {"west": ["north"]})),
        *(hierarchical({"a": sites}, n) for sites in (["x"], ["x", "y"]) for n in (2, 3)),
        cyclic(shuffle=True),
    ]
    assert len({job(algorithm).digest for algorithm in made}) == len(made)


@pytest.mark.parametrize("wrap", [cyclic, gossip, partial(hierarchical, {"a": ["s00", "s03"]}, 2)])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits_and_can_be_replayed(wrap: Any, tmp_path: Path) -> None:
    def cut(line: Mapping[str, Any]) -> None:
        if line["round"] == 1:
            raise KeyboardInterrupt

    made, sites, journal = job(wrap(moving()), rounds=4), many(4), Journal(Memory())
    whole, other = played(made, sites)
    with pytest.raises(KeyboardInterrupt):
        played(made, sites, journal=journal, told=cut, folder=tmp_path)
    assert digest(played(made, sites, journal=journal, folder=tmp_path)[0].params) == digest(whole.params)
    assert digest(played(made, sites, script=other)[0].params) == digest(whole.params)


def moving() -> Algorithm:
    """FedAvg whose sites remember how often they were asked, and go farther each time."""

    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        times = 1 + (local or 0)
        _, update = usual()
        return times, update._replace(params=0.1 * times * update.params)

    return working(work)


def test_equal_models_have_themselves_as_their_mean() -> None:
    one = Params({"w": np.float32([0.1, 1e-30, -3e20]), "steps": np.int64(7)})
    assert mixed([one] * 3, [1 / 3, 1 / 3, 1 - 2 / 3]) == one
