"""Stage compare on tiny runs: what it leaves, killed and gone on with, several processes, refusals; and its advice."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ssl_ft.evaluate.cells import CellKey, read_cell
from tests.conftest import CHECKOUT
from tests.pipelines.conftest import Command, run_command, write_photos
from tests.ranks import forkserver

QUICK = [
    "labels=[1,3]", "draws=2", "device=cpu", "finetune.min_steps=2", "finetune.epochs=1", "resamples=200",
    "strategies=[scratch,probe]",
]  # fmt: skip
# Everything but seconds.
TABLES = ("table.csv", "comparisons.csv", "labels_saved.csv", "break_even.csv", "comparison.json")


def compare(encoder: Path | str, out: Path, *more: str, quick: list[str] = QUICK) -> list[str]:
    return ["compare", f"encoders={encoder}", *quick, f"out={out}", *more]


def tables(run: Path) -> dict[str, str]:
    return {name: (run / name).read_text() for name in TABLES}


@pytest.fixture(scope="module")
def encoder(tiny_runs: Path) -> Path:
    """A tiny pretraining."""
    return tiny_runs / "pretrain"


@pytest.fixture(scope="module")
def compared(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison, only read by the tests."""
    run = tmp_path_factory.mktemp("compared") / "run"
    outcome = run_command(compare(encoder, run, "workers=1"))
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == str(run)
    return run


def test_it_leaves_cells_tables_and_a_result(compared):
    assert len(list((compared / "cells").glob("*.npz"))) == 2 * 2 * 2
    assert list((compared / "claims").iterdir()) == []
    result = json.loads((compared / "result.json").read_text())
    assert (result["stage"], result["test_scored"]) == ("compare", 8)
    (facts,) = json.loads((compared / "comparison.json").read_text())["encoders"]
    assert facts["pretrain_cores"] == 1, "told by the manifest of its run"
    assert result["labels_used"] == {"train": 6, "val": 0, "test": 4, "watch": 0, "also": 0, "earlier": 0}
    rows = {(m["name"], m["model"], m["labels_per_class"]) for m in result["metrics"]}
    assert {("accuracy", "probe", 3), ("macro_f1", "scratch", 1), ("accuracy_difference", "probe - scratch", 3)} <= rows
    assert all(name in {p.name for p in compared.iterdir()} for name in (*TABLES, "costs.csv", "truth.npz"))


def test_every_label_of_a_budget_is_used_and_no_other(compared):
    cells = {name: read_cell(compared / "cells", CellKey("pretrain", name, 3, 0, 0)) for name in ("probe", "scratch")}
    assert {cell.num_labels for cell in cells.values()} == {6}
    assert cells["scratch"].chosen in (("optim.rate=0.003",), ("optim.rate=0.001",))
    assert cells["scratch"].val_loss is not None
    assert cells["probe"].steps == 0, "solved for"
    # With one label a class there is nothing to choose on: the first candidate.
    one = read_cell(compared / "cells", CellKey("pretrain", "scratch", 1, 0, 0))
    assert (one.val_loss, one.chosen) == (None, ("optim.rate=0.003",))


def test_the_same_command_has_nothing_to_do(compared, encoder):
    before = {p: p.stat().st_mtime_ns for p in compared.rglob("*")}
    assert run_command(compare(encoder, compared, "workers=3")).code == 0
    assert {p: p.stat().st_mtime_ns for p in compared.rglob("*")} == before


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("seed=1", "seed was 0, now 1"),
        ("tolerance=0.1", "tolerance was 0.01, now 0.1"),
        ("finetune.epochs=2", "finetune.epochs was 1, now 2"),
    ],
)
def test_another_comparison_in_the_same_folder_is_refused_and_nothing_is_lost(compared, encoder, word, said):
    before = sorted(compared.rglob("*"))
    common = [w for w in compare(encoder, compared) if w.partition("=")[0] != word.partition("=")[0]]
    outcome = run_command([*common, word])
    assert outcome.code == 2
    assert f"holds a run with other settings ({said})" in outcome.err
    assert sorted(compared.rglob("*")) == before


