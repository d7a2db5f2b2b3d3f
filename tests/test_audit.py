"""The attacks of an audit against what is known: gradients by hand, published bounds, mechanisms whose ε is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import foedus as fd
from audit_jobs import CLASSES, INPUTS, SITES, gradient, job, learner, network, site
from foedus.audit import canaries, defences, labels, linear, matching, members
from foedus.audit.leaving import watched
from foedus.audit.view import masked_words, slope, uniform, views
from foedus.data import Pairs
from foedus.errors import FoedusError, Incompatible, JobError
from foedus.launch import bind
from foedus.numpy import NumpyLearner
from foedus.params import Params

QUICK: dict[str, Any] = dict(shadows=0, canaries=0)


# ---- what leaves ---------------------------------------------------------------------------------------------------


def test_the_update_is_the_one_that_the_site_returns() -> None:
    """One full-batch step of 0.1: what leaves is -0.1 times the mean gradient at the first model."""
    run = watched(job(), bind(SITES), "north")
    start = job().first(0)
    x, y = SITES["north"].train.x, SITES["north"].train.y
    (left,) = run.updates
    for name, g in gradient(start, x, y)[1].items():
        assert np.allclose(left.update.params[name], -0.1 * g, rtol=0, atol=1e-12)
    assert (left.path, left.steps, left.update.weight, sorted(run.beside)) == (0.1, 1, 30.0, sorted(SITES))
    read = left.read(run.names)
    assert read is not None and np.allclose(slope(read, left)["b2"], gradient(start, x, y)[1]["b2"], atol=1e-12)


def test_transforms_are_in_what_leaves_and_the_model_is_found_under_tags() -> None:
    short = watched(job(compress=fd.clip(0.01)), bind(SITES), "north").updates[0]
    read = short.read(frozenset(network(np.random.default_rng(0))))
    assert read is not None
    assert math.sqrt(sum(float((x**2).sum()) for x in read.values())) == pytest.approx(0.01)
    tagged = watched(job(fd.scaffold(), rounds=2), bind(SITES), "north")
    assert [left.order.round for left in tagged.updates] == [0, 1] and "c/w1" in tagged.updates[0].update.params
    packed = watched(job(compress=fd.int8()), bind(SITES), "north").updates[0]
    assert packed.read(frozenset(["w1"])) is not None and "w1" not in packed.update.params


def test_the_total_is_the_weighted_mean_of_all_updates() -> None:
    run = watched(job(privacy=fd.secagg(bound=1.0, wmax=64)), bind(SITES), "north")
    total = run.total()
    assert total is not None
    mean = sum(
        30 * left.update.params["w/w1" if "w/w1" in left.update.params else "w1"] for left in run.beside.values()
    )
    assert np.allclose(total["w1"], mean / 120, atol=1e-6)


def test_the_released_model_is_that_of_the_job() -> None:
    made = job(rounds=3)
    assert watched(made, bind(SITES), "west", seed=5).released == made.run(SITES, seed=5, backend="local").params


# ---- inputs --------------------------------------------------------------------------------------------------------


def test_a_dense_layer_gives_its_input_away() -> None:
    """By hand: W = [[1, 2], [0, 1]], x = (3, 4), L = Σ z: ∂L/∂W_i = x and ∂L/∂b_i = 1, times any step."""
    x = np.array([3.0, 4.0])
    found = Params({"w": -0.5 * np.stack([x, x]), "b": np.full(2, -0.5)})
    layer = linear.first_layer(found, 2)
    assert layer is not None and (layer.weight, layer.bias) == ("w", "b")
    assert linear.inputs(found, layer) == pytest.approx(np.stack([x, x]))


@pytest.mark.parametrize("across", [False, True])
def test_one_record_is_recovered_to_a_millionth(across: bool) -> None:
    rng = np.random.default_rng(1)
    x, p = rng.uniform(0, 1, (1, INPUTS)), network(rng)
    grads = Params({n: g.T if across and g.ndim == 2 else g for n, g in gradient(p, x, np.array([2]))[1].items()})
    layer = linear.first_layer(grads, INPUTS)
    assert layer is not None and layer.across is across
    found = linear.inputs(grads, layer)
    assert 0 < len(found) <= 20 and np.abs(found - x).max() < 1e-6


def test_a_neuron_that_one_record_of_a_batch_activates_gives_it_away() -> None:
    """Neuron i is on for record i alone (its bias is above -x_i, its weight picks x_i), and the last for both."""
    x = np.array([[5.0, 1.0, 2.0], [1.0, 7.0, 3.0]])
    w1 = np.array([[1.0, 0, 0], [0, 1, 0], [1, 1, 1]])
    p = {"w1": w1, "b1": np.array([-4.0, -6.0, 0]), "w2": np.eye(3) + 0.5, "b2": np.zeros(3)}
    grads = Params(gradient(p, x, np.array([0, 1]))[1])
    layer = linear.first_layer(grads, 3)
    assert layer is not None
    found = matching.match(linear.inputs(grads, layer), x, 7.0)
    assert found.psnr.min() > 150 and (linear.inputs(grads, layer)[found.chosen] == pytest.approx(x))


def test_a_linear_regression_has_a_number_as_its_bias() -> None:
    grads = Params({"w": np.array([2.0, 6.0]), "b": np.float64(2.0)})
    layer = linear.first_layer(grads, 2)
    assert layer is not None and linear.inputs(grads, layer).tolist() == [[1.0, 3.0]]
    assert linear.first_layer(Params({"w": np.ones((3, 5)), "b": np.ones(3)}), 4) is None
    assert linear.first_layer(Params({"w": np.ones((3, 4))}), 4) is None


def test_psnr_by_hand_and_the_best_assignment() -> None:
    """Range 10, errors of 1 and 0.1 in every number: 20 and 40 dB; the third candidate is left over."""
    truth = np.array([[0.0, 10.0], [5.0, 5.0]])
    found = matching.match(np.array([[5.1, 5.1], [9.0, 9.0], [1.0, 9.0]]), truth, 10.0)
    assert found.psnr == pytest.approx([20.0, 40.0]) and found.chosen.tolist() == [2, 0]
    few = matching.match(np.array([[5.0, 5.0]]), truth, 10.0)
    assert few.chosen.tolist() == [-1, 0] and few.psnr.tolist() == [-math.inf, matching.PERFECT]
    assert matching.match(np.empty((0, 2)), truth, 10.0).chosen.tolist() == [-1, -1]


def test_the_baseline_has_records_of_others_and_their_mean() -> None:
    known = matching.Known(np.array([[0.0], [2.0]]), np.zeros(2), 0.0, 10.0, True)
    base = matching.baseline(1, np.array([[1.0]]), known, fd.key(0))
    assert base.psnr.tolist() == [matching.PERFECT]  # the mean is the record
    assert (
        matching.recovered(
            matching.Match(np.array([20.0, 12.9]), np.zeros(2)), matching.Match(np.array([10.0]), np.zeros(1))
        )
        == 1
    )


# ---- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", range(CLASSES))
def test_the_label_of_one_record_is_the_one_negative_entry(label: int) -> None:
    rng = np.random.default_rng(label)
    p = network(rng)
    grads = Params(gradient(p, rng.uniform(0, 1, (1, INPUTS)), np.array([label]))[1])
    assert (grads["b2"] < 0).sum() == 1
    known = matching.Known(np.zeros((1, INPUTS)), np.zeros(1, int), 0, 1, True)
    found = labels.counts(grads, Params(p), "b2", 1, known, learner().mean_gradient, fd.key(0))
    assert found.tolist() == np.eye(CLASSES, dtype=int)[label].tolist()


def test_counts_of_a_batch_are_exact_where_the_model_is_known_on_its_inputs() -> None:
    """With the site's own inputs as records of others (under other labels) p is exact, and so are the counts."""
    rng = np.random.default_rng(3)
    p, x, y = network(rng), rng.uniform(0, 1, (25, INPUTS)), rng.integers(0, CLASSES, 25)
    known = matching.Known(x, np.zeros(25, int), 0, 1, True)
    grads = Params(gradient(p, x, y)[1])
    found = labels.counts(grads, Params(p), "b2", 25, known, learner().mean_gradient, fd.key(0))
    assert found.tolist() == np.bincount(y, minlength=CLASSES).tolist()
    assert labels.shared(found, np.bincount(y)) == 1.0 and labels.sums_to_zero(grads["b2"])


