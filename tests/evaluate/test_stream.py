"""Outputs block by block: those of all images at once, in order, damaged ones left out and capped."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_ft.artifact import InputContract
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError
from ssl_ft.evaluate import stream
from ssl_ft.evaluate.stream import Damage, OutputBlock, walk_outputs
from tests.pools import noise_images, source_of

CONTRACT = InputContract(8, 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


class Sums(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.sum((2, 3))


def walk(source: Source, *, share: float = 0.0) -> tuple[list[OutputBlock], Damage]:
    damage = Damage(source, max_share=share)
    cpu = torch.device("cpu")
    return list(walk_outputs(Sums(), source, CONTRACT, device=cpu, batch_size=4, damage=damage)), damage


def spoilt(count: int, *, bad: list[int]) -> Source:
    images: list[np.ndarray | bytes] = list(noise_images(count, side=8))
    for index in bad:
        images[index] = b"no image"
    return source_of(images)


def test_blocks_are_small_and_add_up_to_all_images(monkeypatch):
    monkeypatch.setattr(stream, "_BLOCK_BYTES", 10 * 3 * 8 * 8)
    source = spoilt(25, bad=[3, *range(10, 20)])  # a whole block is damaged
    blocks, damage = walk(source, share=0.5)
    assert [len(block.indices) for block in blocks] == [9, 5]
    assert [block.done for block in blocks] == [10, 25]
    assert [name for name, _ in damage.met] == ["image 3", *(f"image {i}" for i in range(10, 20))]
    kept = np.concatenate([block.indices for block in blocks])
    assert kept.tolist() == [0, 1, 2, *range(4, 10), *range(20, 25)]
    pixels = noise_images(25, side=8)[kept].transpose(0, 3, 1, 2)
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (CONTRACT.mean, CONTRACT.std))
    outputs = np.concatenate([block.outputs for block in blocks])
    np.testing.assert_allclose(outputs, ((pixels / 255 - mean) / std).sum((2, 3)), rtol=1e-4, atol=1e-3)


def test_too_many_damaged_images_end_the_walk(monkeypatch):
    monkeypatch.setattr(stream, "_BLOCK_BYTES", 5 * 3 * 8 * 8)
    source = spoilt(10, bad=[1, 2])
    with pytest.raises(UserError, match=r"at least 2 of 10 .*image 1 \(.*max_damaged_share=0\.1; nothing was written"):
        walk(source, share=0.1)
    assert sum(len(block.indices) for block in walk(source, share=0.2)[0]) == 8


def test_no_image_at_all_is_refused():
    with pytest.raises(UserError, match="not one of 2 images can be read"):
        walk(spoilt(2, bad=[0, 1]), share=1.0)


def test_what_is_told_of_damage_stays_short():
    _, damage = walk(spoilt(30, bad=list(range(25))), share=1.0)
    told = damage.sentences()
    assert len(told) == 21
    assert told[0].startswith("left out: image 0 (")
    assert told[-1] == "left out: 5 more that cannot be read"
    assert walk(spoilt(2, bad=[]))[1].sentences() == []
