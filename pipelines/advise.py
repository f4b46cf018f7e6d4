"""Stage advise: which strategy to start with, before any training; and how good such advice was in comparisons."""

from pathlib import Path

from ssl_ft import dist, handover
from ssl_ft.build.advising import advise_all, look_at_situation, score_runs
from ssl_ft.build.parts import choose_device
from ssl_ft.config import AdviseSettings
from ssl_ft.errors import UserError
from ssl_ft.evaluate.advice import Scores
from ssl_ft.report.advice_words import advice_sentences, score_sentences, write_advice
from ssl_ft.result import LabelsUsed, Metric
from ssl_ft.runlog import RunFolder, default_folder


def main(settings: AdviseSettings) -> int:
    """Give advice, score it, and give the exit code."""
    if not settings.encoder and not settings.compare:
        raise UserError("advise needs an encoder, or comparisons to score its advice on: encoder=RUN or compare=RUN")
    dist.use_threads(settings.threads)
    scores = score_runs(settings.compare) if settings.compare else None
    plain = settings.model_dump(mode="json")
    name = Path(settings.encoder or settings.compare[0]).name
    run = RunFolder(Path(settings.out) if settings.out else default_folder("advise", name, plain), stage="advise",
                    settings=plain)  # fmt: skip
    if run.is_finished:
        return handover.already_done(run)
    with run:
        return _advise(settings, scores, run)


def _advise(settings: AdviseSettings, scores: Scores | None, run: RunFolder) -> int:
    metrics, given = list[Metric](), []
    if settings.encoder:
        situations = look_at_situation(settings, run=run, device=choose_device(settings.device))
        given = advise_all(situations)
        for sentence in advice_sentences(given):
            run.note(sentence)
        for budget, situation in situations.items():
            per_class = None if isinstance(budget, str) else budget
            strategy = next(advice.strategy for each, advice in given if each == budget)
            metrics.append(
                Metric(name="labels", value=situation.num_labels, n=situation.num_labels, split="train",
                       labels_per_class=per_class, model=strategy)
            )  # fmt: skip
    if scores is not None:
        for sentence in score_sentences(scores):
            run.note(sentence)
        for each in scores.scores:
            metrics += handover.as_metrics([each.regret], budget=each.budget, model=each.advised)
        metrics += handover.as_metrics([scores.regret], budget="all", model="advice")
        metrics += [m for name, e in scores.others for m in handover.as_metrics([e], budget="all", model=name)]
        n = len(scores.scores)
        metrics.append(Metric(name="share_as_good", value=scores.as_good, n=n, split="test", model="advice"))
    write_advice(run.path, given, None if scores is None else scores.scores)
    run.write_manifest()
    run.finish(metrics=metrics, labels_used=LabelsUsed(), test_scored=0)
    print(run.path)
    return 0