def test_lost_cells_are_computed_anew_to_the_same_tables(compared, tmp_path, encoder):
    run = shutil.copytree(compared, tmp_path / "again")
    (run / "result.json").unlink()
    before = {p.name: p.read_bytes() for p in run.glob("cells/*")}
    for key in (CellKey("pretrain", "scratch", 3, 1, 0), CellKey("pretrain", "probe", 1, 0, 0)):
        (run / "cells" / f"{key.name}.npz").unlink()
    # A claim of a dead process and a file half written, as a kill leaves them.
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    from ssl_ft import claims

    mark = {"host": claims.socket.gethostname(), "pid": ended.pid, "boot": claims._boot(), "nonce": "0"}
    (run / "claims" / "pretrain--scratch--3--draw1--seed0").write_text(json.dumps(mark))
    (run / "cells" / ".pretrain--scratch--3--draw1--seed0.npz.1.partial").write_bytes(b"PK")
    (run / "table.csv").unlink()
    assert run_command(compare(encoder, run, "workers=1")).code == 0
    assert tables(run) == tables(compared)
    for name in before:
        if not name.startswith("."):
            with np.load(run / "cells" / name) as ours, np.load(compared / "cells" / name) as theirs:
                np.testing.assert_array_equal(ours["predictions"], theirs["predictions"])
                np.testing.assert_array_equal(ours["confidences"], theirs["confidences"])


def test_a_damaged_cell_stops_with_a_sentence_and_keeps_the_rest(compared, tmp_path, encoder):
    run = shutil.copytree(compared, tmp_path / "damaged")
    (run / "result.json").unlink()
    cell = run / "cells" / "pretrain--probe--1--draw0--seed0.npz"
    cell.write_bytes(cell.read_bytes()[:100])
    outcome = run_command(compare(encoder, run, "workers=1"))
    assert outcome.code == 2
    assert "delete it, and the same command computes it anew" in outcome.err
    assert len(list((run / "cells").glob("*.npz"))) == 8


def test_dry_run_counts_cells_and_estimates_from_those_done(compared, tmp_path, encoder):
    outcome = run_command([*compare(encoder, tmp_path / "new"), "--dry-run"])
    assert "8 cells: 1 encoders x 2 strategies x 2 budgets x 2 draws x 1 seeds; 0 are done" in outcome.out
    assert "no cell has been measured yet" in outcome.out
    assert not (tmp_path / "new").exists()
    half = tmp_path / "half" / "cells"
    half.mkdir(parents=True)
    for path in sorted((compared / "cells").glob("*scratch*")):
        shutil.copy(path, half)
    outcome = run_command([*compare(encoder, tmp_path / "half", "workers=2"), "--dry-run"])
    assert "4 are done" in outcome.out
    assert "minutes with 2 workers" in outcome.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["labels=[2,99]"], r"fewer than the 99 per class asked for: the largest budget possible here is 10 per class"),
        (["strategies=[scratch,magic]"], r"there is no strategy 'magic'; strategies are .*probe"),
        (["strategies=[probe]"], r"baseline=scratch is not among strategies=probe; add it"),
        (["threads=2"], r"threads=2: each worker computes on one thread"),
        (["labels=[2,2]"], r"names a budget twice"),
        (["finetune.draw=1"], r"finetune.draw: compare sets these itself; leave them out"),
        (["encoders=[]"], r"compare needs encoders"),
        (["encoders=timm:resnet1888"], r"encoder=timm:resnet1888: 'resnet1888' is not an architecture of timm"),
        (["encoders={encoder: timm:resnet18, mean: 1}"], r"encoders.*mean"),
        (["finetune.tta=flip"], r"finetune.tta: test is predicted from one view of each image here"),
        (["finetune.also=more/"], r"finetune.also: further labelled sources are joined by finetune alone"),
        (["finetune.regression.loss=mse"], r"finetune.regression: numbers are learnt by finetune alone"),
        (["data.task=regression", "data.targets=age"], r"compare judges classes alone, and data.task=regression"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_made(encoder, tmp_path, words, message):
    import re

    keys = {word.partition("=")[0] for word in words}
    common = [w for w in compare(encoder, tmp_path / "run") if w.partition("=")[0] not in keys]
    outcome = run_command([*common, *words])
    assert outcome.code == 2
    assert re.search(message, outcome.err), outcome.err
    assert not (tmp_path / "run").exists()


def test_data_the_encoder_does_not_take_are_refused(encoder, tmp_path):
    write_photos(tmp_path / "one", classes=("a",))
    outcome = run_command(compare(encoder, tmp_path / "run", f"data={tmp_path / 'one'}"))
    assert outcome.code == 2
    assert "one" in outcome.err
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 5), dtype=np.uint8)
    np.savez(tmp_path / "bands.npz", images=images, labels=np.arange(24) % 2)
    outcome = run_command(compare(encoder, tmp_path / "run", f"data={tmp_path / 'bands.npz'}"))
    assert outcome.code == 2
    assert "channels" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_named_strategy_without_definition_is_refused_and_an_unnamed_left_out(encoder, tmp_path, monkeypatch):
    from ssl_ft.build import comparing
    from ssl_ft.errors import UserError

    def refuse(settings: object, draft: object) -> object:
        raise UserError("it has no blocks")

    monkeypatch.setattr(comparing, "STRATEGIES", {"scratch": comparing.STRATEGIES["scratch"], "full": refuse})
    named = compare(encoder, tmp_path / "run", quick=[*QUICK[:-1], "strategies=[scratch,full]"])
    outcome = run_command([*named, "--dry-run"])
    assert outcome.code == 2
    assert "strategy full is not defined for the encoder pretrain: it has no blocks" in outcome.err
    outcome = run_command([*compare(encoder, tmp_path / "run", quick=QUICK[:-1]), "--dry-run"])
    assert outcome.code == 0, outcome.err
    assert "left out: full for pretrain: it has no blocks" in outcome.out


