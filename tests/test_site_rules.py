"""What a site decides by itself: its policy, its data and packages, what it reads from the wire and what it keeps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import foedus as fd
from foedus import progress as module
from foedus.errors import Denied, FoedusError, WireError
from foedus.params import Leaf
from foedus.site import bindings, policy
from foedus.site.bindings import Binding, missing
from foedus.site.joining import enrol_site
from foedus.site.orders import At, Blob, read_ending, read_order, spec_of, verdicts
from foedus.site.policy import Policy
from foedus.site.shelf import Pending, Shelf
from foedus.site.trust import Code, approve, consent, refuse
from foedus.store.sqlite import SqliteStore
from foedus.wire.ed25519 import new_key, public_text
from foedus.wire.identity import invite, new_federation
from foedus.wire.signing import sign_envelope

SERVER = new_key()
TASK = {
    "run": "run-1", "round": 2, "task": 1, "attempt": 0, "site": "north", "work": "train", "late": "drop", "seed": 7,
    "payload": {"digest": "a" * 64, "size": 10}, "returns": [["w", [2, 3], "bfloat16", "trainable", ""]], "base": None,
    "deadline": {"stall": 2.5.hex(), "total": None}, "bundle": "b" * 64, "verdicts": {"run-1/1/0/0": "counted"},
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = SqliteStore(tmp_path / "site.db")
    yield made
    made.close()


# ---- the policy -----------------------------------------------------------------------------------------------------
def test_the_policy_that_joining_writes_is_read_as_the_defaults_and_the_trusted_names(tmp_path: Path) -> None:
    policy.write(tmp_path / "policy.toml", ["alice", "bob"])
    assert policy.load(tmp_path / "policy.toml") == Policy(trust=("alice", "bob"), privacy=("none",))
    policy.write(tmp_path / "nobody.toml", [])
    assert policy.load(tmp_path / "nobody.toml") == Policy()
    policy.write(tmp_path / "policy.toml", ["mallory"])  # one that is there already is the owner's
    assert policy.load(tmp_path / "policy.toml").trust == ("alice", "bob")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trusted = []", "there is no rule 'trusted'; the rules are trust"),
        ('trust = "alice"', "trust = 'alice' is not of its kind"),
        ('trust = "all"', "trust = 'all'"),
        ("approved = [1]", r"approved = \[1\]"),
        ('least_examples = "5"', "least_examples"),
        ("least_examples = true", "least_examples"),
        ("most_update_bytes = -1", "most_update_bytes"),
        ("network = 1", "network = 1 is not of its kind"),
        ('network = "yes"', "network = 'yes' is not of its kind"),
        ("most_update_bytes = 1.5", "most_update_bytes"),
        ('hours = "20"', "hours"),
        ('hours = "20-25"', "hours"),
        ('datasets = "heart"', "datasets"),
        ('privacy = "secag"', "privacy = 'secag' is not of its kind"),
        ("privacy = true", "privacy = True is not of its kind"),
        ("most_memory_bytes = 0", "most_memory_bytes"),
        ('most_memory_bytes = "8 GB"', "most_memory_bytes"),
        ("most_cpu_seconds = 1.5", "most_cpu_seconds"),
        ("nice = -1", "nice = -1 is not of its kind"),
        ("nice = 20", "nice = 20 is above 19"),
        ("datasets = [", "nothing is allowed until it is mended"),
    ],
)
def test_a_policy_that_is_not_plain_and_known_forbids_everything(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(Denied, match=said):
        policy.load(tmp_path / "policy.toml")


def test_a_missing_policy_forbids_everything(tmp_path: Path) -> None:
    with pytest.raises(Denied, match="is missing, so nothing is allowed"):
        policy.load(tmp_path / "policy.toml")


def test_metrics_are_allowed_by_their_own_name_under_any_prefix() -> None:
    rules = Policy(metrics=("auc", "loss"))
    assert rules.update(0, ["auc", "test_auc", "train_loss"]) == ""
    assert "'accuracy'" in rules.update(0, ["auc", "accuracy"])
    assert Policy(metrics=()).update(0, ["auc"]) != "" and Policy().update(0, ["anything"]) == ""


def test_a_privacy_that_is_demanded_is_the_one_that_a_job_must_have(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text('privacy = "secagg"')
    rules = policy.load(tmp_path / "policy.toml")
    assert rules.private("secagg") == "" and "'none'" in rules.private("none") and "'dp'" in rules.private("dp")
    assert Policy().private("none") == Policy().private("secagg") == ""


def test_the_resources_of_a_policy_are_limits_and_shown(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("most_memory_bytes = 1000\nnice = 7")
    rules = policy.load(tmp_path / "policy.toml")
    assert rules.limits == {"memory": 1000, "cpu": None, "nice": 7}
    shown = policy.describe(rules)
    assert (shown["most_memory_bytes"], shown["most_cpu_seconds"], shown["hours"]) == (1000, "no limit", "all")


@pytest.mark.parametrize(
    ("hours", "awake"), [("8-17", range(8, 17)), ("20-6", [*range(20, 24), *range(6)]), ("0-24", range(24))]
)
def test_hours_may_pass_midnight(tmp_path: Path, hours: str, awake: Any) -> None:
    (tmp_path / "policy.toml").write_text(f'hours = "{hours}"')
    rules = policy.load(tmp_path / "policy.toml")
    found = [h for h in range(24) if rules.awake(time.strptime(str(h), "%H"))]
    assert sorted(found) == sorted(awake)


def test_code_is_let_in_by_approval_or_trust_and_a_refusal_wins_over_both(store: SqliteStore) -> None:
    code, trusting = Code("c" * 64, "alice", "QQ=="), Policy(trust=("alice",))
    assert consent(store, Policy(), code, "none") == f"waiting for approval: foedus site approve {'c' * 12}"
    assert consent(store, Policy(approved=("c" * 64,)), code, "none") == ""
    approve(store, code.bundle)
    other = code._replace(bundle="d" * 64)
    assert consent(store, Policy(), code, "none") == "" and consent(store, Policy(), other, "secagg") != ""
    refuse(store, code.bundle)
    for rules in (trusting, Policy(approved=("c" * 64,))):
        assert "refused" in consent(store, rules, code, "secagg")
    assert consent(store, trusting, other, "secagg") == ""
    assert "another key" in consent(store, trusting, other._replace(public="Qg=="), "secagg")


def test_trust_does_not_cover_a_job_without_protection_unless_the_policy_says_so(store: SqliteStore) -> None:
    code, trusting = Code("c" * 64, "alice", "QQ=="), Policy(trust=("alice",))
    why = consent(store, trusting, code, "none")
    assert (
        "its privacy is 'none', and trust in 'alice' does not cover that" in why and "site approve cccccccccccc" in why
    )
    assert consent(store, trusting._replace(privacy=("none",)), code, "none") == ""
    approve(store, code.bundle)  # by hand, where it is shown
    assert consent(store, trusting, code, "none") == ""


# ---- data and packages ----------------------------------------------------------------------------------------------
def test_a_binding_needs_a_plain_name_and_a_path_that_is_there(store: SqliteStore, tmp_path: Path) -> None:
    assert bindings.add(store, Binding("heart", f"{tmp_path}/../{tmp_path.name}")).path == str(tmp_path)
    for name, path, said in (
        ("He art", str(tmp_path), "a name has"),
        ("lungs", str(tmp_path / "no"), "there is nothing at"),
    ):
        with pytest.raises(FoedusError, match=said):
            bindings.add(store, Binding(name, path))
    with pytest.raises(FoedusError, match=r"no dataset 'lungs' is bound here; bound: heart"):
        bindings.remove(store, "lungs")
    bindings.remove(store, "heart")
    with pytest.raises(FoedusError, match=r"has 0 \(bound: none\): bind some with: foedus site data add NAME=PATH"):
        bindings.chosen(store, ())


def test_several_datasets_come_in_the_order_asked(store: SqliteStore, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        bindings.add(store, Binding(name, str(tmp_path)))
    assert [binding.name for binding in bindings.chosen(store, ["c", "a"])] == ["c", "a"]


@pytest.mark.parametrize(
    ("requirement", "here"),
    [
        ("numpy", True), ("numpy>=2.0", True), ("numpy>=2,<1000", True), ("NumPy ~= 2.0", True), ("numpy!=0.*", True),
        ("numpy[extra]>=1", True), ("numpy>=2.0; python_version > '3'", True), ("numpy>=1000", False), ("", False),
        ("numpy==0.1.*", False), ("numpy<2", False), ("no-such-package", False), ("numpy @ https://x", False),
        ("numpy>=", False), ("<" * 5000, False),
    ],
)  # fmt: skip
def test_requirements_are_compared_with_what_is_installed(requirement: str, here: bool) -> None:
    assert missing([requirement]) == ([] if here else [requirement])


# ---- what comes over the wire ---------------------------------------------------------------------------------------
def test_a_task_is_read_field_by_field() -> None:
    order = read_order(sign_envelope(SERVER, "foedus/task/1", TASK), public_text(SERVER), "north")
    assert (order.at, str(order.at), order.payload) == (At("run-1", 2, 1, 0), "run-1/2/1/0", Blob("a" * 64, 10))
    assert order.returns == (Leaf("w", (2, 3), "bfloat16", "trainable", ""),)
    assert (order.stall, order.base, order.verdicts) == (2.5, None, {"run-1/1/0/0": "counted"})


@pytest.mark.parametrize(
    "change",
    [
        {"run": "../../etc"}, {"run": ""}, {"run": "a/b"}, {"round": -1}, {"round": "0"}, {"round": True},
        {"payload": {"digest": "A" * 64, "size": 1}}, {"payload": {"digest": "a" * 64, "size": -1}}, {"attempt": 1.5},
        {"returns": [["w", [-1], "float32", "trainable", ""]]}, {"returns": [["w", [1], "object", "trainable", ""]]},
        {"deadline": {}}, {"base": {"round": 1}}, {"base": [1, 2]}, {"seed": "7"}, {"work": None}, {"verdicts": [1]},
        {"bundle": "../x"},
    ],
)  # fmt: skip
def test_a_malformed_task_is_refused_even_when_it_is_signed(change: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="malformed"):
        read_order(sign_envelope(SERVER, "foedus/task/1", TASK | change), public_text(SERVER), "north")


def test_a_task_for_another_site_or_by_another_key_is_refused() -> None:
    with pytest.raises(Denied, match="a task for 'north' came to 'south'"):
        read_order(sign_envelope(SERVER, "foedus/task/1", TASK), public_text(SERVER), "south")
    with pytest.raises(Denied, match="signed by the key"):
        read_order(sign_envelope(new_key(), "foedus/task/1", TASK), public_text(SERVER), "north")
    with pytest.raises(Denied, match="does not match"):
        read_order(sign_envelope(SERVER, "foedus/prepare/1", TASK), public_text(SERVER), "north")


def test_the_end_of_a_run_names_its_models_by_digest_with_or_without_a_size() -> None:
    ending = read_ending({"run": "r", "state": "finished", "final": "a" * 64, "best": {"digest": "b" * 64, "size": 3}})
    assert ending.models == {"final": Blob("a" * 64, -1), "best": Blob("b" * 64, 3)}
    assert read_ending({"run": "r", "final": None, "best": None}).models == {}
    with pytest.raises(WireError):
        read_ending({"run": "../r"})


def test_an_unknown_verdict_settles_nothing() -> None:
    assert verdicts({"a": "counted", "b": "perhaps"}) == {"a": "counted", "b": "unknown"}
    with pytest.raises(ValueError, match="kind"):
        spec_of([["w", [1], "float32", "secret", ""]])


# ---- what is kept ---------------------------------------------------------------------------------------------------
def pending(shelf: Shelf, round: int, stateful: bool = True) -> Pending:
    """A pending update whose files hold its round."""
    at = At("run-1", round, 0, 0)
    for path in (shelf.update(at.file), shelf.local(at.file)):
        path.write_text(str(round))
    made = Pending(at, "train", at.file, Blob("a" * 64, 1), "0x1p+0", {}, stateful, "")
    shelf.keep(made)
    return made


def test_a_counted_update_becomes_the_base_and_all_others_are_deleted(store: SqliteStore, tmp_path: Path) -> None:
    shelf = Shelf(store, tmp_path / "kept", "run-1")
    for round, verdict in enumerate(("counted", "dropped", "refused", "counted")):
        assert shelf.settle(pending(shelf, round).at, verdict)  # type: ignore[arg-type]
    base = shelf.base("train")
    assert base is not None and (base.round, base.task) == (3, 0)
    assert [path.read_text() for path in shelf.folder.iterdir()] == ["3"]
    waiting = pending(shelf, 4)
    assert not shelf.settle(waiting.at, "unknown") and not shelf.settle(waiting.at, "send")
    assert not shelf.settle(At("run-1", 9, 9, 9), "counted")
    assert shelf.pending() == [waiting]


def test_an_update_without_local_state_leaves_the_base_as_it_was(store: SqliteStore, tmp_path: Path) -> None:
    shelf = Shelf(store, tmp_path / "kept", "run-1")
    shelf.settle(pending(shelf, 0).at, "counted")
    shelf.settle(pending(shelf, 1, stateful=False).at, "counted")
    base = shelf.base("train")
    assert base is not None and base.round == 0
    assert [path.read_text() for path in shelf.folder.iterdir()] == ["0"]


def test_runs_do_not_see_one_another_and_a_cleared_one_is_gone(store: SqliteStore, tmp_path: Path) -> None:
    one, other = Shelf(store, tmp_path / "1", "run-1"), Shelf(store, tmp_path / "11", "run-11")
    kept = pending(one, 0)
    assert other.pending() == []
    other.clear()
    assert one.pending() == [kept]
    one.clear()
    assert one.pending() == []


# ---- joining and progress -------------------------------------------------------------------------------------------
def test_joining_checks_everything_before_the_token_is_used_up(tmp_path: Path) -> None:
    owner = new_key()
    facts = new_federation("f", ("https://127.0.0.1:1",), public_text(owner), public_text(SERVER), "")
    expires = int(time.time()) + 60
    with pytest.raises(Denied, match="is for a submitter: use it with `foedus login`"):
        enrol_site(invite(owner, facts, "alice", "submitter", expires=expires), [], [], tmp_path)
    token = invite(owner, facts, "north", expires=expires)
    with pytest.raises(FoedusError, match="there is nothing at"):
        enrol_site(token, [Binding("heart", str(tmp_path / "no"))], [], tmp_path)
    with pytest.raises(FoedusError, match="leave --name out"):
        enrol_site(token, [], [], tmp_path, "south")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WireError, match="nothing listens there"):
        enrol_site(token, [], [], tmp_path)
    key = (tmp_path / "sites" / "north" / "key.pem").read_bytes()
    with pytest.raises(WireError):
        enrol_site(token, [], [], tmp_path)
    assert (tmp_path / "sites" / "north" / "key.pem").read_bytes() == key  # so that the same entry is sent again


def test_progress_is_told_where_somebody_listens_and_does_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    fd.progress()  # type: ignore[operator]
    told: list[int] = []
    monkeypatch.setattr(module, "tell", told.append)
    fd.progress()  # type: ignore[operator]
    fd.progress(3)  # type: ignore[operator]
    module.progress(2)
    assert told == [1, 3, 2]
