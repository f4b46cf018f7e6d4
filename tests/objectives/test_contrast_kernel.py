"""The fused contrastive loss: in Triton's interpreter, in a process of its own; on a GPU, where there is one, against
float64 and the clock.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from ssl_ft.bench.contrast import time_kernel
from ssl_ft.objectives.nt_xent import dcl, nt_xent
from tests.conftest import CHECKOUT

HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not (HAS_TRITON and torch.cuda.is_available()), reason="no GPU with Triton here")


def interpret(marks: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/objectives/interpreted_kernel.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "-m", marks], cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@needs_triton
def test_in_the_interpreter():
    interpret("not slow")


@needs_triton
@pytest.mark.slow
def test_larger_sizes_in_the_interpreter():
    interpret("slow")


def test_without_being_asked_for_no_kernel_is_imported_on_a_cpu():
    code = """
import sys, torch
from ssl_ft.objectives.nt_xent import nt_xent
nt_xent(torch.randn(2048, 4), torch.randn(2048, 4), temperature=0.5)
assert "ssl_ft.objectives.contrast_kernel" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT, timeout=240)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("loss", [nt_xent, dcl])
@pytest.mark.parametrize(("count", "size"), [(2, 1), (33, 40), (500, 128), (2049, 300)])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.bfloat16, 2**-7)])
def test_equals_torch_in_float64_on_a_gpu(loss, count, size, temperature, dtype, rtol):
    generator = torch.Generator("cuda").manual_seed(count)
    views = [torch.randn(count, size, generator=generator, device="cuda").to(dtype) for _ in range(2)]
    ours, exact = [x.clone().requires_grad_() for x in views], [x.double().requires_grad_() for x in views]
    value = loss(*ours, temperature=temperature, fused=True)
    exact_value = loss(*exact, temperature=temperature, fused=False)
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(torch.autograd.grad(value, ours), torch.autograd.grad(exact_value, exact), strict=True):
        assert (mine.double() - theirs).norm() <= rtol * max(theirs.norm().item(), 0.1)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_timed_on_a_gpu(dtype, capsys):
    """No bar for being chosen: a slower kernel is not. But one that is several times slower is broken, as when it is
    compiled anew at every call. The figure is printed for whoever looks.
    """
    row = time_kernel(4096, dtype, torch.device("cuda"), rounds=5)
    with capsys.disabled():
        print(f"\n{row.name}: {row.ratio:.2f}")
    assert row.ratio > 0.2
