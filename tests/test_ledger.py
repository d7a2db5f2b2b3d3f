"""A site's ledger: what trainings spent together, each counted once, and every way of falsifying it found out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foedus.errors import StoreError
from foedus.files import make_folder
from foedus.privacy.accounting import Steps, epsilon
from foedus.privacy.spending import Limit, beyond
from foedus.privacy.spending import epsilon as together
from foedus.site import account
from foedus.site.ledger import FILE, HEAD, Damaged, Ledger, Training
from foedus.store.sqlite import SqliteStore
from foedus.wire.ed25519 import key_from_seed

KEY = key_from_seed(bytes(32))
ABADI = Steps(1.1, 256 / 60000, 14062)  # 60 epochs of MNIST: Abadi et al.'s setting, 2.596556 by rdp, 2.381686 by pld
STEP = Steps(1.0, 0.1, 10)


class Kept:
    """A site's folder with a database, which a test may open again, as after a restart."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self.folder, self.store = folder, SqliteStore(folder / "site.db")

    def ledger(self, look: bool = False) -> Ledger:
        return Ledger(self.folder, self.store, KEY, look)

    @property
    def path(self) -> Path:
        return self.folder / FILE


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "north")


def training(round: int = 0, spends: Steps | None = STEP, **changes: object) -> Training:
    about = {"run": "r", "round": round, "task": 0, "attempt": 0, "payload": "p", "work": "train", "submitter": "alice"}
    return Training(**{**about, "privacy": "dp_sgd", "spends": spends, **changes})  # type: ignore[arg-type]


# ---- what is spent ---------------------------------------------------------------------------------------------------


def test_two_halves_of_a_run_spend_what_the_whole_does() -> None:
    half = ABADI._replace(steps=7031)
    assert epsilon(*ABADI, 1e-5, "rdp") == pytest.approx(2.596556, abs=1e-6)
    assert together([half, half], 1e-5) == pytest.approx(2.381686, abs=1e-6) == together([ABADI], 1e-5)


def test_unlike_trainings_spend_at_least_the_larger_and_at_most_the_sum() -> None:
    one, other = Steps(1.0, 0.01, 1000), Steps(2.0, 0.05, 200)
    each = [together([x], 1e-5) for x in (one, other)]
    both = together([other, one], 1e-5)
    assert max(each) < both < sum(each) and both == together([one, other], 1e-5)


def test_a_limit_is_held_by_the_tight_bound_where_the_quick_one_is_above_it() -> None:
    """The quick bound is 2.597, above 2.5, and the tight one below it."""
    assert beyond([], ABADI, Limit(2.5, 1e-5)) is None
    assert beyond([], ABADI, Limit(2.3, 1e-5)) == pytest.approx(2.381686, abs=1e-6)
    assert together([], 1e-5) == 0.0


# ---- what is counted -------------------------------------------------------------------------------------------------


def test_a_training_is_counted_once_and_another_attempt_or_model_again(kept: Kept) -> None:
    ledger = kept.ledger()
    for one in (training(), training(), training(attempt=1), training(payload="other"), training(run="s")):
        assert ledger.count(one, ["heart"], {}) == ""
    assert kept.ledger().count(training(), ["heart"], {}) == ""
    assert kept.ledger().spent("heart") == [STEP] * 4


def test_nothing_begins_and_nothing_is_counted_beyond_the_owners_limit(kept: Kept) -> None:
    limits, ledger = {"heart": Limit(4.0, 1e-5)}, kept.ledger()
    rounds = 0
    while not (why := ledger.count(training(rounds), ["heart", "lungs"], limits)):
        rounds += 1
    assert rounds and together([STEP] * rounds, 1e-5) <= 4.0 < together([STEP] * (rounds + 1), 1e-5)
    assert "dataset 'heart': all jobs have spent epsilon" in why and "its owner's limit is 4" in why
    assert len(kept.ledger().rows) == 2 * rounds  # of both datasets, and none of the training that was refused
    assert ledger.count(training(rounds), ["lungs"], limits) == ""
    assert ledger.count(training(0), ["heart"], limits) == ""  # it is counted already


def test_a_limit_lets_no_training_begin_that_nothing_bounds(kept: Kept) -> None:
    why = kept.ledger().count(training(spends=None, privacy="secagg"), ["heart"], {"heart": Limit(2.0, 1e-5)})
    assert "this job (secagg) says nothing of what it spends" in why and not kept.path.exists()
    assert kept.ledger().count(training(spends=None), ["heart"], {}) == ""
    assert kept.ledger().spent("heart") == [] and len(kept.ledger().rows) == 1


# ---- who changes it is found out -------------------------------------------------------------------------------------


