"""Activations computed twice: the same numbers to the bit, batch norms count once, dropout draws the same."""

import copy

import pytest
import timm
import torch
from torch import nn

from ssl_ft.errors import UserError
from ssl_ft.models.blocks import blocks_of, recompute_blocks

ENCODERS = {
    "test_resnet": {"drop_path_rate": 0.3},
    "test_convnext": {"drop_path_rate": 0.3},
    "test_vit": {"img_size": 32, "proj_drop_rate": 0.3},
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **ENCODERS[name])


def three_steps(encoder: nn.Module) -> list[torch.Tensor]:
    """Every tensor of the encoder after three steps, and the last gradients."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    for step in range(3):
        torch.manual_seed(step)
        optimizer.zero_grad()
        encoder(images).sin().sum().backward()
        optimizer.step()
    return [*encoder.state_dict().values(), *(p.grad for p in encoder.parameters())]


@pytest.mark.parametrize("name", list(ENCODERS))
def test_numbers_are_the_same_to_the_bit_and_fewer_tensors_are_kept(name):
    def kept_bytes(encoder: nn.Module) -> int:
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = encoder(torch.zeros(8, 3, 32, 32))
        del out
        return sum(kept.values())

    plain, twice = build(name), build(name)
    recompute_blocks(twice)
    names = list(plain.state_dict())
    assert list(twice.state_dict()) == names
    for ours, theirs in zip(three_steps(twice), three_steps(plain), strict=True):
        assert torch.equal(ours, theirs)
    assert kept_bytes(twice) < 0.7 * kept_bytes(plain)


def test_a_copy_runs_its_own_blocks():
    encoder = build("test_resnet")
    recompute_blocks(encoder)
    copied = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert copied.eval()(torch.ones(1, 3, 32, 32)).abs().sum() > 0
    three_steps(copied.train())
    assert copied.layer1[0].bn1.num_batches_tracked == 3
    assert encoder.layer1[0].bn1.num_batches_tracked == 0


def test_encoders_without_known_blocks_are_refused():
    with pytest.raises(UserError, match="not of EfficientNet"):
        blocks_of(timm.create_model("test_efficientnet", num_classes=0), setting="sharding=fsdp")
