"""Compiling in place: the numbers of an uncompiled step, and a clean way back where it does not work."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ssl_ft.build.pretraining import assemble, open_pool
from ssl_ft.pretraining import Pretraining
from ssl_ft.runlog import RunFolder
from tests.pipelines.training import settings_of, train_steps, write_images


def assembled(case: str, tmp_path: Path, **more: Any) -> tuple[Pretraining, RunFolder]:
    settings = settings_of(case, write_images(tmp_path), optim={"rate": 1e-4, "warmup": 0.3}, **more)
    run = RunFolder(tmp_path / "-".join(map(str, [case, *more.values()])), stage="pretrain", settings={})
    return assemble(settings, open_pool(settings), run)[0], run


def losses(work: Pretraining) -> list[float]:
    return [row["loss"] for row in train_steps(work, num_steps=5, rate=work.plan.rate)]


def test_what_does_not_compile_runs_as_it_is(tmp_path, monkeypatch):
    def compile_badly(self: nn.Module, **unused: Any) -> None:
        def fail(*args: Any) -> None:
            raise RuntimeError("no compiler\nand more")

        # The first network is found to work, so its batch norms have counted the trial when the second fails.
        self._compiled_call_impl = fail if type(self).__name__ == "Projector" else self._call_impl

    plain, _ = assembled("simclr-convnet", tmp_path)
    monkeypatch.setattr(nn.Module, "compile", compile_badly)
    work, run = assembled("simclr-convnet", tmp_path, compile="default")
    assert run.notes[-1] == "the step could not be compiled (RuntimeError: no compiler), so it runs as it is"
    assert losses(work) == losses(plain)
    for key, value in plain.objective.state_dict().items():
        assert torch.equal(value, work.objective.state_dict()[key]), key


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor writes C++ for CPUs")
@pytest.mark.parametrize("case", ["simclr-convnet", "masked-vit"])
def test_compiled_numbers_are_those_without(tmp_path, case):
    plain, _ = assembled(case, tmp_path)
    work, run = assembled(case, tmp_path, compile="default")
    assert run.notes[-1] == "the step is compiled (default)"
    assert list(work.objective.state_dict()) == list(plain.objective.state_dict())
    np.testing.assert_allclose(losses(work), losses(plain), rtol=1e-5)
    assert all(part._compiled_call_impl is None for part in work.encoder().modules())


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"objective": "joint"}, "two terms"),
        ({"activation_checkpointing": True}, "leave one of them out"),
        ({"optim": {"accumulate": 2}}, "use compile=default"),
    ],
)
def test_what_does_not_go_with_compiling_is_refused(tmp_path, more, why):
    with pytest.raises(ValueError, match=why):
        settings_of("simclr-vit", tmp_path, **{"compile": "cudagraphs", **more})
