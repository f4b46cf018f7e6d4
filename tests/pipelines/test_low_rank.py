"""The command with a frozen encoder: fine-tune by each strategy, and what is handed on loads in plain timm."""

import json
import sys
from pathlib import Path

import pytest
import timm
from safetensors.torch import load_file

from tests.pipelines.conftest import Command, write_photos

VIT = ["encoder=test_vit", "encoder.patch_size=8", "size=32", "duration=2 steps", "batch_size=8", "eval_images=16"]
COMMON = ["threads=1", "device=cpu"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT pretrained for two steps."""
    from tests.pipelines.conftest import run_command

    top = tmp_path_factory.mktemp("vit")
    words = ["pretrain", f"data={write_photos(top / 'photos')}", *VIT, *COMMON, f"out={top / 'run'}"]
    assert run_command(words).code == 0
    return top / "run"


@pytest.mark.parametrize("strategy", ["adapter", "lora", "dora", "qlora"])
def test_what_is_handed_on_is_a_plain_timm_model(command: Command, encoder: Path, strategy: str) -> None:
    words = ["finetune", f"encoder={encoder}", f"strategy={strategy}", "labels=4", "min_steps=3", "epochs=1"]
    done = command([*words, *COMMON, "out=o"])
    assert done.code == 0, done.err
    config = json.loads(Path("o/classifier/config.json").read_text())
    spec = config["spec"]
    model = timm.create_model(
        spec["name"], num_classes=2, in_chans=3, img_size=32, patch_size=spec["patch_size"], global_pool="avg"
    )
    model.load_state_dict(load_file("o/classifier/model.safetensors"))
    result = json.loads(Path("o/result.json").read_text())
    assert {m["model"] for m in result["metrics"]} == {strategy}
    assert command(["predict", str(encoder.parent / "photos"), "classifier=o", "out=p.csv"]).code == 0


def test_qlora_is_refused_for_a_resnet_and_lora_without_peft(
    command: Command, tiny_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["finetune", f"encoder={tiny_runs / 'pretrain'}", "labels=4", "min_steps=3", "epochs=1", *COMMON, "out=o"]
    refused = command([*words, "strategy=qlora"])
    assert refused.code == 2
    assert "4 bits, and ResNet has convolutions" in refused.err
    monkeypatch.setitem(sys.modules, "peft", None)
    missing = command([*words, "strategy=lora"])
    assert missing.code == 2
    assert "strategy=lora needs the package peft; pip install '.[peft]'" in missing.err
