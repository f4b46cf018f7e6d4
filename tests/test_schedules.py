"""Learning rates at the steps that matter, and durations."""

import math

import pytest

from ssl_ft.errors import UserError
from ssl_ft.schedules import epochs_to_steps, parse_duration, scaled_rate, warmup_cosine


def test_warmup_then_cosine():
    rates = [warmup_cosine(s, num_steps=110, warmup_steps=10) for s in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates[85] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.75)))
    assert 0 < rates[109] < 0.001
    assert all(type(r) is float for r in rates)


def test_final_share_is_the_floor():
    assert warmup_cosine(99, num_steps=100, warmup_steps=0, final_share=0.1) == pytest.approx(0.1, abs=1e-3)
    assert warmup_cosine(0, num_steps=100, warmup_steps=0, final_share=0.1) == 1.0


def test_rules_for_the_batch():
    assert scaled_rate(0.3, rule="linear", batch_size=512) == pytest.approx(0.6)
    assert scaled_rate(0.075, rule="sqrt", batch_size=4096) == pytest.approx(4.8)
    assert scaled_rate(0.1, rule="none", batch_size=4096) == 0.1


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("20 epochs", (20.0, "epochs")),
        ("1 epoch", (1.0, "epochs")),
        ("300 steps", (300.0, "steps")),
        ("1.5 minutes", (1.5, "minutes")),
    ],
)
def test_durations(text, parsed):
    assert parse_duration(text) == parsed


@pytest.mark.parametrize("text", ["20", "epochs", "-3 steps", "0 steps", "2 hours", "many steps"])
def test_other_durations_are_refused(text):
    with pytest.raises(UserError, match="is not a duration"):
        parse_duration(text)


def test_part_of_an_epoch_is_at_least_a_step():
    assert epochs_to_steps(0.001, steps_per_epoch=10) == 1
    assert epochs_to_steps(2.5, steps_per_epoch=10) == 25
