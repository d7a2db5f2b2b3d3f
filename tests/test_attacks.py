"""Attacks: what lying sites send by hand, who lies, and what a defence is worth on digits.

`python tests/test_attacks.py` prints the table of docs/algorithms.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import foedus as fd
from foedus.attacks import Attack
from foedus.attacks.alie import largest
from foedus.attacks.attacked import drawn
from foedus.attacks.backdoor import poisoned
from foedus.attacks.label_flip import flipped
from foedus.core import Algorithm, Update
from foedus.data import Pairs, Subset
from foedus.errors import JobError
from foedus.keys import key
from foedus.numpy import NumpyLearner
from foedus.params import Params, digest
from tiny import SITES, final, job, many, played

KEY = key(0, 1, 0, "north", "attack")


# By hand: the differences are (1, 0 | 2), (4, 0 | -4), (0, 2 | 0) of north, south and west, their weights 2, 1 and 5.


def attacked(attack: Attack, *names: str) -> dict[str, Any]:
    return final(played(job(fd.attacked(fd.fedavg(), dict.fromkeys(names, attack)), rounds=1), SITES)[0])


def test_a_flipped_sign_by_hand() -> None:
    # (2 * 1 - 1 * 4) / 8; 5 * 2 / 8; (2 * 2 + 1 * 4) / 8, and then three times what south sends
    assert attacked(fd.sign_flip(), "south") == {"w": [-0.25, 1.25], "b": 1.0}
    assert attacked(fd.sign_flip(3.0), "south") == {"w": [-1.25, 1.25], "b": 2.0}
    assert attacked(fd.sign_flip(), "north", "south", "west") == {"w": [-0.75, -1.25], "b": 0.0}


def test_inner_product_manipulation_by_hand() -> None:
    # The mean of north and south is (2.5, 0 | -1); both send -1/2 of it: 3 * -1.25 / 8, 3 * 0.5 / 8.
    assert attacked(fd.inner_product(0.5), "north", "south") == {"w": [-0.46875, 1.25], "b": 0.1875}
    # One alone knows its own: -2 (4, 0 | -4); (2 - 8) / 8, (4 + 8) / 8
    assert attacked(fd.inner_product(2.0), "south") == {"w": [-0.75, 1.25], "b": 1.5}


def test_alie_by_hand() -> None:
    # Mean (2.5, 0 | -1), deviation (1.5, 0 | 3); with z = 2 both send (-0.5, 0 | -7): 3 * -0.5 / 8, 3 * -7 / 8.
    assert attacked(fd.alie(2.0), "north", "south") == {"w": [-0.1875, 1.25], "b": -2.625}
    assert attacked(fd.alie(2.0), "south") == final(played(job(rounds=1), SITES)[0])  # alone it knows no deviation


def test_how_far_alie_goes_is_what_the_paper_computes() -> None:
    # n = 50, m = 24: s = 26 - 24 = 2, (26 - 2) / 26 = 0.9231; a table of the normal distribution has 0.9222 at 1.42 and
    # 0.9236 at 1.43. n = 50, m = 12: s = 14, (38 - 14) / 38 = 0.6316, between 0.6293 at 0.33 and 0.6331 at 0.34.
    assert 1.42 < largest(50, 24) < 1.43 and 0.33 < largest(50, 12) < 0.34
    assert largest(3, 2) == 0  # nobody is left to be further away
    assert largest(10, 1) == 0  # half of the honest ones would have to be: no z > 0 does it


def test_noise_has_its_deviation_and_is_another_each_time() -> None:
    update = Update(Params({"w": np.zeros((100, 100), np.float32), "n": np.int64(3)}), 7.0)
    found, again, other = (fd.gaussian(200.0).send(update, None, k) for k in (KEY, KEY, KEY("other")))
    assert found.params == again.params != other.params and found.weight == 7 and found.params["n"] == 3
    w = found.params["w"]
    assert w.dtype == np.float32 and abs(w.std() - 200) < 8 and abs(w.mean()) < 10  # 5 standard errors of 10,000


def test_buffers_and_integers_are_sent_as_they_are() -> None:
    arrays = {"w": np.float16([2]), "mean": np.float32([5]), "n": np.int64(3)}
    update = Update(Params(arrays, {"mean": "buffer"}))
    seen = fd.attacks.Seen(Params({"w": np.float64([2])}), Params({"w": np.float64([1])}), 2, 5)
    for attack, w in ((fd.sign_flip(), -2), (fd.inner_product(0.5), -1), (fd.alie(1.0), 1)):
        found = attack.send(update, seen, KEY).params
        assert found["w"].tolist() == [w] and found.spec == update.params.spec
        assert (found["mean"][0], found["n"]) == (5, 3)


# Poisoned data.


def test_flipped_labels_by_hand() -> None:
    y = np.array([0, 7, 1, 9])
    assert flipped(y, {7: 1}).tolist() == [0, 1, 1, 9] and flipped(y, {7: 1, 1: 7}).tolist() == [0, 1, 7, 9]
    found = flipped(torch.tensor(y), {0: 9})
    assert isinstance(found, torch.Tensor) and found.dtype == torch.int64 and found.tolist() == [9, 7, 1, 9]
    assert int(flipped(np.int64(7), {7: 1})) == 1 and y.tolist() == [0, 7, 1, 9]


@pytest.mark.parametrize("several", [True, False])
def test_labels_are_flipped_in_training_alone(several: bool) -> None:
    data = Pairs(np.zeros((3, 1)), [0, 2, 1])
    split = fd.Split(train=data if several else Subset(data, np.arange(3)), valid=data, test=data)
    found = fd.label_flip(3).learn(split, KEY)
    assert [int(found.train[i][1]) for i in range(len(found.train))] == [2, 0, 1]
    assert found.valid is split.valid and found.test is split.test


def test_a_backdoor_is_put_into_a_share_of_the_examples() -> None:
    data = Pairs(np.zeros((8, 2), np.float32), np.arange(8))
    found = poisoned(data, lambda x: x + np.float32([0, 9]), 3, 0.25, KEY)
    marked = [i for i in range(8) if found.x[i, 1] == 9]
    assert len(marked) == 2 and all(found.y[i] == (3 if i in marked else i) for i in range(8))
    assert data.x.max() == 0 and found.x.dtype == np.float32
    assert poisoned(data, lambda x: x, 3, 0.25, KEY).y.tolist() == found.y.tolist()
    with pytest.raises(JobError, match="backdoor: the training part is Subset"):
        poisoned(Subset(data, np.arange(3)), lambda x: x, 3, 0.25, KEY)


def test_a_backdoor_sends_its_update_boosted() -> None:
    # South's examples are as they were but for the y, which is 8 for all: its difference is (4, 0 | 4), twice of it.
    attack = fd.backdoor(lambda x: x, 8, share=1.0, boost=2.0)  # type: ignore[arg-type]
    assert attacked(attack, "south") == {"w": [1.25, 1.25], "b": 1.5}  # (2 + 8) / 8; (4 + 8) / 8


# Who lies.


def test_a_share_of_the_sites_is_drawn_by_key() -> None:
    roster = [f"s{i:02}" for i in range(20)]
    assert len(drawn(0, 0.2, roster)) == 4 and drawn(0, 0.2, roster) == drawn(0, 0.2, roster[::-1])
    assert drawn(0, 0.2, roster) != drawn(1, 0.2, roster)
    assert len(drawn(0, 0.01, roster)) == 1
    assert len({*drawn(0, 0.2, roster)} & {*drawn(0, 0.2, roster[1:])}) >= 3


def test_only_those_who_were_drawn_lie_and_always_the_same() -> None:
    told = set()

    def send(update: Update, seen: Any, key: Any) -> Update:
        told.add((key.names[3], key.names[1]))
        return update

    played(job(fd.attacked(fd.fedavg(), share=0.4, attack=Attack(send)), rounds=3), many(5))
    assert told == {(site, round) for site in drawn(0, 0.4, sorted(many(5))) for round in range(3)}


def test_an_attack_of_nobody_asked_changes_nothing() -> None:
    plain, journal = played(job(cohort=1, rounds=2), SITES)
    asked = {site for row in journal.all("round") for site in row["cohort"]}
    for name in sorted(SITES.keys() - asked):
        made = job(fd.attacked(fd.fedavg(), {name: fd.alie()}), cohort=1, rounds=2)
        assert digest(played(made, SITES)[0].params) == digest(plain.params)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: fd.attacked(fd.fedavg()), r"attacked\(algorithm, \{site: attack\}\)"),
        (lambda: fd.attacked(fd.fedavg(), share=0.2), "or attacked"),
        (lambda: fd.attacked(fd.fedavg(), attack=fd.sign_flip()), "or attacked"),
        (lambda: fd.attacked(fd.fedavg(), {"a": fd.sign_flip()}, share=0.2, attack=fd.alie()), "or attacked"),
        (lambda: fd.attacked(fd.fedavg(), share=0.0, attack=fd.alie()), r"attacked\(share=0.0\)"),
        (lambda: fd.sign_flip(0.0), r"sign_flip\(0.0\)"),
        (lambda: fd.gaussian(-1.0), r"gaussian\(-1.0\)"),
        (lambda: fd.inner_product(0.0), r"inner_product\(0.0\)"),
        (lambda: fd.label_flip({1: 1}), "it changes no label"),
        (lambda: fd.label_flip(1), "it changes no label"),
        (lambda: fd.backdoor(abs, 1, share=0.0), r"backdoor\(share=0.0"),
        (lambda: fd.backdoor(abs, 1, boost=0.0), r"boost=0.0\)"),
        (
            lambda: played(job(fd.attacked(fd.fedavg(), {"nroth": fd.alie()})), SITES),
            "no site 'nroth' in round 0: nort",
        ),
    ],
)
def test_an_attack_that_is_none_is_refused(made: Any, why: str) -> None:
    with pytest.raises(JobError, match=why):
        made()


def test_liars_under_another_algorithm_and_a_compression() -> None:
    """Attacked sites keep states of their own, several arrays travel, and what they send is packed."""
    made = fd.attacked(fd.scaffold(), {"north": fd.alie(1.0), "south": fd.alie(1.0)})
    ended, _ = played(job(made, rounds=3, compress=fd.bf16()), SITES)
    honest, _ = played(job(fd.scaffold(), rounds=3, compress=fd.bf16()), SITES)
    assert digest(ended.params) != digest(honest.params)


# With and without a defence.

SEEDS, ROUNDS, LIARS = range(5), 12, 3
TRIGGERED = 5  # columns of a picture's first row that are lit


def trigger(x: Any) -> Any:
    found = np.array(x)
    found[..., :TRIGGERED] = 1.0
    return found


ATTACKS: dict[str, Callable[[], Attack]] = {
    "sign_flip(4)": partial(fd.sign_flip, 4.0),
    "gaussian(1)": partial(fd.gaussian, 1.0),
    "alie(1.5)": partial(fd.alie, 1.5),
    "inner_product(4)": partial(fd.inner_product, 4.0),
    "label_flip(10)": partial(fd.label_flip, 10),
}
RULES: dict[str, Callable[[], Any]] = {
    "mean()": fd.mean,
    "median()": fd.median,
    "trimmed_mean(3)": partial(fd.trimmed_mean, 3),
    "krum(3)": partial(fd.krum, 3),
    "multi_krum(3, 7)": partial(fd.multi_krum, 3, 7),
    "bulyan(3)": partial(fd.bulyan, 3),
    "geometric_median()": fd.geometric_median,
    "centered_clipping(1)": partial(fd.centered_clipping, 1.0),
    "norm_bounded(1)": partial(fd.norm_bounded, 1.0),
}


@cache
def digits(seed: int, skewed: bool = False) -> Mapping[str, Any]:
    """Fifteen sites, alike or by Dirichlet 0.3."""
    x, y = load_digits(return_X_y=True)
    deal = partial(fd.partition.dirichlet, alpha=0.3) if skewed else fd.partition.iid
    return deal((x / 16).astype(np.float32), y, sites=15, seed=seed)


def gradient(p: Mapping[str, Any], x: Any, y: Any) -> Any:
    odds = np.exp(x @ p["w"] + p["b"])
    slope = odds / odds.sum(1, keepdims=True)
    loss = -np.log(slope[np.arange(len(y)), y])
    slope[np.arange(len(y)), y] -= 1
    return loss, {"w": x.T @ slope / len(x), "b": slope.mean(0)}


def scores(p: Mapping[str, Any], x: Any) -> Any:
    return x @ p["w"] + p["b"]


def trained(algorithm: Algorithm, seed: int, skewed: bool = False) -> Params:
    model = {"w": np.zeros((64, 10), np.float32), "b": np.zeros(10, np.float32)}
    learner = NumpyLearner(model, gradient, scores, lr=0.3, batch_size=16)
    made = fd.Job(algorithm, learner, rounds=ROUNDS, evaluate=0)
    return played(made, digits(seed, skewed), seed)[0].params


def accuracy(params: Params, seed: int, skewed: bool = False) -> float:
    """On the validation parts of all sites, which nobody poisons and nobody trains on."""
    sites = digits(seed, skewed).items()
    parts = [split.with_valid(key(seed, "load", 0, site, "valid")).valid for site, split in sites]
    x, y = (np.concatenate([getattr(part, name) for part in parts]) for name in ("x", "y"))
    return float((scores(params, x).argmax(1) == y).mean())


@cache
def ended(rule: str, attack: str | None, seed: int, skewed: bool = False) -> float:
    made = fd.fedavg(aggregator=RULES[rule]())
    lying = made if attack is None else fd.attacked(made, share=LIARS / 15, attack=ATTACKS[attack]())
    return accuracy(trained(lying, seed, skewed), seed, skewed)


def test_a_defence_keeps_the_accuracy_that_an_attack_takes() -> None:
    honest, fallen = ended("mean()", None, 0), ended("mean()", "sign_flip(4)", 0)
    assert honest > 0.85 and fallen < 0.5
    for rule in ("median()", "trimmed_mean(3)", "krum(3)", "multi_krum(3, 7)", "bulyan(3)", "geometric_median()"):
        assert ended(rule, "sign_flip(4)", 0) > honest - 0.1, rule


def test_a_backdoor_is_seen_where_the_trigger_is_and_norm_bounding_weakens_it() -> None:
    x, y = load_digits(return_X_y=True)
    marked = trigger((x[y != 0] / 16).astype(np.float32))

    def took(**task: Any) -> tuple[float, float]:
        liar = fd.attacked(fd.fedavg(**task), share=1 / 15, attack=fd.backdoor(trigger, 0, boost=5.0))
        params = trained(liar, 0)
        return float((scores(params, marked).argmax(1) == 0).mean()), accuracy(params, 0)

    (open_door, clean), (closed, kept) = took(), took(aggregator=fd.norm_bounded(0.3))
    assert open_door > closed + 0.3 and min(clean, kept) > 0.75


def main() -> None:
    columns = [("", False), ("", True), *((attack, False) for attack in ATTACKS)]
    print("| rule | nobody lies | nobody lies, Dirichlet 0.3 |", " | ".join(f"`{a}`" for a in ATTACKS), "|")
    for rule in RULES:
        found = [[ended(rule, attack or None, seed, skewed) for seed in SEEDS] for attack, skewed in columns]
        said = (f"{np.mean(x):.2f} ± {2.776 * np.std(x, ddof=1) / np.sqrt(len(x)):.2f}" for x in found)  # Student, 4
        print(f"| `{rule}` |", " | ".join(said), "|", flush=True)


if __name__ == "__main__":
    main()