def test_whole_numbers_keep_their_sum_and_shares_are_by_hand() -> None:
    assert labels.rounded(np.array([0.5, 0.3, 0.2]), 4).tolist() == [2, 1, 1]
    assert labels.rounded(np.array([-1.0, 0.0]), 3).sum() == 3
    assert labels.shared(np.array([3, 1]), np.array([1, 2, 1])) == 0.5  # min 1 + 1 + 0 of 4


def test_the_bias_of_the_last_layer_is_told_from_others() -> None:
    model = Params(network(np.random.default_rng(0)))
    assert labels.last_bias(model, CLASSES) == "b2" and labels.last_bias(model, CLASSES + 1) is None
    without = Params({"a.weight": np.ones((5, 3)), "a.bias": np.ones(5), "z.weight": np.ones((4, 5))})
    assert labels.last_bias(without, 4) is None
    assert labels.classes(np.array([0, 2])) == 3 and labels.classes(np.array([0.5])) == 0


# ---- members -------------------------------------------------------------------------------------------------------


def test_rates_by_hand() -> None:
    """Of 4 × 2 pairs 6 are in order and 1 is even: AUC 6.5 / 8; one member is above all others."""
    found = members.rates(np.array([0.9, 0.6, 0.5, 0.2]), np.array([0.6, 0.1]), rate=0.001)
    assert found.auc == pytest.approx(5.5 / 8) and (found.tpr, found.passed) == (0.25, 0)


