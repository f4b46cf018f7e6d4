"""compress by method=prune as a command: a smaller model that every stage goes on from, and what is refused."""

import json
from pathlib import Path

import pytest

from ssl_ft.artifact import load_model

COMMON = ["threads=1", "device=cpu"]
TRAINING = [*COMMON, "timing_seconds=0", "finetune.min_steps=2", "finetune.epochs=1", "finetune.batch_size=8"]


@pytest.mark.slow
def test_every_stage_goes_on_from_a_pruned_model(tiny_runs, command):
    pytest.importorskip("torch_pruning")
    pytest.importorskip("onnxscript")
    before, _, _ = load_model(tiny_runs / "finetune" / "classifier")
    words = ["compress", f"model={tiny_runs / 'finetune'}", "method=prune", "prune.sparsity=0.5", *TRAINING, "out=s"]
    done = command(words)
    assert done.code == 0, done.err
    assert "pruned: channels, 0." in done.err
    model, card, _ = load_model(Path("s/classifier"))
    sizes = [sum(p.numel() for p in each.parameters()) for each in (model, before)]
    assert sizes[0] < 0.5 * sizes[1]
    assert "multiply-accumulates" in card.about["pruned"]
    assert json.loads(Path("s/result.json").read_text())["parents"][0]["kind"] == "classifier"
    assert Path("s/exported/model.onnx").stat().st_size > 0
    photos = str(tiny_runs / "photos")
    for more in (
        ["predict", photos, "classifier=s", "out=p.csv", "device=cpu"],
        ["embed", photos, "encoder=s", *COMMON, "out=f.npz"],
        ["probe", "encoder=s", f"data={photos}", "labels=2", "draws=1", *COMMON, "out=p"],
        ["finetune", "encoder=s", f"data={photos}", "labels=2", "min_steps=1", "epochs=1", *COMMON, "out=f"],
        ["compress", "model=f", "method=prune", "prune.kind=weights", "prune.sparsity=0.5", *TRAINING, "out=w"],
    ):
        done = command(more)
        assert done.code == 0, done.err
    again, card_again, _ = load_model(Path("w/classifier"))
    # A limit that every loss breaks: the file stays where nothing was lost, and else goes, now and when asked again.
    words = ["compress", "model=f", "method=prune", "prune.sparsity=0.9", "max_drop=0", *TRAINING, "out=r"]
    for _ in range(2):
        done = command(words)
        # Four test images: whether anything is lost on them is luck; that a loss is refused, test_auditing.py tells.
        has_lost = json.loads(Path("r/audit.json").read_text())["drop"]["value"] > 0
        assert done.code == (3 if has_lost else 0)
        assert Path("r/exported").is_dir() != has_lost
    assert card_again.spec == card.spec
    assert sum(int((p == 0).sum()) for p in again.parameters()) > 0.4 * sizes[0]


def test_mistakes_are_sentences(tiny_runs, command):
    words = ["compress", f"model={tiny_runs / 'finetune'}", "method=prune", *TRAINING, "out=x"]
    for more, message in (
        (["prune.sparsity=0.5", "prune.macs=0.5"], "prune.sparsity and prune.macs: each decides how much goes"),
        (["prune.kind=units"], "this ResNet has no MLP"),
        (["prune.keep=layer9"], "prune.keep=layer9: this ResNet has no module of that name; close names: layer"),
    ):
        done = command([*words, *more])
        assert done.code == 2
        assert message in done.err
        assert "Traceback" not in done.err
