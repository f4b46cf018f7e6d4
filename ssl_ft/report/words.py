"""Sentences: what the runs show, and what was done. Plain text, escaped later by the template.

A difference counts as shown only where two 95 % intervals do not overlap, which is cautious.
"""

from collections.abc import Mapping
from typing import Any

from ssl_ft.report import formats
from ssl_ft.report.audit_file import audit_sentence
from ssl_ft.report.budgets import accuracies, judged_split
from ssl_ft.report.formats import Budget, listed
from ssl_ft.report.pair_words import PAIR_BASELINES, PAIR_WORDS, paired_verdict, stage_account
from ssl_ft.report.runs import DataUse, Metric, Run
from ssl_ft.report.shift_section import shift_sentence
from ssl_ft.report.tuning_section import tuning_sentence

_BASELINES = ("pixels", "untrained", "scratch", *PAIR_BASELINES)
_WORDS_IN_SENTENCE = {
    "encoder": "the pretrained encoder",
    "untrained": "the same encoder untrained",
    "pixels": "raw pixels",
    "full": "the fine-tuned network",
    "probe": "the probe's classifier",
    "partial": "the network fine-tuned in its last layers",
    "layer_decay": "the network fine-tuned with layer-wise rates",
    "gradual": "the network unfrozen from the top down",
    "probe_then_finetune": "the network fine-tuned from a solved head",
    "l2sp": "the network fine-tuned near its source",
    "feature_distance": "the network fine-tuned with its features held",
    "adapter": "the frozen network with adapters",
    "lora": "the frozen network with low-rank updates",
    "dora": "the frozen network with low-rank updates and new filter lengths",
    "qlora": "the network in 4 bits with low-rank updates",
    "scratch": "the same network trained from scratch",
    **PAIR_WORDS,
}
# What moved in a fine-tuning, as the subject of "was trained on labelled images"; where nothing is said, everything.
_MOVED = {
    "probe": "A linear head on the frozen network",
    "partial": "The top of the network",
    "adapter": "A linear head and small adapters in the frozen network",
    "lora": "A linear head and low-rank updates of the frozen network",
    "dora": "A linear head, low-rank updates and filter lengths of the frozen network",
    "qlora": "A linear head and low-rank updates of the frozen network, kept in 4 bits,",
}
_STAGE_TITLES = {
    "index": "Index",
    "pretrain": "Pretraining",
    "probe": "Probe",
    "finetune": "Fine-tuning",
    "compare": "Comparison of strategies",
    "shift": "Shift",
    "selftrain": "Self-training",
    "adapt": "Adaptation",
    "compress": "Compression",
    "tune": "Tuning",
}


def stage_title(stage: str) -> str:
    """The stage as a heading: 'Pretraining'."""
    return _STAGE_TITLES.get(stage, stage.capitalize())


def finding(run: Run) -> str:
    """The answer of one judged run, as one or two sentences; empty where it has no accuracy."""
    if run.extras.shift is not None:
        return shift_sentence(run.extras.shift)
    if run.extras.tuning is not None:
        return tuning_sentence(run.extras.tuning)
    if run.extras.audit is not None:
        return audit_sentence(run.extras.audit)
    scores = accuracies(run)
    subject = next((model for model in scores if model not in _BASELINES), None)
    if subject is None:
        return ""
    baselines = {model: scores[model] for model in _BASELINES if model in scores}
    budget = headline_budget(scores[subject], baselines)
    score = scores[subject][budget]
    beside = {model: by_budget[budget] for model, by_budget in baselines.items() if budget in by_budget}
    opening = f"With {formats.budget_words(budget)} {in_sentence(subject)} reaches {_with_interval(score)}"
    if judged_split(run) != "test":
        opening += " on validation images (no test images were scored)"
    if not beside:
        # A fine-tuning from scratch is a run of its own; the figure and the table below set them side by side.
        return f"{opening}." if run.stage == "finetune" else f"{opening}. No baseline was measured beside it."
    others = ", ".join(f"{in_sentence(model)} {_with_bounds(metric)}" for model, metric in beside.items())
    return f"{opening}; {others}. {paired_verdict(run) or _verdict(score, beside, stage=run.stage)}"


