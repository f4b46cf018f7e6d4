"""Stages embed and predict into files: features are the encoder's, of an encoder or a classifier; mistakes."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ssl_ft.artifact import InputContract, ModelCard, load_model, save_model
from ssl_ft.build.embedding import open_embedder
from ssl_ft.build.predicting import columns_of
from ssl_ft.data.source import open_source
from ssl_ft.evaluate.features import compute_outputs, read_inputs
from ssl_ft.models.encoders import EncoderSpec, build_encoder
from tests.pipelines.conftest import Command
from tests.pipelines.test_bad_input import refused

FAST = ["threads=1", "device=cpu"]


def expected_features(folder: Path, photos: Path) -> np.ndarray:
    model, card, _ = load_model(folder)
    source = open_source(str(photos))
    inputs = read_inputs(
        source, np.arange(len(source)), card.contract, max_damaged_share=0.0, max_pixels=10**6, workers=1
    )
    return compute_outputs(model, inputs.pixels, card.contract, device=torch.device("cpu"), batch_size=5)


def test_features_are_those_of_the_encoder(command: Command, tiny_runs: Path, photos: Path) -> None:
    encoder = tiny_runs / "pretrain"
    outcome = command(["embed", str(photos), f"encoder={encoder}", *FAST, "out=f.npz"])
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == "f.npz"
    assert "24 images embedded" in outcome.err
    expected = expected_features(encoder / "encoder", photos)
    with np.load("f.npz", allow_pickle=False) as arrays:
        np.testing.assert_allclose(arrays["features"], expected, rtol=1e-4, atol=1e-5)
        assert arrays["paths"].tolist() == list(open_source(str(photos)).names)
        assert arrays["labels"].tolist() == ["a"] * 12 + ["b"] * 12
    words = ["embed", str(photos), f"encoder={encoder / 'encoder'}", "normalise=true", *FAST, "out=f.parquet"]
    assert command(words).code == 0
    vectors = np.stack(pq.read_table("f.parquet")["features"].to_pylist())
    np.testing.assert_allclose(
        vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-4, atol=1e-5
    )


def test_a_classifier_gives_the_features_before_its_head(command: Command, tiny_runs: Path, photos: Path) -> None:
    assert command(["embed", str(photos), f"encoder={tiny_runs / 'finetune'}", *FAST, "out=f.csv"]).code == 0
    with Path("f.csv").open(encoding="utf-8", newline="") as file:
        features = np.array([row[2:] for row in csv.reader(file)][1:], np.float32)
    model, card, _ = load_model(tiny_runs / "finetune/classifier")
    source = open_source(str(photos))
    inputs = read_inputs(
        source, np.arange(len(source)), card.contract, max_damaged_share=0, max_pixels=10**6, workers=1
    )
    with torch.no_grad():
        logits = model(card.contract.normalise(torch.from_numpy(inputs.pixels)))
        head = model.get_classifier()(torch.from_numpy(features))
    np.testing.assert_allclose(head, logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "spec",
    [
        EncoderSpec("resnet10t", 3, 32, stem_stride=1),
        EncoderSpec("convnext_atto", 3, 32, stem_stride=2, args={"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
        EncoderSpec("vit_tiny_patch16_224", 3, 24, patch_size=8, args={"depth": 1, "embed_dim": 32, "num_heads": 2}),
    ],
    ids=lambda spec: spec.name,
)
def test_taking_the_head_off_leaves_the_encoder(tmp_path: Path, spec: EncoderSpec) -> None:
    encoder = build_encoder(spec, seed=1).eval()
    images = torch.rand(3, 3, spec.size, spec.size)
    with torch.no_grad():
        expected = encoder(images)
    encoder.reset_classifier(4)  # type: ignore[operator]
    contract = InputContract(spec.size, 3, (0.5,) * 3, (0.2,) * 3)
    save_model(tmp_path / "classifier", encoder, ModelCard("classifier", spec, contract, tuple("abcd")))
    with torch.no_grad():
        assert torch.equal(open_embedder(str(tmp_path)).model(images), expected)


def test_damaged_images_are_left_out_and_said(command: Command, tiny_runs: Path, photos: Path) -> None:
    (photos / "a/03.png").write_bytes(b"")
    words = ["embed", str(photos), f"encoder={tiny_runs / 'pretrain'}", *FAST]
    refused(
        command, words, "1 of 24 images cannot be read", "a/03.png", "max_damaged_share=0.01", "nothing was written"
    )
    outcome = command([*words, "max_damaged_share=0.1"])
    assert outcome.code == 0
    assert "left out: a/03.png" in outcome.err
    assert pq.read_metadata("features.parquet").num_rows == 23


def test_mistakes(command: Command, tiny_runs: Path, photos: Path) -> None:
    encoder = f"encoder={tiny_runs / 'pretrain'}"
    refused(command, ["embed", encoder], "embed needs images and an encoder")
    refused(command, ["embed", str(photos)], "encoder= is missing", "'encoder' or 'classifier'")
    refused(command, ["embed", str(photos), "encoder=nowhere"], "nowhere is not there")
    refused(command, ["embed", str(photos), f"encoder={photos}"], "holds no encoder")
    refused(command, ["embed", str(photos), encoder, "out=f.json"], "'.json'", ".parquet, .csv, .npz")
    refused(command, ["embed", str(photos), encoder, "out=no/f.csv"], "no folder no")
    refused(command, ["embed", str(photos), encoder, "out=photos"], "is a folder")
    refused(command, ["embed", "fotos", encoder], "There is no fotos")
    np.save("five.npy", np.zeros((4, 16, 16, 5), np.uint8))
    Path("f.parquet").write_text("before")
    refused(command, ["embed", "five.npy", encoder, "out=f.parquet"], "five.npy#0", "5 channels", "takes 3")


@pytest.mark.parametrize("out", ["p.csv", "p.parquet"])
def test_a_class_called_as_a_column_gets_a_prefix(command: Command, runs: Path, photos: Path, out: str) -> None:
    model, card, _ = load_model(runs / "finetune/classifier")
    save_model(runs / "other/classifier", model, replace(card, class_names=("label", "b")))
    outcome = command(["predict", str(photos), f"classifier={runs / 'other'}", "device=cpu", f"out={out}"])
    assert outcome.code == 0, outcome.err
    columns = ["path", "label", "probability", "share_label", "share_b"]
    assert ", ".join(columns) in outcome.err
    if out.endswith("parquet"):
        rows = pq.read_table(out).to_pylist()
    else:
        with Path(out).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    assert list(rows[0]) == columns
    assert {row["label"] for row in rows} <= {"label", "b"}


@pytest.mark.parametrize(
    ("task", "names", "columns"),
    [
        ("classes", ["a", "b"], ["path", "label", "probability", "a", "b"]),
        ("classes", ["path", "b"], ["path", "label", "probability", "share_path", "share_b"]),
        ("multi_label", ["label", "b"], ["path", "label", "b"]),
        ("multi_label", ["path"], ["path", "share_path"]),
        ("regression", ["path", "age"], ["path", "value_path", "value_age"]),
    ],
)
def test_columns_are_named_once(task: str, names: list[str], columns: list[str]) -> None:
    assert columns_of(task, names) == columns


def test_predictions_as_parquet_are_those_of_the_csv(command: Command, tiny_runs: Path, photos: Path) -> None:
    words = ["predict", str(photos), f"classifier={tiny_runs / 'finetune'}", "device=cpu"]
    for out in ("p.csv", "p.parquet"):
        assert command([*words, f"out={out}"]).code == 0
    with Path("p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table("p.parquet")
    assert table.column_names == ["path", "label", "probability", "a", "b"]
    for row, other in zip(rows, table.to_pylist(), strict=True):
        assert (row["path"], row["label"]) == (other["path"], other["label"])
        for name in ("probability", "a", "b"):
            assert float(row[name]) == pytest.approx(other[name], abs=1e-6)