def test_clopper_and_pearson_as_published() -> None:
    """0 of 20: 1 - 0.025^(1/20); and the interval of 5 of 10 in Clopper and Pearson's tables, 0.187 to 0.813."""
    assert members.clopper_pearson(0, 20) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    assert members.clopper_pearson(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert members.clopper_pearson(7, 7)[1] == 1.0


def test_lira_by_hand() -> None:
    """Two records; models that never saw the first said 0 and 2, one that never saw the second 4: spread √(2/3)."""
    shadows = np.array([[0.0, 9.0], [2.0, 4.0], [7.0, 9.0]])
    drawn = np.array([[False, True], [False, False], [True, True]])
    found = members.lira(np.array([3.0, 4.0]), shadows, drawn)
    assert found == pytest.approx([2 / math.sqrt(2 / 3), 0.0])


def test_confidence_is_the_logit_of_the_probability() -> None:
    p = np.array([0.1, 0.5, 0.9])
    assert members.confidence(-np.log(p)) == pytest.approx(np.log(p / (1 - p)))


def test_membership_of_fresh_data_is_a_coin_and_that_of_an_overfitted_model_is_not() -> None:
    """Labels are drawn, so nothing but memory tells them: 600 steps learn 20 of them by heart."""
    rng = np.random.default_rng(0)
    part = [(rng.uniform(0, 1, (n, INPUTS)), rng.integers(0, CLASSES, n)) for n in (20, 60, 200, 200)]
    made = learner(lr=0.5)
    p = made.init(fd.key(0)).copy()
    for _ in range(600):
        for name, g in gradient(p, *part[0])[1].items():
            p[name][...] -= 0.5 * g
    inside, outside, fresh, other = (-members.losses(made, p, Pairs(*data)) for data in part)
    assert members.rates(inside, outside).auc > 0.8
    coin = members.rates(fresh, other)
    assert coin.auc_interval[0] < 0.5 < coin.auc_interval[1] and abs(coin.auc - 0.5) < 0.06


# ---- canaries ------------------------------------------------------------------------------------------------------


def test_the_bound_of_perfect_guesses_by_hand() -> None:
    """All of m right at δ = 0: (e^ε / (1 + e^ε))^m = 0.05."""
    for m in (10, 100, 1000):
        sure = 0.05 ** (1 / m)
        assert canaries.lower_bound(m, m, m) == pytest.approx(math.log(sure / (1 - sure)), rel=1e-6)
    assert canaries.lower_bound(100, 100, 50) == 0.0
    assert canaries.lower_bound(100, 100, 100, delta=1e-5) < canaries.lower_bound(100, 100, 100)


def test_the_p_value_with_delta_is_that_of_the_theorem_written_out() -> None:
    """Theorem 5.2 of Steinke et al. as sums of binomial coefficients."""
    m, r, v, epsilon, delta = 40, 20, 17, 0.7, 1e-3
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    tail = [sum(math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(max(0, w), r + 1)) for w in range(r + 1)]
    plain = tail[v] + 2 * m * delta * max((tail[v - i] - tail[v]) / i for i in range(1, v + 1))
    assert canaries.p_value(epsilon, delta, m, r, v) == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
def test_the_bound_stays_below_the_epsilon_of_a_gaussian_mechanism(epsilon: float) -> None:
    """Canaries as pure numbers: each is seen as its coin plus noise that gives (ε, 1e-5) exactly."""
    sigma = fd.privacy.analytic_gaussian_sigma(epsilon, 1e-5)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(40):
        inside = rng.random(500) < 0.5
        found.append(canaries.audited({"seen": inside + rng.normal(0, sigma, 500)}, inside, 1e-5).epsilon)
    assert max(found) <= epsilon  # of 40 bounds at 95 % two may be above; the Gaussian leaves more room than that
    assert max(found) > 0


def test_a_leak_without_noise_has_a_bound_that_grows_with_the_canaries() -> None:
    found = []
    for m in (16, 64, 256, 1024):
        inside = np.arange(m) % 2 == 0
        found.append(canaries.audited({"seen": inside.astype(float)}, inside).epsilon)
    assert found == sorted(found) and found[0] > 1 and found[-1] > 5


def test_guesses_are_the_surest_on_either_side() -> None:
    scores, inside = np.array([9.0, 8, 5, 4, 1, 0]), np.array([True, False, True, False, True, False])
    assert canaries.guessed(scores, inside, 2) == 2  # 9 is in, 0 is out
    assert canaries.guessed(scores, inside, 6) == 4  # and of 8, 5 | 4, 1 one each
    with pytest.raises(FoedusError, match="cannot be"):
        canaries.lower_bound(5, 6, 3)


# ---- seals ---------------------------------------------------------------------------------------------------------


def test_masked_words_say_nothing_and_words_without_masks_say_all() -> None:
    found = fd.attack(job(), SITES, site="north", records=1, against=["none", "secagg"], **QUICK)
    by = {(f.defence, f.attack, f.on): f for f in found.findings}
    assert by["none", "analytic", "its update"].values["psnr"] > 150
    sealed = by["secagg", "analytic", "its masked words"]
    assert sealed.outcome == "nothing" and sealed.values["psnr"] < sealed.values["baseline"]
    assert by["secagg", "labels", "its masked words"].outcome == "nothing"
    assert by["secagg", "uniformity", "its masked words"].outcome == "nothing"
    plain = watched(job(privacy=fd.secagg(bound=1.0, wmax=64, masks=False)), bind(SITES), "north")
    words = masked_words(plain)
    assert uniform(words) < 1e-9 and words.tolist() == masked_words(plain).tolist()
    alone, _ = views(plain)
    assert np.allclose(alone.slope["w1"], gradient(job().first(0), *SITES["north"].train[:])[1]["w1"], atol=1e-5)


def test_masked_words_are_new_each_time_and_their_bytes_uniform() -> None:
    run = watched(defences.defended(job(), "secagg"), bind(SITES), "north")
    first, second = masked_words(run), masked_words(run)
    assert (first != second).mean() > 0.99
    ps = [uniform(masked_words(run)) for _ in range(30)]
    assert min(ps) > 1e-4 and sum(p > 0.5 for p in ps) >= 5


# ---- the whole -----------------------------------------------------------------------------------------------------


def test_an_audit_says_its_verdict_and_keeps_it(tmp_path: Any) -> None:
    found = fd.attack(job(rounds=2), SITES, against="none,secagg", shadows=2, canaries=16)
    assert "With none: The inputs of site east can be recovered" in found.verdict
    assert "With secagg: The bytes of its masked words are like uniform noise" in found.verdict
    assert "No ε is claimed" in found.verdict
    report = found.save(tmp_path / "new" / "folder")
    page = report.read_text()
    assert "<script" not in page and page.count('src="data:image/png') == len(found.pictures) > 0
    assert (report.parent / "audit.json").exists() and "200" in (report.parent / "audit.json").read_text()
    assert len(list(report.parent.glob("*.png"))) == len(found.pictures)


def test_an_audit_has_the_same_numbers_again() -> None:
    once, again = (fd.attack(job(), SITES, against="none,clip=0.1+int8", shadows=2, canaries=8) for _ in range(2))
    assert once.plain() == again.plain()


def test_a_claim_that_the_audit_refutes_fails_loudly() -> None:
    """One site, and a gradient by itself: nothing hides which canaries are in."""
    found = fd.attack(job(), {"a": site(1)}, against="none", epsilon=0.5, shadows=0, canaries=100)
    (audited,) = [f for f in found.findings if f.attack == "canaries"]
    assert audited.values["epsilon"] > 2 and found.refuted == ["none"]
    assert found.verdict.startswith("FAILED: the claimed ε of none does not hold.") and "IS REFUTED" in found.verdict
    stands = fd.attack(job(), {"a": site(1)}, against="none", epsilon=50.0, shadows=0, canaries=20)
    assert stands.refuted == [] and "The claimed ε = 50 stands" in stands.verdict


@pytest.mark.long
def test_dp_sgd_is_held_against_what_the_site_itself_says_it_has_spent() -> None:
    found = fd.attack(job(rounds=2), SITES, against="dp_sgd=1,hospital", shadows=0, canaries=16)
    claims = {f.defence: f.values["claimed"] for f in found.findings if f.attack == "canaries"}
    assert claims == {"dp_sgd=1": 1.0, "hospital": 8.0} and found.refuted == []
    other = fd.attack(job(rounds=2), SITES, against="dp_sgd=1", shadows=0, canaries=16, delta=1e-6)
    assert "No ε is claimed" in other.verdict  # the account is at 1e-5


def test_canaries_may_be_sites() -> None:
    found = fd.attack(job(), SITES, against="none", neighbours="site", shadows=0, canaries=40)
    (audited,) = [f for f in found.findings if f.attack == "canaries"]
    assert audited.values["guesses"] in (10, 36) and audited.values["epsilon"] > 0 and "canary sites" in audited.said


def test_a_job_of_ones_own_loop_is_attacked_as_far_as_that_goes() -> None:
    def fit(params: Any, split: Any, ctx: Any) -> None:
        for name, g in gradient(params, *split.train[:])[1].items():
            params[name] -= 0.1 * g

    own = job(learner=NumpyLearner(network, train=fit))
    found = fd.attack(own, SITES, against="none", records=1, shadows=0, canaries=8)
    by = {f.attack: f for f in found.findings}
    assert by["analytic"].values["psnr"] > 100 and by["canaries"].outcome == by["search"].outcome == "not tried"
    assert "the learner measures no loss" in found.verdict


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (dict(site="nowhere"), "there is no site 'nowhere': the sites are east, north, south, west"),
        (dict(against="none,tinfoil"), "there is no defence 'tinfoil' .* choose from none, job, hospital, bf16, clip"),
        (dict(against="clip"), "defence 'clip': write clip=NUMBER"),
        (dict(against="int8=x"), "leave the number out"),
        (dict(against="dp_sgd"), "defence 'dp_sgd': write dp_sgd=NUMBER"),
        (dict(against=" , "), "names no defence"),
        (dict(against="secagg+secagg"), "one privacy"),
        (dict(records=0), "records=0: it must be a whole number of at least 1"),
        (dict(neighbours="person"), "it is 'record' or 'site'"),
        (dict(delta=1.0), "delta=1.0"),
        (dict(epsilon={"clip": 1.0}), "epsilon names 'clip', which is none of the defences"),
    ],
)
def test_bad_input_is_answered_with_what_may_be_given(given: dict[str, Any], why: str) -> None:
    with pytest.raises(JobError, match=why):
        fd.attack(job(), SITES, **given)


