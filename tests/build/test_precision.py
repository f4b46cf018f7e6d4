"""Which precision `auto` means, and that a run keeps the one it began in."""

from pathlib import Path

import pytest
import torch

from ssl_ft import processor
from ssl_ft.build.precision import settle_precision
from ssl_ft.build.tasks import training_notes
from ssl_ft.config import FinetuneSettings, PretrainSettings
from ssl_ft.errors import UserError
from ssl_ft.runlog import RunFolder

CPU = torch.device("cpu")


@pytest.fixture
def flags(monkeypatch):
    """Have the processor tell these flags."""
    return lambda *names: monkeypatch.setattr(processor, "cpu_flags", lambda: set(names))


def settled(folder: Path, precision: str) -> tuple[str, list[str]]:
    """What it becomes in a run folder, and what is said."""
    settings = PretrainSettings(precision=precision)
    run = RunFolder(folder, stage="pretrain", settings=settings.model_dump(mode="json"))
    return settle_precision(settings, run, device=CPU).precision, run.notes


@pytest.mark.parametrize("flag", ["amx_bf16", "avx512_bf16", "bf16"])
def test_auto_is_bf16_where_hardware_has_it(tmp_path, flags, flag):
    flags("avx2", flag)
    assert processor.has_bf16(CPU)
    assert settled(tmp_path / "run", "auto") == ("bf16", ["precision=bf16: this processor has bf16 in hardware"])


@pytest.mark.parametrize("told", [(), ("avx2", "avx512f")])
def test_auto_is_float32_elsewhere(tmp_path, flags, told):
    flags(*told)
    precision, notes = settled(tmp_path / "run", "auto")
    assert precision == "float32"
    assert notes == ["precision=float32: this processor would have to emulate bf16"]


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_have_it_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert processor.has_bf16(torch.device("cuda", 0)) is expected


def test_a_run_goes_on_as_it_began_on_another_processor(tmp_path, flags):
    flags("avx512_bf16")
    settled(tmp_path / "run", "auto")
    flags("avx2")
    precision, notes = settled(tmp_path / "run", "auto")
    assert precision == "bf16"
    assert notes[0].startswith("the run goes on in bf16, as it began; precision=bf16: this processor emulates bf16")
    flags("avx2")
    settled(tmp_path / "other", "auto")
    flags("avx512_bf16")
    assert settled(tmp_path / "other", "auto") == ("float32", [])


def test_what_was_kept_and_cannot_be_read_is_refused(tmp_path, flags):
    flags("avx2")
    settled(tmp_path / "run", "auto")
    (tmp_path / "run" / "precision.txt").write_text("half\n")
    with pytest.raises(UserError, match=r"precision.txt must say float32 or bf16, it says .half.; start anew"):
        settled(tmp_path / "run", "auto")


def test_what_was_asked_for_stays_and_a_slow_wish_is_told(tmp_path, flags):
    flags("avx2")
    precision, notes = settled(tmp_path / "run", "bf16")
    assert precision == "bf16"
    assert "emulates bf16" in notes[0]
    assert settled(tmp_path / "other", "float32") == ("float32", [])
    assert settled(tmp_path / "wide", "float64") == ("float64", [])
    flags("avx512_bf16")
    assert settled(tmp_path / "third", "bf16") == ("bf16", [])
    assert not list(tmp_path.rglob("precision.txt"))


def test_a_fine_tuning_is_told_where_bf16_is_emulated(flags):
    def told(**settings: object) -> list[str]:
        return training_notes(FinetuneSettings.model_validate(settings), num_val=100, device=CPU)

    flags("avx2")
    assert "emulates bf16" in told(precision="bf16")[0]
    assert told(precision="float32") == []
    assert "bf16" not in told(precision="bf16", strategy="probe")[0], "a head that is solved for takes no steps"
    flags("avx512_bf16")
    assert told(precision="bf16") == []
