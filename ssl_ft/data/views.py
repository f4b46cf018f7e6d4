"""Views: crop, flip, resize, blur and colour of a whole batch on its device, each image with its own parameters.

Axis-aligned crop, resize, flip and Gaussian blur are all separable, so together they are one matrix for the rows
and one for the columns; colour is one affine map of the channels. Three batched matrix products make a view.
Parameters come from counter-based draws alone (`seeding.uniform`). Masks are in `masks.py`, names of recipes in
`build/parts.py`.

Shape suffixes: B images, C channels, S stored side, V side of the view.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_ft.data.constants import constant
from ssl_ft.seeding import uniform

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the weights Pillow and torchvision use for grey
_FROM_RGB = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.321), (0.211, -0.523, 0.311))  # RGB -> YIQ (NTSC 1953)
_NUM_DRAWS = 16


@dataclass(frozen=True)
class ViewRecipe:
    """How far a view may depart from its image; every range is sampled uniformly unless said otherwise.

    Attributes:
        size: side of the view in pixels.
        scale: smallest and largest share of the image's area a crop covers.
        ratio: smallest and largest width/height of a crop in the image's own pixels, log-uniform.
        horizontal_flip: probability of a left-right flip.
        vertical_flip: probability of an upside-down flip.
        quarter_turn: probability of a turn by 90 degrees (with the flips: all eight orientations).
        jitter: probability that brightness, contrast, saturation and hue change at all.
        brightness: b; the factor is in [1 − b, 1 + b].
        contrast: c; the factor about the image's mean grey is in [1 − c, 1 + c].
        saturation: s; the factor is in [1 − s, 1 + s]; colour images only.
        hue: h; rotation of the chroma plane in [−h, h] turns; colour images only.
        grey: probability of dropping colour; colour images only.
        blur: probability of a Gaussian blur.
        blur_sigma: smallest and largest sigma in pixels of the view.
    """

    size: int
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    quarter_turn: float = 0.0
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)


def make_views(
    images_BCSS: Tensor,
    aspects_B: Tensor,
    indices_B: Tensor,
    *,
    recipe: ViewRecipe,
    seed: int,
    epoch: int,
    view: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One view of each image.

    Args:
        images_BCSS: uint8 [B, C, S, S], whole images squashed to a square.
        aspects_B: float [B], width/height before squashing; crops keep their shape in the image's own pixels.
        indices_B: int64 [B], the images' numbers in the pool: they, not the place in the batch, decide the draws.
        recipe: ranges of the parameters.
        seed: the run's seed.
        epoch: epoch counter.
        view: number of the view.
        dtype: float32 or float64, of the arithmetic and the result.

    Returns:
        [B, C, V, V] of `dtype`, values in [0, 1].
    """
    draws = view_draws(indices_B, seed=seed, epoch=epoch, view=view).to(dtype)
    channels, side = images_BCSS.shape[1], images_BCSS.shape[2]
    to_columns, to_rows = _resampling(draws[:, :9], aspects_B.to(dtype), side=side, recipe=recipe)
    pixels = images_BCSS.to(dtype) / 255
    turned = (draws[:, 6] < recipe.quarter_turn).view(-1, 1, 1, 1)
    if recipe.quarter_turn > 0:
        pixels = torch.where(turned, pixels.transpose(2, 3), pixels)
    # Rows first: [B, 1, V, S] x [B, C, S, S] x [B, 1, S, V].
    views = to_rows.unsqueeze(1) @ pixels @ to_columns.transpose(1, 2).unsqueeze(1)
    return _recolour(views, draws[:, 9:], recipe=recipe, is_colour=channels == 3)


