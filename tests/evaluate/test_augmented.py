"""Test-time augmentation: which views are averaged, and that probabilities are, not logits."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_ft.artifact import InputContract
from ssl_ft.evaluate.augmented import mean_outputs, reading_contract

CONTRACT = InputContract(7, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CPU = torch.device("cpu")


class Net(nn.Module):
    """Sees left from right and top from bottom."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * 49, 4)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.layer(images.flatten(1))
        return outputs


def outputs_of(views: list[np.ndarray], link) -> np.ndarray:
    with torch.no_grad():
        every = [link(Net()(CONTRACT.normalise(torch.from_numpy(view.copy())))) for view in views]
    return torch.stack(every).mean(0).numpy()


@pytest.mark.parametrize(
    ("task", "link"),
    [("classes", lambda z: z.softmax(1)), ("multi_label", lambda z: z.sigmoid()), ("regression", lambda z: z)],
)
@pytest.mark.parametrize("how", ["none", "flip", "crops"])
def test_the_mean_over_the_views_named(task, link, how):
    side = reading_contract(CONTRACT, how=how).size
    assert side == (8 if how == "crops" else 7)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, side, side), dtype=np.uint8)
    corners = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0)] if how == "crops" else [(0, 0)]
    views = [pixels[:, :, top : top + 7, left : left + 7] for top, left in corners]
    views += [view[:, :, :, ::-1] for view in views] if how != "none" else []
    found = mean_outputs(Net(), pixels, CONTRACT, task=task, how=how, device=CPU, batch_size=2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, outputs_of(views, link), rtol=1e-5, atol=1e-6)


def test_a_mirror_image_gets_the_same_outputs_with_flip():
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 7, 7), dtype=np.uint8)
    mirrored = np.ascontiguousarray(pixels[:, :, :, ::-1])
    first, second = (
        mean_outputs(Net(), images, CONTRACT, task="classes", how="flip", device=CPU, batch_size=8)
        for images in (pixels, mirrored)
    )
    np.testing.assert_allclose(first, second, atol=1e-7)
    assert np.abs(first.sum(1) - 1).max() < 1e-6
