"""Checkpoints: everything comes back bit for bit, a file is whole or absent, and foreign files are refused."""

import pytest
import torch
from torch import nn

from ssl_ft.checkpoint import load_checkpoint, read_values, save_checkpoint
from ssl_ft.errors import UserError
from ssl_ft.optim import build_optimizer, parameter_groups


def trained(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizer = build_optimizer(
        name, parameter_groups([(model, 1.0)], weight_decay=0.1), rate=0.1, momentum=0.9, betas=(0.9, 0.999)
    )
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(8, 4, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_going_on_equals_never_stopping(tmp_path, name):
    model, optimizer = trained(name)
    step(model, optimizer)
    save_checkpoint(tmp_path / "a", modules={"m": model}, optimizer=optimizer, values={"step": 1, "best": 0.5})
    step(model, optimizer)
    other, other_optimizer = trained(name)
    with torch.no_grad():
        other[0].weight.zero_()
    assert load_checkpoint(tmp_path / "a", modules={"m": other}, optimizer=other_optimizer) == {"step": 1, "best": 0.5}
    step(other, other_optimizer)
    for ours, theirs in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert read_values(tmp_path / "a")["step"] == 1


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "muon"])
def test_going_on_keeps_the_layout_of_weights(tmp_path, name):
    """Fused kernels take weights and their state as they lie in memory, whatever their strides say."""

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
        groups = parameter_groups([(model, 1.0)], weight_decay=0.1)
        return model, build_optimizer(name, groups, rate=0.01, momentum=0.9, betas=(0.9, 0.99))

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        inputs = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()

    model, optimizer = start()
    step(model, optimizer, 1)
    save_checkpoint(tmp_path / "a", modules={"m": model}, optimizer=optimizer, values={})
    step(model, optimizer, 2)
    other, other_optimizer = start()
    load_checkpoint(tmp_path / "a", modules={"m": other}, optimizer=other_optimizer)
    step(other, other_optimizer, 2)
    assert other.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(other.weight, model.weight)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    model, optimizer = trained("sgd")
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, modules={"m": model}, optimizer=optimizer, values={"step": 1})
    before = path.read_bytes()

    def half(tensors: object, name: object, metadata: object) -> None:
        with open(str(name), "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssl_ft.checkpoint.save_file", half)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, modules={"m": model}, optimizer=optimizer, values={"step": 2})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_damaged_and_foreign_files_are_refused(tmp_path):
    model, optimizer = trained("sgd")
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(path, modules={"m": model}, optimizer=optimizer)
    save_checkpoint(path, modules={"m": nn.Linear(4, 2)}, optimizer=optimizer, values={})
    with pytest.raises(UserError, match="does not fit this m"):
        load_checkpoint(path, modules={"m": model}, optimizer=optimizer)
