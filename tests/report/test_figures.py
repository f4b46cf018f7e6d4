"""Figures show the numbers they were given: places on the axis, thinning, series and their styles."""

import re
from pathlib import Path

import numpy as np
import pytest

from ssl_ft.report import figures
from ssl_ft.report.budgets import compare_runs
from ssl_ft.report.extras import Embedding
from ssl_ft.report.runs import gather_runs
from tests.report.fake_runs import PROBE_VALUES, metric, probe_metrics, write_demo, write_finetune, write_probe


def test_the_axis_is_logarithmic_with_all_labels_apart(tmp_path: Path) -> None:
    (comparison,) = compare_runs(gather_runs([write_demo(tmp_path / "demo")]).runs)
    assert comparison.budgets == (1, 2, 5, 10, None)
    svg = figures.accuracy_over_labels(comparison, prefix="a", description="d")
    ticks = [
        float(x) for x in re.findall(r'<use href="#a-m\w+" x="([\d.]+)" y="[\d.]+" style="fill: var\(--muted', svg)
    ]
    assert len(ticks) >= 5, "no ticks found along the axis"
    one, two, five, ten, everything = ticks[:5]
    assert (ten - five) == pytest.approx(two - one, rel=1e-3)
    assert everything - ten > 0


def test_shares_alone_are_called_shares(tmp_path: Path) -> None:
    metrics = [metric("accuracy", 0.5 + share, model="encoder", labels=share) for share in (0.01, 0.1)]
    run = write_probe(tmp_path / "probe", tmp_path / "gone", metrics=metrics)
    (comparison,) = compare_runs(gather_runs([run]).runs)
    svg = figures.accuracy_over_labels(comparison, prefix="a", description="d")
    assert ">share of the labels<" in svg
    assert ">10\N{NO-BREAK SPACE}%<" in svg


def test_equal_baselines_are_shown_once_and_styles_differ(tmp_path: Path) -> None:
    write_probe(tmp_path / "one", tmp_path / "gone")
    better = PROBE_VALUES | {"encoder": {budget: value + 0.01 for budget, value in PROBE_VALUES["encoder"].items()}}
    write_probe(tmp_path / "two", tmp_path / "gone", metrics=probe_metrics(better))
    write_finetune(tmp_path / "three", tmp_path / "gone")
    (comparison,) = compare_runs(gather_runs([tmp_path]).runs)
    assert sorted(series.label for series in comparison.series) == [
        "Fine-tuned",
        "Pretrained encoder (one)",
        "Pretrained encoder (two)",
        "Raw pixels",
        "Same encoder, untrained",
        "Trained from scratch",
    ]
    assert len({series.style for series in comparison.series}) == 6


def test_different_test_images_are_never_compared(tmp_path: Path) -> None:
    write_probe(tmp_path / "one", tmp_path / "gone")
    other = write_probe(tmp_path / "two", tmp_path / "gone")
    for name in ("manifest.json", "result.json"):
        text = (other / name).read_text("utf-8")
        (other / name).write_text(text.replace("testxxxx", "another"), encoding="utf-8")
    assert len(compare_runs(gather_runs([tmp_path]).runs)) == 2


@pytest.mark.parametrize("length", [1, 299, 300, 301, 5000])
def test_thinning_keeps_the_mean_and_the_end(length: int) -> None:
    curve = tuple((step, float(step % 7)) for step in range(length))
    steps, values = figures.thinned(curve)
    assert len(steps) == len(values) == min(length, 300)
    assert (steps[-1], values[-1]) == curve[-1]
    assert np.all(np.diff(steps) > 0)
    assert values.mean() == pytest.approx(np.mean([value for _, value in curve]), abs=0.1)


def test_curves_are_drawn_in_their_unit() -> None:
    curve = ((0, 0.25), (1000, 0.75))
    assert "%<" in figures.curve_panel([curve], prefix="a", description="d", unit="percent")
    # Steps begin at zero in both; only the second has a zero on the other axis too.
    plain = figures.curve_panel([curve], prefix="a", description="d", unit="plain")
    from_zero = figures.curve_panel([curve], prefix="a", description="d", unit="from zero")
    assert (plain.count(">0<"), from_zero.count(">0<")) == (1, 2)


def test_the_map_names_classes_as_they_are_written() -> None:
    labels = np.array([0, 0, 1, 2, -1])
    embedding = Embedding(np.arange(10, dtype=np.float32).reshape(5, 2), labels, ("$x_1$", "b\x1b"))
    svg = figures.embedding_map(embedding, prefix="a", description="d")
    assert [text in svg for text in (">$x_1$<", ">b\ufffd<", ">2<")] == [True, True, True]
    assert "data:image/png;base64," in svg, "points are pixels, or a large set makes a huge page"
