"""Decoders: what is predicted for a place comes from that place; positions are distinct."""

import pytest
import torch

from ssl_ft.models.decoders import MapDecoder, TokenDecoder, sine_places


@pytest.mark.parametrize(("grid", "width"), [(4, 32), (7, 64), (14, 128)])
def test_sine_places_are_distinct_and_tell_rows_from_columns(grid: int, width: int) -> None:
    places = sine_places(grid, width=width).double()
    assert places.shape == (grid * grid, width)
    distances = torch.cdist(places, places) + 10 * torch.eye(grid * grid)
    assert distances.min() > 0.1
    table = places.view(grid, grid, width)
    half = width // 2
    assert torch.equal(table[2, 1, :half], table[2, 3, :half])  # one row
    assert torch.equal(table[1, 2, half:], table[3, 2, half:])  # one column
    assert torch.equal(table[1, 2, :half], table[2, 1, half:])  # the same code for both axes


def test_sine_places_follow_the_formula() -> None:
    places = sine_places(5, width=16).double()
    for row, column, k in ((0, 0, 0), (3, 1, 2), (4, 4, 3)):
        rate = 10000.0 ** (-k / 4)
        found = places[row * 5 + column, [k, 4 + k, 8 + k, 12 + k]]
        angles = torch.tensor([row * rate, row * rate, column * rate, column * rate], dtype=torch.float64)
        expected = torch.where(torch.tensor([True, False, True, False]), angles.sin(), angles.cos())
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_width_that_cannot_hold_both_axes_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="multiple of 4"):
        sine_places(4, width=30)


def token_decoder(*, depth: int) -> TokenDecoder:
    torch.manual_seed(0)
    return TokenDecoder(6, width=32, depth=depth, num_heads=2, num_patches=9, num_out=5).double().eval()


def visible() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return tokens, torch.tensor([[0, 4, 7], [2, 3, 8]])


def test_without_blocks_each_place_is_predicted_from_its_own_token_or_the_hidden_one() -> None:
    decoder = token_decoder(depth=0)
    tokens, places = visible()
    predictions = decoder(tokens, places)
    for image in range(2):
        for place in range(9):
            at = places[image].tolist()
            own = decoder.embed(tokens[image, at.index(place)]) if place in at else decoder.hidden_token[0, 0]
            expected = decoder.predict(decoder.norm(own + decoder.places[place]))
            torch.testing.assert_close(predictions[image, place], expected, rtol=1e-12, atol=1e-12)


def test_the_order_in_which_visible_tokens_come_does_not_matter() -> None:
    decoder = token_decoder(depth=2)
    tokens, places = visible()
    order = torch.tensor([2, 0, 1])
    mixed = decoder(tokens[:, order], places[:, order])
    torch.testing.assert_close(mixed, decoder(tokens, places), rtol=1e-12, atol=1e-12)
    moved = decoder(tokens, places.roll(1, 1))
    assert not torch.allclose(moved, decoder(tokens, places), atol=1e-3)


def test_hidden_places_see_the_visible_tokens() -> None:
    decoder = token_decoder(depth=1)
    tokens, places = visible()
    changed = tokens.clone()
    changed[0, 1] += 1
    difference = (decoder(changed, places) - decoder(tokens, places)).abs().amax(2)
    assert (difference[0] > 1e-6).all()
    assert (difference[1] == 0).all()


def test_a_cell_of_the_map_predicts_the_pixels_under_it() -> None:
    torch.manual_seed(0)
    decoder = MapDecoder(6, width=8, cell=4, channels=3).double().eval()
    torch.nn.init.zeros_(decoder.mix[2].weight)  # without the neighbours, each cell stands alone
    torch.nn.init.zeros_(decoder.mix[2].bias)
    features = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    images = decoder(features)
    assert images.shape == (2, 3, 12, 20)
    for row, column in ((0, 0), (2, 1), (1, 4)):
        values = decoder.predict(decoder.narrow(features))[1, :, row, column].view(3, 4, 4)
        pixels = images[1, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
        torch.testing.assert_close(pixels, values, rtol=1e-12, atol=1e-12)


def test_cells_see_their_neighbours() -> None:
    torch.manual_seed(0)
    decoder = MapDecoder(6, width=8, cell=2, channels=1).double().eval()
    features = torch.randn(1, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    decoder(features)[0, 0, 0, 0].backward()
    assert features.grad is not None
    assert features.grad[0, :, 1, 1].abs().max() > 0
