"""Devices of ranks."""

import pytest
import torch

from ssl_ft.build.parts import choose_device
from ssl_ft.errors import UserError


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_more_ranks_than_gpus_are_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(
        UserError, match=r"3 ranks on this machine, and torch sees 2 CUDA devices.*devices=2 or device=c"
    ):
        choose_device(name)
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_device(name) == torch.device("cuda", 1)