def test_encoders_come_from_wherever_finetune_takes_them(tiny_runs, tmp_path):
    weights, classifier = tmp_path / "others.safetensors", tiny_runs / "finetune"
    shutil.copy(tiny_runs / "pretrain" / "encoder" / "model.safetensors", weights)
    others = f"{{encoder: {weights}, source: {{name: test_resnet, size: 16}}}}"
    words = compare(f"[{classifier}, {others}]", tmp_path / "run", "draws=1", "workers=1", quick=QUICK[2:])
    words.append("labels=2")
    outcome = run_command(words)
    assert outcome.code == 2
    assert "was not pretrained here, so no run tells of it: name the labelled set with data=" in outcome.err
    outcome = run_command([*words, f"data={tiny_runs / 'photos'}"])
    assert outcome.code == 0, outcome.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [parent["kind"] for parent in result["parents"]] == ["classifier", "weights"]
    assert [each["kind"] for each in result["parents"][0]["ancestors"]] == ["encoder"]
    assert result["labels_used"]["earlier"] == 8
    assert {row["model"] for row in result["metrics"]} >= {"probe (finetune)", "probe (others)"}
    assert f"it is not known which images {weights} was trained on" in outcome.err
    assert "the labelled images of finetune, pixel for pixel" in outcome.err
    facts = {each["name"]: each for each in json.loads((tmp_path / "run" / "comparison.json").read_text())["encoders"]}
    assert facts["finetune"]["num_parameters"] == facts["others"]["num_parameters"]
    assert all(each[key] is None for each in facts.values() for key in ("shift", "pretrain_seconds", "pool_images"))


def test_encoders_of_one_name_are_refused_unless_named(encoder, tmp_path):
    twice = f"{{encoder: {encoder}, source: {{}}}}"
    outcome = run_command(compare(f"[{encoder}, {twice}]", tmp_path / "run"))
    assert outcome.code == 2
    assert "are both called 'pretrain'; rename one of the folders, or give a name of its own" in outcome.err
    named = f"{{encoder: {encoder}, name: again}}"
    outcome = run_command([*compare(f"[{encoder}, {named}]", tmp_path / "run"), "--dry-run"])
    assert outcome.code == 0, outcome.err
    assert "16 cells: 2 encoders x" in outcome.out


