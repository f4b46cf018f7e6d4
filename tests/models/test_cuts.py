"""Cut architectures in model folders: back to the bit, in plain timm too, and none that is forged is built."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ssl_ft.artifact import InputContract, ModelCard, _seal, load_model, save_model
from ssl_ft.build.origins import load_origin, own_origin
from ssl_ft.compress.prune_widths import Shears, find_widths, narrow, planned_sizes
from ssl_ft.errors import UserError
from ssl_ft.models.encoders import EncoderSpec, build_encoder, num_features, with_cut

SIZE = 16
CONTRACT = InputContract(SIZE, 3, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
SPECS = {
    "resnet": EncoderSpec("test_resnet", 3, SIZE, stem_stride=2, args={"channels": [16, 16, 24, 32]}),
    "convnext": EncoderSpec(
        "convnext_atto", 3, SIZE, stem_stride=2, args={"depths": [1] * 4, "dims": [16, 24, 24, 32]}
    ),
    "vit": EncoderSpec(
        "test_vit", 3, SIZE, patch_size=4, args={"depth": 2, "embed_dim": 48, "num_heads": 3, "class_token": False}
    ),
}
EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)


def pruned(name: str) -> tuple[nn.Module, EncoderSpec]:
    """A classifier of 3 classes with half of its channels."""
    model = build_encoder(SPECS[name], seed=1)
    model.reset_classifier(3)  # type: ignore[operator]
    shears = Shears("channels", stream=None if name == "vit" else True)
    widths, _ = find_widths(model, shears, example=EXAMPLE)
    full = {width.name: len(width.scores) for width in widths}
    sizes = planned_sizes(widths, 0.5, full=full, shears=shears)
    model = build_encoder(SPECS[name], seed=1)
    model.reset_classifier(3)  # type: ignore[operator]
    smaller = narrow(model, sizes, shears=shears, example=EXAMPLE)
    for part in smaller.modules():  # statistics that a fresh model would not have
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            part.running_mean.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return smaller, with_cut(SPECS[name], smaller)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of each family, cut, and what it says of the same images."""
    pytest.importorskip("torch_pruning")
    top = tmp_path_factory.mktemp("cut")
    images, outputs = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)), {}
    save_file({"images": images}, top / "images")
    for name in SPECS:
        model, spec = pruned(name)
        save_model(top / name, model, ModelCard("classifier", spec, CONTRACT, ("a", "b", "c")))
        with torch.no_grad():
            outputs[name] = model(images)
    save_file(outputs, top / "outputs")
    return top


@pytest.mark.parametrize("name", SPECS)
def test_it_comes_back_to_the_bit_and_is_smaller(saved, name):
    model, card, _ = load_model(saved / name)
    images, wanted = load_file(saved / "images")["images"], load_file(saved / "outputs")[name]
    written = load_file(saved / name / "model.safetensors")
    assert all(torch.equal(value, written[key]) for key, value in model.state_dict().items())
    # Not to the bit: where memory lies and how many threads there are decide how convolutions sum.
    torch.testing.assert_close(model(images).detach(), wanted)
    whole = build_encoder(SPECS[name], seed=0)
    sizes = [sum(p.numel() for p in each.parameters()) for each in (model, whole)]
    assert sizes[0] < 0.7 * sizes[1]
    config = json.loads((saved / name / "config.json").read_text())
    assert config["num_features"] == num_features(model) == model.get_classifier().in_features
    assert "narrower than timm builds them" in (saved / name / "README.md").read_text()
    assert card.spec.cut is not None


@pytest.mark.parametrize("name", SPECS)
def test_its_encoder_starts_other_stages(saved, name):
    encoder, _ = load_origin(own_origin(saved / name))
    model, card, _ = load_model(saved / name)
    images = load_file(saved / "images")["images"]
    features = encoder(images)
    assert features.shape == (2, num_features(encoder))
    head = model.get_classifier()
    torch.testing.assert_close(head(features), model(images))
    fresh = build_encoder(card.spec, seed=3)
    assert fresh(images).shape == features.shape


@pytest.mark.slow
def test_the_cards_own_lines_load_it_where_this_package_is_not(saved):
    lines = ["import os, sys", "sys.modules['ssl_ft'] = None", "from safetensors.torch import load_file, save_file"]
    lines += ["out = {}"]
    for name in SPECS:
        block = re.search(r"```python\n(.*?)```", (saved / name / "README.md").read_text("utf-8"), re.DOTALL)
        assert block is not None
        lines += [f"os.chdir({str(saved / name)!r})", block[1]]
        lines += [f"with torch.no_grad(): out[{name!r}] = model(load_file('../images')['images'])"]
    lines += ["save_file(out, '../alone')"]
    subprocess.run([sys.executable, "-I", "-c", "\n".join(lines)], check=True, timeout=200)
    wanted = load_file(saved / "outputs")
    for name, outputs in load_file(saved / "alone").items():
        assert torch.allclose(outputs, wanted[name], atol=1e-6, rtol=0), name


def edited(saved: Path, folder: Path, *, is_resealed: bool, cut: dict[str, Any]) -> Path:
    for path in (saved / "resnet").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for key, changes in cut.items():
        for name, value in changes.items():
            own = config["spec"]["cut"][key]
            own[name] = {**own.get(name, {}), **value} if isinstance(value, dict) else value
    if is_resealed:
        config["seal"] = _seal(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_edit_is_seen_by_the_seal(saved, tmp_path):
    folder = edited(saved, tmp_path, is_resealed=False, cut={"numbers": {"bn1": {"num_features": 4}}})
    with pytest.raises(UserError, match="edited after the model was written"):
        load_model(folder)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({"numbers": {"bn1": {"num_features": 4096}}}, r"does not fit it: bn1.num_features = 4096 for 32"),
        ({"numbers": {"bn1": {"num_features": 0}}}, r"does not fit it: bn1.num_features = 0"),
        ({"numbers": {"bn1": {"num_features": 2.5}}}, r"does not fit it: bn1.num_features = 2.5"),
        ({"numbers": {"bn1": {"forward": 1}}}, r"does not fit it: bn1.forward"),
        ({"numbers": {"nowhere": {"num_features": 1}}}, r"does not fit it: nowhere.num_features"),
        ({"shapes": {"bn1.weight": [10**9]}}, r"does not fit it: bn1.weight of shape \(1000000000,\) for \(32,\)"),
        ({"shapes": {"bn1.weight": [4, 4]}}, r"does not fit it: bn1.weight"),
        ({"shapes": {"nothing": [4]}}, r"does not fit it: nothing of shape \(4,\) for None"),
        ({"shapes": {"bn1.weight": [3]}}, "cut of the architecture contradicts itself"),
        ({"numbers": {"bn1": 5}}, "is not a model description of ours"),
        ({"shapes": {"bn1.weight": 5}}, "is not a model description of ours"),
    ],
)
def test_a_forged_cut_is_not_built(saved, tmp_path, cut, message):
    with pytest.raises(UserError, match=message):
        load_model(edited(saved, tmp_path, is_resealed=True, cut=cut))


def test_a_whole_architecture_says_nothing_of_cuts():
    raw = SPECS["vit"].to_json()
    assert "cut" not in raw
    assert EncoderSpec.from_json(raw) == SPECS["vit"]
