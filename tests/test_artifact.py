"""The model handed over: it comes back the same, works in plain timm, and nothing foreign or tampered is loaded."""

import hashlib
import json
import pickle
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssl_ft.artifact import InputContract, ModelCard, _seal, find_model, load_model, read_card, save_model
from ssl_ft.errors import UserError
from ssl_ft.models.encoders import EncoderSpec, build_encoder

SPEC = EncoderSpec("test_resnet", 3, 16)
CONTRACT = InputContract(16, 3, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
NAMES = ("Äpfel", "梨")
# One of each family whose stem we change, and one whose stem we leave.
SPECS = {
    "resnet": EncoderSpec("resnet10t", 3, 32, stem_stride=1),
    "convnext": EncoderSpec("convnext_atto", 3, 32, stem_stride=2),
    "vit": EncoderSpec("test_vit", 3, 32, patch_size=4, args={"class_token": False}),
    "other": EncoderSpec("test_efficientnet", 3, 32),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `encoder` and `classifier` of tiny models."""
    top = tmp_path_factory.mktemp("saved")
    model = build_encoder(SPEC, seed=1)
    save_model(top / "encoder", model, ModelCard("encoder", SPEC, CONTRACT, about={"licence": "none, é"}))
    model.reset_classifier(2)
    save_model(top / "classifier", model, ModelCard("classifier", SPEC, CONTRACT, NAMES))
    return top


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the encoder to spoil."""
    for path in (saved / "encoder").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def edit(folder: Path, *, part: str | None = None, is_resealed: bool = False, **changes: Any) -> None:
    """Change a config; with `is_resealed` it gets the seal of what it then says, as if it had been written so."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    (config if part is None else config[part]).update(changes)
    if is_resealed:
        config["seal"] = _seal(config)
    path.write_text(json.dumps(config))


def replace_weights(folder: Path, content: bytes) -> None:
    """Other weights with a config that vouches for them."""
    (folder / "model.safetensors").write_bytes(content)
    edit(folder, is_resealed=True, sha256=hashlib.sha256(content).hexdigest())


class TestRoundTrip:
    def test_an_encoder_comes_back_bit_for_bit(self, saved):
        model, card, digest = load_model(saved / "encoder")
        assert not model.training
        assert (card.kind, card.spec, card.contract) == ("encoder", SPEC, CONTRACT)
        assert card.about == {"licence": "none, é"}
        assert digest == hashlib.sha256((saved / "encoder/model.safetensors").read_bytes()).hexdigest()
        wanted = build_encoder(SPEC, seed=1).state_dict()
        assert wanted.keys() == model.state_dict().keys()
        assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())

    def test_a_classifier_comes_back_with_its_head_and_names(self, saved):
        model, card, _ = load_model(saved / "classifier")
        assert card.class_names == NAMES
        assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 2)

    def test_float64_is_handed_over_as_float32(self, tmp_path):
        save_model(tmp_path / "m", build_encoder(SPEC, seed=1).double(), ModelCard("encoder", SPEC, CONTRACT))
        assert {t.dtype for t in load_file(tmp_path / "m/model.safetensors").values()} == {torch.float32, torch.int64}

    def test_others_may_read_the_weights(self, saved):
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (saved / "encoder").iterdir()}
        assert modes["model.safetensors"] == modes["config.json"]

    def test_a_failure_while_writing_leaves_the_old_model(self, saved, tmp_path, monkeypatch):
        model, card = build_encoder(SPEC, seed=2), ModelCard("encoder", SPEC, CONTRACT)
        digest = save_model(tmp_path / "m", model, card)

        def fail(*args: object) -> str:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("ssl_ft.artifact._card_text", fail)
        with pytest.raises(OSError, match="No space"):
            save_model(tmp_path / "m", build_encoder(SPEC, seed=3), card)
        monkeypatch.undo()
        assert load_model(tmp_path / "m")[2] == digest
        assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_the_cards_own_lines_load_the_model_in_timm_alone(tmp_path):
    """Row g: features of plain timm equal ours to 1e-6, without an import of this package."""
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    wanted, lines = {}, ["import os, sys", "from safetensors.torch import load_file, save_file", "out = {}"]
    save_file({"images": images}, tmp_path / "images")
    for name, spec in SPECS.items():
        model = build_encoder(spec, seed=1)
        for part in model.modules():  # statistics that a fresh model would not have
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(std=0.1)
        contract = InputContract(32, 3, (0.5,) * 3, (0.2,) * 3)
        save_model(tmp_path / name, model, ModelCard("encoder", spec, contract))
        with torch.no_grad():
            wanted[name] = model.eval()(images)
        block = re.search(r"```python\n(.*?)```", (tmp_path / name / "README.md").read_text("utf-8"), re.DOTALL)
        assert block is not None
        lines += [f"os.chdir({str(tmp_path / name)!r})", block[1]]
        lines += [f"with torch.no_grad(): out[{name!r}] = model(load_file('../images')['images'])"]
    lines += ["assert not [m for m in sys.modules if m.startswith('ssl_ft')]", "save_file(out, '../features')"]
    subprocess.run([sys.executable, "-I", "-c", "\n".join(lines)], check=True, timeout=120)
    for name, features in load_file(tmp_path / "features").items():
        assert torch.allclose(features, wanted[name], atol=1e-6, rtol=0), name


class TestForeign:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"{", "not a model description"),
            (b"[]", "not a model description"),
            (b"\xff\xfe", "not a model description"),
            (b'{"architecture": "resnet18"}', "it has no 'format'"),
        ],
    )
    def test_configs(self, folder, content, message):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_model(folder)

    def test_a_newer_format(self, folder):
        edit(folder, format=9)
        with pytest.raises(UserError, match="has format 9; this version of ssl_ft reads format 1"):
            load_model(folder)

    @pytest.mark.parametrize(
        ("part", "changes", "message"),
        [
            (None, {"kind": "thing"}, "neither encoder nor classifier"),
            (None, {"class_names": ["a"]}, "a classifier has class names, an encoder none"),
            (None, {"about": [1]}, "no mapping"),
            ("spec", {"name": 5}, "no text"),
            ("spec", {"name": "resnet5000"}, "not an architecture of timm"),
            ("spec", {"name": "hf-hub:somebody/model"}, "not an architecture of timm"),
            ("spec", {"name": "resnet18"}, "does not hold the weights of 'resnet18'"),
            ("spec", {"args": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path is not an argument"),
            ("spec", {"args": {"pretrained_cfg_overlay": {"hf_hub_id": "x"}}}, "pretrained_cfg_overlay is not an"),
            ("spec", {"channels": 4}, "number of channels"),
            ("contract", {"mean": [0.1]}, "number of channels"),
            ("contract", {"mean": "abc"}, "number of channels"),
            ("contract", {"mean": [0.1, "x", 0.1]}, "finite numbers"),
            ("contract", {"std": [0.1, 0.0, 0.1]}, "std must be positive"),
            ("contract", {"size": -8}, "whole numbers"),
            ("contract", {"size": "8"}, "whole numbers"),
            ("contract", {"interpolation": "magic"}, "bilinear"),
            ("contract", {"surprise": 1}, "surprise"),
        ],
    )
    def test_configs_that_contradict_themselves(self, folder, part, changes, message):
        edit(folder, part=part, is_resealed=True, **changes)
        with pytest.raises(UserError, match=message):
            load_model(folder)

    @pytest.mark.parametrize(
        ("part", "changes"),
        [("contract", {"mean": [0.5, 0.4, 0.31]}), ("contract", {"white_level": 255}), ("spec", {"size": 32})],
    )
    def test_an_edit_that_makes_sense_is_seen_by_the_seal(self, folder, part, changes):
        edit(folder, part=part, **changes)
        with pytest.raises(UserError, match=r"config.json cannot be trusted: it was edited"):
            load_model(folder)

    def test_an_edit_is_not_hidden_by_taking_the_seal_away(self, folder):
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["contract"]["white_level"] = 255
        for seal in ({}, {"seal": None}, {"seal": ""}):
            path.write_text(json.dumps({key: value for key, value in config.items() if key != "seal"} | seal))
            with pytest.raises(
                UserError, match=r"config.json cannot be trusted: it has lost its seal\. Take the model"
            ):
                load_model(folder)

    def test_notes_may_be_added_by_hand(self, folder):
        edit(folder, part="about", licence="CC0")
        assert read_card(folder)[0].about["licence"] == "CC0"

    def test_a_changed_byte(self, folder):
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(UserError, match=r"SHA-256 differs.*changed or damaged"):
            load_model(folder)

    def test_other_weights_even_with_a_config_that_vouches_for_them(self, folder, tmp_path):
        replace_weights(folder, pickle.dumps({"a": 1}))
        with pytest.raises(UserError, match="not a safetensors file"):
            load_model(folder)
        save_file({"a": torch.zeros(2)}, tmp_path / "random")
        replace_weights(folder, (tmp_path / "random").read_bytes())
        with pytest.raises(
            UserError, match=r"does not hold the weights of 'test_resnet': 91 tensors.*the first: a, bn1"
        ):
            load_model(folder)

    def test_missing_files(self, folder):
        (folder / "model.safetensors").unlink()
        with pytest.raises(UserError, match=r"holds no model.safetensors"):
            load_model(folder)
        (folder / "config.json").unlink()
        with pytest.raises(UserError, match=r"there is no config.json in it"):
            load_model(folder)


class TestFind:
    def test_a_run_or_the_model_in_it(self, saved):
        assert find_model(str(saved), kind="encoder") == find_model(f"{saved}/encoder", kind="encoder")
        assert find_model(str(saved), kind="classifier") == saved / "classifier"

    def test_what_is_there_instead(self, saved, tmp_path):
        for location, message in (
            ("", "encoder= is missing: give a finished pretrain run"),
            (str(tmp_path / "no"), "is not there"),
            (str(tmp_path), "holds no encoder; give a finished pretrain run"),
            (f"{saved}/classifier", "holds the model kind 'classifier', not 'encoder'"),
            ("x" * 300, "File name too long"),
        ):
            with pytest.raises(UserError, match=re.escape(message)):
                find_model(location, kind="encoder")
        (tmp_path / "checkpoints").mkdir()
        with pytest.raises(UserError, match="its run has not ended"):
            find_model(str(tmp_path), kind="encoder")


class TestContract:
    def test_images_are_scaled_and_normalised_by_channel(self):
        images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 16, 16)
        low, high = CONTRACT.normalise(images)
        for channel, (mean, std) in enumerate(zip(CONTRACT.mean, CONTRACT.std, strict=True)):
            assert torch.allclose(low[channel], torch.tensor(-mean / std))
            assert torch.allclose(high[channel], torch.tensor((1 - mean) / std))

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (torch.rand(1, 3, 16, 16), "got torch.float32. Multiply values in [0, 1] by 255"),
            (torch.zeros(1, 1, 16, 16, dtype=torch.uint8), "got shape (1, 1, 16, 16)"),
            (torch.zeros(1, 3, 17, 16, dtype=torch.uint8), "got shape (1, 3, 17, 16)"),
            (torch.zeros(3, 16, 16, dtype=torch.uint8), "got shape (3, 16, 16)"),
        ],
    )
    def test_other_images_are_refused(self, images, message):
        with pytest.raises(UserError, match=re.escape(message)):
            CONTRACT.normalise(images)


@pytest.mark.parametrize(
    ("task", "meaning"), [("multi_label", "probability of each by itself"), ("regression", "unit")]
)
def test_a_classifier_of_another_task_says_what_its_outputs_are(tmp_path: Path, task: str, meaning: str) -> None:
    model = build_encoder(SPEC, seed=1)
    model.reset_classifier(2)  # type: ignore[operator]
    save_model(tmp_path / "c", model, ModelCard("classifier", SPEC, CONTRACT, task=task, target_names=("a", "b")))
    loaded, card, _ = load_model(tmp_path / "c")
    assert (card.task, card.target_names, card.class_names, card.output_names) == (task, ("a", "b"), (), ("a", "b"))
    assert loaded.get_classifier().out_features == 2  # type: ignore[operator]
    words = (tmp_path / "c" / "README.md").read_text()
    assert meaning in words
    assert "in this order: a, b" in words
    for changes, problem in (
        ({"task": "classes"}, "task=classes has class_names, other tasks have target_names"),
        ({"task": "segmentation"}, "task 'segmentation' is none of classes, multi_label, regression"),
        ({"target_names": ["a", "a"]}, "target_names must be distinct texts"),
    ):
        edit(tmp_path / "c", **changes)
        with pytest.raises(UserError, match=problem):
            read_card(tmp_path / "c")
        edit(tmp_path / "c", task=task, target_names=["a", "b"])
    edit(tmp_path / "c", task="regression" if task == "multi_label" else "multi_label")
    with pytest.raises(UserError, match="edited after the model was written"):
        read_card(tmp_path / "c")


def test_a_folder_from_before_there_were_tasks_still_loads(saved: Path, tmp_path: Path) -> None:
    for path in (saved / "classifier").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("task", "target_names"):
        del config[key]
    # Its seal as it was made then: over these parts, in this way.
    parts = {key: config[key] for key in ("format", "kind", "spec", "contract", "class_names", "sha256")}
    config["seal"] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(config))
    card = load_model(tmp_path)[1]
    assert (card.task, card.class_names, card.target_names) == ("classes", NAMES, ())
