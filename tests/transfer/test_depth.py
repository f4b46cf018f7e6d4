"""Layers from input to head: every parameter in one of them, tokens and stems first, last norms last, no head."""

import pytest
import timm
from torch import nn

from ssl_ft.errors import UserError
from ssl_ft.transfer.depth import layers_of
from ssl_ft.transfer.strategy import head_names, head_of, still_modules

VIT = {"img_size": 32, "global_pool": "avg", "reg_tokens": 2}


def model_of(name: str, **args) -> nn.Module:
    return timm.create_model(name, num_classes=3, **args)


@pytest.mark.parametrize(
    ("name", "args", "blocks", "stages"),
    [
        ("test_resnet", {}, 5, 5),
        ("test_convnext", {}, 10, 5),
        ("test_vit", VIT, 7, 7),
        ("test_efficientnet", {}, None, None),
    ],
)
def test_each_parameter_of_the_encoder_is_in_one_layer_and_the_head_in_none(name, args, blocks, stages):
    model = model_of(name, **args)
    for unit, count in (("block", blocks), ("stage", stages)):
        layers = layers_of(model, unit=unit)
        listed = [n for layer in layers for n in layer]
        assert len(listed) == len(set(listed))
        assert set(listed) == {n for n, _ in model.named_parameters()} - head_names(model)
        assert count is None or len(layers) == count


def test_embeddings_and_tokens_are_the_first_layer_of_a_vit_and_its_last_norm_is_in_the_last():
    layers = layers_of(model_of("test_vit", **VIT), unit="block")
    assert {"cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight"} <= set(layers[0])
    assert {"fc_norm.weight", "blocks.5.mlp.fc2.weight"} <= set(layers[-1])


def test_the_stem_is_the_first_layer_of_a_convnet_and_a_norm_before_the_head_is_in_the_last():
    layers = layers_of(model_of("test_convnext"), unit="stage")
    assert set(layers[0]) == {"stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"}
    assert {"head.norm.weight", "stages.3.downsample.1.weight"} <= set(layers[-1])
    assert {n.split(".")[0] for n in layers_of(model_of("test_resnet"), unit="stage")[0]} == {"conv1", "bn1"}


class Plain(nn.Module):
    """A model that says nothing of its layers."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), head

    def get_classifier(self) -> nn.Module:
        return self.head


def test_an_architecture_without_known_layers_is_refused():
    with pytest.raises(UserError, match=r"does not describe the layers of Plain.*or strategy=full, l2sp or probe"):
        layers_of(Plain(nn.Linear(4, 3)), unit="block")


def test_a_head_that_is_not_linear_is_refused():
    with pytest.raises(UserError, match="the head of Plain is Conv2d, not one linear layer"):
        head_of(Plain(nn.Conv2d(4, 3, 1)))


def test_still_are_the_largest_modules_of_which_nothing_moves():
    inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    model = nn.Sequential(inner, nn.Dropout(0.5), nn.Linear(2, 2))
    inner.requires_grad_(False)
    assert still_modules(model) == [inner]
    assert still_modules(model.requires_grad_(False)) == [model]
