"""Unstructured pruning: exactly as many zeros as asked for, the lowest, and a schedule that ends where it should."""

import pytest
import torch

from ssl_ft.compress.prune_weights import cubic_share, lowest_masks, prunable_weights, zero
from ssl_ft.errors import UserError
from tests.compress.models import resnet, vit


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_the_number_of_zeros_is_exact_over_all_layers(share):
    scores = {"a": torch.rand(7, 5), "b": torch.rand(13), "c": torch.rand(2, 3, 4)}
    masks = lowest_masks(scores, share=share, scope="global")
    count = 35 + 13 + 24
    gone = torch.cat([scores[name][mask] for name, mask in masks.items()])
    kept = torch.cat([scores[name][~mask] for name, mask in masks.items()])
    assert len(gone) == round(share * count)
    assert gone.max() <= kept.min()


def test_and_in_each_layer():
    scores = {"a": torch.rand(7, 5), "b": torch.rand(13)}
    masks = lowest_masks(scores, share=0.3, scope="local")
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"a": round(0.3 * 35), "b": round(0.3 * 13)}


def test_ties_go_by_place_so_that_the_number_stays_exact():
    masks = lowest_masks({"a": torch.ones(10)}, share=0.35, scope="global")
    assert masks["a"].tolist() == [True] * round(3.5) + [False] * 6


def test_what_is_gone_stays_gone():
    weights = {"a": torch.rand(50) + 0.1}
    first = lowest_masks(weights, share=0.3, scope="global")["a"]
    weights["a"][first] = 0
    second = lowest_masks(weights, share=0.6, scope="global")["a"]
    assert bool(second[first].all())


def test_cubic_schedule():
    """Zhu & Gupta 2017, eq. 1, with s_i = 0 and the last step at the end of the ramp."""
    assert [round(cubic_share(k, num_steps=5, final=0.8), 6) for k in range(6)] == [
        0.0,
        round(0.8 * (1 - 0.8**3), 6),
        round(0.8 * (1 - 0.6**3), 6),
        round(0.8 * (1 - 0.4**3), 6),
        round(0.8 * (1 - 0.2**3), 6),
        0.8,
    ]
    assert cubic_share(1, num_steps=1, final=0.3) == 0.3


def test_the_head_and_what_is_kept_are_left_out():
    names = prunable_weights(resnet(), keep=("layer1", "conv1.0"))
    assert "fc.weight" not in names
    assert "conv1.0.weight" not in names
    assert not any(name.startswith("layer1.") for name in names)
    assert {"conv1.3.weight", "layer2.0.conv1.weight"} <= names.keys()
    with pytest.raises(UserError, match=r"prune.keep leaves no convolution and no linear layer of this Vision"):
        prunable_weights(vit(), keep=("blocks", "patch_embed"))


def test_only_masked_weights_become_zero():
    model = resnet()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    mask = torch.rand(before["layer2.0.conv1.weight"].shape) < 0.5
    zero(model, {"layer2.0.conv1.weight": mask})
    for name, p in model.named_parameters():
        wanted = before[name].masked_fill(mask, 0) if name == "layer2.0.conv1.weight" else before[name]
        assert torch.equal(p, wanted)
