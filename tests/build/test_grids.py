"""The candidates of every strategy: there, valid settings, and none tried twice."""

import pytest
from pydantic import ValidationError

from ssl_ft.build.grids import GRIDS, candidates, with_values, words
from ssl_ft.build.strategies import STRATEGIES
from ssl_ft.config import FinetuneSettings


def test_every_strategy_has_its_candidates():
    assert set(GRIDS) == set(STRATEGIES)


@pytest.mark.parametrize("strategy", sorted(GRIDS))
def test_candidates_are_valid_settings_and_differ(strategy):
    found = candidates(FinetuneSettings(), strategy)
    assert len(found) == len({each.model_dump_json() for each in found}) == len(GRIDS[strategy])
    for each, candidate in zip(found, GRIDS[strategy], strict=True):
        assert FinetuneSettings.model_validate(each.model_dump(exclude_unset=True)).strategy == strategy
        # Read back by their names from nested settings.
        for name, value in candidate.items():
            section: object = each
            for part in name.split("."):
                section = getattr(section, part)
            assert section == value


def test_strategies_are_tried_as_often_as_each_other():
    # One that has a solver of its own apart.
    assert len({len(found) for name, found in GRIDS.items() if name != "probe"}) == 1


def test_other_settings_stay():
    settings = with_values(FinetuneSettings(epochs=7, strategy="full"), {"optim.rate": 0.5})
    assert (settings.epochs, settings.optim.rate, settings.optim.name) == (7, 0.5, FinetuneSettings().optim.name)
    assert words({"optim.rate": 0.5}) == ("optim.rate=0.5",)


def test_a_name_that_is_no_setting_is_refused():
    with pytest.raises(ValidationError, match="rata"):
        with_values(FinetuneSettings(), {"optim.rata": 1.0})
