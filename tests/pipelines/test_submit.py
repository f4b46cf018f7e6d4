"""Pretraining sent off as a Slurm job: what is written, said and refused, and a whole job with warnings in between.

Slurm is the stand-in of `tests/slurm.py`; the script's own decisions are tested in `tests/build/test_cluster.py`.
"""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from ssl_ft.build.cluster import settings_of_ranks
from ssl_ft.config import PretrainSettings
from ssl_ft.recipe import load_settings
from tests.pipelines.conftest import TINY, Command
from tests.pipelines.test_resume import digest, last_step
from tests.pipelines.training import write_images
from tests.slurm import Slurm

JOB = ["slurm.gpus=0", "slurm.ranks=2", "slurm.cpus=1", "slurm.hours=0.1"]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Slurm's programs first on PATH."""
    fake = Slurm(tmp_path / "fake")
    monkeypatch.setenv("PATH", fake.path)
    return fake


def test_a_job_is_sent_off_and_its_ranks_get_the_same_settings(command: Command, photos, slurm, tmp_path):
    words = [f"data={photos}", *TINY, "views.scale=[0.3, 1]", "encoder.args={zero_init_last: false}", *JOB]
    outcome = command(["pretrain", *words, "out=runs/a"])
    assert outcome.code == 0, outcome.err
    run = tmp_path / "runs" / "a"
    assert outcome.out == f"{run}\n"
    assert "job 4711: 1 x 2 ranks in turns of 0.1 h" in outcome.err
    assert f"{run / 'slurm' / '4711.log'}" in outcome.err
    assert (slurm.folder / "script").read_text().strip() == str(run / "slurm" / "job.sh")
    given = load_settings(PretrainSettings, recipe=None, overrides=[*words, "out=runs/a"])
    read = load_settings(PretrainSettings, recipe=str(run / "slurm" / "settings.yaml"), overrides=[])
    assert read == settings_of_ranks(given, run)
    assert (read.slurm, read.out, read.threads) == (None, str(run), 1)


def test_without_out_the_folder_is_that_of_the_run_itself(command: Command, photos, slurm):
    words = ["pretrain", f"data={photos}", *TINY]
    sent = command([*words, *JOB]).out
    assert command(words).out.strip() == str(Path(sent.strip()).relative_to(Path.cwd()))


def test_one_job_a_run(command: Command, photos, slurm):
    words = ["pretrain", f"data={photos}", *TINY, *JOB, "out=a"]
    assert command(words).code == 0
    slurm.say_state("PENDING")
    again = command(words)
    assert again.code == 2
    assert "job 4711 is at work in out=" in again.err
    assert "(pending); wait for it, or end it with: scancel 4711" in again.err
    slurm.say_state("")  # it ended, or was cancelled
    assert command(words).code == 0
    (Path("a") / "result.json").write_text("{}")
    assert "nothing to do" in command(words).err


def test_what_slurm_refuses_leaves_nothing_behind(command: Command, photos, slurm):
    (slurm.folder / "refusal").write_text("sbatch: error: invalid partition specified: x\n")
    outcome = command(["pretrain", f"data={photos}", *TINY, *JOB, "out=new/a"])
    assert (outcome.code, outcome.out) == (2, "")
    assert "Slurm refuses the job: sbatch: error: invalid partition specified: x" in outcome.err
    assert not Path("new").exists()


def test_where_there_is_no_slurm(command: Command, photos, monkeypatch):
    monkeypatch.setenv("PATH", str(photos))
    outcome = command(["pretrain", f"data={photos}", *TINY, *JOB, "out=a"])
    assert outcome.code == 2
    assert "there is no `sbatch` here" in outcome.err
    assert not Path("a").exists()


def test_a_dry_run_shows_the_script_and_writes_nothing(command: Command, photos, slurm, tmp_path):
    before = set(tmp_path.rglob("*"))
    outcome = command(["pretrain", f"data={photos}", *TINY, *JOB, "out=a", "--dry-run"])
    assert outcome.code == 0, outcome.err
    assert "#SBATCH --signal=USR1@120" in outcome.out
    assert str(tmp_path / "a" / "slurm" / "settings.yaml") in outcome.out
    assert "4 on each of 2 ranks" in outcome.out
    assert set(tmp_path.rglob("*")) == before


def test_other_stages_do_not_wait_for_a_job(command: Command):
    outcome = command(["run", "digits", "pretrain.slurm.nodes=2"])
    assert outcome.code == 2
    assert "pretrain.slurm: the stages after it would not wait for the job" in outcome.err


def test_a_name_that_the_script_cannot_hold(command: Command, photos, slurm):
    outcome = command(["pretrain", f"data={photos}", *TINY, *JOB, "out=rate=0.1"])
    assert outcome.code == 2
    assert "must not have '=' in their names" in outcome.err


@pytest.mark.slow
@pytest.mark.dist
def test_warned_and_preempted_a_job_ends_with_the_same_encoder(command: Command, slurm, tmp_path):
    words = [
        "pretrain", f"data={write_images(tmp_path)}", "encoder=test_resnet", "size=64", "batch_size=16",
        "duration=96 steps", "save_every=4 steps", "log_every=1", "eval_every=200 steps", "eval_images=16",
        "threads=1", "device=cpu",
    ]  # fmt: skip
    assert command([*words, "devices=2", "out=whole"]).code == 0
    assert command([*words, *JOB, "out=job"]).code == 0
    run, script = Path("job"), Path("job/slurm/job.sh")
    slurm.say_state("RUNNING")

    for turn, warning in enumerate((signal.SIGUSR1, signal.SIGTERM)):
        process = slurm.start_turn(script, num_tasks=2, turn=turn)
        wait_for_steps(run, process)
        slurm.signal_tasks(warning)
        said = process.communicate(timeout=120)[1]
        assert (process.returncode, slurm.num_requeues) == (0, turn + 1), said
        assert f"turn {turn + 1} is over" in said
        assert 0 < last_step(run) < 96

    process = slurm.start_turn(script, num_tasks=2, turn=2)
    wait_for_steps(run, process)
    slurm.kill_rank(1)  # without a warning: the script starts all ranks again
    said = process.communicate(timeout=120)[1]
    assert (process.returncode, slurm.num_requeues, slurm.num_starts) == (0, 2, 4), said
    assert digest(run) == digest(Path("whole"))


def wait_for_steps(run: Path, process: "subprocess.Popen[str]") -> None:
    """Until the run is a few steps further than it is now."""
    begun = last_step(run)
    while last_step(run) < begun + 4:
        assert process.poll() is None, "the turn ended before it was warned"
        time.sleep(0.01)
