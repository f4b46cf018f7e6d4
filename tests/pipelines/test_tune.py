"""Stage tune on tiny runs: what it leaves, best.yaml gives the score again, test is not opened, refusals, the page."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from ssl_ft.tuning.records import StudyRecord, read_records
from tests.conftest import CHECKOUT
from tests.pipelines.conftest import run_command, write_photos

RATE = "space.optim.rate={type: float, low: 1e-4, high: 1e-1, log: true}"
SHARE = "space.encoder_rate_share={type: float, low: 0.1, high: 1.0, step: 0.3}"
STRATEGY = "space.strategy={type: categorical, choices: [full, partial]}"
TINY = ["finetune.labels=5", "finetune.val_share=0.4", "device=cpu", "finetune.batch_size=8"]
# Six steps with an evaluation after each, and no warm-up that the rungs would wait for.
QUICK = [*TINY, "steps=6", "finetune.optim.warmup=0"]


def tune(encoder: Path, out: Path, *more: str) -> list[str]:
    return ["tune", f"finetune.encoder={encoder}", *QUICK, f"out={out}", *more]


@pytest.fixture(scope="module")
def tuned(tiny_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tuning, only read by the tests."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    outcome = run_command(tune(tiny_runs / "pretrain", run, RATE, STRATEGY, "sampler=random", "trials=6"))
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == str(run)
    return run


def scores(run: Path) -> dict[str, float]:
    return {row["name"]: row["value"] for row in json.loads((run / "result.json").read_text())["metrics"]}


def plain(study: StudyRecord) -> list[tuple[object, ...]]:
    """A study without its clocks."""
    return [(t.number, t.state, t.value, t.steps, t.settings, t.reports) for t in study.trials]


def test_it_leaves_trials_a_recipe_and_a_result(tuned):
    study, result = read_records(tuned), json.loads((tuned / "result.json").read_text())
    assert [t.number for t in study.trials] == list(range(6))
    assert (study.score, study.rungs, study.most_steps) == ("val_accuracy", (1, 3), 6)
    assert all(0 < t.steps <= 6 for t in study.trials)
    assert (result["stage"], result["test_scored"]) == ("tune", 0)
    assert result["labels_used"] == {"train": 6, "val": 4, "test": 0, "watch": 0, "also": 0, "earlier": 0}
    assert [row["role"] for row in result["data"]] == ["train", "val"]
    found = scores(tuned)
    best = max(t.value for t in study.trials if t.state == "complete")
    assert found["val_accuracy"] == best
    assert found["trials"] == 6
    assert found["pruned_trials"] == study.count("pruned")
    assert found["training_steps"] == sum(t.steps for t in study.trials) <= 36
    assert next(row for row in result["metrics"] if row["name"] == "val_accuracy")["split"] == "val"
    assert [path.name for path in (tuned / "claims").iterdir()] == []


def test_the_best_settings_give_the_same_score_again(tuned, tmp_path):
    tree = yaml.safe_load((tuned / "best.yaml").read_text())
    study = read_records(tuned)
    assert tree["optim"]["rate"] == study.trials[study.best].settings["optim.rate"]
    outcome = run_command(["finetune", str(tuned / "best.yaml"), f"out={tmp_path / 'again'}"])
    assert outcome.code == 0, outcome.err
    assert scores(tmp_path / "again")["val_accuracy"] == scores(tuned)["val_accuracy"]


def test_nothing_is_left_to_do_and_other_settings_are_refused(tuned, tiny_runs):
    before = {p: p.stat().st_mtime_ns for p in tuned.rglob("*")}
    words = tune(tiny_runs / "pretrain", tuned, RATE, STRATEGY, "sampler=random")
    assert run_command([*words, "trials=6"]).code == 0
    outcome = run_command([*words, "trials=7"])
    assert outcome.code == 2
    assert "holds a run with other settings" in outcome.err
    assert {p: p.stat().st_mtime_ns for p in tuned.rglob("*")} == before


def test_test_images_are_not_opened(tiny_runs, tmp_path):
    """With a test split of its own that holds no image that can be read, the study is the same."""
    photos = write_photos(tmp_path / "photos" / "train")
    write_photos(tmp_path / "photos" / "test", count=3, seed=1)
    words = [f"finetune.data={tmp_path / 'photos'}", RATE, "pruner=none", "trials=2"]
    assert run_command(tune(tiny_runs / "pretrain", tmp_path / "a", *words)).code == 0
    for image in (tmp_path / "photos" / "test").rglob("*.png"):
        image.write_bytes(b"no image")
    outcome = run_command(tune(tiny_runs / "pretrain", tmp_path / "b", *words))
    assert outcome.code == 0, outcome.err
    assert plain(read_records(tmp_path / "a")) == plain(read_records(tmp_path / "b"))
    assert photos.is_dir()


def test_a_trial_that_falls_behind_stops_at_its_rung(tiny_runs, tmp_path):
    """Dark and bright images, told apart after some steps at a rate that learns; at the other rate never."""
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = generator.integers(0, 80, (60, 16, 16, 3)) + 170 * labels[:, None, None, None]
    np.savez(tmp_path / "light.npz", images=images.astype(np.uint8), labels=labels)
    words = ["space.optim.rate={type: categorical, choices: [1e-9, 3e-2]}", "pruner=asha", "first_rung=8", "trials=6"]
    words += [f"finetune.data={tmp_path / 'light.npz'}", "finetune.strategy=probe", "sampler=random"]
    words += ["finetune.probe.head=trained", "finetune.patience=30"]
    base = [w for w in tune(tiny_runs / "pretrain", tmp_path / "run", *words) if w != "steps=6"]
    outcome = run_command([*base, "steps=24"])
    assert outcome.code == 0, outcome.err
    study = read_records(tmp_path / "run")
    assert study.rungs == (8,)
    stopped = [t for t in study.trials if t.state == "pruned"]
    assert stopped
    assert {t.settings["optim.rate"] for t in stopped} == {1e-9}
    assert {t.steps for t in stopped} == {8}
    assert all(t.reports[-1][0] == t.steps for t in stopped), "nothing is computed after the evaluation"
    assert study.trials[study.best].settings["optim.rate"] == 3e-2
    assert study.num_steps == 24 * (6 - len(stopped)) + 8 * len(stopped)


def test_a_lost_result_is_written_again_from_the_journal(tuned, tmp_path, tiny_runs):
    run = shutil.copytree(tuned, tmp_path / "again")
    for name in ("result.json", "tuning.json", "best.yaml"):
        (run / name).unlink()
    outcome = run_command(tune(tiny_runs / "pretrain", run, RATE, STRATEGY, "sampler=random", "trials=6"))
    assert outcome.code == 0, outcome.err
    assert (run / "tuning.json").read_text() == (tuned / "tuning.json").read_text()


def test_a_grid_and_a_dry_run(tiny_runs, tmp_path):
    words = tune(tiny_runs / "pretrain", tmp_path / "run", SHARE, STRATEGY, "sampler=grid")
    outcome = run_command([*words, "--dry-run"])
    assert outcome.code == 0, outcome.err
    for line in (
        "encoder_rate_share: 0.1 to 1 in steps of 0.3",
        "strategy: full, partial",
        "8 trials by sampler=grid, at most 6 steps each",
        "judged after 1, 3 steps (hyperband)",
        "score: val_accuracy on 4 labels of val; test is not looked at",
    ):
        assert line in outcome.out
    assert not (tmp_path / "run").exists()


def test_rungs_wait_for_the_longest_warm_up(tiny_runs):
    # Of 30 steps: 27ths would begin at 2, the default warm-up is 3 steps long, the longest one searched 4.
    words = ["tune", f"finetune.encoder={tiny_runs / 'pretrain'}", *TINY, "steps=30", RATE, "--dry-run"]
    assert "judged after 6, 18 steps" in run_command(words).out
    searched = "space.optim.warmup={type: float, low: 0.0, high: 0.14, step: 0.07}"
    # Nor does one stand in the last third: it would be after 24.
    assert "judged after 8 steps" in run_command([*words, searched]).out
    assert "judged after 2, 6, 18 steps" in run_command([*words, "finetune.optim.warmup=0"]).out


@pytest.mark.slow
def test_a_pretraining_is_tuned_by_its_probe_and_clears_up(tmp_path):
    photos = write_photos(tmp_path / "photos", count=40)
    outcome = run_command(
        ["tune", "stage=pretrain", f"pretrain.data={photos}", "pretrain.encoder=test_resnet", "pretrain.batch_size=8",
         "pretrain.eval_images=60", "pretrain.eval_every=1 steps", "steps=4", "trials=3", "sampler=random",
         "pruner=asha", "first_rung=1", "device=cpu", f"out={tmp_path / 'run'}",
         "space.contrast.temperature={type: float, low: 0.05, high: 0.5, log: true}"]
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    study, result = read_records(tmp_path / "run"), json.loads((tmp_path / "run" / "result.json").read_text())
    assert study.score == "probe_accuracy"
    assert result["labels_used"]["val"] == 60
    assert list((tmp_path / "run" / "trials").iterdir()) == []
    best = study.trials[study.best]
    assert best.reports[-1] == (4, best.value)
    outcome = run_command(["pretrain", str(tmp_path / "run" / "best.yaml"), f"out={tmp_path / 'again'}"])
    assert outcome.code == 0, outcome.err
    assert scores(tmp_path / "again")["probe_accuracy"] == best.value


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_workers_killed_and_gone_on_with_find_what_one_does(tuned, tiny_runs, tmp_path):
    words = tune(tiny_runs / "pretrain", tmp_path / "run", RATE, STRATEGY, "sampler=random", "pruner=none", "trials=6")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    journal = tmp_path / "run" / "study.journal"
    process = subprocess.Popen(
        [sys.executable, "-m", "ssl_ft", *words, "workers=2"], cwd=CHECKOUT, env=environment, start_new_session=True
    )
    while not journal.is_file() or '"state":1' not in journal.read_text():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert run_command(words).code == 0
    alone = tune(
        tiny_runs / "pretrain", tmp_path / "alone", RATE, STRATEGY, "sampler=random", "pruner=none", "trials=6"
    )
    assert run_command(alone).code == 0
    assert plain(read_records(tmp_path / "run")) == plain(read_records(tmp_path / "alone"))
    # Settings at random depend on the trial's number alone, whatever stops trials.
    assert [t.settings for t in read_records(tuned).trials] == [
        t.settings for t in read_records(tmp_path / "run").trials
    ]


def entry(name: str, **range_: object) -> str:
    return f"space.{name}={json.dumps(range_)}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"space names no setting to search; write for example space.optim.rate="),
        (["space={}"], r"space names no setting to search"),
        (
            [entry("optim.rat", type="float", low=1, high=2)],
            r"space.optim.rat: unknown setting; did you mean optim.rate?",
        ),
        ([entry("optim.rate", type="float", low=2, high=1)], r"space.optim.rate: low=2 must be less than high=1"),
        ([entry("optim.rate", type="float", low=0, high=1, log=True)], r"log: low=0 must be more than 0"),
        (
            [entry("optim.rate", type="float", low=0.1, high=1, log=True, step=0.1)],
            r"step=0.1 and log do not go together",
        ),
        ([entry("optim.rate", type="float", low=0.1, high=1, step=0.4)], r"plus a multiple of step=0.4"),
        ([entry("optim.rate", type="float", low=0.1)], r"type=float needs low and high"),
        ([entry("optim.rate", type="float", choices=[1, 2])], r"choices concern type=categorical"),
        ([entry("epochs", type="int", low=1, high=2.5)], r"type=int takes whole numbers, not high=2.5"),
        (
            [entry("optim.rate", type="real", low=0.1, high=1)],
            r"space.optim.rate.type: must be 'float', 'int' or 'categorical'",
        ),
        ([entry("strategy", type="categorical")], r"type=categorical needs choices"),
        ([entry("strategy", type="categorical", choices=["full"], log=True)], r"log concerns type=float and type=int"),
        ([entry("strategy", type="categorical", choices=["full", "full"])], r"names a value twice"),
        (
            [entry("strategy", type="categorical", choices=["full", "magic"])],
            r"space.strategy: must be 'scratch'.*magic",
        ),
        ([entry("optim.rate", type="categorical", choices=["fast", 0.1])], r"space.optim.rate: must be a number"),
        ([entry("patience", type="float", low=1, high=4)], r"space.patience: takes whole numbers; write type: int"),
        ([entry("strategy", type="int", low=1, high=4)], r"takes no range of numbers; .*choices: \[.*full"),
        ([entry("label_smoothing", type="float", low=0, high=2)], r"space.label_smoothing: must be 1 or less \(got 2"),
        ([entry("labels", type="int", low=1, high=4)], r"space.labels: cannot be searched: it decides which images"),
        ([entry("data.limit", type="int", low=1, high=4)], r"space.data.limit: cannot be searched"),
        (
            [STRATEGY, entry("partial.layers", type="int", low=1, high=2)],
            r"partial.layers=1, strategy=full: partial belongs to strategy=partial",
        ),
        ([RATE, "sampler=grid"], r"space.optim.rate: sampler=grid needs a step"),
        ([SHARE, "sampler=grid", "trials=9"], r"trials=9: the grid has 4 points"),
        ([entry("patience", type="int", low=1, high=20000), "sampler=grid"], r"the grid has 20,000 points"),
        ([RATE, "finetune.seed=1"], r"finetune.seed: tune sets these itself"),
        ([RATE, "pretrain.size=32"], r"pretrain: tune has stage=finetune, which does not read it"),
        ([RATE, "finetune.min_steps=3"], r"finetune.min_steps: steps=6 says how long trials are; give one of them"),
        ([RATE, "score=knn"], r"score concerns stage=pretrain"),
        ([RATE, "pruner=none", "first_rung=1"], r"first_rung concerns pruner=hyperband and pruner=asha"),
        ([RATE, "threads=2"], r"threads=2: each worker computes on one thread"),
        ([RATE, "first_rung=6"], r"trials of 6 steps are first judged after 6, when nothing is left to save"),
        ([RATE, "finetune.labels=1"], r"finetune.labels=1 leaves no image of val to read a score from"),
        ([RATE, "out=/proc/ssl_ft"], r"/proc/.*cannot be (read or written|used as a run folder)"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_made(tiny_runs, tmp_path, words, message):
    keys = {word.partition("=")[0] for word in words}
    common = [w for w in tune(tiny_runs / "pretrain", tmp_path / "run") if w.partition("=")[0] not in keys]
    if any("patience" in word for word in words):
        common = [w for w in common if not w.startswith("finetune.patience")]
    outcome = run_command([*common, *words])
    assert outcome.code == 2
    assert re.search(message, outcome.err), outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([entry("batch_size", type="int", low=4, high=8)], r"batch_size in the space gives them different lengths"),
        ([entry("epochs", type="int", low=1, high=2)], r"epochs in the space gives them different lengths"),
    ],
)
def test_trials_of_different_lengths_are_not_judged_against_one_another(tiny_runs, tmp_path, words, message):
    common = [w for w in tune(tiny_runs / "pretrain", tmp_path / "run") if not w.startswith("steps=")]
    outcome = run_command([*common, *words])
    assert outcome.code == 2
    assert re.search(message, outcome.err), outcome.err


def test_steps_short_of_an_epoch_and_no_encoder(tiny_runs, tmp_path):
    words = [w for w in tune(tiny_runs / "pretrain", tmp_path / "run", RATE, "finetune.batch_size=1") if "=8" not in w]
    outcome = run_command([w if not w.startswith("steps=") else "steps=2" for w in words])
    assert outcome.code == 2
    assert "steps=2 is less than one pass over the 6 training images, which takes 6 steps of 1" in outcome.err
    outcome = run_command(["tune", RATE])
    assert "tune needs what is tuned" in outcome.err


def test_a_pretraining_without_labels_or_with_minutes_is_refused(tmp_path):
    np.save(tmp_path / "plain.npy", np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3), dtype=np.uint8))
    range_ = entry("contrast.temperature", type="float", low=0.1, high=0.5)
    base = ["tune", "stage=pretrain", "pretrain.encoder=test_resnet", "pretrain.batch_size=8", range_, "device=cpu"]
    outcome = run_command([*base, f"pretrain.data={tmp_path / 'plain.npy'}", "steps=4"])
    assert outcome.code == 2
    assert "plain.npy has 0 on the pretrain.eval_images=2000 it looks at" in outcome.err
    photos = write_photos(tmp_path / "photos", count=40)
    outcome = run_command([*base, f"pretrain.data={photos}", "pretrain.duration=1 minutes"])
    assert "is measured anew by each trial, so that none could be repeated; give steps or epochs" in outcome.err
    outcome = run_command([*base, f"pretrain.data={photos}", "steps=20", "first_rung=2"])
    assert "first_rung=2: trials are evaluated every" in outcome.err


def test_every_trial_failing_is_told_with_the_reason(tiny_runs, tmp_path):
    words = ["space.optim.rate={type: categorical, choices: [1e30, 1e31]}", "finetune.optim=sgd", "trials=2"]
    outcome = run_command(tune(tiny_runs / "pretrain", tmp_path / "run", *words, "pruner=none"))
    assert outcome.code == 2
    assert (
        "not one of the 2 trials was trained to its end: the loss or its gradient stopped being finite" in outcome.err
    )
    assert [t for t in (tmp_path / "run").iterdir() if t.name == "result.json"] == []


def test_a_journal_of_another_study_is_refused(tuned, tiny_runs, tmp_path):
    words = tune(tiny_runs / "pretrain", tmp_path / "run", RATE, "trials=2")
    (tmp_path / "run").mkdir()
    shutil.copy(tuned / "study.journal", tmp_path / "run")
    outcome = run_command(words)
    assert outcome.code == 2
    assert "is not empty and not a run of ours" in outcome.err
    run = shutil.copytree(tuned, tmp_path / "other")
    (run / "result.json").unlink()
    journal = (run / "study.journal").read_text()
    (run / "study.journal").write_text(journal.replace('"study_name":"finetune-', '"study_name":"finetune-x'))
    outcome = run_command(tune(tiny_runs / "pretrain", run, RATE, STRATEGY, "sampler=random", "trials=6"))
    assert outcome.code == 2
    assert "holds the study finetune-x" in outcome.err


def test_the_page_shows_it(tuned, tmp_path):
    outcome = run_command(["report", str(tuned), f"out={tmp_path / 'page.html'}"])
    assert outcome.code == 0, outcome.err
    page = (tmp_path / "page.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert 'id="tuning"' in page
    assert "The best of 6 settings tried reaches" in page
    assert "training steps of all trials" in page
    assert "training steps of the trial" in page
    assert "Trials that Hyperband let go on: " in page
