"""The page as a whole: complete, offline, escaped, the same bytes each time, and honest about what it left out."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from ssl_ft.errors import UserError
from ssl_ft.report.page import write_report
from tests.report.fake_runs import (
    metric,
    result,
    write_csv,
    write_demo,
    write_finetune,
    write_json,
    write_pretrain,
    write_probe,
)

_VOID = {"meta", "img", "link", "br", "hr", "input"}


class _Outline(HTMLParser):
    """Tags, attributes and visible text; fails on tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes nothing"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


def outline(page: Path) -> _Outline:
    parsed = _Outline()
    parsed.feed(page.read_text("utf-8"))
    assert not parsed.open, f"tags left open: {parsed.open}"
    return parsed


def ids(parsed: _Outline) -> list[str]:
    return [value for name, value in parsed.attributes if name == "id" and value]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo folder, only read by the tests."""
    return write_demo(tmp_path_factory.mktemp("runs") / "demo")


def test_the_answer_comes_first_and_every_section_is_there(demo: Path, tmp_path: Path) -> None:
    parsed = outline(write_report([demo], tmp_path / "new" / "report.html", title="Digits"))
    text = " ".join(parsed.text.replace("\N{NO-BREAK SPACE}", " ").split())
    assert text.startswith("Digits Digits With 10 labels per class the pretrained encoder reaches 94.6 %")
    assert "The unlabelled images were worth +4.5 points over the better of them." in text
    for section in ("done", "accuracy", "curves", "pictures", "map", "neighbours", "mistakes", "files", "costs"):
        assert section in ids(parsed)
    for detail in ("a/broken.png", "pool/3.png", "resnet10t", "1 min 23 s", "642 MB", "2.11.0", "objective.name"):
        assert detail in text
    assert "mean and spread of the true patches" in text


def test_nothing_is_fetched_and_ids_are_unique(demo: Path, tmp_path: Path) -> None:
    page = write_report([demo], tmp_path / "report.html", title="Digits")
    parsed = outline(page)
    fetching = [value or "" for name, value in parsed.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert fetching
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in fetching)
    content = page.read_text("utf-8")
    assert "http://" not in content
    assert "https://" not in content
    assert "@import" not in content
    assert content.count("<style") == 1, "a figure's own style rule would reach the whole page"
    assert len(ids(parsed)) == len(set(ids(parsed)))
    used = re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", content)
    assert {first or second for first, second in used} <= set(ids(parsed))


def test_figures_follow_the_colours_of_the_page(demo: Path, tmp_path: Path) -> None:
    content = write_report([demo], tmp_path / "report.html", title="Digits").read_text("utf-8")
    figures = "".join(re.findall(r'<svg[^>]*class="plot".*?</svg>', content, flags=re.DOTALL))
    assert "var(--series-0)" in figures
    assert not re.findall(r"#0101[0-9a-f]{2}", figures), "a stand-in colour was not replaced"
    defined = set(re.findall(r"(--[\w-]+):", content))
    assert set(re.findall(r"var\((--[\w-]+)", figures)) <= defined
    assert not re.findall(r"(?:fill|stroke): #(?:000000|ffffff)", figures), "black or white ignores dark mode"


def test_the_same_folders_give_the_same_bytes_and_leave_no_trace(demo: Path, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    first = write_report([demo], tmp_path / "one.html", title="Digits").read_bytes()
    with matplotlib.rc_context({"xtick.labelsize": 30, "svg.fonttype": "path"}):  # a user's own style
        second = write_report([demo], tmp_path / "two.html", title="Digits").read_bytes()
    copy = shutil.copytree(demo, tmp_path / "moved" / "demo")
    third = write_report([copy / "probe", copy], tmp_path / "three.html", title="Digits").read_bytes()
    assert first == second == third
    assert dict(matplotlib.rcParams) == before
    assert sorted(path.name for path in tmp_path.glob("*.html*")) == ["one.html", "three.html", "two.html"]


def test_names_from_users_stay_text(tmp_path: Path) -> None:
    bad = '<script>alert("$x_1$ & ünï\x1b")</script>'
    run = write_probe(tmp_path / "probe", tmp_path / "gone", metrics=[metric("accuracy", 0.5, model=bad, labels=1)])
    names = [bad, "猫"]
    labels = np.array([0, 1, 1, -1])
    np.savez(run / "embedding.npz", xy=np.eye(4, 2), labels=labels, class_names=np.array(names))
    write_json(run / "confusion.json", {"class_names": names, "matrix": [[3, 1], [0, 4]]})
    write_csv(run / "per_class.csv", ("class", "n", "precision", "recall", "f1"), [(bad, 4, 1.0, 0.75, "")])
    (run / "damaged.csv").write_bytes(b"path,reason,replacement\n<img src=x>\xff.png,empty,\n")
    (run / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "<b>": 1.0, "loss": 2.0}\n', encoding="utf-8")
    parsed = outline(write_report([run], tmp_path / "report.html", title=bad))
    assert "script" not in parsed.tags
    assert "b" in parsed.tags
    assert not any(name.startswith("on") for name, _ in parsed.attributes)
    assert ("src", "x") not in parsed.attributes
    assert parsed.text.count('<script>alert("$x_1$ & ünï') >= 4
    assert "猫" in parsed.text


def test_a_run_with_nothing_but_a_result_makes_a_page(tmp_path: Path) -> None:
    write_json(tmp_path / "bare" / "result.json", result("pretrain"))
    parsed = outline(write_report([tmp_path / "bare"], tmp_path / "report.html", title="Bare"))
    assert "not yet judged" in parsed.text
    assert not {"accuracy", "curves", "map", "mistakes"} & set(ids(parsed))


def test_unusable_optional_files_are_named_not_hidden(tmp_path: Path) -> None:
    run = write_probe(write_pretrain(tmp_path / "all"), tmp_path / "gone")
    (run / "confusion.json").write_text('{"class_names": ["a"], "matrix": [[1, 2]]}', encoding="utf-8")
    (run / "embedding.npz").write_bytes(b"PK\x03\x04 cut short")
    (run / "pictures" / "views.png").write_bytes(b"GIF89a")
    (run / "manifest.json").write_text("[]", encoding="utf-8")
    write_csv(run / "per_class.csv", ("class",), [("a",)])
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as lines:
        lines.write('{"step": 1010, "kind": "tra')
    text = outline(write_report([run], tmp_path / "report.html", title="Broken")).text
    for name in ("confusion.json", "embedding.npz", "views.png", "manifest.json", "per_class.csv"):
        assert f"{name} could not be read" in text
    assert "unreadable lines left out of the curves: 1" in text


def test_arrays_with_pickles_are_refused(tmp_path: Path) -> None:
    run = write_probe(tmp_path / "probe", tmp_path / "gone")
    names = np.array(["a", {"b": 1}], dtype=object)
    np.savez(run / "embedding.npz", xy=np.eye(2), labels=np.arange(2), class_names=names)
    text = outline(write_report([run], tmp_path / "report.html", title="Pickle")).text
    assert "embedding.npz could not be read" in text


def test_many_classes_become_a_heat_map(tmp_path: Path) -> None:
    run = write_probe(tmp_path / "probe", tmp_path / "gone")
    matrix = np.full((60, 60), 1) + 100 * np.eye(60)
    matrix[3, 5] = 50
    write_json(run / "confusion.json", {"class_names": [f"c{i}" for i in range(60)], "matrix": matrix.tolist()})
    parsed = outline(write_report([run], tmp_path / "report.html", title="Many"))
    assert "confusion" not in [value for name, value in parsed.attributes if name == "class"]
    assert "c3 taken for c5" in parsed.text.partition("Most often: ")[2][:20]


def test_runs_of_the_same_stage_are_told_apart(tmp_path: Path) -> None:
    for name in ("simclr", "masked"):
        write_probe(tmp_path / "runs" / f"{name}-probe", tmp_path / "gone")
    write_finetune(tmp_path / "runs" / "full", tmp_path / "gone")
    text = outline(write_report([tmp_path / "runs"], tmp_path / "report.html", title="Two")).text
    header = text.partition("What was done")[0]
    assert all(name in header for name in ("simclr-probe", "masked-probe", "full"))


def test_an_output_that_cannot_be_written_is_the_users_to_mend(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot be written to .*file/report\.html.*Give a path"):
        write_report([demo], tmp_path / "file" / "report.html", title="Digits")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_report([demo], tmp_path / "folder", title="Digits")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
