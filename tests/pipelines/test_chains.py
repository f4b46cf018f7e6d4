"""Chain A to B, A and B joined, B alone: what is trained on what, what is counted, and who descends from whom."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_ft.artifact import load_model, read_card
from ssl_ft.report.formats import NBSP
from ssl_ft.report.lineage import lineage_columns
from ssl_ft.report.runs import gather_runs
from ssl_ft.result import Result
from tests.pipelines.conftest import TINY, Command, run_command, write_photos
from tests.pipelines.test_bad_input import refused, rows_of

SHORT = ["threads=1", "device=cpu", "min_steps=3", "epochs=1"]
LABELS = 4  # per class of B: 1 of them goes to val


def finetune(*words: str) -> list[str]:
    return ["finetune", *words, *SHORT]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of the comparison, and the sets: B has classes of its own and one of A's."""
    top = tmp_path_factory.mktemp("chains")
    a = write_photos(top / "a", classes=("cat", "dog", "emu"), count=10)
    b = write_photos(top / "b", classes=("dog", "ant"), count=10, seed=1)
    budget = [f"data={b}", f"labels={LABELS}"]
    stages = [
        ["pretrain", f"data={a}", *TINY, f"out={top / 'pool'}"],
        finetune(f"encoder={top / 'pool'}", f"data={a}", f"out={top / 'on-a'}"),
        finetune(f"encoder={top / 'on-a'}", *budget, f"out={top / 'a-then-b'}"),
        finetune(f"encoder={top / 'pool'}", *budget, f"also={a}", "also_classes=union", f"out={top / 'a-and-b'}"),
        finetune(f"encoder={top / 'pool'}", *budget, f"out={top / 'b-alone'}"),
    ]
    for words in stages:
        outcome = run_command(words)
        assert outcome.code == 0, outcome.err
    return top


def result(run: Path) -> Result:
    return Result.model_validate_json((run / "result.json").read_text(encoding="utf-8"))


def digest(run: Path, kind: str) -> str:
    return read_card(run / kind)[1]


def test_lineage_is_recorded_to_the_first_ancestor(runs: Path) -> None:
    (parent,) = result(runs / "a-then-b").parents
    assert (parent.kind, parent.sha256) == ("classifier", digest(runs / "on-a", "classifier"))
    assert parent.path == str(runs / "on-a" / "classifier")
    (first,) = parent.ancestors
    assert (first.kind, first.sha256) == ("encoder", digest(runs / "pool", "encoder"))
    for name in ("on-a", "a-and-b", "b-alone"):
        (parent,) = result(runs / name).parents
        assert (parent.kind, parent.sha256, parent.ancestors) == ("encoder", digest(runs / "pool", "encoder"), ())


def test_labels_of_the_budget_are_those_of_b_and_others_are_counted_beside(runs: Path) -> None:
    def used(name: str) -> tuple[int, ...]:
        found = result(runs / name).labels_used
        return found.train, found.val, found.test, found.also, found.earlier

    num_test = 4  # 2 of 10 of each class
    assert used("on-a") == (18, 6, 6, 0, 0)
    assert used("a-then-b") == (6, 2, num_test, 0, 24)
    assert used("a-and-b") == (6, 2, num_test, 24, 0)
    assert used("b-alone") == (6, 2, num_test, 0, 0)
    assert read_card(runs / "a-then-b" / "classifier")[0].about["labels trained on"] == 32
    assert read_card(runs / "a-and-b" / "classifier")[0].about["labels trained on"] == 32


def test_all_three_are_judged_on_the_same_images_with_the_same_labels(runs: Path) -> None:
    names = ("a-then-b", "a-and-b", "b-alone")
    for role in ("train", "val", "test"):
        prints = {d.fingerprint for name in names for d in result(runs / name).data if d.role == role}
        assert len(prints) == 1, role
    (also,) = (d for d in result(runs / "a-and-b").data if d.role == "also")
    assert (also.location, also.num_images) == (str(runs / "a"), 24)
    for name in names:
        model, card, _ = load_model(runs / name / "classifier")
        assert card.class_names == ("ant", "dog")
        assert model.num_classes == 2
        assert result(runs / name).test_scored == 1


def test_the_report_shows_every_ancestor_whether_or_not_its_run_is_in_it(runs: Path) -> None:
    columns = lineage_columns(gather_runs([runs / name for name in ("pool", "on-a", "a-then-b")]).runs)
    assert [[card.name for card in column] for column in columns[1:]] == [["pool"], ["on-a"], ["a-then-b"]]
    assert columns[3][0].parents == ("on-a",)
    _, earlier, own = lineage_columns(gather_runs([runs / "a-then-b"]).runs)
    assert [(card.kind, card.name, card.parents) for card in earlier] == [
        ("Earlier model", "pool", ()),
        ("Earlier model", "on-a", ("pool",)),
    ]
    assert f"SHA-256 {digest(runs / 'on-a', 'classifier')[:12]}" in earlier[1].facts
    assert own[0].parents == ("on-a",)
    columns = lineage_columns(gather_runs([runs / "a-then-b", runs / "pool"]).runs)
    assert [card.name for card in columns[1]] == ["on-a"]
    assert columns[1][0].parents == ("pool",)
    assert run_command(["report", str(runs / "a-then-b"), f"out={runs / 'r.html'}"]).code == 0
    assert "training the models it started from" in (runs / "r.html").read_text(encoding="utf-8")
    facts = [fact for card in lineage_columns(gather_runs([runs / "a-and-b"]).runs)[0] for fact in card.facts]
    assert f"also: 24{NBSP}images" in facts


