"""The rows of a GPU, tried at toy size on the CPU: figures fit together; without a GPU there is a sentence."""

import pytest
import torch

from ssl_ft.bench import gpu
from ssl_ft.bench.timing import CannotMeasure


def test_rows_fit_together(monkeypatch):
    monkeypatch.setattr(gpu, "_RATES", {"test_vit": 1e9})
    load = gpu.Load(batch_size=4, size=64, num_steps=2, num_images=8, matrix_side=64)
    rate, stall, use = gpu.measure(
        torch.device("cpu"), rounds=2, load=load, contrasted=["test_vit"], masked="test_vit", contrast_sizes=[]
    )
    assert (rate.unit, rate.peer, rate.is_met) == ("images/s", None, False)
    assert stall.ours == rate.ours
    assert (stall.bar.relation, stall.bar.value) == ("at least", 0.97)
    assert use.unit == "TFLOP/s"
    assert use.ratio > 0
    assert "matrix product's rate, as the peak" in use.name


def test_a_known_peak_is_the_yardstick(monkeypatch):
    monkeypatch.setattr(gpu, "_device_name", lambda device: "NVIDIA H200")
    load = gpu.Load(batch_size=2, size=64, num_steps=1, num_images=4, matrix_side=32)
    (use,) = gpu.measure(torch.device("cpu"), rounds=1, load=load, contrasted=[], masked="test_vit", contrast_sizes=[])
    assert use.peer == 989.0
    assert use.ratio == pytest.approx(use.ours / 989.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_kernel_needs_one():
    with pytest.raises(CannotMeasure, match="fused kernel of NT-Xent does not run here"):
        gpu.time_kernel(4, torch.float32, torch.device("cpu"), rounds=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    with pytest.raises(CannotMeasure, match="no CUDA device"):
        gpu.find_device()
