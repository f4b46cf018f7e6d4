"""Quantizing an ONNX file without training: against integers computed by hand, and on networks within bounds."""

import logging
import tempfile
from pathlib import Path

import numpy as np
import pytest

from ssl_ft.compress.quantize_choice import needs_reduced_range
from ssl_ft.compress.quantize_onnx import quantize_dynamic, quantize_static, quantize_weights
from ssl_ft.compress.quantized_graph import settle
from ssl_ft.errors import UserError
from tests.compress import small_models as small

KINDS = ("dynamic", "static", "weights")


class Floats(dict[str, Path]):
    """Float32 files by name, each exported when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, name: str) -> Path:
        model, side = {"one": (small.OneLayer, 4), "resnet": (small.resnet, 32), "vit": (small.vit, 32)}[name]
        self[name] = small.write(model(), self.folder / f"{name}.onnx", side=side)
        return self[name]


@pytest.fixture(scope="module")
def floats(tmp_path_factory) -> Floats:
    return Floats(tmp_path_factory.mktemp("float"))


def quantize(kind: str, source: Path, target: Path, *, side: int = small.SIDE, reduce_range: bool = False) -> Path:
    if kind == "dynamic":
        quantize_dynamic(source, target, reduce_range=reduce_range)
    elif kind == "weights":
        quantize_weights(source, target)
    else:
        quantize_static(
            source, target, small.batches(side=side), calibration="minmax", is_convnet="vit" not in source.name,
            reduce_range=reduce_range,
        )  # fmt: skip
    return target


def rounded_by_hand(images: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 with a zero point, and back: what the layer sees, in float64."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    return scale * (np.clip(np.round(images.astype(np.float64) / scale) + zero, 0, 255) - zero)


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        *(pytest.param(kind, 127, marks=small.FULL_RANGE) for kind in ("dynamic", "static")),
        ("dynamic", 64),
        ("static", 64),
    ],
)
def test_one_layer_is_what_integers_give_by_hand(floats, tmp_path, kind, most):
    model, images = small.OneLayer(), small.batches(side=4, seed=5)[0]
    path = quantize(kind, floats["one"], tmp_path / "q.onnx", side=4, reduce_range=most == 64)
    weight = model.head.weight.detach().double().numpy()
    scales = np.abs(weight).max(1, keepdims=True) / most
    seen = np.concatenate(small.batches(side=4)) if kind == "static" else images
    inputs = rounded_by_hand(images, seen.min(), seen.max()).reshape(len(images), -1)
    wanted = inputs @ (scales * np.round(weight / scales)).T + model.head.bias.detach().double().numpy()
    found = small.run(path, images)
    # A value on the edge between two integers may go either way in float32; a bias is rounded to s_x · s_w.
    np.testing.assert_allclose(found, wanted, atol=2e-3, rtol=1e-4)
    (held,) = small.integer_weights(path)
    transposed = held if held.shape == weight.shape else held.T
    np.testing.assert_array_equal(transposed, np.round(weight / scales).astype(np.int8))
    # No further off than half a step of each factor allows.
    plain = images.reshape(len(images), -1).astype(np.float64)
    step = (max(seen.max(), 0) - min(seen.min(), 0)) / 255
    if kind == "dynamic":
        bound = (np.abs(weight) * step / 2).sum(1) + np.abs(plain) @ (scales / 2 * np.ones_like(weight)).T
        bound += weight.shape[1] * step / 2 * scales[:, 0] / 2
        assert (np.abs(found - (plain @ weight.T + model.head.bias.detach().double().numpy())) <= bound + 1e-4).all()


def test_weights_alone_are_off_by_half_a_step_at_most(floats, tmp_path):
    model, images = small.OneLayer(), small.batches(side=4)[0]
    path = quantize("weights", floats["one"], tmp_path / "q.onnx", side=4)
    weight = model.head.weight.detach().double().numpy()
    # 48 inputs lie in blocks of 16; each has a scale of its largest magnitude over 128.
    blocks = np.abs(weight).reshape(small.CLASSES, 3, 16).max(2, keepdims=True) / 127
    half = np.broadcast_to(blocks / 2, (small.CLASSES, 3, 16)).reshape(small.CLASSES, 48)
    plain = images.reshape(len(images), -1).astype(np.float64)
    wanted = plain @ weight.T + model.head.bias.detach().double().numpy()
    off = np.abs(small.run(path, images) - wanted)
    assert (off <= 2.1 * np.abs(plain) @ half.T + 1e-4).all()
    assert off.max() > 1e-4
    assert [held.dtype for held in small.integer_weights(path)] == [np.uint8]


# How far outputs of random weights may be from float32: 8 bits round by 0.2 % to 0.4 % of the range at each layer.
@pytest.mark.parametrize(
    ("kind", "name", "bound", "most_share"),
    [
        ("static", "resnet", 0.03, 0.3),
        pytest.param("dynamic", "vit", 0.04, 0.32, marks=pytest.mark.slow),
        pytest.param("static", "vit", 0.06, 0.32, marks=pytest.mark.slow),
        pytest.param("weights", "vit", 0.01, 0.33, marks=pytest.mark.slow),
    ],
)
def test_a_network_stays_close_and_gets_small(floats, tmp_path, kind, name, bound, most_share):
    path = quantize(kind, floats[name], tmp_path / "q.onnx", reduce_range=needs_reduced_range())
    images, account = small.batches(seed=9)[0], settle(path)
    distance = small.distance(small.run(path, images), small.run(floats[name], images))
    assert 1e-4 < distance < bound
    assert path.stat().st_size / floats[name].stat().st_size < most_share
    assert account.num_quantized == len(small.integer_weights(path))
    wanted = {"static-resnet": (16, ()), "static-vit": (6, ())}.get(f"{kind}-{name}", (5, ("patch_embed.proj",)))
    assert (account.num_quantized, account.left) == wanted
    assert [each.name for each in tmp_path.iterdir()] == ["q.onnx"]


@pytest.mark.parametrize("calibration", ["percentile", "entropy"])
def test_other_ranges_leave_out_a_wild_pixel(floats, tmp_path, calibration):
    """One of 400,000 values, ten times the largest of the others."""
    generator = np.random.default_rng(0)
    images = [generator.standard_normal((4096, 3, 4, 4)).astype(np.float32) for _ in range(2)]
    images[1][0, 0, 0, 0] = 40.0
    plain, distances = small.run(floats["one"], images[0]), []
    for how in ("minmax", calibration):
        path = tmp_path / f"{how}.onnx"
        quantize_static(
            floats["one"], path, images, calibration=how, is_convnet=True, reduce_range=needs_reduced_range()
        )
        distances.append(small.distance(small.run(path, images[0]), plain))
    assert distances[0] > 0.03
    assert distances[1] < distances[0] / 2


def test_ranges_do_not_depend_on_how_images_are_dealt_out(floats, tmp_path):
    together = np.concatenate(small.batches(2, side=4))
    for path, dealt in ((tmp_path / "a", [together]), (tmp_path / "b", [together[:3], together[3:]])):
        quantize_static(floats["one"], path, dealt, calibration="minmax", is_convnet=True, reduce_range=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("kind", "name", "side"),
    [*((kind, "one", 4) for kind in KINDS), *(pytest.param(k, "vit", 32, marks=pytest.mark.slow) for k in KINDS)],
)
def test_the_same_file_comes_out_and_nothing_else_changes(floats, tmp_path, capsys, kind, name, side):
    floats[name]  # exported before: that is not what is looked at
    handlers, level, temporary = list(logging.root.handlers), logging.root.level, tempfile.tempdir
    once = quantize(kind, floats[name], tmp_path / "once.onnx", side=side).read_bytes()
    assert quantize(kind, floats[name], tmp_path / "again.onnx", side=side).read_bytes() == once
    assert (logging.root.handlers, logging.root.level, tempfile.tempdir) == (handlers, level, temporary)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.onnx", "once.onnx"]
    assert capsys.readouterr().out == ""


def test_dynamic_leaves_convolutions_as_they_are(floats, tmp_path):
    account = settle(quantize("dynamic", floats["resnet"], tmp_path / "q.onnx"))
    assert account.num_quantized == 1
    assert len(account.left) == 15
    assert "layer1.0.conv1" in account.left
    assert account.sentence().startswith("1 layer in 8 bits, 0.1% of the layers' weights; in float32 stay ")


def test_the_exporters_notes_are_taken_out(floats, tmp_path):
    path = tmp_path / "copy.onnx"
    path.write_bytes(floats["one"].read_bytes())
    assert b"stack_trace" in path.read_bytes()
    assert settle(path).left == ("head",)
    assert b"stack_trace" not in path.read_bytes()
    images = small.batches(side=4)[0]
    np.testing.assert_array_equal(small.run(path, images), small.run(floats["one"], images))


def test_no_images_or_others_are_refused_and_nothing_is_left(floats, tmp_path):
    for images, message in (
        ([], "there is no image to calibrate on"),
        (small.batches(side=8), r"have shape \(3, 8, 8\), and the model takes \(3, 4, 4\)"),
    ):
        with pytest.raises(UserError, match=message):
            quantize_static(
                floats["one"], tmp_path / "q.onnx", images, calibration="minmax", is_convnet=True, reduce_range=False
            )
    assert list(tmp_path.iterdir()) == []
