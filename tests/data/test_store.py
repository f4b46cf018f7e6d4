"""The pool: three ways to hold it give the same bits, damaged images are replaced repeatably, statistics are right."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_ft import dist
from ssl_ft.data.images import DamagedImage, decode, resize_square
from ssl_ft.data.source import Source
from ssl_ft.data.store import DecodeOptions, ImageStore, channel_statistics
from ssl_ft.errors import UserError
from tests.pools import noise_images, source_of, store_of
from tests.ranks import run_on_ranks

COUNT, BROKEN = 24, (0, 3, 5, 11, 12, 13, 20, 21)
OPTIONS = DecodeOptions(channels=3, side=10, max_damaged_share=0.4)


def encoded(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def mixed_source(*, broken: tuple[int, ...] = BROKEN) -> Source:
    """PNG and JPEG files and arrays, grey and colour, wide and tall, some of them cut short."""
    generator = np.random.default_rng(1)
    images: list[np.ndarray | bytes] = []
    for number in range(COUNT):
        shape = (8 + number % 5, 9 + number % 7, 3) if number % 3 else (14, 11)
        image = generator.integers(0, 256, shape, dtype=np.uint8)
        images.append((image, encoded(image, "PNG"), encoded(image, "JPEG"))[number % 3])
    for number in broken:
        images[number] = encoded(noise_images(1)[0], "PNG")[:60]
    return source_of(images)


def test_memory_map_memory_and_decoding_each_time_give_the_same_bits(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "pixels.npy"
    stores = [
        ImageStore(mixed_source(), OPTIONS, seed=4, is_decoded=is_decoded, memory_map=path)
        for is_decoded, path in ((True, None), (True, file), (False, None))
    ]
    indices = torch.tensor([5, 3, 23, 0, 12, 11, 3, 17, 8, 2])
    pixels, aspects = stores[0].fetch(indices)
    assert pixels.shape == (10, 3, 10, 10)
    assert pixels.dtype == torch.uint8
    for store in stores[1:]:
        others, other_aspects = store.fetch(indices)
        assert torch.equal(pixels, others)
        assert torch.equal(aspects, other_aspects)
    on_disk = np.load(file, mmap_mode="r", allow_pickle=False)
    assert np.array_equal(on_disk[indices.numpy()], pixels.numpy())


def test_a_readable_image_is_itself_with_its_own_aspect() -> None:
    source = mixed_source()
    pixels, aspects = ImageStore(source, OPTIONS, seed=4, is_decoded=True).fetch(torch.tensor([7]))
    image = decode(source.read(7))
    assert np.array_equal(pixels[0].numpy(), resize_square(image, 10))
    assert aspects[0].item() == pytest.approx(image.shape[2] / image.shape[1])


def test_damaged_images_are_replaced_the_same_way_in_any_order() -> None:
    def replaced(order: list[int], seed: int) -> dict[str, str]:
        store = ImageStore(mixed_source(), OPTIONS, seed=seed, is_decoded=False)
        for index in order:
            store.fetch(torch.tensor([index]))
        return {damage.name: damage.replacement for damage in store.damages}

    forwards = replaced(list(range(COUNT)), 4)
    broken = {f"image {number}" for number in BROKEN}
    assert set(forwards) == broken
    assert not broken & set(forwards.values())
    assert len(set(forwards.values())) > len(broken) / 2  # each has its own, not one for all
    assert replaced(list(reversed(range(COUNT))), 4) == forwards
    whole = ImageStore(mixed_source(), OPTIONS, seed=4, is_decoded=True)
    assert {damage.name: damage.replacement for damage in whole.damages} == forwards
    assert all(damage.reason for damage in whole.damages)
    assert replaced(list(BROKEN), 5) != forwards
    for damage in whole.damages:
        pair = [whole.source.names.index(name) for name in (damage.name, damage.replacement)]
        shown, stand_in = whole.fetch(torch.tensor(pair))[0]
        assert torch.equal(shown, stand_in)


@pytest.mark.parametrize("is_decoded", [True, False])
def test_where_labels_are_trained_on_a_stand_in_is_of_the_same_class(is_decoded: bool) -> None:
    for seed in range(10):
        source = replace(mixed_source(), labels=np.arange(COUNT) % 4, class_names=("a", "b", "c", "d"))
        store = ImageStore(source, OPTIONS, seed=seed, is_decoded=is_decoded, is_class_kept=True)
        store.fetch(torch.arange(COUNT))
        assert len(store.damages) == len(BROKEN)
        for damage in store.damages:
            pair = [source.names.index(name) for name in (damage.name, damage.replacement)]
            assert source.labels[pair[0]] == source.labels[pair[1]]


@pytest.mark.parametrize("is_decoded", [True, False])
def test_too_many_damaged_images_stop_the_run(is_decoded: bool) -> None:
    def read_all(share: float) -> None:
        options = DecodeOptions(channels=3, side=10, max_damaged_share=share, workers=1)
        ImageStore(mixed_source(), options, seed=0, is_decoded=is_decoded).fetch(torch.arange(COUNT))

    read_all(len(BROKEN) / COUNT)
    with pytest.raises(UserError, match=r"3 of 24 images could not be read.*max_damaged_share=0\.1 .*image 0 \("):
        read_all(0.1)


def half_of_the_pool(share: float) -> tuple[list[str], list[str] | str]:
    """Damaged images a rank meets in its half of the pool, and those it lists once ranks have told each other."""
    options = DecodeOptions(channels=3, side=10, max_damaged_share=share, workers=1)
    # Images it draws to stand in may be damaged too, and which those are depends on the seed.
    store = ImageStore(mixed_source(), options, seed=1, is_decoded=False)
    ranks = dist.world_size()
    for index in range(dist.rank(), COUNT, ranks):
        with contextlib.suppress(DamagedImage):
            store._picture(index)
    alone = sorted(store._damaged)
    try:
        shared = store.share_damages()
    except UserError as error:
        return alone, str(error)
    assert [damage.name for damage in store.damages] == [f"image {index}" for index in shared]
    return alone, sorted(shared)


@pytest.mark.slow
@pytest.mark.dist
def test_ranks_count_and_list_the_damage_of_all() -> None:
    two = run_on_ranks(half_of_the_pool, 0.4, num_ranks=2)
    assert [alone for alone, _ in two] == [[0, 12, 20], [3, 5, 11, 13, 21]]
    assert [shared for _, shared in two] == [list(BROKEN)] * 2
    # Each rank by itself is below the cap of 6.
    for _, sentence in run_on_ranks(half_of_the_pool, 0.25, num_ranks=2):
        assert "8 of 24 images could not be read, more than data.max_damaged_share=0.25" in sentence


def test_damage_heard_of_is_listed_and_counted_and_read_anew() -> None:
    source = mixed_source(broken=(3,))
    store = ImageStore(source, replace(OPTIONS, max_damaged_share=0.1), seed=0, is_decoded=False)
    store.hear_of({5: "the drive was gone"})
    store.fetch(torch.arange(COUNT))
    assert [(damage.name, damage.reason) for damage in store.damages][1] == ("image 5", "the drive was gone")
    assert store.share_damages().keys() == {3, 5}
    whole = ImageStore(mixed_source(broken=()), OPTIONS, seed=0, is_decoded=False)
    assert torch.equal(store.fetch(torch.tensor([5]))[0], whole.fetch(torch.tensor([5]))[0])
    store.hear_of({7: "so was another"})
    with pytest.raises(UserError, match="3 of 24 images could not be read"):
        store.share_damages()


def test_nothing_readable_at_all_is_said() -> None:
    options = DecodeOptions(channels=3, side=10, max_damaged_share=1.0)
    with pytest.raises(UserError, match="no readable image was found to replace image"):
        ImageStore(mixed_source(broken=tuple(range(COUNT))), options, seed=0, is_decoded=True)


def test_images_with_other_channels_are_named() -> None:
    images = [*noise_images(3), *noise_images(1, channels=5)]
    with pytest.raises(UserError, match=r"image 3: .*5 channels"):
        ImageStore(source_of(images), OPTIONS, seed=0, is_decoded=True)


@pytest.mark.parametrize("is_decoded", [True, False])
def test_channel_statistics_equal_numpy(is_decoded: bool) -> None:
    images = noise_images(700, side=4)  # more than one block of 512
    images[..., 2] = 51
    images[:, :2, :, 1] //= 3
    mean, std = channel_statistics(store_of(images, is_decoded=is_decoded), seed=0)
    values = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, values.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(std[:2], values.std((0, 1, 2))[:2], atol=1e-6)
    assert mean[2] == 0.2
    assert std[2] == 1.0  # constant: normalising gives 0, not a division by 0


def test_statistics_of_a_large_pool_come_from_evenly_spread_images() -> None:
    images = noise_images(100, side=4)
    mean, _ = channel_statistics(store_of(images), seed=0, num_images=10)
    np.testing.assert_allclose(mean, images[::10].mean((0, 1, 2)) / 255, atol=1e-6)


def test_progress_ends_at_the_number_of_images() -> None:
    told: list[int] = []
    options = DecodeOptions(channels=3, side=4)
    ImageStore(source_of(list(noise_images(300))), options, seed=0, is_decoded=True, on_progress=told.append)
    assert told == [256, 300]
