"""How far a target's images lie from the pool an encoder was pretrained on: tests, an effect in words, what to do.

Inputs alone are compared: a target whose classes are mixed otherwise, or mean something else, is not told from its
images. The tests are in `two_sample.py`; reading images and computing features is left to others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_ft.evaluate.two_sample import Outcome, Pooled, compare, pool

Floats = NDArray[np.float64]

LEVEL = 0.05
# Effects from which a shift is called clear, and far. On CIFAR-10 photos, a brightness raised by 4 % has an effect of
# about 0.05, a quarter turn, inverted colours or a slight blur 0.1 to 0.3, grey pictures of clothes 1.3.
_CLEAR, _FAR = 0.06, 0.5
_BLOCK = 1024
# Two-sided 95 % of the normal distribution.
_QUANTILE = 1.959964
_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


@dataclass(frozen=True)
class Difference:
    """Of one statistic between target and pool, with its 95 % interval.

    Attributes:
        name: such as "brightness".
        pool: mean over the pool's images.
        target: mean over the target's.
        difference: target − pool.
        low: of its interval.
        high: of its interval.
        spread: standard deviation over the pool's images, a measure to hold the difference against.
    """

    name: str
    pool: float
    target: float
    difference: float
    low: float
    high: float
    spread: float


@dataclass(frozen=True)
class Tested:
    """One test on one kind of features, with its p-value corrected for there being several."""

    space: str
    outcome: Outcome
    adjusted: float


@dataclass(frozen=True)
class Shift:
    """What the tests say together.

    Attributes:
        tests: every one of them.
        is_shifted: whether any stands at `LEVEL` after correction; then false alarms are at most that frequent.
        effect: see `effect`.
        grade: "none", "slight", "clear" or "far".
        seen_by: kinds of features whose tests stand.
    """

    tests: tuple[Tested, ...]
    is_shifted: bool
    effect: float
    grade: str
    seen_by: tuple[str, ...]

    def outcome(self, space: str, name: str) -> Outcome:
        """One test's result."""
        return next(t.outcome for t in self.tests if (t.space, t.outcome.name) == (space, name))


def statistic_names(channels: int) -> tuple[str, ...]:
    """Names of the columns of `image_statistics`."""
    numbers = range(1, channels + 1)
    each = [*(f"mean_channel_{n}" for n in numbers), *(f"deviation_channel_{n}" for n in numbers)]
    return (*each, "brightness", "contrast", "sharpness")


def image_statistics(pixels: NDArray[np.uint8]) -> Floats:
    """Mean and deviation of each channel, brightness, contrast and sharpness of each image, float64 [N, 2 C + 3].

    Values are in [0, 1] of white. Brightness, contrast and sharpness are of the mean over channels: its mean, its
    deviation, and the root of the mean square of its Laplacian, which blur takes away.

    Args:
        pixels: uint8 [N, C, S, S], S ≥ 3.
    """
    rows = [_statistics(torch.from_numpy(pixels[n : n + _BLOCK])) for n in range(0, len(pixels), _BLOCK)]
    statistics: Floats = torch.cat(rows).numpy()
    return statistics


def _statistics(pixels: Tensor) -> Tensor:
    values = pixels.double() / 255
    grey = values.mean(1, keepdim=True)
    edges = F.conv2d(grey, torch.tensor(_LAPLACIAN, dtype=torch.float64).view(1, 1, 3, 3))
    columns = [
        values.mean((2, 3)),
        values.std((2, 3), correction=0),
        grey.mean((2, 3)),
        grey.std((2, 3), correction=0),
        edges.square().mean((2, 3)).sqrt(),
    ]
    return torch.cat(columns, dim=1)


def differences(pool_values: Floats, target_values: Floats, names: Sequence[str]) -> list[Difference]:
    """Difference of each column's mean with a 95 % interval: normal, variances not taken to be equal (Welch 1947)."""
    found = []
    for column, name in enumerate(names):
        a, b = pool_values[:, column], target_values[:, column]
        half = _QUANTILE * float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))
        gap = float(b.mean() - a.mean())
        found.append(
            Difference(name, float(a.mean()), float(b.mean()), gap, gap - half, gap + half, float(a.std(ddof=1)))
        )
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for there being several (Holm 1979): one at most α stands at level α for all together."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, (len(order) - rank) * p_values[index])
        adjusted[index] = min(1.0, highest)
    return [float(p) for p in adjusted]


def prepare(spaces: Mapping[str, NDArray[np.floating]]) -> dict[str, Pooled]:
    """Each kind of features float [N, D] of pool and target together, ready for `measure`; statistics by column.

    Where the same images are split again and again, this is done once.
    """
    return {name: pool(features) for name, features in spaces.items()}


def measure(spaces: Mapping[str, Pooled], is_target: NDArray[np.bool_], *, num_permutations: int, seed: int) -> Shift:
    """Test every kind of features, correct for their number, and put the effect into a word.

    Args:
        spaces: kind of features -> pool and target together, N images.
        is_target: bool [N].
        num_permutations: of each test; with fewer than 20 times the tests nothing can stand.
        seed: of permutations and folds.
    """
    found = [
        (name, outcome)
        for name, pooled in spaces.items()
        for outcome in compare(pooled, is_target, num_permutations=num_permutations, seed=seed)
    ]
    adjusted = holm([outcome.p_value for _, outcome in found])
    tests = tuple(Tested(name, outcome, p) for (name, outcome), p in zip(found, adjusted, strict=True))
    seen_by = tuple(dict.fromkeys(test.space for test in tests if test.adjusted <= LEVEL))
    size = effect([outcome for _, outcome in found])
    return Shift(tests, bool(seen_by), size, grade(size) if seen_by else "none", seen_by)


def effect(outcomes: Sequence[Outcome]) -> float:
    """The largest Fréchet distance of any kind of features beyond that of two parts of one set, 0 at least.

    Features have a total variance of 1 over pool and target together, so it has no unit and does not grow with the
    number of images. Where the means alone differ, it is four times the share of the variance that lies between the
    sets, if they are of equal size.
    """
    return max(0.0, *(outcome.value - outcome.null for outcome in outcomes if outcome.name == "frechet"))


def grade(size: float) -> str:
    """The word for an effect that the tests have shown to be there."""
    return "far" if size >= _FAR else "clear" if size >= _CLEAR else "slight"


def advise(shift: Shift) -> str:
    """What to do about it, in one sentence or two."""
    if shift.grade == "none":
        return (
            "No shift of the inputs is shown: the encoder can be used as it is, and a linear probe is the cheapest "
            "start. Whether the classes are mixed otherwise is not seen here"
        )
    if "encoder" not in shift.seen_by:
        return (
            "The images differ, but not as the encoder sees them: use it as it is, and look at the differences named "
            "for a mistake in how the images were made"
        )
    if shift.grade == "slight":
        return (
            "Use the encoder as it is; statistics of its batch norms, if it has any, taken anew on the target cost "
            "nothing"
        )
    if shift.grade == "clear":
        return (
            "Do not stop at a linear probe: fine-tune all weights, or go on pretraining on the target's unlabelled "
            "images first; classifiers trained on other images should be adapted before use"
        )
    return (
        "Expect little of the frozen encoder: pretrain on the target's own unlabelled images, from this encoder or "
        "anew, and compare fine-tuning with training from scratch"
    )
