"""What the page claims: only differences whose intervals do not overlap, and numbers that add up for the reader."""

from pathlib import Path

import pytest

from ssl_ft.report import formats
from ssl_ft.report.runs import gather_runs
from ssl_ft.report.words import account, finding
from tests.report.fake_runs import metric, result, write_demo, write_json, write_probe


def said(tmp_path: Path, *, encoder: float, pixels: float, untrained: float, width: float | None) -> str:
    values = {"encoder": encoder, "pixels": pixels, "untrained": untrained}
    metrics = [metric("accuracy", value, model=model, labels=10, width=width) for model, value in values.items()]
    run = write_probe(tmp_path / "probe", tmp_path / "gone", metrics=metrics)
    return finding(gather_runs([run]).runs[0]).replace(formats.NBSP, " ")


def test_a_shown_gain_is_over_the_better_baseline(tmp_path: Path) -> None:
    sentence = said(tmp_path, encoder=0.9461, pixels=0.9012, untrained=0.880, width=0.006)
    assert sentence == (
        "With 10 labels per class the pretrained encoder reaches 94.6 % (95 % interval 94.0–95.2); "
        "raw pixels 90.1 % (89.5–90.7), the same encoder untrained 88.0 % (87.4–88.6). "
        "The unlabelled images were worth +4.5 points over the better of them."
    )


def test_overlap_is_no_difference(tmp_path: Path) -> None:
    sentence = said(tmp_path, encoder=0.91, pixels=0.90, untrained=0.80, width=0.006)
    assert "No difference from raw pixels is shown: the intervals overlap" in sentence
    assert sentence.endswith("while it is better than the same encoder untrained.")
    assert "worth" not in sentence


def test_a_wide_interval_of_the_lower_baseline_is_not_overlooked(tmp_path: Path) -> None:
    metrics = [
        metric("accuracy", 0.95, model="encoder", labels=10, width=0.01),
        metric("accuracy", 0.90, model="pixels", labels=10, width=0.01),
        metric("accuracy", 0.88, model="untrained", labels=10, width=0.10),
    ]
    run = write_probe(tmp_path / "probe", tmp_path / "gone", metrics=metrics)
    assert "No difference from the same encoder untrained is shown" in finding(gather_runs([run]).runs[0])


def test_a_loss_is_said_as_plainly_as_a_gain(tmp_path: Path) -> None:
    sentence = said(tmp_path, encoder=0.80, pixels=0.90, untrained=0.70, width=0.006)
    assert sentence.endswith("Raw pixels did better by 10.0 points: no gain from the unlabelled images here.")


def test_without_intervals_nothing_is_claimed(tmp_path: Path) -> None:
    sentence = said(tmp_path, encoder=0.99, pixels=0.50, untrained=0.40, width=None)
    assert "+49.0 points; without intervals on both sides it is not shown to be real" in sentence


@pytest.mark.parametrize(
    ("budgets", "shared", "expected"),
    [
        ((1, 5, 50, None), (1, 5, 50, None), "5 labels per class"),
        ((1, 10, None), (1, None), "1 label per class"),
        ((0.01, 0.1), (0.01, 0.1), "10 % of the labels"),
        ((None,), (None,), "all labels"),
    ],
)
def test_the_quoted_budget_has_baselines_and_is_near_ten(
    tmp_path: Path, budgets: tuple[float | None, ...], shared: tuple[float | None, ...], expected: str
) -> None:
    metrics = [metric("accuracy", 0.9, model="encoder", labels=budget) for budget in budgets]
    metrics += [metric("accuracy", 0.5, model="pixels", labels=budget) for budget in shared]
    run = write_probe(tmp_path / "probe", tmp_path / "gone", metrics=metrics)
    sentence = finding(gather_runs([run]).runs[0]).replace(formats.NBSP, " ")
    assert sentence.startswith(f"With {expected} the pretrained encoder")


def test_validation_scores_are_called_that_and_lose_to_test_scores(tmp_path: Path) -> None:
    val = metric("accuracy", 0.99, model="encoder", labels=10) | {"split": "val"}
    write_json(tmp_path / "a" / "result.json", result("probe", metrics=[val]))
    test = metric("accuracy", 0.70, model="encoder", labels=10)
    write_json(tmp_path / "b" / "result.json", result("probe", metrics=[val, test]))
    only_val, both = (finding(run) for run in gather_runs([tmp_path]).runs)
    assert "validation images" in only_val
    assert "No baseline was measured" in only_val
    assert "70.0" in both
    assert "99.0" not in both


def test_accounts_say_what_was_done(tmp_path: Path) -> None:
    accounts = [account(run).replace(formats.NBSP, " ") for run in gather_runs([write_demo(tmp_path / "demo")]).runs]
    assert accounts[0] == (
        "An encoder (resnet10t, 4.9 million parameters) was pretrained with the objective joint on "
        "1,347 unlabelled images of digits for 1,000 steps. Done in 1 min 23 s on cpu."
    )
    assert "with 1, 2, 5 and 10 labels per class, and with all labels, over 20 random draws" in accounts[1]
    assert "Labels used: 1,107 for training, 240 for choosing settings, 450 for scoring." in accounts[1]
    assert "from scratch beside it" in accounts[2]
    assert "scored 2 times" in accounts[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formats.points(0.94649, 0.90051), "+4.5 points"),  # 94.6 − 90.1, as printed
        (formats.points(0.5, 0.51), "−1.0 point"),
        (formats.duration(9.96), "10 s"),
        (formats.duration(59.6), "1 min 0 s"),
        (formats.duration(3600.2), "1 h 0 min"),
        (formats.duration(0.04), "0.0 s"),
        (formats.memory(999.4), "999 MB"),
        (formats.percent(float("nan")), "–"),
        (formats.number(-0.000012345), "−1.234e−05"),
        (formats.interval("loss", -1.0, 2.0), "−1–2"),
        (formats.interval("accuracy", 0.5, None), ""),
        (formats.budget_words(0.005), "0.5 % of the labels"),
        (formats.listed(["a", "b", "c"]), "a, b and c"),
        (formats.printable("a\udcffb\x00"), "a\ufffdb\ufffd"),
        (formats.printable("79.2\u00a0% of\u202f3\u2028"), "79.2 % of\u202f3\ufffd"),
    ],
)
def test_numbers_read_as_intended(text: str, expected: str) -> None:
    assert text.replace(formats.NBSP, " ") == expected
