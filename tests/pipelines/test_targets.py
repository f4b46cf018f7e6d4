"""Multi-label and regression through the stages: finetune, its folder, predict, report; and each refusal."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_ft.artifact import load_model
from tests.pipelines.conftest import TINY, Outcome, run_command

SHORT = ["epochs=1", "batch_size=32", "threads=1", "device=cpu", "optim.rate=0.01"]
COMMON = ["threads=1", "device=cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretraining, and a manifest of red, blue and brightness with blanks, with both fine-tuned."""
    top = tmp_path_factory.mktemp("targets")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(70):
        red, blue, bright = generator.random() < 0.5, generator.random() < 0.3, generator.uniform(20, 180)
        pixels = generator.normal(bright, 5, (16, 16, 3))
        pixels[..., 0] += 70 * red
        pixels[..., 2] += 70 * blue
        (top / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(top / "images" / f"{number}.png")
        known = number % 10 != 0
        tags = ";".join(name for name, is_on in (("red", red), ("blue", blue)) if is_on) or ";"
        rows.append([f"images/{number}.png", int(red) if known else "", int(blue), f"{5000 + 10 * bright:.1f}", tags])
    with (top / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "red", "blue", "light", "tags"], *rows])
    done(["pretrain", f"data={top / 'images'}", *TINY, f"out={top / 'pretrain'}"])
    done([*finetune(top, "multi_label", "[red,blue]"), "labels=40", "tta=flip", "mix.cutmix=1",
          "imbalance.weights=effective", "imbalance.sampling=balanced", f"out={top / 'labels'}"])  # fmt: skip
    done([*finetune(top, "regression", "light"), "mix.mixup=0.2", "tta=crops", f"out={top / 'numbers'}"])
    return top


def finetune(top: Path, task: str, targets: str, *, steps: int = 30) -> list[str]:
    data = [f"data={top / 'list.csv'}", f"data.task={task}", f"data.targets={targets}"]
    return ["finetune", f"encoder={top / 'pretrain'}", *data, *SHORT, f"min_steps={steps}"]


def done(words: list[str]) -> Outcome:
    outcome = run_command(words)
    assert outcome.code == 0, outcome.err
    return outcome


def refused(words: list[str], *told: str) -> None:
    outcome = run_command(words)
    assert outcome.code == 2, outcome.out + outcome.err
    for part in told:
        assert part in outcome.err
    assert "Traceback" not in outcome.err


def metrics_of(run: Path) -> dict[tuple[str, str | None], dict[str, object]]:
    rows = json.loads((run / "result.json").read_text())["metrics"]
    return {(row["name"], row["target"]): row for row in rows}


def test_labels_are_learnt_and_scored_with_intervals(place: Path) -> None:
    rows = metrics_of(place / "labels")
    for name in ("mean_average_precision", "mean_auroc", "micro_f1", "macro_f1"):
        row = rows[name, None]
        assert row["low"] <= row["value"] <= row["high"]
        assert (row["split"], row["labels_per_class"], row["model"]) == ("test", 40, "full")
    assert {target for name, target in rows if name == "average_precision"} == {"red", "blue"}
    assert rows["mean_average_precision", None]["value"] > 0.7
    assert rows["val_mean_average_precision", None]["split"] == "val"
    result = json.loads((place / "labels" / "result.json").read_text())
    assert result["labels_used"]["train"] + result["labels_used"]["val"] == 40  # images in all
    assert result["test_scored"] == 1
    notes = json.loads((place / "labels" / "manifest.json").read_text())["notes"]
    assert any("left out of loss and scores: red 7." in note for note in notes)


def test_numbers_are_learnt_in_the_users_units(place: Path) -> None:
    rows = metrics_of(place / "numbers")
    assert rows["r2", "light"]["value"] == rows["mean_r2", None]["value"] > 0.5
    assert 10 < rows["mae", "light"]["value"] < 500
    with np.load(place / "numbers" / "target_predictions.npz") as kept:
        assert abs(kept["predicted"].mean() - 6000) < 500
    model, card, _ = load_model(place / "numbers" / "classifier")
    assert (card.task, card.target_names, card.class_names) == ("regression", ("light",), ())
    assert model.get_classifier().out_features == 1
    words = (place / "numbers" / "classifier" / "README.md").read_text()
    assert "A number for each target, in the unit it had in the training data, in this order: light" in words


def test_predict_writes_a_column_a_target(place: Path, tmp_path: Path) -> None:
    for run, tta, columns in (("labels", "none", ["red", "blue"]), ("numbers", "crops", ["light"])):
        out = tmp_path / f"{run}.csv"
        done(["predict", str(place / "images"), f"classifier={place / run}", f"tta={tta}", f"out={out}", "device=cpu"])
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["path", *columns]
        assert len(rows) == 70
        values = np.array([[float(row[name]) for name in columns] for row in rows])
        assert np.all((values >= 0) & (values <= 1)) if run == "labels" else np.all(values > 4000)


@pytest.mark.parametrize(("run", "task"), [("labels", "multi_label"), ("numbers", "regression")])
def test_suggest_refuses_what_has_no_choice_among_classes(place: Path, tmp_path: Path, run: str, task: str) -> None:
    words = ["suggest", f"pool={place / 'images'}", f"classifier={place / run}", "n=2", "device=cpu"]
    outcome = run_command([*words, f"out={tmp_path / 's.csv'}"])
    assert outcome.code == 2
    assert f"was trained with data.task={task}" in outcome.err
    assert "knows one class only" not in outcome.err


