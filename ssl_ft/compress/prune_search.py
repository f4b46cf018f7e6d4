"""The share to take out of a model so that what it costs meets a target: bisection, each set of widths costed once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ssl_ft.compress.prune_widths import Sizes

# Bisections of the share: finer than a thousandth changes no layer of 1,000 channels any more.
_NUM_HALVINGS = 11
_MOST = 0.999


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Attributes:
        sizes: what is left of each width.
        cost: of the model with these, as a share of the whole model's.
        share: that was asked to go.
        round_to: of what the widths are multiples.
    """

    sizes: Sizes
    cost: float
    share: float
    round_to: int


def find_share(
    sizes_by: Callable[[float, int], Sizes],
    *,
    cost: Callable[[Sizes], float],
    target: float,
    tolerance: float,
    rounding: Iterable[int],
    floor: float = 0.0,
) -> Found:
    """The widths whose cost comes nearest to the target; coarse ones first, finer ones where they miss it.

    Args:
        sizes_by: widths without a share of the parts, what stays being multiples.
        cost: of a model of such widths, as a share of the whole model's; falls as the share grows, noise apart.
        target: in (0, 1).
        tolerance: how far from the target, as a share of it, is near enough.
        rounding: multiples to try, coarse to fine.
        floor: what costs less is not taken, however near; what nothing is taken from is to cost as much.

    Returns:
        The nearest there is, which may be further away than the tolerance.
    """
    known = dict[tuple[int, ...], float]()
    best: Found | None = None

    def is_better(found: Found) -> bool:
        return found.cost >= floor and (best is None or abs(found.cost - target) < abs(best.cost - target))

    for round_to in rounding:
        low, high = 0.0, _MOST
        for number in range(_NUM_HALVINGS + 1):
            # The end first: where even that costs too much, no share will do.
            share = high if number == 0 else (low + high) / 2
            sizes = sizes_by(share, round_to)
            key = tuple(sizes.values())
            if key not in known:
                known[key] = cost(sizes)
            found = Found(sizes, known[key], share, round_to)
            if is_better(found):
                best = found
            if found.cost >= floor and abs(found.cost - target) <= tolerance * target:
                return found
            if number == 0 and found.cost > target:
                break
            if found.cost > target:
                low = share
            else:
                high = share
    if best is None:
        sizes = sizes_by(0.0, round_to)
        best = Found(sizes, cost(sizes), 0.0, round_to)
    return best
