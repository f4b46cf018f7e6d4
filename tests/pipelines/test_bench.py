"""The stage bench and its options: what is measured, printed and written, and what is refused. Nothing is timed."""

import json
from collections.abc import Iterator

import pytest

from pipelines import bench
from ssl_ft import cli
from ssl_ft.bench.timing import CannotMeasure, Row, at_least, at_most
from ssl_ft.config import BenchSettings


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, BenchSettings]]:
    """Subjects that were asked for; each gives made-up rows."""
    seen: list[tuple[str, BenchSettings]] = []

    def measure(name: str, settings: BenchSettings) -> Iterator[Row]:
        seen.append((name, settings))
        if name == "gpu":
            raise CannotMeasure("no CUDA device")
        yield Row(f"{name} speed", 10.0, 5.0, "ms", 0.5, 0.4, 0.6, "on noise", at_least(2.0))
        yield Row(f"{name} memory", 1234.5, None, "MB", bar=at_most(2000, of="ours"))
        yield Row(f"{name} difference", 6.6e-7, None, "", bar=at_most(1e-6, of="ours"))

    monkeypatch.setattr(bench, "_measure", measure)
    monkeypatch.setattr(bench.dist, "use_threads", lambda threads: None)
    return seen


def test_rows_are_written_and_a_missed_bar_is_no_failure(measured, tmp_path, capsys):
    file = tmp_path / "new" / "rows.json"
    assert cli.main(["bench", "contrast", "views", "--json", str(file), "repeats=2"]) == 0
    assert [name for name, _ in measured] == ["contrast", "views"]
    assert measured[0][1].repeats == 2
    content = json.loads(file.read_text())
    speed, memory = content["rows"][:2]
    assert speed == {
        "name": "contrast speed", "ours": 10.0, "peer": 5.0, "unit": "ms", "ratio": 0.5, "low": 0.4, "high": 0.6,
        "note": "on noise", "bar": "at least 2", "met": False,
    }  # fmt: skip
    assert (memory["bar"], memory["met"], memory["ratio"]) == ("at most 2000 MB", True, None)
    assert {"torch", "timm"} <= content["machine"]["versions"].keys()
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == str(file)
    assert "0.500 (0.400 to 0.600)" in out
    assert " NO " in out
    assert "1,234 MB" in out
    assert "6.6e-07" in out
    assert "1: on noise" in out


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["contrast", "training", "views", "masked", "order", "ranks", "shards", "probe"]),
        (["--gpu"], ["gpu"]),
        (["order", "--gpu", "order"], ["order", "gpu"]),
        (["rows=order"], ["order"]),
    ],
)
def test_what_is_measured(measured, words, names, capsys):
    assert cli.main(["bench", *words]) == 0
    assert [name for name, _ in measured] == names
    assert ("not measured: no CUDA device" in capsys.readouterr().out) == ("gpu" in names)


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (["contrst"], "rows.0: must be 'contrast', 'training'"),
        (["--json"], "--json needs a value"),
        (["--json="], "--json needs a value"),
        (["--json", "--gpu"], "--json needs a value"),
        (["--gpu=1"], "--gpu takes no value"),
        (["--csv", "x"], "unknown option --csv"),
        (["--json=a", "out=b"], "given twice"),
        (["photos=nowhere-at-all"], "nowhere-at-all"),
    ],
)
def test_what_is_refused(measured, words, phrase, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, measured) == ("", [])
    assert phrase in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_told_first(measured, tmp_path, capsys):
    assert cli.main(["bench", f"--json={tmp_path}"]) == 2
    assert "a folder stands where a file is wanted" in capsys.readouterr().err
    assert measured == []


def test_options_belong_to_their_stage(capsys):
    assert cli.main(["index", "--json", "x"]) == 2
    assert "unknown option --json" in capsys.readouterr().err
    assert cli.main(["bench", "--help"]) == 0
    assert "ssl-ft bench [ROW ...] [key=value ...] [--json FILE] [--gpu] [--dry-run]" in capsys.readouterr().out