def test_a_test_image_that_an_ancestor_or_the_other_source_has_is_told(
    command: Command, runs: Path, tmp_path: Path
) -> None:
    """All images of B are A's own, in an order in which those drawn for test are not the ones that A holds out."""
    b = tmp_path / "b"
    for name in ("cat", "dog"):
        (b / name).mkdir(parents=True)
        for number in range(10):
            with Image.open(runs / "a" / name / f"{number:02d}.png") as image:
                image.save(b / name / f"copy{(number + 5) % 10}.png")
    assert command(finetune(f"encoder={runs / 'on-a'}", f"data={b}", "out=chained")).code == 0
    notes = " ".join(json.loads(Path("chained/manifest.json").read_text())["notes"])
    assert "test images are also in the labelled images of on-a, pixel for pixel; see duplicates.csv" in notes
    assert "in the pretraining pool, pixel for pixel" in notes
    assert len(rows_of(Path("chained/duplicates.csv"))) >= 2
    words = [f"encoder={runs / 'b-alone'}", f"data={b}", f"also=[{{path: {runs / 'a'}}}]", "also_classes=union"]
    assert command(finetune(*words, "out=joined")).code == 0
    assert f"test images are also in {runs / 'a'}, pixel for pixel" in Path("joined/manifest.json").read_text()
    assert len(rows_of(Path("joined/duplicates.csv"))) >= 2


def test_a_scratch_of_a_chain_owes_no_labels_to_it(command: Command, runs: Path) -> None:
    words = [f"encoder={runs / 'on-a'}", f"data={runs / 'b'}", "strategy=scratch", "out=o"]
    assert command(finetune(*words)).code == 0
    assert result(Path("o")).labels_used.earlier == 0
    assert "count beside" not in Path("o/manifest.json").read_text()


def test_a_classifier_is_probed_without_its_head(command: Command, runs: Path) -> None:
    words = ["labels=2", "draws=1", "baselines=false", "threads=1", "device=cpu", "out=o"]
    assert command(["probe", f"encoder={runs / 'on-a'}", f"data={runs / 'b'}", *words]).code == 0
    found = result(Path("o"))
    assert [(p.kind, len(p.ancestors)) for p in found.parents] == [("classifier", 1)]
    assert found.labels_used.earlier == 24


def test_weights_of_others_go_the_whole_way(command: Command, runs: Path) -> None:
    weights = runs / "pool" / "encoder" / "model.safetensors"
    words = [f"encoder={weights}", "source.name=test_resnet", "source.size=16", f"data={runs / 'b'}", "labels=2"]
    assert command(finetune(*words, "out=o")).code == 0
    (parent,) = result(Path("o")).parents
    assert (parent.kind, parent.sha256) == ("weights", digest(runs / "pool", "encoder"))
    assert read_card(Path("o/classifier"))[0].contract.size == 16
    dry = command(["finetune", *words, "--dry-run"])
    assert dry.code == 0
    assert f"# encoder: {weights}" in dry.out


class TestMistakes:
    def test_data_must_be_named_where_the_encoder_names_none(self, command: Command, runs: Path):
        refused(command, finetune(f"encoder={runs / 'on-a'}", "out=o"), "gives a classifier", "name the labelled set")
        words = [f"encoder={runs / 'pool/encoder/model.safetensors'}", "source.name=test_resnet", "out=o"]
        refused(command, finetune(*words), "weights that tell of no data", "data=")
        refused(command, ["probe", f"encoder={runs / 'on-a'}"], "name the labelled set with data=")

    def test_no_encoder_says_what_may_be_given(self, command: Command, runs: Path):
        refused(command, finetune("out=o"), "encoder= is missing", "timm:NAME", ".safetensors")
        refused(command, finetune(f"encoder={runs / 'a'}", "out=o"), "holds no encoder", "finetune run")

    def test_strangers_are_found_before_a_run_begins(self, command: Command, runs: Path):
        words = [f"encoder={runs / 'pool'}", f"data={runs / 'b'}", f"also={runs / 'a'}"]
        refused(command, finetune(*words, "out=o"), "2 classes that", "'cat', 'emu'", "also_classes=union")
        refused(command, ["finetune", *words, "--dry-run"], "also_classes=union")

    def test_stages_that_have_one_labelled_source_refuse_others(self, command: Command, runs: Path):
        words = [f"encoder={runs / 'pool'}", f"data={runs / 'b'}", f"also={runs / 'a'}"]
        told = "further labelled sources are joined by finetune alone; leave it out"
        refused(command, ["adapt", *words, f"target={runs / 'a'}"], f"also: {told}")
        refused(command, ["selftrain", *words], f"also: {told}")
        compare = ["compare", f"encoders={runs / 'pool'}", f"finetune.also={runs / 'a'}"]
        refused(command, compare, f"finetune.also: {told}")

    def test_a_further_source_needs_labels(self, command: Command, runs: Path):
        np.save("bare.npy", np.zeros((4, 8, 8, 3), np.uint8))
        words = [f"encoder={runs / 'pool'}", f"data={runs / 'b'}", "out=o"]
        refused(command, finetune(*words, "also=bare.npy"), "bare.npy has no labels")
        refused(command, finetune(*words, "also=nowhere"), "There is no nowhere")
        refused(command, finetune(*words, "also=[{path: bare.npy, share: 1}]"), "share", "unknown setting")
