"""The run folder: whose it is, when it may be gone on with, and that a mistake leaves nothing of it behind."""

import json
import os
from pathlib import Path

import pytest

from ssl_ft.errors import UserError, short_path, system_sentence
from ssl_ft.result import LabelsUsed, Metric, Result
from ssl_ft.runlog import RunFolder, default_folder, write_text

SETTINGS = {"seed": 0, "out": "x", "data": {"path": "digits", "workers": 2}}


def run_in(path: Path, stage: str = "probe", **more: object) -> RunFolder:
    return RunFolder(path, stage=stage, settings={**SETTINGS, **more})


class TestClaim:
    def test_the_same_settings_find_their_run_again(self, tmp_path):
        first = run_in(tmp_path / "a")
        created = json.loads((tmp_path / "a/manifest.json").read_text())["created"]
        first.log({"step": 1, "loss": 2.0})
        again = run_in(tmp_path / "a", out="elsewhere", data={"path": "digits", "workers": 9})
        assert [row["step"] for row in again.read_rows()] == [1]
        assert again.seconds() >= first.read_rows()[-1]["seconds"]
        again.write_manifest(device="cpu")
        manifest = json.loads((tmp_path / "a/manifest.json").read_text())
        assert (manifest["created"], manifest["device"]) == (created, "cpu")

    def test_other_settings_or_another_stage_are_refused_with_what_differs(self, tmp_path):
        run_in(tmp_path / "a")
        with pytest.raises(UserError, match=r"other settings \(data.path was 'digits', now 'b'; seed was 0, now 1\)"):
            run_in(tmp_path / "a", seed=1, data={"path": "b", "workers": 2})
        with pytest.raises(UserError, match="holds a probe run, not pretrain"):
            run_in(tmp_path / "a", stage="pretrain")

    @pytest.mark.parametrize("content", ["{}", "[]", "{", '{"stage": "probe"}'])
    def test_a_foreign_manifest_is_not_taken_for_ours(self, tmp_path, content):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(UserError, match="not a run of ours"):
            run_in(tmp_path)
        assert (tmp_path / "manifest.json").read_text() == content

    def test_foreign_files_are_never_touched(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(UserError, match=r"thesis\.txt"):
            run_in(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


class TestMistakeInside:
    def test_a_new_folder_goes_with_the_parents_made_for_it(self, tmp_path):
        run = run_in(tmp_path / "a/b/c")
        run.log({"step": 1})
        (run.path / "cache").mkdir()
        (run.path / "cache/pixels.npy").touch()
        with pytest.raises(UserError), run:
            raise UserError("bad image")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_was_there_stays_and_is_empty_again(self, tmp_path):
        (tmp_path / "a").mkdir()
        with pytest.raises(KeyboardInterrupt), run_in(tmp_path / "a"):
            raise KeyboardInterrupt
        assert list((tmp_path / "a").iterdir()) == []

    def test_a_checkpoint_is_kept(self, tmp_path):
        run = run_in(tmp_path / "a")
        (run.path / "checkpoints").mkdir()
        (run.path / "checkpoints/last.safetensors").touch()
        with pytest.raises(UserError), run:
            raise UserError("not finite")
        assert (tmp_path / "a/checkpoints/last.safetensors").exists()
        assert (tmp_path / "a/manifest.json").exists()

    def test_a_run_begun_before_is_kept(self, tmp_path):
        run_in(tmp_path / "a").log({"step": 1})
        with pytest.raises(UserError), run_in(tmp_path / "a"):
            raise UserError("bad image")
        assert (tmp_path / "a/metrics.jsonl").exists()

    def test_a_defect_of_ours_leaves_its_traces(self, tmp_path):
        with pytest.raises(ZeroDivisionError), run_in(tmp_path / "a"):
            raise ZeroDivisionError
        assert (tmp_path / "a/manifest.json").exists()

    def test_a_link_out_of_the_folder_is_not_followed(self, tmp_path):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos/a.png").touch()
        run = run_in(tmp_path / "a")
        (run.path / "link").symlink_to(tmp_path / "photos")
        with pytest.raises(UserError), run:
            raise UserError("bad image")
        assert (tmp_path / "photos/a.png").exists()
        assert not (tmp_path / "a").exists()


class TestRows:
    def test_a_line_cut_off_by_a_crash_is_left_out_and_later_rows_are_forgotten(self, tmp_path):
        run = run_in(tmp_path / "a")
        for step in (10, 20, 30):
            run.log({"step": step})
        with (run.path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 40, "lo\xff')
        assert [row["step"] for row in run.read_rows()] == [10, 20, 30]
        run.forget_rows_after(20)
        run.log({"step": 21})
        assert [row["step"] for row in run.read_rows()] == [10, 20, 21]

    def test_a_result_is_one_of_its_schema_and_ends_the_run(self, tmp_path):
        run = run_in(tmp_path / "läufe")
        assert not run.is_finished
        metric = Metric(name="accuracy", value=0.5, low=0.4, high=0.6, n=10, split="test", model="encoder")
        run.finish(metrics=[metric], labels_used=LabelsUsed(train=3), test_scored=1)
        result = Result.model_validate_json((run.path / "result.json").read_text(encoding="utf-8"))
        assert result.run == str(run.path)
        assert result.metrics == [metric]
        assert run.is_finished

    def test_a_note_is_kept_and_said_once(self, tmp_path, capsys):
        run = run_in(tmp_path / "a")
        run.note("grün")
        run.note("grün")
        run.write_manifest()
        assert json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))["notes"] == ["grün"]
        assert capsys.readouterr() == ("", "grün\n")


def test_text_is_written_whole_or_not_at_all(tmp_path):
    write_text(tmp_path / "a", "one\n")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "two \udcff")
    assert (tmp_path / "a").read_bytes() == b"one\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_default_folders_tell_settings_apart_but_not_places():
    names = {
        str(default_folder("probe", "Fotos 1/ü", settings))
        for settings in (SETTINGS, {**SETTINGS, "out": "y"}, {**SETTINGS, "data": {"path": "digits", "workers": 1}})
    }
    assert len(names) == 1
    assert names != {str(default_folder("probe", "Fotos 1/ü", {**SETTINGS, "seed": 1}))}
    assert names.pop().startswith("runs/probe-Fotos-1-ü-")
    assert len(default_folder("probe", "x" * 400, SETTINGS).name) < 100


def test_errors_of_the_system_become_sentences_and_defects_do_not():
    full = OSError(28, os.strerror(28), "/data/x")
    assert system_sentence(full) == "/data/x cannot be read or written: No space left on device; free some space"
    assert "memory" in str(system_sentence(MemoryError()))
    assert "memory" in str(system_sentence(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")))
    assert system_sentence(RuntimeError("shapes do not fit")) is None
    assert system_sentence(OSError(10, "No child processes")) is None
    assert short_path("x" * 500) == "x" * 40 + "..." + "x" * 37
