"""Sentences on two classifiers judged on the same test images: what selftrain, adapt and distilling are about.

The interval is that of the difference image by image, sharper than comparing two intervals.
"""

from ssl_ft.report import formats
from ssl_ft.report.runs import Run

# Words in a sentence for what these stages train, and for what it is held against.
PAIR_WORDS = {
    "student": "the student",
    "teacher": "its first teacher",
    "batch_norm": "the classifier with batch statistics of the target",
    "coral": "the classifier with aligned covariances",
    "adversarial": "the classifier trained against a domain critic",
    "continue": "the classifier whose encoder went on with the target's images",
    "source alone": "the same training on the source alone",
    "student alone": "the same student trained without a teacher",
}
PAIR_BASELINES = ("teacher", "source alone", "student alone")
_USED = {
    "selftrain": "A teacher labelled unlabelled images, and students learnt from that; the best on val was kept.",
    "adapt": "A classifier was trained on a labelled source and adapted to unlabelled images of another kind.",
    "compress": "A trained model was made smaller.",
    "tune": "Settings were tried in many trainings and chosen on val; test was not looked at.",
    "shift": "The target's images were compared with those the encoder was pretrained on; no label was looked at.",
}


def paired_verdict(run: Run) -> str:
    """What the paired difference shows; empty where a run of another stage has none."""
    if run.stage not in ("selftrain", "adapt", "compress"):
        return ""
    gain = next((metric for metric in run.result.metrics if metric.name == "accuracy_difference"), None)
    if gain is None or gain.low is None or gain.high is None:
        return ""
    value, low, high = (formats.points(number, 0.0) for number in (gain.value, gain.low, gain.high))
    if gain.low == gain.high == 0 and run.stage != "compress":
        return "Nothing was better on val than the baseline, which was kept."
    shown = "a gain" if gain.low > 0 else "a loss" if gain.high < 0 else "no difference is shown"
    return f"On the same test images that is {value} (95{formats.NBSP}% interval {low} to {high}): {shown}."


def stage_account(stage: str) -> str:
    """What one of these stages did, in a sentence; another's name alone."""
    return _USED.get(stage, f"The stage {stage} was run.")