def place_of(kept: Kept) -> Any:
    """What the owner's command is given."""

    class Place:
        folder, store, name = kept.folder, kept.store, "north"

        @staticmethod
        def key() -> object:
            return KEY

    (kept.folder / "policy.toml").touch()
    return Place()


def lines(kept: Kept) -> list[bytes]:
    return kept.path.read_bytes().splitlines(keepends=True)


def cut(kept: Kept) -> None:
    kept.path.write_bytes(b"".join(lines(kept)[:-1]))


def gone(kept: Kept) -> None:
    kept.path.unlink()


def cheaper(kept: Kept) -> None:
    kept.path.write_bytes(kept.path.read_bytes().replace(b'"round":1', b'"round":0'))


def swapped(kept: Kept) -> None:
    first, *rest = lines(kept)
    kept.path.write_bytes(b"".join([rest[0], first, *rest[1:]]))


def forged(kept: Kept) -> None:
    kept.path.unlink()
    other = Ledger(kept.folder, SqliteStore(kept.folder / "other.db"), key_from_seed(bytes([1] * 32)))
    for round in range(3):
        other.count(training(round), ["heart"], {})


def database(kept: Kept) -> None:
    kept.store.delete("about", HEAD)


@pytest.mark.parametrize("falsify", [cut, gone, cheaper, swapped, forged, database])
def test_a_ledger_that_was_put_back_or_changed_lets_nothing_train(kept: Kept, falsify: Callable[[Kept], None]) -> None:
    for round in range(3):
        kept.ledger().count(training(round), ["heart"], {})
    falsify(kept)
    with pytest.raises(Damaged, match="nothing trains here until the file is restored"):
        kept.ledger().count(training(3), ["heart"], {})


@pytest.mark.parametrize("falsify", [cut, gone, cheaper, swapped, forged])
def test_a_file_that_is_changed_under_a_running_agent_is_found_out(kept: Kept, falsify: Callable[[Kept], None]) -> None:
    ledger = kept.ledger()
    for round in range(3):
        ledger.count(training(round), ["heart"], {})
    falsify(kept)
    with pytest.raises(Damaged, match="changed while the agent was at work"):
        ledger.count(training(3), ["heart"], {})
    with pytest.raises(Damaged):
        account.describe(place_of(kept))


def test_a_row_holds_the_approval_of_its_day(kept: Kept) -> None:
    kept.ledger().count(training(), ["heart", "lungs"], {}, {"heart": "ethics 7"})
    assert [row["approval"] for row in kept.ledger().rows] == ["ethics 7", ""]


def test_the_same_signed_rows_in_a_longer_file_are_found_out(kept: Kept) -> None:
    for round in range(2):
        kept.ledger().count(training(round), ["heart"], {})
    kept.path.write_bytes(kept.path.read_bytes() + lines(kept)[0])
    with pytest.raises(Damaged, match="does not follow"):
        kept.ledger()


def test_who_dies_before_the_rows_are_noted_goes_on_and_a_torn_line_was_never_one(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.ledger().count(training(), ["heart", "lungs"], {})
    monkeypatch.setattr(Ledger, "_note", lambda self, last: (_ for _ in ()).throw(StoreError("died")))
    with pytest.raises(StoreError):
        kept.ledger().count(training(1), ["heart", "lungs"], {})
    monkeypatch.undo()
    with kept.path.open("ab") as file:
        file.write(lines(kept)[0][:40])
    assert len(kept.ledger(look=True).rows) == 4 and kept.path.read_bytes()[-1:] != b"\n"  # a look changes nothing
    assert len(kept.ledger().rows) == 4 and kept.path.read_bytes()[-1:] == b"\n"
    assert kept.ledger().count(training(1), ["heart", "lungs"], {}) == "" and len(kept.ledger().rows) == 4


def test_an_owner_sees_what_was_spent_by_whom_and_what_is_left(kept: Kept) -> None:
    (kept.folder / "policy.toml").write_text('[dataset.heart]\nepsilon = 4\napproval = "ethics 7"\n')
    ledger = kept.ledger()
    for round in range(2):
        ledger.count(training(round), ["heart"], {})
    ledger.count(training(run="s", spends=None, privacy="secagg", submitter="bob"), ["heart"], {})

    found = account.describe(place_of(kept))
    heart, spent = found["datasets"]["heart"], together([STEP] * 2, 1e-5)
    assert (heart["epsilon"], heart["left"]) == (spent, 4 - spent)
    assert heart["submitters"] == {"alice": 2, "bob": 1} and heart["unbounded"] == 1
    said = "\n".join(account.lines(found))
    without = f"1 trainings without differential privacy, beside epsilon {spent:.3g} of 4 at delta 1e-05 of 2 with it"
    assert f"heart: unbounded: {without}, 3 trainings in 2 runs (alice 2, bob 1)" in said
    assert "approval ethics 7" in said
    assert json.dumps(found)