def test_jobs_that_have_no_gradients_are_refused() -> None:
    with pytest.raises(JobError, match="this Job has no learner: attack reads gradients"):
        fd.attack(fd.analytics.describe.job(["age"]), SITES)

    class Counting:
        metrics: Any = ()

        def init(self, key: Any) -> Params:
            return Params({"n": np.zeros(1)})

    with pytest.raises(JobError, match="the learner Counting: attack reads gradients, so it takes a TorchLearner"):
        fd.attack(fd.Job(fd.fedavg(), Counting(), rounds=1), SITES)  # type: ignore[arg-type]


def test_a_defence_that_does_not_go_with_the_job_is_named() -> None:
    with pytest.raises(Incompatible):
        fd.attack(job(fd.fedavg(aggregator=fd.median())), SITES, against="secagg")
    two = {name: SITES[name] for name in ("east", "west")}
    found = fd.attack(job(), two, against="none,secagg", **QUICK)
    assert [f.attack for f in found.findings if f.defence == "secagg"] == ["secagg"]
    assert "secagg (" in found.verdict and "Not tried" in found.verdict


def test_the_usual_defences_are_those_that_go() -> None:
    assert list(defences.chosen(job(), None, 4)) == ["none", "secagg"]
    assert list(defences.chosen(job(), None, 2)) == ["none"]
    assert list(defences.chosen(job(compress=fd.int8()), None, 4)) == ["job", "none", "secagg"]
    assert list(defences.chosen(job(compress=fd.top_k(0.1)), None, 4)) == ["job", "none"]
    assert list(defences.chosen(job(privacy="secagg"), None, 4)) == ["job", "none"]
    assert list(defences.chosen(job(), {"mine": job(compress=fd.fp16())}, 1)) == ["mine"]
