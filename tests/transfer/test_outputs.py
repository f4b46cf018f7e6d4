"""Fewer outputs: the logits that are kept stay bit for bit, and the model is a plain timm classifier of that size."""

import pytest
import torch

from ssl_ft.models.encoders import EncoderSpec, build_encoder
from ssl_ft.transfer.outputs import first_outputs
from ssl_ft.transfer.strategy import head_of

VIT = EncoderSpec("vit_tiny_patch16_224", 3, 16, patch_size=4, args={"depth": 1, "embed_dim": 32, "num_heads": 2})


@pytest.mark.parametrize("spec", [EncoderSpec("test_resnet", 3, 32), VIT], ids=lambda spec: spec.name)
@pytest.mark.parametrize("count", [1, 3, 5])
def test_kept_logits_stay(spec, count):
    model = build_encoder(spec, seed=0).eval()
    model.reset_classifier(5)
    images = torch.randn(2, 3, spec.size, spec.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(images)
        fewer = first_outputs(model, count)
        assert fewer is model
        torch.testing.assert_close(fewer(images), before[:, :count], rtol=1e-6, atol=1e-6)
    assert head_of(model).out_features == model.num_classes == count
