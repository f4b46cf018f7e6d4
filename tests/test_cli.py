"""The command: help without weight, stages and options, the schema, and plans that write nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ssl_ft
from ssl_ft.cli import STAGES, main
from tests.conftest import CHECKOUT


def run_python(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *words], cwd=CHECKOUT, capture_output=True, text=True, timeout=240)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ssl-ft: ")
    return err


class TestHelp:
    def test_comes_at_once_and_imports_nothing_heavy(self):
        code = """
import sys, time
from ssl_ft.cli import main
main(["--help"])
heavy = {"torch", "timm", "pydantic", "numpy", "yaml", "PIL", "rich"} & set(sys.modules)
assert not heavy, heavy
assert time.process_time() < 0.5, time.process_time()
"""
        done = run_python("-c", code)
        assert done.returncode == 0, done.stderr
        assert all(f"  {stage} " in done.stdout for stage in STAGES)

    @pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "schema"])
    def test_of_a_stage_lists_its_settings(self, stage, capsys):
        assert main([stage, "--help", "seed=1"]) == 0
        text = capsys.readouterr().out
        assert STAGES[stage] in text
        assert "  out " in text
        assert "digits" in text or stage in (
            "predict", "report", "probe", "finetune", "index", "bench", "embed", "neighbors",
        )  # fmt: skip

    def test_of_a_stage_loads_no_library_of_learning(self):
        code = (
            "import sys; from ssl_ft.cli import main; main(['pretrain', '--help'])\nassert 'torch' not in sys.modules"
        )
        assert run_python("-c", code).returncode == 0

    @pytest.mark.parametrize("words", [[], ["-h"], ["help"]])
    def test_without_a_stage(self, words, capsys):
        assert main(words) == 0
        assert "usage: ssl-ft STAGE" in capsys.readouterr().out

    def test_version(self, capsys):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"ssl-ft {ssl_ft.__version__}\n"

    def test_a_reader_that_goes_away_is_no_defect(self):
        # The reader is gone before there is anything to read.
        reader, writer = os.pipe()
        os.close(reader)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
        code = "import sys; from ssl_ft.cli import main; sys.exit(main(['--help']))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=CHECKOUT, env=environment, stdout=writer, stderr=subprocess.PIPE,
            text=True, timeout=240,
        )  # fmt: skip
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, "")


class TestWords:
    @pytest.mark.parametrize(
        ("words", "phrase"),
        [
            (["pretrian"], "did you mean pretrain?"),
            (["zzz"], "stages are demo, run"),
            (["pretrain", "--batch-size=3"], "unknown option --batch-size=3"),
            (["pretrain", "a.yaml", "b.yaml"], "one recipe at most, got a.yaml and b.yaml"),
            (["pretrain", "nosuch.yaml"], "neither a file nor one of"),
            (["index", "a", "b"], "one SOURCE at most"),
            (["index", "a", "data=b"], "given twice"),
            (["schema", "x=1"], "schema takes no settings"),
            (["pretrain", "data=a\0b"], "zero byte"),
            (["pretrain", "data=a\udcffb"], r"data=a\udcffb is not valid UTF-8"),
            (["predict"], "predict needs a folder and a classifier"),
        ],
    )
    def test_that_cannot_be_meant(self, words, phrase, capsys):
        assert phrase in refused(capsys, *words)

    def test_a_folder_in_the_place_of_a_recipe(self, capsys, tmp_path):
        assert f"data={tmp_path}" in refused(capsys, "pretrain", str(tmp_path))

    def test_reports_take_several_runs(self, capsys, tmp_path):
        (tmp_path / "a: b").mkdir()
        assert "No run in" in refused(capsys, "report", str(tmp_path / "a: b"), str(tmp_path / "c"))

    def test_a_defect_of_ours_keeps_its_traceback(self, monkeypatch):
        def fail(words: list[str]) -> int:
            raise KeyError("ours")

        monkeypatch.setattr("ssl_ft.cli._dispatch", fail)
        with pytest.raises(KeyError):
            main([])

    def test_interrupted(self, monkeypatch, capsys):
        def interrupt(words: list[str]) -> int:
            raise KeyboardInterrupt

        monkeypatch.setattr("ssl_ft.cli._dispatch", interrupt)
        assert main([]) == 130
        assert "goes on" in capsys.readouterr().err

    def test_as_a_program(self, tmp_path):
        """Exit code and streams of a real process, from a folder whose own `pipelines` must not stand in for ours."""
        (tmp_path / "pipelines").mkdir()
        (tmp_path / "pipelines/__init__.py").write_text("raise SystemExit('foreign')")
        done = subprocess.run(
            [sys.executable, "-m", "ssl_ft", "pretrain", "batch_size=0"],
            cwd=tmp_path, capture_output=True, text=True, timeout=240, env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "ssl-ft: 1 setting is wrong:\n  batch_size: must be 1 or more (got 0)\n"


class TestPlan:
    @pytest.mark.parametrize(
        "stage", ["demo", "run", "pretrain", "index", "predict", "report", "embed", "neighbors", "suggest"]
    )
    def test_a_dry_run_writes_nothing(self, stage, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main([stage, "--dry-run"]) == 0
        assert "nothing was written" in capsys.readouterr().out
        assert list(tmp_path.iterdir()) == []

    def test_it_tells_steps_images_and_memory(self, capsys):
        assert main(["pretrain", "--dry-run", "encoder=test_resnet", "duration=3 epochs", "batch_size=100"]) == 0
        out = capsys.readouterr().out
        assert "36 steps (3.0 epochs) of 100 images" in out
        assert "pool: 1201 of 1797 images at digits" in out
        assert "memory: about" in out

    def test_mistakes_come_before_any_output(self, capsys):
        assert "nowhere" in refused(capsys, "probe", "--dry-run", "encoder=nowhere")
        assert "nowhere" in refused(capsys, "pretrain", "--dry-run", "data=nowhere")


class TestSchema:
    def test_a_real_result_fits_it(self, capsys, tmp_path):
        assert main(["schema"]) == 0
        schema = json.loads(capsys.readouterr().out)
        out = tmp_path / "o"
        assert main(["index", "digits", "duplicates=false", f"out={out}"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(out)
        result = json.loads(Path(out / "result.json").read_text())
        assert problems(result, schema, schema) == []
        del result["seconds"]
        result["metrics"][0]["value"] = "high"
        result["labels_used"]["extra"] = 1
        assert len(problems(result, schema, schema)) == 3


def problems(value: object, schema: dict, root: dict, place: str = "") -> list[str]:
    """What of `value` breaks a JSON schema; knows the words that ours uses and refuses others."""
    known = {"title", "description", "default", "$ref", "$defs", "type", "const", "anyOf", "items", "properties",
             "required", "additionalProperties"}  # fmt: skip
    assert schema.keys() <= known, schema.keys() - known
    if "$ref" in schema:
        return problems(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, place)
    if "anyOf" in schema:
        return (
            [] if any(not problems(value, each, root, place) for each in schema["anyOf"]) else [f"{place}: no member"]
        )
    if "const" in schema and value != schema["const"]:
        return [f"{place}: not {schema['const']}"]
    kinds = {"object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "null": type(None)}
    if not isinstance(value, kinds[schema["type"]]):
        return [f"{place}: not {schema['type']}"]
    found = []
    if isinstance(value, list):
        for number, item in enumerate(value):
            found += problems(item, schema["items"], root, f"{place}[{number}]")
    if isinstance(value, dict):
        found += [f"{place}: lacks {key}" for key in schema.get("required", ()) if key not in value]
        for key, item in value.items():
            if key in schema.get("properties", {}):
                found += problems(item, schema["properties"][key], root, f"{place}.{key}")
            elif schema.get("additionalProperties") is False:
                found.append(f"{place}: unknown {key}")
    return found
