"""The audit of an exported file: scored on the test images against its parent, timed, weighed, and perhaps refused.

`audit.json` holds what was found, `audit.npz` the answers on the test images, with which the next link of a chain is
held against the first. The arithmetic is in `ssl_ft/evaluate/audit.py`, the clocks in `ssl_ft/export/`.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_ft.artifact import InputContract, find_model
from ssl_ft.build.compressing import Work
from ssl_ft.build.labels import LabelSplit
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError
from ssl_ft.evaluate.audit import SCORES, Loss, drop_of_classes, loss_of_classes, loss_of_targets, value_of
from ssl_ft.evaluate.augmented import LINKS, mean_outputs
from ssl_ft.evaluate.features import Inputs
from ssl_ft.evaluate.metrics import Estimate
from ssl_ft.evaluate.target_metrics import TargetEstimate, paired_target_difference
from ssl_ft.export.costs import CHILD, Costs, Exported, machine_words, measure_costs
from ssl_ft.export.description import read_description
from ssl_ft.export.running import Pixels, Runner, open_runner
from ssl_ft.result import Metric
from ssl_ft.runlog import RunFolder, write_text

REFUSED = 3
"""Exit code of a stage whose file lost more than `max_drop`."""

_BATCH = 64


@dataclass(frozen=True)
class Audited:
    """What the audit found.

    Attributes:
        metrics: rows of `result.json`.
        is_shipped: whether the exported file stays; else its folder is gone and the stage ends with `REFUSED`.
        num_images: test images.
        num_scored: models scored on them.
    """

    metrics: tuple[Metric, ...]
    is_shipped: bool
    num_images: int
    num_scored: int


@dataclass(frozen=True, eq=False)
class _Answers:
    """Probabilities or numbers [N, K] of parent and child on the same test images, and which images those are."""

    indices: NDArray[np.int64]
    parent: NDArray[np.float64]
    child: NDArray[np.float64]
    pixels: tuple[Pixels, Pixels]


def audit(
    file: Path,
    work: Work,
    *,
    run: RunFolder,
    num_threads: int,
    max_drop: float | None,
    most_seconds: float = 20.0,
    measures_costs: bool = True,
) -> Audited:
    """Score the exported file and its parent on the test split, once each, and measure both.

    Args:
        file: `.onnx` or `.pt2` in a folder of its own, with `model.json`.
        work: the parent, its card, the labelled images and the split.
        run: where `audit.json`, `audit.npz`, notes and damage go.
        num_threads: CPU threads of every runtime.
        max_drop: most that the score may fall; None: no limit.
        most_seconds: of timing, for each size of batch.
        measures_costs: speed, memory and size too; else scores alone.

    Raises:
        UserError: no test images, none readable, or a runtime that is not installed.
    """
    description = read_description(file.parent)
    runner = open_runner(file, description, num_threads=num_threads)
    answers = _answer(runner, description.contract, work, run=run)
    loss = _loss(answers, work)
    first = _first_drop(answers, loss, work, run=run)
    measured: list[Costs] = []
    if measures_costs:
        measured = measure_costs(
            Exported(file, description, runner), work.model, work.card, pixels=answers.pixels, num_threads=num_threads,
            most_seconds=most_seconds, place=run.path,
        )  # fmt: skip
    is_shipped = max_drop is None or loss.drop.value <= max_drop
    _write(run, file, loss, first, measured, work=work, threads=num_threads, max_drop=max_drop, is_shipped=is_shipped)
    run.note(_sentence(loss.drop, work.card.task))
    if not is_shipped:
        _refuse(file, loss.drop, max_drop=max_drop, run=run)
    metrics = _metrics(loss, measured, work)
    return Audited(tuple(metrics), is_shipped, len(answers.indices), 2)


def exit_code(run: Path) -> int:
    """0, or `REFUSED` where the run's audit took its exported file away."""
    return 0 if (run / "exported").is_dir() else REFUSED


def refuse_without_test(source: Source, split: LabelSplit) -> None:
    """Refuse labelled images none of which is for test.

    Raises:
        UserError: as said.
    """
    if not len(split.test):
        raise UserError(
            f"{source.location} has no test images to audit the exported file on; give some with data.test_path=, or "
            "a split with data.val_split and a share for test"
        )


def _answer(runner: Runner, contract: InputContract, work: Work, *, run: RunFolder) -> _Answers:
    source, task = work.images.source, work.card.task
    refuse_without_test(source, work.split)
    own = work.images.inputs(work.split.test, work.card.contract)
    run.leave_out_damaged(own.damaged)
    if not len(own.indices):
        raise UserError(f"{source.location}: not one of its test images can be read; mend them first")
    # A student may take images of another size.
    other: Inputs = own if contract == work.card.contract else work.images.inputs(work.split.test, contract)
    assert np.array_equal(own.indices, other.indices), "an image is damaged at any size"
    parent = mean_outputs(
        work.model, own.pixels, work.card.contract, task=task, how="none", device=torch.device("cpu"),
        batch_size=_BATCH,
    )  # fmt: skip
    outputs = torch.from_numpy(runner.outputs(other.pixels, batch_size=_BATCH))
    child = LINKS[task](outputs).numpy()
    assert child.shape == parent.shape, "a child answers what its parent does"
    return _Answers(own.indices, parent.astype(np.float64), child.astype(np.float64), (own.pixels, other.pixels))


def _loss(answers: _Answers, work: Work) -> Loss:
    seed, task = work.settings.seed, work.card.task
    if task == "classes":
        return loss_of_classes(work.images.labels[answers.indices], answers.parent, answers.child, seed=seed)
    targets, names = work.images.targets[answers.indices], work.images.output_names
    return loss_of_targets(targets, answers.parent, answers.child, names=names, task=task, seed=seed)


