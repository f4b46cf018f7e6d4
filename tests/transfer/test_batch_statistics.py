"""Adaptive batch norm: exact statistics, whatever the blocks; nothing else moves."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from ssl_ft.transfer.batch_statistics import adapt_batch_norm


def network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=3).double().eval()


def norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("size", [3, 7, 50])
def test_statistics_are_those_of_one_batch_of_all_images(size):
    images = torch.randn(11, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 + 1
    model, whole = network(), network()
    count = adapt_batch_norm(model, lambda: images.split(size))
    assert count == len(norms(model)) > 3
    for norm in norms(whole):
        norm.momentum = 1.0  # what the batch has, and nothing of before
    together = whole.train()(images)
    torch.testing.assert_close(model(images), together, rtol=1e-9, atol=1e-12)
    for own, theirs in zip(norms(model), norms(whole), strict=True):
        torch.testing.assert_close(own.running_mean, theirs.running_mean, rtol=1e-9, atol=1e-12)
    first = next(m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(images)
    torch.testing.assert_close(first.running_var, seen[0].var((0, 2, 3), correction=0))


def test_weights_stay_and_the_network_is_left_as_it_was_found():
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    model = network()
    before = copy.deepcopy(model)
    adapt_batch_norm(model, lambda: [images])
    for (name, own), (_, theirs) in zip(model.named_parameters(), before.named_parameters(), strict=True):
        assert torch.equal(own, theirs), name
    assert not model.training
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert not torch.allclose(model(images), before(images))


def test_a_shift_of_the_input_that_statistics_can_undo_is_undone():
    """A first layer without bias, then batch norm: scaled and moved channels come out as before."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.conv, self.last = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.conv(self.norm(x)).relu())
            return out

    images = torch.randn(8, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.5
    model = Small().double().eval()
    for norm in norms(model):
        norm.eps = 0.0
    adapt_batch_norm(model, lambda: [images])
    plain = model(images)
    adapt_batch_norm(model, lambda: (4.0 * images - 7.0).split(3))
    torch.testing.assert_close(model(4.0 * images - 7.0), plain)