Start = Callable[[list[str]], subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the command in a process group of its own; what is still there at the end is ended."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(words: list[str]) -> subprocess.Popen[bytes]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "ssl_ft", *words], cwd=CHECKOUT, env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_workers_killed_and_gone_on_with_give_the_tables_of_one(compared, tmp_path, encoder, start):
    """Killed twice with all its workers; at last two commands at once, as on two machines."""
    words = compare(encoder, tmp_path / "run", "workers=2")
    for least in (2, 4):
        process = start(words)
        while len(list(tmp_path.glob("run/cells/*.npz"))) < least:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    both = [start(words), start([w if w != "workers=2" else "workers=1" for w in words])]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert tables(tmp_path / "run") == tables(compared)
    # A cell may be written and its owner killed before it takes the claim away, which then keeps nobody from anything.
    left = [claim.name for claim in (tmp_path / "run" / "claims").iterdir()]
    assert all((tmp_path / "run" / "cells" / f"{name}.npz").is_file() for name in left)
    assert len(list((tmp_path / "run" / "cells").iterdir())) >= 8


def compare_quietly(words: list[str], log: Path) -> None:
    """The command in a process of its own, which has the libraries already; what it says goes to the log."""
    outcome = run_command(words)
    log.write_text(outcome.err)
    sys.exit(outcome.code)


@pytest.mark.slow
@pytest.mark.dist
def test_two_at_once_give_the_tables_of_one(compared, tmp_path, encoder):
    """Two commands, as on two machines; workers that one command starts are put to more above."""
    fork, words = forkserver(), compare(encoder, tmp_path / "run", "workers=1")
    both = [fork.Process(target=compare_quietly, args=(words, tmp_path / f"{n}.log")) for n in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    logs = [path.read_text() for path in sorted(tmp_path.glob("*.log"))]
    assert [process.exitcode for process in both] == [0, 0], logs
    assert tables(tmp_path / "run") == tables(compared)
    assert list((tmp_path / "run" / "claims").iterdir()) == []


@pytest.mark.slow
def test_it_is_stopped_between_cells_and_goes_on(compared, tmp_path, encoder, start):
    words = compare(encoder, tmp_path / "run", "workers=1")
    process = start(words)
    while not list(tmp_path.glob("run/cells/*.npz")):
        assert process.poll() is None, "it ended before it could be stopped"
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    assert len(list(tmp_path.glob("run/cells/*.npz"))) < 8
    assert list((tmp_path / "run" / "claims").iterdir()) == []
    assert run_command(words).code == 0
    assert tables(tmp_path / "run") == tables(compared)


def test_the_page_shows_it(compared, tmp_path):
    outcome = run_command(["report", str(compared), f"out={tmp_path / 'page.html'}"])
    assert outcome.code == 0, outcome.err
    page = (tmp_path / "page.html").read_text()
    assert 'id="strategies"' in page
    assert "With 3 labels per class take" in page.replace("\N{NO-BREAK SPACE}", " ")


def test_advice_is_given_and_scored(command: Command, compared, tiny_runs, encoder):
    outcome = command(
        ["advise", f"encoder={tiny_runs / 'pretrain'}", "labels=[2,4]", f"compare={compared}", "device=cpu",
         "out=advice"]
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    text = outcome.err.replace("\N{NO-BREAK SPACE}", " ")
    assert "With 2 labels per class start with probe (few labels, near): 4 labels of 2 classes are 2 a class" in text
    assert "Over 2 choices the advice lost" in text
    assert "Always taking one strategy would have lost: probe" in text
    rows = json.loads(Path("advice/result.json").read_text())["metrics"]
    assert {row["name"] for row in rows} == {"labels", "accuracy_regret", "mean_accuracy_regret", "share_as_good"}
    assert json.loads(Path("advice/advice.json").read_text())["scores"][0]["advised"] == "probe"


def test_advice_needs_something_to_go_by(command: Command, tiny_runs, encoder):
    assert "advise needs an encoder, or comparisons" in command(["advise"]).err
    outcome = command(["advise", f"compare={tiny_runs / 'probe'}"])
    assert outcome.code == 2
    assert "holds no finished comparison" in outcome.err
