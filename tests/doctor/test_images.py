"""Decoders and the user's source: right here, and each thing that is broken is named alone."""

import numpy as np
import pytest
from PIL import Image

from ssl_ft.doctor import images
from tests.pools import noise_images, source_of


def test_decoders_pass_here():
    finding = images.check_decoders()
    assert finding.verdict == "pass", finding
    assert "WebP" in finding.measured


def wrong_formats(finding: images.Finding) -> set[str]:
    assert finding.verdict == "fail"
    return {part.split(":")[0] for part in finding.measured.split("; ")}


def test_orientation_that_is_ignored_is_named(monkeypatch):
    monkeypatch.setattr("ssl_ft.data.images._ORIENTATIONS", {})
    assert wrong_formats(images.check_decoders()) == {"EXIF orientation"}


@pytest.mark.parametrize("orientation", range(2, 9))
def test_every_orientation_has_its_own_picture(orientation):
    first, other = images._turned(1).pixels, images._turned(orientation).pixels
    assert first.shape != other.shape or np.abs(first.astype(int) - other).max() > 50


def test_a_decoder_that_is_not_there_is_named(monkeypatch):
    Image.init()
    monkeypatch.delitem(Image.SAVE, "WEBP")
    assert wrong_formats(images.check_decoders()) == {"WebP"}


def test_deep_grey_cut_to_its_upper_bits_is_named(monkeypatch):
    def cut(pixels: np.ndarray, white_level: int) -> np.ndarray:
        return (pixels >> 8).astype(np.uint8)[None]

    monkeypatch.setattr("ssl_ft.data.images._scale_to_bytes", cut)
    assert wrong_formats(images.check_decoders()) == {"16-bit TIFF"}


def test_a_torn_file_that_is_accepted_is_named(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    assert wrong_formats(images.check_decoders()) == {"torn JPEG"}


def test_swapped_channels_fail(monkeypatch):
    whole = images.decode
    monkeypatch.setattr(images, "decode", lambda raw: whole(raw)[::-1])
    assert {"JPEG", "PNG", "TIFF", "WebP", "CMYK"} <= wrong_formats(images.check_decoders())


class TestSource:
    def test_none_named(self):
        assert images.check_source(None).verdict == "cannot check"

    def test_images_are_read(self):
        finding = images.check_source(lambda: source_of(list(noise_images(100))))
        assert finding.verdict == "pass"
        assert "64 of 100 images" in finding.measured
        assert "12 px, channels: 3" in finding.measured

    def test_damage_is_named(self):
        finding = images.check_source(lambda: source_of([*noise_images(3), b"GIF89a"]))
        assert finding.verdict == "fail"
        assert "image 3" in finding.measured
        assert "ssl-ft index" in finding.advice