def headline_budget(subject: Mapping[Budget, Metric], baselines: Mapping[str, Mapping[Budget, Metric]]) -> Budget:
    """The budget to quote: one with all baselines, then the closest to 10 per class, then to 10 %, then all."""

    def key(budget: Budget) -> tuple[int, int, float]:
        missing = sum(budget not in by_budget for by_budget in baselines.values())
        kind = formats.budget_order(budget)[0]
        if budget is None:
            return missing, 2, 0.0
        typical = 0.1 if kind == 1 else 10.0
        return missing, kind, max(budget / typical, typical / budget)

    return min(subject, key=key)


def in_sentence(model: str) -> str:
    """The model as the middle of a sentence wants it; an unknown one under its own name."""
    return _WORDS_IN_SENTENCE.get(model, model)


def _with_interval(metric: Metric) -> str:
    bounds = formats.interval(metric.name, metric.low, metric.high)
    value = formats.measured(metric.name, metric.value)
    return f"{value} (95{formats.NBSP}% interval {bounds})" if bounds else value


def _with_bounds(metric: Metric) -> str:
    """The same for every value after the first of a sentence, which has said what the bounds are."""
    bounds = formats.interval(metric.name, metric.low, metric.high)
    value = formats.measured(metric.name, metric.value)
    return f"{value} ({bounds})" if bounds else value


