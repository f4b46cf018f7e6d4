"""A model that teaches: what it says of the student's own views, computed beside the student's step."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ft.artifact import InputContract


class Teacher:
    """A frozen copy of a model, in evaluation mode, asked for its outputs on the views a student sees.

    It sees the very same crop, flip and colours (Beyer et al. 2022, "Knowledge distillation: a good teacher is patient
    and consistent"), resized to its own input and normalised by its own mean and std where those differ from the
    student's.

    No module, so that it is in no list of parameters and no mode of the student's reaches it.

    Args:
        model: [B, C, S, S] -> outputs [B, K]; left as it is.
        contract: its input.
        student: the student's input, of as many channels.
        device: where to compute.
    """

    def __init__(
        self, model: nn.Module, contract: InputContract, *, student: InputContract, device: torch.device
    ) -> None:
        assert contract.channels == student.channels, "teacher and student see the same channels"
        self.model = copy.deepcopy(model).to(device).eval().requires_grad_(False)
        self._size = contract.size
        self._is_alike = (contract.mean, contract.std) == (student.mean, student.std)
        scales = (contract.mean, contract.std, student.mean, student.std)
        self._scales = [torch.tensor(scale, device=device).view(1, -1, 1, 1) for scale in scales]

    @torch.no_grad()
    def __call__(self, views_BCVV: Tensor) -> Tensor:
        """Outputs [B, K], float32 at least, for views normalised as the student takes them."""
        views = views_BCVV
        if not self._is_alike:
            mean, std, own_mean, own_std = (scale.to(views.dtype) for scale in self._scales)
            views = (views * own_std + own_mean - mean) / std
        if views.shape[-1] != self._size:
            views = F.interpolate(views, size=self._size, mode="bilinear", antialias=True, align_corners=False)
        outputs: Tensor = self.model(views)
        return outputs if outputs.dtype == torch.float64 else outputs.float()