def test_predict_repeats_what_test_said(place: Path, tmp_path: Path) -> None:
    """The saved model is the one that was scored, units and all."""
    out = tmp_path / "all.csv"
    done(["predict", str(place / "list.csv"), f"classifier={place / 'numbers'}", "tta=crops", f"out={out}",
          "device=cpu"])  # fmt: skip
    with out.open(newline="") as file:
        predicted = {float(f"{float(row['light']):.4g}") for row in csv.DictReader(file)}
    with np.load(place / "numbers" / "target_predictions.npz") as kept:
        assert {float(f"{value:.4g}") for value in kept["predicted"][:, 0].tolist()} <= predicted


def test_the_report_shows_tables_and_a_scatter(place: Path, tmp_path: Path) -> None:
    done(["report", f"runs=[{place / 'labels'},{place / 'numbers'}]", f"out={tmp_path / 'r.html'}"])
    page = (tmp_path / "r.html").read_text()
    assert "Scores by target" in page
    assert "reaches a mean average precision over its labels of" in page
    assert "With 40\N{NO-BREAK SPACE}labelled images" in page
    assert "light: predicted over true values of" in page


def test_names_in_one_column_do_as_well(place: Path, tmp_path: Path) -> None:
    words = [*finetune(place, "multi_label", "tags", steps=2), "data.separator=;", f"out={tmp_path / 'tags'}"]
    done(words)
    assert load_model(tmp_path / "tags" / "classifier")[1].target_names == ("blue", "red")
    plan = done([*words, "--dry-run"])
    assert "targets (multi_label) blue, red" in plan.out


def test_the_same_command_gives_the_same_model(place: Path, tmp_path: Path) -> None:
    words = [*finetune(place, "multi_label", "[red,blue]", steps=3), "labels=20", "mix.mixup=1", "mix.cutmix=1",
             "imbalance.sampling=balanced"]  # fmt: skip
    digests = []
    for name in ("one", "two"):
        done([*words, f"out={tmp_path / name}"])
        digests.append(load_model(tmp_path / name / "classifier")[2])
    assert digests[0] == digests[1]


def test_what_is_refused(place: Path, tmp_path: Path) -> None:
    labels, numbers = finetune(place, "multi_label", "[red,blue]"), finetune(place, "regression", "light")
    refused([*labels, "labels=400", f"out={tmp_path / 'o'}"], "labelled images to draw from", "labels=400", "in all")
    refused([*labels, "strategy=probe", f"out={tmp_path / 'o'}"], "probe.head=exact", "use probe.head=trained")
    refused([*numbers, "label_smoothing=0.1", f"out={tmp_path / 'o'}"], "label_smoothing concerns classes")
    refused(finetune(place, "regression", "tags"), "list.csv, row 2, column 'tags'", "is no number")
    refused(finetune(place, "multi_label", "light"), "column 'light'", "neither 0 nor 1")
    refused(finetune(place, "multi_label", "[red,green]"), "no column 'green'", "path, red, blue, light, tags")
    refused([*labels, "data.separator=;"], "goes with a single column of names")
    data = labels[2:5]
    refused([*labels, f"also={place / 'images'}", f"out={tmp_path / 'o'}"], "also= joins sources of classes")
    for stage in ("probe", "selftrain", "adapt", "advise"):
        refused([stage, labels[1], *data, *COMMON], f"{stage} judges classes alone", "data.task=multi_label")
    refused(["index", *data, f"pack={tmp_path / 's'}"], "shards hold classes")
    refused(["run", *(f"pretrain.{each}" for each in data)], "run judges by probe, which knows classes alone")
    assert not (tmp_path / "o").exists()


def test_a_model_of_one_task_is_where_another_starts(place: Path, tmp_path: Path) -> None:
    words = finetune(place, "multi_label", "[red,blue]", steps=2)
    done([words[0], f"encoder={place / 'numbers'}", *words[2:], f"out={tmp_path / 'on'}"])
    result = json.loads((tmp_path / "on" / "result.json").read_text())
    earlier = json.loads((place / "numbers" / "result.json").read_text())["labels_used"]
    assert result["labels_used"]["earlier"] == earlier["train"] + earlier["val"] > 0
    assert load_model(tmp_path / "on" / "classifier")[1].target_names == ("red", "blue")


def test_pretraining_on_a_manifest_with_targets_keeps_its_test_images_out(place: Path, tmp_path: Path) -> None:
    done(["pretrain", *finetune(place, "regression", "light")[2:5], *TINY, f"out={tmp_path / 'p'}"])
    result = json.loads((tmp_path / "p" / "result.json").read_text())
    assert {row["role"]: row["num_images"] for row in result["data"]}["pool"] == 56


def test_index_tells_the_targets(place: Path, tmp_path: Path) -> None:
    out = done(["index", *finetune(place, "multi_label", "[red,blue]")[2:5], "look=false", f"out={tmp_path / 'i'}"])
    assert "targets: red 63, blue 70" in out.err + out.out
