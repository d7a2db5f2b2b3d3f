"""What the gallery's READMEs have by `examples/told.py`: in one sentence whether joining helps a site."""

import importlib.util
from pathlib import Path

import pytest

import foedus as fd
from foedus.study.score import Score

FILE = Path(__file__).parents[1] / "examples" / "told.py"


@pytest.fixture
def told():
    spec = importlib.util.spec_from_file_location("told", FILE)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def study(metric, better, **methods):
    """Of one site, `methods` having a value a seed."""
    scores = [
        Score(name, name == "alone", seed, {}, 0, True, {}, {}, {"north": {metric: value}}, {}, [], 0, 0.0, "")
        for name, values in methods.items()
        for seed, value in enumerate(values)
    ]
    return fd.Study(scores, metric, better, next(iter(methods)), Path())


@pytest.mark.parametrize(("better", "words"), [("max", ("helps", "harms")), ("min", ("harms", "helps"))])
def test_more_is_a_gain_or_a_loss_as_the_metric_says(told, better, words):
    found = study("m", better, up=[2.0, 2.1], down=[0.0, 0.1], alone=[1.0, 1.101])
    # differences of 1.000 and 0.999: the mean 0.9995, and half is t(0.9875, 1) = 25.45 times 0.0005
    assert told.sentence(found, "north", "up") == f"north: up {words[0]} (+1.000 ± 0.013)."
    assert told.sentence(found, "north", "down") == f"north: down {words[1]} (-1.000 ± 0.013)."


def test_what_seeds_do_not_tell_is_no_gain_and_one_seed_tells_nothing(told):
    wide = study("m", "max", up=[2.0, 0.0], alone=[1.0, 0.5])
    assert "up makes no difference that the seeds tell (+0.250 ± " in told.sentence(wide, "north", "up")
    one = study("m", "max", up=[2.0], alone=[1.0])
    assert told.sentence(one, "north", "up") == "north: up less alone +1.000, which one seed does not tell from chance."
