"""The end of a comparison: its cells read, what they say worked out, tables and `result.json` written."""

import numpy as np

from ssl_ft import handover
from ssl_ft.build.advising import shift_effect
from ssl_ft.build.comparing import Comparison
from ssl_ft.build.comparison_work import question_of, read_cells, readable_test
from ssl_ft.build.parts import choose_device
from ssl_ft.evaluate.summary import Summary, summarise
from ssl_ft.report.comparison_files import write_summary
from ssl_ft.report.comparison_words import verdict_sentences
from ssl_ft.result import LabelsUsed, Metric
from ssl_ft.runlog import RunFolder, say


def write_result(comparison: Comparison, run: RunFolder) -> None:
    """Read every cell, work out what they say, and write all of it; the verdicts are said as well.

    Raises:
        UserError: a cell is damaged.
    """
    test = readable_test(comparison, run.path)
    source, roles, settings = comparison.source, comparison.roles, comparison.settings
    device = choose_device(settings.device)
    shifts = {
        name: shift_effect(origin, comparison.data, run=run, device=device, seed=settings.seed)
        for name, origin in comparison.origins.items()
    }
    question, cells = question_of(comparison, test, shifts=shifts), read_cells(comparison, run.path)
    summary = summarise(question, cells)
    run.parents.clear()  # measuring names the encoders too
    handover.record_roles(run, source, train=roles.train, val=roles.val, test=test)
    origins = list(comparison.origins.values())
    run.parents += comparison.parents
    for note in dict.fromkeys(note for origin in origins for note in origin.notes):
        run.note(note)
    handover.report_duplicates(
        run,
        list(dict.fromkeys(each for origin in origins for each in origin.runs())),
        source,
        test,
        data=comparison.data,
    )
    earlier = max(origin.num_labels for origin in origins)
    if earlier:
        run.note(f"up to {earlier:,} labels were used to train the encoders; they count beside the budgets")
    names = np.array(source.class_names, dtype=np.str_)
    np.savez_compressed(run.path / "truth.npz", labels=question.labels, class_names=names)
    write_summary(run.path, summary)
    run.write_manifest(device=str(device))
    for sentence in verdict_sentences(summary):
        say(sentence)
    run.finish(
        metrics=_metrics(summary),
        labels_used=LabelsUsed(train=max(row.num_labels for row in summary.rows), test=len(test), earlier=earlier),
        test_scored=len(cells),
        # Of all processes together: how long one of them waited says little.
        seconds=sum(cell.seconds for _, cell in cells),
        memory_mb=max(cell.peak_memory_mb for _, cell in cells),
    )


def _metrics(summary: Summary) -> list[Metric]:
    """Scores of each model at each budget, then the paired differences."""
    found = [
        metric for row in summary.rows for metric in handover.as_metrics(row.scores, budget=row.budget, model=row.model)
    ]
    for d in summary.differences:
        found.append(
            Metric(
                name="accuracy_difference",
                value=d.value,
                low=d.low,
                high=d.high,
                n=summary.num_test,
                split="test",
                labels_per_class=None if isinstance(d.budget, str) else d.budget,
                model=f"{d.model} - {d.other}",
            )
        )
    return found