def finish_views(
    cuts_BCVV: Tensor,
    indices_B: Tensor,
    *,
    recipe: ViewRecipe,
    seed: int,
    epoch: int,
    view: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Blur and colour of views that were cut out where the images were decoded (`cuts.cut_views`).

    The draws, arguments and result are those of `make_views`; its views come from a smaller copy of the image, these
    from all of its pixels, rounded to whole numbers before they are blurred and coloured.

    Args:
        cuts_BCVV: uint8 [B, C, V, V].
        indices_B: int64 [B], the images' numbers in the pool.
        recipe: ranges of the parameters.
        seed: the run's seed.
        epoch: epoch counter.
        view: number of the view.
        dtype: float32 or float64.
    """
    draws = view_draws(indices_B, seed=seed, epoch=epoch, view=view).to(dtype)
    views = cuts_BCVV.to(dtype).div_(255)
    if recipe.blur > 0:
        is_blurred, sigma = draws[:, 7] < recipe.blur, _between(draws[:, 8], recipe.blur_sigma)
        if views.device.type == "cpu":  # elsewhere, counting the blurred ones would stop the stream
            for place in torch.nonzero(is_blurred).squeeze(1).tolist():
                views[place] = _blurred(views[place], float(sigma[place]))
        else:
            matrix = _blur_matrix(sigma, size=recipe.size)
            keep = torch.eye(recipe.size, dtype=dtype, device=views.device)
            matrix = torch.where(is_blurred.view(-1, 1, 1), matrix, keep).unsqueeze(1)
            views = matrix @ views @ matrix.transpose(2, 3)
    return _recolour(views, draws[:, 9:], recipe=recipe, is_colour=views.shape[1] == 3)


def view_draws(indices_B: Tensor, *, seed: int, epoch: int, view: int) -> Tensor:
    """float64 [B, 16], every random number of one view of each image: the first nine place and blur it."""
    return uniform(indices_B, seed=seed, purpose="view", epoch=epoch, view=view, columns=_NUM_DRAWS)


def crop_boxes(draws: Tensor, aspects_B: Tensor, *, recipe: ViewRecipe) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left, top, width and height [B] of each view in shares of its image, before any turn.

    Args:
        draws: [B, ≥ 4] of `view_draws`.
        aspects_B: [B], width/height of the images.
        recipe: ranges.
    """
    area = _between(draws[:, 0], recipe.scale)
    ratio = _between(draws[:, 1], (math.log(recipe.ratio[0]), math.log(recipe.ratio[1]))).exp()
    # A box wider or taller than the image is cut to it (torchvision draws again; the shares differ by little).
    width = (area * ratio / aspects_B).sqrt().clamp(max=1.0)
    height = (area * aspects_B / ratio).sqrt().clamp(max=1.0)
    return draws[:, 2] * (1 - width), draws[:, 3] * (1 - height), width, height


def _resampling(draws: Tensor, aspects: Tensor, *, side: int, recipe: ViewRecipe) -> tuple[Tensor, Tensor]:
    """Matrices [B, V, S] for the horizontal and the vertical axis: crop, resize, flip and blur in one."""
    left, top, width, height = crop_boxes(draws, aspects, recipe=recipe)
    if recipe.quarter_turn > 0:
        turned = draws[:, 6] < recipe.quarter_turn
        left, top = torch.where(turned, top, left), torch.where(turned, left, top)
        width, height = torch.where(turned, height, width), torch.where(turned, width, height)
    columns = resample_matrix(left * side, width * side, side=side, size=recipe.size)
    rows = resample_matrix(top * side, height * side, side=side, size=recipe.size)
    columns = torch.where((draws[:, 4] < recipe.horizontal_flip).view(-1, 1, 1), columns.flip(1), columns)
    rows = torch.where((draws[:, 5] < recipe.vertical_flip).view(-1, 1, 1), rows.flip(1), rows)
    if recipe.blur > 0:
        blur = _blur_matrix(_between(draws[:, 8], recipe.blur_sigma), size=recipe.size)
        is_blurred = (draws[:, 7] < recipe.blur).view(-1, 1, 1)
        columns = torch.where(is_blurred, blur @ columns, columns)
        rows = torch.where(is_blurred, blur @ rows, rows)
    return columns, rows


def _between(draw: Tensor, bounds: tuple[float, float]) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * draw


def resample_matrix(start_B: Tensor, length_B: Tensor, *, side: int, size: int) -> Tensor:
    """Weights that cut [start, start + length] out of a line of `side` pixels and resize it to `size` pixels.

    The filter is a triangle as wide as an input pixel, or as an output pixel where the cut shrinks: bilinear with
    antialiasing, as Pillow's BILINEAR computes it, except that the filter may read just outside the cut.

    Args:
        start_B: [B], left edge of the cut in pixels, ≥ 0.
        length_B: [B], length of the cut in pixels, start + length ≤ side.
        side: pixels of the input line.
        size: pixels of the output line.

    Returns:
        [B, size, side]; every row sums to 1.
    """
    dtype, device = start_B.dtype, start_B.device
    step = (length_B / size).view(-1, 1, 1)
    centres = start_B.view(-1, 1, 1) + (torch.arange(size, dtype=dtype, device=device).view(1, -1, 1) + 0.5) * step
    pixels = torch.arange(side, dtype=dtype, device=device).view(1, 1, -1) + 0.5
    weights = (1 - (pixels - centres).abs() / step.clamp(min=1.0)).clamp(min=0.0)
    return weights / weights.sum(2, keepdim=True)


def _blur_matrix(sigma: Tensor, *, size: int) -> Tensor:
    """[B, size, size] Gaussian weights, rows normalised so that borders keep their brightness."""
    places = torch.arange(size, dtype=sigma.dtype, device=sigma.device)
    distance = (places.view(-1, 1) - places.view(1, -1)).square().unsqueeze(0)
    weights = torch.exp(-distance / (2 * sigma.view(-1, 1, 1).square()))
    return weights / weights.sum(2, keepdim=True)


def _blurred(view_CVV: Tensor, sigma: float) -> Tensor:
    """The blur of `_blur_matrix` for one view, tap by tap: matrices for 224 pixels are mostly zeros, and slower.

    Taps end at five sigma; what they leave out is below a millionth.
    """
    reach, size, dtype = math.ceil(5 * sigma), view_CVV.shape[-1], view_CVV.dtype
    distance = torch.arange(-reach, reach + 1, dtype=dtype)
    taps = torch.exp(-distance.square() / (2 * sigma**2))
    # Weights are normalised over the taps that lie inside, so that borders keep their brightness.
    weight = F.pad(torch.ones(size, dtype=dtype), (reach, reach)).unfold(0, 2 * reach + 1, 1) @ taps
    for dim, shape in ((1, (-1, 1)), (2, (1, -1))):
        padded = F.pad(view_CVV, (0, 0, reach, reach) if dim == 1 else (reach, reach))
        total = torch.zeros_like(view_CVV)
        for place, tap in enumerate(taps.tolist()):
            total.add_(padded.narrow(dim, place, size), alpha=tap)
        view_CVV = total.div_(weight.view(shape))
    return view_CVV


def _recolour(views: Tensor, draws: Tensor, *, recipe: ViewRecipe, is_colour: bool) -> Tensor:
    """Brightness, contrast, saturation, hue and grey as one affine map a·x + b of each pixel's channels."""
    if recipe.jitter == 0 and recipe.grey == 0:
        return views
    batch, channels = views.shape[:2]
    is_jittered = draws[:, 0] < recipe.jitter
    factors = [
        torch.where(is_jittered, _between(draws[:, k], (1 - width, 1 + width)), torch.ones_like(draws[:, k]))
        for k, width in ((1, recipe.brightness), (2, recipe.contrast), (3, recipe.saturation))
    ]
    brightness, contrast, saturation = (factor.view(-1, 1, 1) for factor in factors)
    luma = constant(_LUMA, like=views) if is_colour else views.new_full((channels,), 1 / channels)
    # Contrast scales about the mean grey of the brightened image, so it adds (1 − contrast) times that mean.
    mean_grey = brightness * (views.mean((2, 3)) @ luma).view(-1, 1, 1)
    matrix = (brightness * contrast) * torch.eye(channels, dtype=views.dtype, device=views.device)
    offset = (1 - contrast) * mean_grey
    if is_colour:
        angle = torch.where(
            is_jittered, _between(draws[:, 4], (-recipe.hue, recipe.hue)), torch.zeros_like(draws[:, 4])
        )
        to_grey = luma.expand(3, 3)
        identity = torch.eye(3, dtype=views.dtype, device=views.device)
        # Saturation and hue leave grey as it is, so the offset needs no change.
        colour = _hue_matrix(angle) @ (saturation * identity + (1 - saturation) * to_grey)
        is_grey = (draws[:, 5] < recipe.grey).view(-1, 1, 1)
        matrix = torch.where(is_grey, to_grey, colour) @ matrix
    flat = torch.baddbmm(offset.expand(-1, channels, 1), matrix, views.reshape(batch, channels, -1))
    return flat.clamp_(0, 1).view_as(views)


def _hue_matrix(turns: Tensor) -> Tensor:
    """[B, 3, 3] rotation of RGB's chroma plane (YIQ) by `turns` of the circle; grey stays grey."""
    angle = turns * (2 * math.pi)
    cosine, sine, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rotation = torch.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], dim=1).view(-1, 3, 3)
    to_yiq, from_yiq = (constant(values, like=turns).view(3, 3) for values in _yiq())
    return from_yiq @ rotation @ to_yiq


@cache
def _yiq() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """RGB -> YIQ and back, row by row."""
    to_yiq = torch.tensor(_FROM_RGB, dtype=torch.float64)
    # The printed coefficients are rounded; rows of I and Q must sum to 0 exactly for grey to stay grey.
    to_yiq[1:] -= to_yiq[1:].mean(1, keepdim=True)
    from_yiq: Tensor = torch.linalg.inv(to_yiq)
    return tuple(to_yiq.flatten().tolist()), tuple(from_yiq.flatten().tolist())


def normalise(views_BCVV: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x − mean) / std for each channel; values in [0, 1] become the encoder's input."""
    shape = (1, len(mean), 1, 1)
    centred = views_BCVV - constant(tuple(mean), like=views_BCVV).view(shape)
    return centred.div_(constant(tuple(std), like=views_BCVV).view(shape))