def _relation(one: Metric, other: Metric) -> str:
    """'better', 'worse', 'unclear' where intervals touch, 'unknown' where one has none."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return "unknown"
    if one.low > other.high:
        return "better"
    return "worse" if one.high < other.low else "unclear"


def _verdict(score: Metric, baselines: dict[str, Metric], *, stage: str) -> str:
    """What the comparison with the baselines shows, and what it does not."""
    worth = "Pretraining was" if stage == "finetune" else "The unlabelled images were"
    best = max(baselines, key=lambda model: baselines[model].value)
    relations = {model: _relation(score, metric) for model, metric in baselines.items()}
    gain = formats.points(score.value, baselines[best].value)
    unclear = [in_sentence(model) for model, relation in relations.items() if relation == "unclear"]
    better = [in_sentence(model) for model, relation in relations.items() if relation == "better"]
    worse = [model for model, relation in relations.items() if relation == "worse"]
    if worse:
        loss = max(worse, key=lambda model: baselines[model].value)
        lead = formats.points(baselines[loss].value, score.value).lstrip("+")
        return f"{in_sentence(loss).capitalize()} did better by {lead}: no gain from the unlabelled images here."
    if "unknown" in relations.values():
        caution = "without intervals on both sides it is not shown to be real"
        return f"The difference from {in_sentence(best)} is {gain}; {caution}."
    if not unclear:
        over = " over the better of them" if len(baselines) > 1 else ""
        return f"{worth} worth {gain}{over}."
    sentence = f"No difference from {' or '.join(unclear)} is shown: the intervals overlap"
    return f"{sentence}, while it is better than {listed(better)}." if better else f"{sentence}."


def pretrained_only(runs: tuple[Run, ...]) -> str:
    """The headline where nothing has been judged yet."""
    pretrained = sum(run.stage == "pretrain" for run in runs)
    if not pretrained:
        return "These runs measured no accuracy, so nothing can be said about a model."
    which = "An encoder was" if pretrained == 1 else f"{pretrained} encoders were"
    return f"{which} pretrained and not yet judged: run the probe stage to learn what the unlabelled images were worth."


def account(run: Run) -> str:
    """What one run did, from its own records: model, data, labels, time and place."""
    describe = {"pretrain": _pretraining, "probe": _probing, "finetune": _finetuning, "compare": _comparing}
    own = describe.get(run.stage)
    sentences = own(run) if own else [stage_account(run.stage)]
    return " ".join([*sentences, *_labels(run), *_place(run)])


def _pretraining(run: Run) -> list[str]:
    objective = setting_name(run.settings, "objective")
    steps = last_step(run)
    pool = [use for use in run.data if use.role not in ("train", "val", "test")] or list(run.data)
    sentence = f"An encoder{_model(run)} was pretrained"
    sentence += f" with the objective {objective}" if objective else ""
    kind = "labelled " if run.result.labels_used.get("train") else "unlabelled "
    sentence += f" on {_images(pool[0], kind)}" if pool else ""
    return [sentence + (f" for {formats.counted(steps, 'step')}" if steps else "") + "."]


def _probing(run: Run) -> list[str]:
    scores = accuracies(run)
    budgets = sorted({budget for by_budget in scores.values() for budget in by_budget}, key=formats.budget_order)
    sentence = f"Linear classifiers were fitted on features of the frozen encoder{_model(run)}"
    if budgets:
        sentence += f", with {_budgets(budgets)}"
    draws = run.settings.get("draws")
    if isinstance(draws, int) and draws > 1:
        sentence += f", over {draws} random draws of the labelled images"
    return [sentence + "."]


def _budgets(budgets: list[Budget]) -> str:
    """'1, 2 and 5 labels per class, and with all labels': each kind of budget with its own unit."""
    counts = [budget for budget in budgets if formats.budget_order(budget)[0] == 0]
    shares = [formats.budget_mark(budget) for budget in budgets if formats.budget_order(budget)[0] == 1]
    *first, last = counts or [None]
    parts = [listed([*map(formats.budget_mark, first), formats.budget_words(last)])] if counts else []
    parts += [f"{listed(shares)} of the labels"] if shares else []
    parts += ["all labels"] if None in budgets else []
    return ", and with ".join(parts)


def _finetuning(run: Run) -> list[str]:
    strategy = setting_name(run.settings, "strategy")
    begun = "from fresh weights" if strategy == "scratch" else "starting from the pretrained encoder"
    moved = _MOVED.get(strategy or "", "The whole network")
    is_compared = strategy != "scratch" and "scratch" in accuracies(run)
    beside = " The same network was trained from scratch beside it." if is_compared else ""
    took = {metric.name: metric.value for metric in run.result.metrics}
    sentences = [f"{moved}{_model(run)} was trained on labelled images, {begun}.{beside}"]
    if "trained_parameters" in took and "training_seconds" in took:
        count, seconds = formats.large(int(took["trained_parameters"])), formats.duration(took["training_seconds"])
        sentences.append(f"Strategy {strategy}: {count} parameters trained in {seconds}.")
    return sentences


def _comparing(run: Run) -> list[str]:
    summary = run.extras.comparison
    if summary is None:
        return ["Strategies of fine-tuning were compared."]
    strategies = listed(list(dict.fromkeys(row.strategy for row in summary.rows)))
    budgets = [None if isinstance(each.budget, str) else each.budget for each in summary.verdicts]
    return [
        f"The strategies {strategies} were compared with {_budgets(budgets)}, on "
        f"{formats.counted(summary.num_draws, 'random draw')} of the labelled images; hyper-parameters were chosen "
        "inside the budget."
    ]


def _model(run: Run) -> str:
    architecture = run.extras.architecture or setting_name(run.settings, "encoder")
    size = run.extras.num_parameters
    parts = [architecture] if architecture else []
    parts += [f"{formats.large(size)} parameters"] if size else []
    return f" ({', '.join(parts)})" if parts else ""


def _images(use: DataUse, kind: str) -> str:
    if use.num_images is None:
        return f"{kind}images of {use.location}" if use.location else f"{kind}images"
    images = f"{use.num_images:,} {kind}" + ("image" if use.num_images == 1 else "images")
    return f"{images} of {use.location}" if use.location else images


def _labels(run: Run) -> list[str]:
    purposes = {
        "train": "training",
        "val": "choosing settings",
        "also": "training from further sources",
        "earlier": "training the models it started from",
        "test": "scoring",
        "watch": "watching progress alone",
    }
    used = {role: run.result.labels_used.get(role) for role in purposes}
    parts = [f"{number:,} for {purposes[role]}" for role, number in used.items() if isinstance(number, int) and number]
    sentences = [f"Labels used: {', '.join(parts)}."] if parts else []
    if run.result.test_scored:
        times = "once" if run.result.test_scored == 1 else f"{run.result.test_scored:,} times"
        sentences.append(f"The test images were scored {times}.")
    return sentences


def _place(run: Run) -> list[str]:
    parts = [f"in {formats.duration(run.result.seconds)}"] if run.result.seconds is not None else []
    if run.manifest.device:
        ranks = run.manifest.num_ranks or 1
        parts.append(f"on {run.manifest.device}" + (f" ({ranks} processes)" if ranks > 1 else ""))
    return [f"Done {' '.join(parts)}."] if parts else []


def last_step(run: Run) -> int | None:
    """The last step that any training curve reached."""
    return max((curve[-1][0] for curve in run.extras.train_curves.values() if curve), default=None)


def setting_name(settings: Mapping[str, Any], key: str) -> str | None:
    """A setting that names a thing, given either as text or as a group of settings with a `name`."""
    value = settings.get(key)
    if isinstance(value, Mapping):
        value = value.get("name")
    return value if isinstance(value, str) and value else None
