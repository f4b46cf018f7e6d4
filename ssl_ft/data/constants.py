"""Small constant tensors, made once a device: copying a Python tuple to a GPU makes the host wait for all it has asked
of that GPU, at every step.
"""

from functools import lru_cache

import torch
from torch import Tensor


def constant(values: tuple[float, ...], *, like: Tensor) -> Tensor:
    """[len(values)] with the dtype and device of `like`; shared by all who ask, so never to be changed in place."""
    return _constant(values, like.dtype, like.device)


@lru_cache(maxsize=256)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # One made while inference is on could not be used in training afterwards.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
