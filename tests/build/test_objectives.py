"""Defaults that depend on the images."""

import pytest

from ssl_ft.build.objectives import _default_patch


@pytest.mark.parametrize(("size", "patch"), [(8, 2), (16, 2), (28, 4), (30, 3), (32, 4), (48, 6), (96, 12), (224, 28)])
def test_the_default_patch_divides_the_image_and_is_near_an_eighth_of_it(size, patch):
    assert _default_patch(size) == patch


@pytest.mark.parametrize("size", range(4, 225))
def test_no_size_has_a_default_patch_that_is_refused(size):
    patch = _default_patch(size)
    assert size % patch == 0
    assert patch < size