def _first_drop(answers: _Answers, loss: Loss, work: Work, *, run: RunFolder) -> tuple[str, Estimate]:
    """The first model of the chain and the drop against it: its answers were kept by the parent's audit, if any.

    The answers are kept for the next link.
    """
    folder = find_model(work.settings.model, kind="classifier")
    name, first, kept = str(folder), answers.parent, _kept(folder.parent, work)
    if kept is not None and np.array_equal(kept["indices"], answers.indices) and kept["first"].shape == first.shape:
        first = kept["first"].astype(np.float64)
        name = _first_name(folder.parent) or name
    np.savez_compressed(
        run.path / "audit.npz",
        indices=answers.indices,
        first=first.astype(np.float32),
        parent=answers.parent.astype(np.float32),
        exported=answers.child.astype(np.float32),
    )
    if first is answers.parent:
        return name, loss.drop
    seed, task = work.settings.seed, work.card.task
    if task == "classes":
        labels = work.images.labels[answers.indices]
        return name, drop_of_classes(labels, first.argmax(1), answers.child.argmax(1), seed=seed)
    targets = work.images.targets[answers.indices]
    return name, paired_target_difference(targets, first, answers.child, task=task, seed=seed)


def _kept(parent: Path, work: Work) -> dict[str, NDArray[Any]] | None:
    """What the audit in the parent's run kept, where there was one on the same test images."""
    path = parent / "audit.npz"
    same_test = [each.fingerprint for each in work.run.data if each.role == "test"]
    if not path.is_file() or _test_fingerprint(path.parent) not in same_test:
        return None
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in ("indices", "first")}


def _first_name(parent: Path) -> str | None:
    try:
        return str(json.loads((parent / "audit.json").read_text(encoding="utf-8"))["first"])
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _test_fingerprint(run: Path) -> str | None:
    try:
        data = json.loads((run / "result.json").read_text(encoding="utf-8"))["data"]
        return next((str(each["fingerprint"]) for each in data if each["role"] == "test"), None)
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _write(
    run: RunFolder,
    file: Path,
    loss: Loss,
    first: tuple[str, Estimate],
    measured: Sequence[Costs],
    *,
    work: Work,
    threads: int,
    max_drop: float | None,
    is_shipped: bool,
) -> None:
    score = SCORES[work.card.task]
    models = [
        {
            "name": each.name,
            "size_bytes": each.size_bytes,
            "speeds": [asdict(speed) for speed in each.speeds],
            "memory": None if each.memory is None else asdict(each.memory),
        }
        for each in measured
    ]
    scores = {
        name: {"score": value_of(found, score), "calibration": value_of(found, "expected_calibration_error")}
        for name, found in (("parent", loss.parent), (CHILD, loss.child))
    }
    content = {
        "format": 1,
        "file": file.name,
        "task": work.card.task,
        "score": score,
        "num_images": loss.drop.n,
        "drop": asdict(loss.drop),
        "first": first[0],
        "drop_from_first": asdict(first[1]),
        "agreement": asdict(loss.agreement),
        "max_drop": max_drop,
        "is_shipped": is_shipped,
        "threads": threads,
        "machine": machine_words(),
        "scores": scores,
        "models": models,
    }
    write_text(run.path / "audit.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _sentence(drop: Estimate, task: str) -> str:
    is_share = task != "regression"
    scale, unit = (100, " points") if is_share else (1, "")
    how = "lost" if drop.value >= 0 else "gained"
    low, high = (scale * x for x in (drop.low, drop.high))
    return (
        f"the exported file {how} {abs(scale * drop.value):.2f}{unit} of {SCORES[task].replace('_', ' ')} against its "
        f"parent on {drop.n} test images (95 % interval of the loss {low:.2f} to {high:.2f})"
    )


def _refuse(file: Path, drop: Estimate, *, max_drop: float | None, run: RunFolder) -> None:
    shutil.rmtree(file.parent)
    run.note(
        f"not handed over: it lost {drop.value:.4f}, more than max_drop={max_drop} allows; {file.parent.name}/ was "
        "removed, the model folder, if any, stays to be looked at"
    )


def _metrics(loss: Loss, measured: Sequence[Costs], work: Work) -> list[Metric]:
    labels = None if isinstance(work.training.labels, str) else work.training.labels

    def row(found: Estimate, model: str, target: str | None = None) -> Metric:
        # Decisions about one image are not independent: the calibration of labels has no interval.
        is_point = work.card.task == "multi_label" and found.name == "expected_calibration_error"
        return Metric(
            name=found.name, value=found.value, low=None if is_point else found.low,
            high=None if is_point else found.high, n=found.n, split="test",
            labels_per_class=labels, model=model, target=target,
        )  # fmt: skip

    def scores(found: Sequence[TargetEstimate], model: str) -> list[Metric]:
        return [row(each.estimate, model, each.target) for each in found]

    rows = [*scores(loss.child, CHILD), *scores(loss.parent, "parent")]
    rows += [row(loss.drop, "exported against parent"), row(loss.agreement, "exported against parent")]
    for each in measured:
        figures = {"size_mb": each.size_bytes / 1e6}
        figures |= {f"latency_ms_batch_{speed.batch}": speed.median_ms for speed in each.speeds}
        figures |= {f"images_per_second_batch_{speed.batch}": speed.images_per_second for speed in each.speeds}
        figures |= {} if each.memory is None else {"inference_memory_mb": each.memory.total_mb}
        rows += [
            Metric(name=name, value=value, n=loss.drop.n, split="test", labels_per_class=labels, model=each.name)
            for name, value in figures.items()
        ]
    return rows
