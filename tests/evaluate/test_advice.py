"""The rule of advice at its four corners and edges, its reasons, and its score against written-out regrets."""

from dataclasses import replace

import numpy as np
import pytest

from ssl_ft.evaluate.advice import FEW_PER_CLASS, QUADRANTS, Situation, advise, is_near, mean_regret, score
from ssl_ft.evaluate.comparison import Resampled

HERE = Situation(100, 10, 0.02, 5000, 48, 4_900_000)
ALL = ("scratch", "probe", "full", "lora", "probe_then_finetune", "layer_decay")


@pytest.mark.parametrize(
    ("per_class", "shift", "quadrant"),
    [
        (2, 0.0, "few labels, near"),
        (50, 0.0, "many labels, near"),
        (2, 1.3, "few labels, far"),
        (50, 1.3, "many labels, far"),
    ],
)
def test_each_quadrant_has_its_first_choice(per_class, shift, quadrant):
    given = advise(replace(HERE, num_labels=10 * per_class, shift=shift), available=ALL)
    own = QUADRANTS[per_class == 2, shift == 0.0]
    assert (given.quadrant, given.strategy) == (quadrant, own[0])
    assert given.strategy not in given.instead


def test_the_lines_between_quadrants():
    at = round(10 * FEW_PER_CLASS)
    assert "many" in advise(replace(HERE, num_labels=at), available=ALL).quadrant
    assert "few" in advise(replace(HERE, num_labels=at - 1), available=ALL).quadrant
    assert is_near(0.49)
    assert not is_near(0.5)
    assert is_near(None), "not measured"


def test_only_what_is_at_hand_is_advised():
    far = replace(HERE, shift=1.0)
    assert advise(far, available=("scratch", "lora", "probe")).strategy == "lora"
    assert advise(far, available=("scratch", "full")).strategy == "full"


@pytest.mark.parametrize("shift", [0.0, 1.3])
@pytest.mark.parametrize("per_class", [2, 50])
def test_where_nothing_of_the_rule_is_at_hand_the_first_that_is_is_taken_and_said(per_class, shift):
    situation = replace(HERE, num_labels=10 * per_class, shift=shift)
    given = advise(situation, available=("scratch", "gradual", "l2sp"))
    assert (given.strategy, given.instead, given.is_by_rule) == ("gradual", (), False)
    assert given.reasons[-1].endswith("and none is at hand: gradual is the first that is")
    assert advise(situation, available=("scratch",)).strategy == "scratch"
    assert advise(situation, available=ALL).is_by_rule


def test_reasons_name_the_numbers():
    text = "; ".join(advise(HERE, available=ALL).reasons)
    for part in (
        "100 labels of 10 classes are 10 a class",
        "an effect of 0.02",
        "49,000 a label",
        "5,000 images, 50 a label",
    ):
        assert part in text
    many = advise(replace(HERE, num_labels=6000), available=ALL)
    assert "compare with scratch" in many.reasons[-1]
    assert "was not measured" in advise(replace(HERE, shift=None, pool_images=None), available=ALL).reasons[1]


def resampled() -> Resampled:
    values = np.array([[0.5, 0.6], [0.7, 0.55]])
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 2, 500))
    return Resampled(("probe", "full"), (2, "all"), np.array([20, 1000]), values, values[:, :, None] + noise, 400)


def test_score_is_the_distance_to_the_best():
    given = resampled()
    one = score(given, data="d", encoder="e", budget=2, advised="probe", best="full", is_as_good=False)
    assert one.regret.value == pytest.approx(0.2)
    assert one.regret.low < 0.2 < one.regret.high
    none = score(given, data="d", encoder="e", budget="all", advised="probe", best="probe", is_as_good=True)
    assert (none.regret.value, none.regret.low, none.regret.high) == (0.0, 0.0, 0.0)


def test_mean_regret_has_the_interval_of_the_joint_resamples():
    rng = np.random.default_rng(0)
    one = 0.1 + rng.normal(0, 0.02, 4000)
    # Two budgets of one comparison err together; two comparisons do not, and their mean is surer.
    together = mean_regret([0.1, 0.1], [one, one], n=1)
    apart = mean_regret([0.1, 0.1], [one, 0.1 + rng.normal(0, 0.02, 4000)], n=1)
    assert together.high - together.low == pytest.approx(2 * 1.96 * 0.02, rel=0.1)
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * 0.02 / np.sqrt(2), rel=0.1)
