"""The projector against its formulas, written out by hand."""

import numpy as np
import torch

from ssl_ft.models.heads import Projector


def normalised(values: np.ndarray) -> np.ndarray:
    """Batch norm while training: biased variance, torch's epsilon."""
    return (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)


def test_the_projector_is_linear_norm_relu_linear_norm() -> None:
    torch.manual_seed(0)
    projector = Projector(5, num_hidden=7, num_out=4).double()
    first, norm, _, second, _ = projector.layers
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    features = torch.randn(11, 5, dtype=torch.float64)
    hidden = normalised(features.numpy() @ first.weight.detach().numpy().T)
    hidden = np.maximum(hidden * norm.weight.detach().numpy() + norm.bias.detach().numpy(), 0)
    expected = normalised(hidden @ second.weight.detach().numpy().T)
    np.testing.assert_allclose(projector(features).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_nothing_is_trained_that_a_batch_norm_would_cancel() -> None:
    projector = Projector(5, num_hidden=7, num_out=4)
    assert sorted(name for name, _ in projector.named_parameters()) == [
        "layers.0.weight",
        "layers.1.bias",
        "layers.1.weight",
        "layers.3.weight",
    ]
