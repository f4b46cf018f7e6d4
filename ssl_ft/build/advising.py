"""Advice from settings: the situation is looked at, the rule asked; and the rule held against comparisons.

The rule is in `evaluate/advice.py`.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ssl_ft.artifact import find_model
from ssl_ft.build.cells import budget_sizes
from ssl_ft.build.data import open_data, roles_of
from ssl_ft.build.judging import parent_data
from ssl_ft.build.origins import Origin, own_origin
from ssl_ft.build.shift import open_sides, read_sides
from ssl_ft.build.tasks import check_classes
from ssl_ft.config import AdviseSettings, DataSettings, ShiftSettings
from ssl_ft.config.compare import STRATEGY_NAMES
from ssl_ft.errors import UserError
from ssl_ft.evaluate.advice import Advice, Score, Scores, Situation, advise, mean_regret, regret_samples
from ssl_ft.evaluate.advice import score as score_one
from ssl_ft.evaluate.cells import Budget, all_keys, read_cell
from ssl_ft.evaluate.comparison import Resampled, find_difference, has_few_draws, is_shown
from ssl_ft.evaluate.metrics import Floats
from ssl_ft.evaluate.shift import measure, prepare
from ssl_ft.evaluate.summary import Question, Summary, model_name, resample_cells
from ssl_ft.models.encoders import build_encoder
from ssl_ft.report.comparison_files import read_summary
from ssl_ft.runlog import RunFolder
from ssl_ft.seeding import derive_seed

# Images of each side: enough to tell near from far, which is all that the rule asks.
_SHIFT_IMAGES = 500
# The effect is told from the mean over permutations, which so few give as well; no p-value is asked for.
_SHIFT_PERMUTATIONS = 199


def look_at_situation(settings: AdviseSettings, *, run: RunFolder, device: torch.device) -> dict[Budget, Situation]:
    """What is known before training, at each budget.

    Raises:
        UserError: no encoder, or data that cannot pay the budgets.
    """
    origin = own_origin(find_model(settings.encoder, kind="encoder"))
    data = settings.data or parent_data(Path(origin.location))
    check_classes(data, stage="advise")
    source = open_data(data)
    roles = roles_of(source, data)
    assert source.labels is not None, "roles need labels"
    sizes = budget_sizes(settings.labels, roles, source.labels, seed=settings.seed, class_names=source.class_names)
    shift = shift_effect(origin, data, run=run, device=device, seed=settings.seed)
    parameters, _, pool = encoder_facts(origin)
    return {
        budget: Situation(size, len(source.class_names), shift, pool, origin.card.contract.size, parameters)
        for budget, size in sizes.items()
    }


def advise_all(situations: dict[Budget, Situation]) -> list[tuple[Budget, Advice]]:
    """Advice at each budget, from all strategies there are."""
    return [(budget, advise(situation, available=STRATEGY_NAMES)) for budget, situation in situations.items()]


def shift_effect(
    origin: Origin, data: DataSettings, *, run: RunFolder, device: torch.device, seed: int
) -> float | None:
    """How far labelled images lie from the pool; None, with a note in the run, where that cannot be measured."""
    settings = ShiftSettings(encoder=origin.location, data=data, images=_SHIFT_IMAGES, seed=seed)
    try:
        folder = origin.pretrained_folder(instead="what it was trained on is not known")
        both = read_sides(settings, open_sides(settings, folder), folder, run=run, device=device)
    except UserError as error:
        run.note(f"the shift from the pretraining pool was not measured: {error}")
        return None
    return measure(prepare(both.spaces), both.is_target, num_permutations=_SHIFT_PERMUTATIONS, seed=seed).effect


def encoder_facts(origin: Origin) -> tuple[int, float | None, int | None]:
    """Parameters of an encoder, and where its run is at hand the seconds and the images of its pretraining."""
    parameters = _num_parameters(origin)
    if origin.folder is None or origin.kind != "encoder":
        return parameters, None, None
    try:
        result = json.loads((origin.folder.parent / "result.json").read_text(encoding="utf-8"))
        pool = [int(use["num_images"]) for use in result["data"] if use["role"] == "pool"]
        return parameters, float(result["seconds"]), pool[0] if pool else None
    except (OSError, ValueError, KeyError, TypeError):
        return parameters, None, None


def pretrain_cores(origin: Origin) -> int | None:
    """Threads of all ranks of an encoder's pretraining on CPU; None on a GPU, and where its run does not tell."""
    if origin.folder is None or origin.kind != "encoder":
        return None
    try:
        manifest = json.loads((origin.folder.parent / "manifest.json").read_text(encoding="utf-8"))
        threads = manifest.get("threads") or manifest["settings"]["threads"]  # earlier runs tell what was asked for
        return int(manifest["num_ranks"]) * int(threads) if manifest["device"] == "cpu" else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _num_parameters(origin: Origin) -> int:
    """Without the head, where it is a classifier's encoder."""
    if origin.folder is None:
        return sum(p.numel() for p in build_encoder(origin.card.spec, seed=0).parameters())
    config = json.loads((origin.folder / "config.json").read_text(encoding="utf-8"))
    outputs = len(config["class_names"] or config.get("target_names", ()))
    return int(config["num_parameters"]) - (int(config["num_features"]) + 1) * outputs


