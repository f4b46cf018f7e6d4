"""The page's section of a comparison, its files, and its sentences: what is said is what was found."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from ssl_ft.errors import UserError
from ssl_ft.evaluate.comparison import Difference
from ssl_ft.evaluate.efficiency import Bound, BreakEven
from ssl_ft.evaluate.summary import Summary
from ssl_ft.report.comparison import comparison_view
from ssl_ft.report.comparison_files import bound_text, read_summary
from ssl_ft.report.comparison_words import (
    break_even_sentence,
    computing_text,
    difference_text,
    finding,
    per_class,
    per_class_mark,
    pretraining_text,
    verdict_sentences,
)
from ssl_ft.report.page import write_report
from tests.report.fake_comparison import write_comparison
from tests.report.test_page import outline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison") / "run"


@pytest.fixture(scope="module")
def summary(folder: Path) -> Summary:
    return write_comparison(folder)


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_findings_come_back_from_their_files(summary, folder):
    assert read_summary(folder) == summary


def test_a_run_that_is_no_comparison_and_damage_are_told(summary, folder, tmp_path):
    with pytest.raises(UserError, match=r"holds no finished comparison: there is no comparison\.json"):
        read_summary(tmp_path)
    (tmp_path / "comparison.json").write_text('{"rows": 3}')
    with pytest.raises(UserError, match=r"holds a damaged comparison .*run it again"):
        read_summary(tmp_path)


def test_tables_hold_every_model_and_budget(summary, folder):
    rows = (folder / "table.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 * 3
    assert rows[1].startswith("scratch,simclr,scratch,2,20,4900000,0.2")
    # Three against scratch and the best against the three left, scratch being among the former, at each budget.
    assert len((folder / "comparisons.csv").read_text().splitlines()) == 1 + 3 * (3 + 2)
    assert len((folder / "labels_saved.csv").read_text().splitlines()) == 1 + 3 * 3
    assert len((folder / "costs.csv").read_text().splitlines()) == 1 + 4 * 3


def test_verdicts_say_what_to_take_and_how_sure_that_is(summary):
    few, _, many = map(plain, verdict_sentences(summary))
    best = summary.verdicts[0].best
    assert few.startswith(f"With 2 labels per class take {best}: ")
    assert "the best in" in few
    assert "within 1 point of the best" in few
    assert "Over scratch that is +" in few
    assert "For the same, scratch needs about" in few
    assert "needs more than 50 labels per class" in many
    assert plain(finding(summary)).startswith("Best on cifar10: ")


def test_where_the_baseline_is_best_no_gain_is_claimed(summary):
    verdicts = tuple(replace(v, best="scratch") for v in summary.verdicts)
    text = plain(finding(replace(summary, verdicts=verdicts)))
    assert text.endswith("With 10 labels per class none is better than scratch.")


def test_differences_not_shown_say_so():
    found = Difference("a", "b", 2, 0.021, -0.004, 0.046, 0.02, 0.11)
    assert plain(difference_text(found, num_draws=5)) == f"+2.1 points ({chr(0x2212)}0.4 to +4.6, p 0.11, not shown)"
    assert plain(difference_text(replace(found, p_holm=0.004), num_draws=5)).endswith("p 0.004)")


def test_below_five_draws_the_verdict_and_the_page_say_why_nothing_is_shown(summary):
    sure = tuple(replace(d, p_holm=0.001) for d in summary.differences)
    few = replace(
        summary, num_draws=3, differences=sure, verdicts=tuple(replace(v, as_good=()) for v in summary.verdicts)
    )
    for sentence in map(plain, verdict_sentences(few)):
        assert "Of 3 draws intervals come out too narrow and p-values too small: none is shown to be better" in sentence
        assert "compare with draws=5 or more" in sentence
        assert "Every other is shown" not in sentence
        assert "p 0.001, not shown)" in sentence
    assert "which is not shown to be real" in finding(few)
    view = comparison_view(few, name="run", prefix="c")
    assert "draws=5 or more" in view.about
    assert all("not shown" in row[-1] for row in view.best.rows)
    enough = replace(few, num_draws=5)
    assert all("shown to be worse" in sentence for sentence in verdict_sentences(enough))
    assert "draws=5 or more" not in comparison_view(enough, name="run", prefix="c").about


def test_ends_of_what_was_measured_are_said():
    ends = [Bound(20.0, "below"), Bound(43.2, "at"), Bound(500.0, "above")]
    assert [bound_text(bound) for bound in ends] == ["<20", "43", ">500"]
    assert [per_class(bound, 10) for bound in ends] == ["fewer than 2", "4.32", "more than 50"]
    assert [per_class_mark(bound, 10) for bound in ends] == ["<2", "4.32", ">50"]
    below, at, above = (break_even_sentence(BreakEven("a", "b", b, b, b), 10) for b in ends)
    assert below == "a is ahead of b at no budget measured."
    assert at == "b is as good as a from about 4.32 labels per class on."
    assert above == "a is still ahead of b with 50 labels per class."


def test_computing_is_told_with_what_a_label_costs(summary):
    probe = next(cost for cost in summary.costs if (cost.model, cost.budget) == ("probe", 2))
    assert plain(computing_text(probe)).startswith("after 33 classifiers; ")
    scratch = next(cost for cost in summary.costs if cost.model == "scratch")
    assert computing_text(scratch) == ""


def test_pictures_are_spoken_of_with_their_numbers_whole(summary, folder, tmp_path):
    page = write_report([folder], tmp_path / "page.html", title="Strategies").read_text(encoding="utf-8")
    spoken = re.findall(r'role="img"[^>]*aria-label="([^"]*)"|aria-label="([^"]*)"[^>]*role="img"', page)
    assert any("%" in one + other for one, other in spoken)
    assert not any("\N{REPLACEMENT CHARACTER}" in one + other for one, other in spoken)


def test_the_page_says_which_seconds_of_pretraining_are_compared(summary, folder, tmp_path):
    assert "told from unlike seconds" in pretraining_text(summary)
    page = (write_report([folder], tmp_path / "page.html", title="Strategies")).read_text()
    assert pretraining_text(summary) in page
    known = replace(summary, encoders=(replace(summary.encoders[0], pretrain_cores=4),))
    assert "on 4 cores; core-seconds are compared" in plain(pretraining_text(known))
    assert pretraining_text(replace(summary, encoders=(replace(summary.encoders[0], pretrain_seconds=None),))) == ""


def test_the_page_has_a_section_with_all_of_it(summary, folder, tmp_path):
    parsed = outline(write_report([folder], tmp_path / "page.html", title="Strategies"))
    text = plain(" ".join(parsed.text.split()))
    assert text.startswith("Strategies Strategies Best on cifar10")
    for sentence in verdict_sentences(summary):
        assert plain(sentence) in text
    assert "Left out: adapter for simclr: it has no place for one." in text
    assert "The strategies scratch, probe, full and lora were compared with 2, 10 and 50 labels per class" in text
    assert "corrected for 15 comparisons (Holm)" in text
    # Its accuracies have their own section; they are not drawn a second time.
    assert "accuracy" not in [value for name, value in parsed.attributes if name == "id"]


def test_every_model_is_drawn_and_figures_say_their_numbers(summary):
    view = comparison_view(summary, name="run", prefix="c")
    assert [panel.title for panel in view.panels] == ["probe", "full", "lora"]
    for model in ("scratch", "probe", "full", "lora"):
        assert model in view.overview
    assert len(view.table.rows) == 12
    assert {len(row) for row in view.table.rows} == {len(view.table.head)}
    assert {len(row) for row in view.costs.rows} == {len(view.costs.head)}


def test_a_damaged_comparison_is_named_on_the_page(summary, folder, tmp_path):
    import shutil

    run = shutil.copytree(folder, tmp_path / "run")
    (run / "comparison.json").write_text("{}")
    text = outline(write_report([run], tmp_path / "page.html", title="Damaged")).text
    assert "comparison.json could not be read" in text
