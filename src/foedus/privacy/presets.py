"""A Job's privacy by one word, and what is said of any: aloud when a run begins, signed when it is submitted.
Protections come in as values; nothing here protects anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foedus.privacy.dp_sgd import dp_sgd
from foedus.privacy.he import he
from foedus.privacy.secagg import secagg

RELAYS = "relays"  # a trait of algorithms whose sites write to one another: they are given the pinned register
READABLE = "the server can read each site's update"
HOSPITAL = (dp_sgd(clip=1.0, epsilon=8.0, delta=1e-5), secagg())
WORDS: dict[str, tuple[Any, ...]] = {"none": (), "secagg": (secagg(),), "he": (he(),), "hospital": HOSPITAL}
MEANS = {
    "none": f"no protection: {READABLE}, and each site's policy must allow that",
    "secagg": "secure aggregation: the server sees sums of updates, weights and metrics alone, never one site's",
    "he": "homomorphic encryption: the server adds what it cannot read; sites share the key, metrics are open",
    "hospital": (
        f"DP-SGD of records (clip {HOSPITAL[0].clip:g}, epsilon {HOSPITAL[0].epsilon:g} at delta "
        f"{HOSPITAL[0].delta:g} for each site, over the whole run) under secure aggregation, counted in each site's "
        "ledger"
    ),
}
RELAYED = "the server hands on updates that it cannot read, and other sites read them"  # swarm, sealed gossip
UNSTATED = "\n".join(
    (
        "real sites are asked, and nothing says how private their updates are: write Job(privacy=…), or give one of",
        *(f"  --privacy {word:9} {means}" for word, means in MEANS.items() if word != "he"),
    )
)


def parts(privacy: Any) -> list[Any]:
    """The protections that a Job's `privacy` names, each word as what it stands for; strange ones as they are."""
    spelt = [WORDS.get(x, (x,)) if isinstance(x, str) else (x,) for x in _named(privacy) if x is not None]
    return [x for each in spelt for x in each]


def _named(privacy: Any) -> list[Any]:
    several = isinstance(privacy, (list, tuple)) and not hasattr(privacy, "_fields")
    return list(privacy) if several else [privacy]


def plain(privacy: Any) -> Any:
    """What a Job's description has of it: None for none at all, and the numbers that `hospital` stands for."""
    found = parts(privacy)
    return (found if "hospital" in _named(privacy) else privacy) if found else None


def stated(protections: Sequence[Any]) -> str:
    """What a submission signs: `none`, or the protections in force, joined by `+`: `dp_sgd`, `dp_sgd+secagg`."""
    return "+".join(sorted(x.word for x in protections if x.word)) or "none"


def guards(privacy: str, word: str) -> bool:
    """Whether a signed privacy has this protection."""
    return word in privacy.split("+")


def told(name: str, masked: bool) -> str:
    """One line on a word, or on what was signed."""
    return f"{name}: {MEANS.get(name, MEANS['secagg'] if masked else READABLE)}"


def said(privacy: Any, traits: Sequence[str]) -> list[str]:
    """A Job's privacy in full, a line for each part; `traits` are its method's. None where the Job says nothing."""
    found = parts(privacy)
    if privacy is None:
        return []
    signed = stated(found)
    name = privacy if isinstance(privacy, str) else signed
    line = told(name, guards(signed, "secagg"))
    return [line.replace(READABLE, RELAYED) if RELAYS in traits else line, *(x.said(traits) for x in found)]
