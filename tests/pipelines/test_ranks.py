"""The same numbers on any number of ranks: losses and gradients of every objective, random views and batch norm on."""

from pathlib import Path

import numpy as np
import pytest

from pipelines import pretrain
from tests.pipelines.training import CASES, MORE_CASES, losses_and_gradient, settings_of, steps_of_minutes, write_images
from tests.ranks import run_on_ranks


def assert_equal_on_ranks(
    tmp_path: Path, cases: list[str], *, num_ranks: int, precision: str, tolerance: float, num_steps: int = 10
) -> None:
    images = write_images(tmp_path)
    alone = losses_and_gradient(cases, images, tmp_path, precision, num_steps)
    ranks = run_on_ranks(losses_and_gradient, cases, images, tmp_path, precision, num_steps, num_ranks=num_ranks)
    for case in cases:
        for rank in ranks:
            np.testing.assert_allclose(rank[case]["losses"], alone[case]["losses"], rtol=tolerance, err_msg=case)
            if precision == "float64":
                largest = np.abs(alone[case]["gradient"]).max()
                difference = np.abs(rank[case]["gradient"] - alone[case]["gradient"]).max()
                assert difference <= tolerance * max(1.0, largest), f"{case}: gradients differ by {difference}"


@pytest.mark.dist
def test_two_ranks_equal_one_in_float64(tmp_path):
    assert_equal_on_ranks(
        tmp_path,
        # One of each kind of sharing: a gather and batch norm over the batch, both terms, a ViT's visible patches. All
        # objectives take longer, and are put to the same proof below.
        ["dcl-convnet", "joint-convnet", "shared-vit"],
        num_ranks=2,
        precision="float64",
        tolerance=1e-9,
        num_steps=3,
    )


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks_equal_one_where_the_loss_does_not_reach_all_of_the_encoder(tmp_path):
    assert_equal_on_ranks(tmp_path, list(MORE_CASES), num_ranks=2, precision="float64", tolerance=1e-9, num_steps=2)


@pytest.mark.dist
def test_minutes_become_the_same_number_of_steps_on_all_ranks(tmp_path):
    images = write_images(tmp_path)
    assert steps_of_minutes(images, tmp_path) >= 1
    first, second = run_on_ranks(steps_of_minutes, images, tmp_path, num_ranks=2)
    assert first == second >= 1


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_every_objective_on_two_and_four_ranks(tmp_path, num_ranks, precision, tolerance):
    assert_equal_on_ranks(tmp_path, list(CASES), num_ranks=num_ranks, precision=precision, tolerance=tolerance)


@pytest.mark.slow
@pytest.mark.dist
def test_the_run_is_printed_once_and_not_by_every_rank(tmp_path, capfd):
    out = str(tmp_path / "run")
    settings = settings_of("simclr-vit", write_images(tmp_path), out=out, devices=2, duration="1 steps")
    assert pretrain.main(settings) == 0
    assert capfd.readouterr().out == f"{out}\n"