def score_runs(runs: Sequence[str]) -> Scores:
    """Hold the rule against comparisons: what it would have advised, and what that would have cost.

    Raises:
        UserError: a run is no finished comparison, or damaged.
    """
    scores: list[Score] = []
    pieces: list[Floats] = []
    rivals: dict[str, list[tuple[float, Floats]]] = {}
    for run in runs:
        summary = read_summary(Path(run))
        resampled = _resampled(Path(run), summary)
        for facts in summary.encoders:
            own = {row.strategy for row in summary.rows if row.encoder == facts.name}
            for budget, size in zip(resampled.budgets, resampled.num_labels.tolist(), strict=True):
                situation = Situation(
                    size, summary.num_classes, facts.shift, facts.pool_images, facts.input_size, facts.num_parameters
                )
                names = {s: model_name(facts.name, s, num_encoders=len(summary.encoders)) for s in sorted(own)}
                # In the table's order, which tells what to take where the rule's own were not compared.
                known = [name for name in STRATEGY_NAMES if name in own]
                given = advise(situation, available=[*known, *sorted(own.difference(known))])
                one, samples = _score(
                    summary, resampled, names, advised=given.strategy, encoder=facts.name, budget=budget
                )
                few = has_few_draws(budget, num_draws=summary.num_draws)
                scores.append(replace(one, is_by_rule=given.is_by_rule, has_few_draws=few))
                pieces.append(samples)
                for strategy in names:
                    other, samples = _score(
                        summary, resampled, names, advised=strategy, encoder=facts.name, budget=budget
                    )
                    rivals.setdefault(strategy, []).append((other.regret.value, samples))
    n = sum(each.regret.n for each in scores)
    # Only what could have been taken everywhere is a policy.
    everywhere = {name: found for name, found in rivals.items() if len(found) == len(scores)}
    return Scores(
        tuple(scores),
        mean_regret([each.regret.value for each in scores], pieces, n=n),
        float(np.mean([each.is_as_good for each in scores])),
        tuple(
            (name, mean_regret([v for v, _ in found], [s for _, s in found], n=n)) for name, found in everywhere.items()
        ),
    )


def _score(
    summary: Summary, resampled: Resampled, names: dict[str, str], *, advised: str, encoder: str, budget: Budget
) -> tuple[Score, Floats]:
    k = resampled.budgets.index(budget)
    best = max(names.values(), key=lambda model: float(resampled.values[resampled.models.index(model), k]))
    model = names[advised]
    lead = find_difference(summary.differences, best, model, budget=budget)
    # Beside several encoders, the best of this one may not have been compared with it: then its interval tells.
    samples = regret_samples(resampled, advised=model, best=best, budget=budget)
    if lead is None:
        shown = float(np.quantile(samples, 0.025)) > 0 and not has_few_draws(budget, num_draws=summary.num_draws)
    else:
        shown = is_shown(lead, num_draws=summary.num_draws) and lead.value > 0
    is_as_good = model == best or not shown
    one = score_one(
        resampled, data=summary.data, encoder=encoder, budget=budget, advised=model, best=best, is_as_good=is_as_good
    )
    return one, samples


def _resampled(run: Path, summary: Summary) -> Resampled:
    """The accuracies of a comparison's cells, resampled as they were for its tables but by a seed of their own.

    Comparisons mostly have the same seed: those on different images would be drawn alike and seem to err together in a
    mean over several. So the labelled images are part of it: comparisons on the same ones, which do err together, share
    their resamples, and all others do not.
    """
    try:
        with (run / "truth.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            labels = arrays["labels"].astype(np.int64)
        settings = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["settings"]
        seed = derive_seed(int(settings["seed"]), f"advice on {settings['labelled_images']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run} holds a damaged comparison ({error}); run it again") from error
    strategies = list(dict.fromkeys(row.strategy for row in summary.rows))
    budgets = [verdict.budget for verdict in summary.verdicts]
    undefined = {(left.encoder, left.strategy) for left in summary.left_out}
    keys = all_keys(
        [facts.name for facts in summary.encoders], strategies, budgets, draws=summary.num_draws,
        seeds=range(summary.num_seeds),
    )  # fmt: skip
    cells = [(k, read_cell(run / "cells", k)) for k in keys if (k.encoder, k.strategy) not in undefined]
    question = Question(
        summary.data, labels, summary.num_classes, summary.encoders, summary.baseline, summary.tolerance,
        summary.num_seeds, summary.num_resamples, seed, summary.left_out,
    )  # fmt: skip
    return resample_cells(question, cells)
