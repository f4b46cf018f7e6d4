"""Features: the evaluation geometry of the contract, damage, order and blocks of a forward pass, raw pixels."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_ft.artifact import InputContract
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError
from ssl_ft.evaluate.features import Inputs, compute_outputs, pixel_features, read_blocks, read_inputs
from tests.pools import noise_images, source_of

CONTRACT = InputContract(8, 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def read(source: Source, indices: list[int], *, share: float = 0.0, contract: InputContract = CONTRACT) -> Inputs:
    return read_inputs(
        source, np.array(indices, np.int64), contract, max_damaged_share=share, max_pixels=10**6, workers=2
    )


def test_the_short_side_is_kept_and_the_centre_cut_out():
    generator = np.random.default_rng(0)
    wide, tall = (generator.integers(0, 256, shape, dtype=np.uint8) for shape in ((8, 14, 3), (12, 8, 3)))
    pixels = read(source_of([wide, tall]), [0, 1]).pixels
    assert pixels.shape == (2, 3, 8, 8)
    assert np.array_equal(pixels[0], wide[:, 3:11].transpose(2, 0, 1))
    assert np.array_equal(pixels[1], tall[2:10].transpose(2, 0, 1))


def test_large_images_are_shrunk_by_area_before_the_cut():
    step = np.repeat(np.array([0, 240], np.uint8), 16)  # dark left, bright right, 32 wide
    image = np.broadcast_to(step[None, :, None], (16, 32, 3)).copy()
    pixels = read(source_of([image]), [0]).pixels[0, 0]
    assert pixels[:, 0].max() == 0
    assert pixels[:, -1].min() == 240
    assert abs(pixels.mean() - 120) < 1


def test_grey_images_gain_channels_and_sixteen_bits_follow_the_white_level():
    grey = noise_images(1, side=8, channels=1)[0]
    deep = grey.astype(np.uint16) * 16
    contract = InputContract(8, 3, CONTRACT.mean, CONTRACT.std, white_level=255 * 16)
    source = source_of([grey])
    for image in (grey, deep):
        source = source_of([image])
        pixels = read(source, [0], contract=contract).pixels[0]
        assert np.array_equal(pixels, np.broadcast_to(grey[:, :, 0], (3, 8, 8)))


def test_damaged_images_are_left_out_and_listed_up_to_the_share():
    images: list[np.ndarray | bytes] = list(noise_images(10, side=8))
    images[4] = b"no image"
    source = source_of(images)
    inputs = read(source, [9, 4, 2, 0], share=0.25)
    assert inputs.indices.tolist() == [9, 2, 0]
    assert np.array_equal(inputs.pixels[1], images[2].transpose(2, 0, 1))
    ((name, reason),) = inputs.damaged
    assert name == "image 4"
    assert reason
    with pytest.raises(UserError, match=r"1 of 4 images cannot be read.*max_damaged_share=0\.2 .*image 4 \("):
        read(source, [9, 4, 2, 0], share=0.2)
    nothing = read(source, [4], share=1.0)
    assert nothing.pixels.shape == (0, 3, 8, 8)
    assert nothing.indices.tolist() == []


def test_images_of_other_channels_are_refused_by_name():
    source = source_of([*noise_images(2, side=8), *noise_images(1, side=8, channels=5)])
    with pytest.raises(UserError, match=r"image 2: .*5 channels"):
        read(source, [0, 1, 2])


class Model(nn.Module):
    """Features that depend on every pixel, on the mode and, while training, on the other images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.linear, self.drop = nn.BatchNorm2d(3), nn.Linear(3 * 64, 5), nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.linear(self.drop(self.norm(images)).flatten(1))
        return features


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_outputs_are_those_of_the_model_in_evaluation_whatever_the_blocks(batch_size):
    pixels = noise_images(7, side=8).transpose(0, 3, 1, 2)
    model, done = Model().train(), []
    outputs = compute_outputs(
        model, pixels, CONTRACT, device=torch.device("cpu"), batch_size=batch_size, on_progress=done.append
    )
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (CONTRACT.mean, CONTRACT.std))
    images = torch.from_numpy((pixels / 255 - mean) / std).float()
    with torch.no_grad():
        expected = torch.stack([model.eval()(image[None])[0] for image in images])
    np.testing.assert_allclose(outputs, expected.numpy(), rtol=1e-5, atol=1e-5)
    assert outputs.dtype == np.float32
    assert done[-1] == 7


def test_images_that_break_the_contract_are_refused():
    with pytest.raises(UserError, match=r"got shape \(2, 3, 9, 9\)"):
        compute_outputs(Model(), np.zeros((2, 3, 9, 9), np.uint8), CONTRACT, device=torch.device("cpu"), batch_size=2)


def test_small_images_are_their_own_features_pixel_for_pixel():
    pixels = noise_images(3, side=32).transpose(0, 3, 1, 2).copy()
    features = pixel_features(pixels)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, pixels.reshape(3, -1) / 255, rtol=1e-6)


def test_large_images_are_shrunk_to_32_pixels_by_area():
    blocks = noise_images(2, side=32, channels=2).transpose(0, 3, 1, 2)
    blocks[:, :, 1::2] = blocks[:, :, ::2]  # neighbours alike, so that the filter's reach past a pixel adds nothing
    flat = np.full((1, 2, 96, 96), 77, np.uint8)
    assert pixel_features(flat).shape == (1, 2 * 32 * 32)
    np.testing.assert_allclose(pixel_features(flat), 77 / 255, rtol=1e-5)
    large = blocks.repeat(4, axis=2).repeat(4, axis=3)
    means = pixel_features(large).reshape(2, 2, -1).mean(2)
    np.testing.assert_allclose(means, blocks.reshape(2, 2, -1).mean(2) / 255, atol=0.01)


@pytest.mark.parametrize("bad", [[], [1, 4, 9], [8, 9], [0, 1, 2, 3]])
@pytest.mark.parametrize("block", [1, 4, 10, 100])
def test_blocks_are_full_and_together_what_is_read_at_once(bad, block):
    images: list[np.ndarray | bytes] = list(noise_images(10, side=8))
    for index in bad:
        images[index] = b"no image"
    source, wanted = source_of(images), np.arange(10)
    options = {"max_damaged_share": 0.5, "max_pixels": 10**6, "workers": 1}
    whole = read_inputs(source, wanted, CONTRACT, **options)
    parts = list(read_blocks(source, wanted, CONTRACT, block=block, **options))
    assert np.array_equal(np.concatenate([part.pixels for part in parts]), whole.pixels)
    assert np.array_equal(np.concatenate([part.indices for part in parts]), whole.indices)
    assert [row for part in parts for row in part.damaged] == whole.damaged
    sizes = [len(part.indices) for part in parts if len(part.indices)]
    assert sizes == [min(block, len(whole.indices) - first) for first in range(0, len(whole.indices), block)]


def test_too_many_damaged_images_stop_the_walk_at_once():
    source = source_of([b"no image", b"no image", *noise_images(8, side=8)])
    blocks = read_blocks(source, np.arange(10), CONTRACT, block=2, max_damaged_share=0.1, max_pixels=10**6, workers=1)
    with pytest.raises(UserError, match=r"at least 2 of 10 images cannot be read, more than max_damaged_share=0\.1 "):
        next(blocks)
