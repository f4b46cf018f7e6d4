"""A captured model that computes as its 8-bit form: folding, rounding, gradients, conversion, and the file."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from ssl_ft.compress.quantize_extras import import_torchao
from ssl_ft.compress.quantize_pt2e import (
    RoundedModel,
    calibrated,
    capture,
    converted,
    prepare_rounded,
    write_pt2,
    write_quantized_onnx,
)
from ssl_ft.compress.quantized_graph import settle
from ssl_ft.export.program_file import load_program
from tests.compress import small_models as small

IMAGES = [torch.from_numpy(batch) for batch in small.batches()]


class TwoConvolutions(nn.Module):
    """With batch norm, a branch that is added, ReLU, pooling and a head: all that the layout for ONNX tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.second, self.norm2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(16, small.CLASSES)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for norm in (self.norm1, self.norm2):
                for tensor in (norm.weight, norm.running_var):
                    tensor.copy_(0.5 + torch.rand(16, generator=generator))
                for tensor in (norm.bias, norm.running_mean):
                    tensor.copy_(0.3 * torch.randn(16, generator=generator))
            for layer in (self.first, self.second, self.head):
                layer.weight.copy_(0.3 * torch.randn(layer.weight.shape, generator=generator))
            for layer in (self.second, self.head):
                layer.bias.copy_(0.1 * torch.randn(layer.bias.shape, generator=generator))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        before = self.pool(torch.relu(self.norm1(self.first(images))))
        after = torch.relu(before + self.norm2(self.second(before)))
        outputs: torch.Tensor = self.head(after.mean((2, 3)))
        return outputs


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    import_torchao()
    return TwoConvolutions().eval()


def rounded(model: nn.Module, *, engine: str = "onnxruntime", reduce_range: bool = False) -> RoundedModel:
    graph = capture(model, channels=3, size=small.SIDE)
    return prepare_rounded(graph, IMAGES, engine=engine, is_convnet=True, reduce_range=reduce_range)


def test_capturing_folds_batch_norms_and_changes_nothing(plain):
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    graph = capture(plain, channels=3, size=small.SIDE)
    assert not [node for node in graph.graph.nodes if "norm" in str(node.target)]
    for count in (1, 5):
        images = IMAGES[0][:count]
        torch.testing.assert_close(graph(images), plain(images), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("engine", ["onnxruntime", "pt2e"])
def test_what_trains_computes_what_is_converted(plain, engine):
    model = rounded(plain, engine=engine).eval()
    images = IMAGES[1]
    outputs = model(images)
    assert 1e-4 < small.distance(outputs.detach().numpy(), plain(images).detach().numpy()) < 0.05
    # Numbers on the edge between two integers may go either way; a scale that differs would move all of them.
    assert small.distance(converted(model)(images).detach().numpy(), outputs.detach().numpy()) < 2e-3


def test_ranges_follow_while_training_and_rest_otherwise(plain):
    model = rounded(plain)
    kept = {name: value.clone() for name, value in model.named_buffers()}
    model.eval()(10 * IMAGES[0])
    moved = [name for name, value in model.named_buffers() if not torch.equal(value, kept[name])]
    assert all("observer_enabled" in name for name in moved)
    model.train()(10 * IMAGES[0])
    assert any(name.endswith("max_val") and not torch.equal(v, kept[name]) for name, v in model.named_buffers())


def test_gradients_pass_through_rounding_to_every_weight(plain):
    model = rounded(plain).eval()
    model(IMAGES[0]).square().sum().backward()
    graph = capture(plain, channels=3, size=small.SIDE)
    graph(IMAGES[0]).square().sum().backward()
    wanted = dict(graph.named_parameters())
    found = dict(model.graph.named_parameters())
    assert len(found) == 6
    assert set(found) == set(wanted)
    for name, parameter in found.items():
        angle = torch.cosine_similarity(parameter.grad.flatten(), wanted[name].grad.flatten(), dim=0)
        assert angle > 0.95, name


@pytest.mark.parametrize(
    "reduce_range", [pytest.param(False, marks=small.FULL_RANGE), pytest.param(True, marks=pytest.mark.slow)]
)
def test_the_file_has_int8_weights_and_runs_in_onnx_runtime_alike(plain, tmp_path, reduce_range):
    model, path = rounded(plain, reduce_range=reduce_range).eval(), tmp_path / "model.onnx"
    write_quantized_onnx(converted(model), path, channels=3, size=small.SIDE)
    account = settle(path)
    assert (account.num_quantized, account.left) == (3, ())
    images = small.batches(seed=8)[0]
    assert small.distance(small.run(path, images), model(torch.from_numpy(images)).detach().numpy()) < 2e-3
    held = small.integer_weights(path)
    assert sorted(each.shape for each in held) == [(5, 16), (16, 3, 3, 3), (16, 16, 3, 3)]
    # Each output channel uses its range to the end.
    for each in held:
        assert set(np.abs(each.astype(int)).reshape(len(each), -1).max(1)) == {63 if reduce_range else 127}
    # The head's outputs stay in float32; all else that a layer reads or gives is rounded.
    kinds = Counter(node.op_type for node in onnx.load(str(path)).graph.node)
    assert kinds["QuantizeLinear"] >= 5
    assert kinds["BatchNormalization"] == 0


def test_the_torch_file_has_no_float_weights_beside_the_integers(plain, tmp_path):
    graph = calibrated(capture(plain, channels=3, size=small.SIDE), IMAGES, reduce_range=False)
    outputs = graph(IMAGES[0])
    assert small.distance(outputs.detach().numpy(), plain(IMAGES[0]).detach().numpy()) < 0.05
    held = dict(graph.state_dict())
    assert {value.dtype for value in held.values() if value.ndim > 1} == {torch.int8}
    path = tmp_path / "model.pt2"
    write_pt2(graph, path, channels=3, size=small.SIDE)
    again = load_program(path)
    torch.testing.assert_close(again(IMAGES[0][:3]), outputs[:3], rtol=1e-5, atol=1e-5)
