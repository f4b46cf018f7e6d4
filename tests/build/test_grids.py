"""The candidates of every strategy: there, valid settings, and none tried twice."""

import pytest
from pydantic import ValidationError

from ssl_ft.build.grids import GRIDS, candidates, refuse_settled, with_values, words
from ssl_ft.build.strategies import STRATEGIES
from ssl_ft.config import FinetuneSettings
from ssl_ft.errors import UserError


def test_every_strategy_has_its_candidates():
    assert set(GRIDS) == set(STRATEGIES)


@pytest.mark.parametrize("strategy", sorted(GRIDS))
def test_candidates_are_valid_settings_and_differ(strategy):
    found = candidates(FinetuneSettings(), strategy)
    assert len(found) == len({each.model_dump_json() for each in found}) == len(GRIDS[strategy])
    for each, candidate in zip(found, GRIDS[strategy], strict=True):
        assert FinetuneSettings.model_validate(each.model_dump(exclude_unset=True)).strategy == strategy
        told = dict(word.split("=") for word in words(candidate, each))
        for name, value in candidate.items():
            wanted = value if name != "optim.rate" else value * FinetuneSettings().optim.rate
            assert float(told[name]) == pytest.approx(wanted, rel=1e-3)


def test_the_rates_of_a_fresh_encoder_are_shares_of_the_one_given():
    found = candidates(FinetuneSettings.model_validate({"optim": {"name": "sgd", "rate": 0.1}}), "scratch")
    assert [each.optim.rate for each in found] == [0.1, 0.0333]
    assert words(GRIDS["scratch"][1], found[1]) == ("optim.rate=0.0333",)


def test_what_the_grid_chooses_cannot_be_given():
    given = FinetuneSettings.model_validate({"encoder_rate_share": 0.03, "epochs": 3})
    refuse_settled(given, ["scratch", "probe", "l2sp"])
    with pytest.raises(UserError, match=r"finetune.encoder_rate_share: compare tries 0.1 and 1 for strategy=full"):
        refuse_settled(given, ["scratch", "full"])


def test_strategies_are_tried_as_often_as_each_other():
    # One that has a solver of its own apart.
    assert len({len(found) for name, found in GRIDS.items() if name != "probe"}) == 1


def test_other_settings_stay():
    settings = with_values(FinetuneSettings(epochs=7, strategy="full"), {"optim.rate": 0.5})
    assert (settings.epochs, settings.optim.rate, settings.optim.name) == (7, 0.5, FinetuneSettings().optim.name)
    assert words({"optim.rate": 1.0}, settings) == ("optim.rate=0.5",)


def test_a_name_that_is_no_setting_is_refused():
    with pytest.raises(ValidationError, match="rata"):
        with_values(FinetuneSettings(), {"optim.rata": 1.0})
