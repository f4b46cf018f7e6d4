"""The batch script of a Slurm job: what it asks for, and what it does when its ranks end one way or another.

Slurm is the stand-in of `tests/slurm.py`, ranks are a few lines of bash; whole trainings are in
`tests/pipelines/test_submit.py`.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from ssl_ft.build.cluster import batch_script
from ssl_ft.config import PretrainSettings
from ssl_ft.config.slurm import SlurmSettings
from ssl_ft.errors import UserError
from ssl_ft.recipe import load_settings
from tests.slurm import Slurm


def settings_of(*overrides: str) -> SlurmSettings:
    words = ["batch_size=1024", *(f"slurm.{word}" for word in overrides)]
    slurm = load_settings(PretrainSettings, recipe=None, overrides=words).slurm
    assert slurm is not None
    return slurm


def options_of(script: str) -> dict[str, str]:
    lines = [shlex.split(line)[1] for line in script.splitlines() if line.startswith("#SBATCH ")]
    return {name.removeprefix("--"): value for name, _, value in (line.partition("=") for line in lines)}


def test_the_job_asks_for_what_was_set():
    slurm = settings_of(
        "nodes=2", "gpus=8", "cpus=12", "hours=1.5", "partition=long", "account=us", "memory_gb=900",
        "options=[--qos=low, --exclusive]", "warn_seconds=300",
    )  # fmt: skip
    options = options_of(batch_script(slurm, run=Path("/runs/a 5%"), folder=Path("/home of mine")))
    assert options == {
        "job-name": "ssl-ft-a 5%", "chdir": "/home of mine", "output": "/runs/a 5%%/slurm/%j.log",
        "open-mode": "append", "nodes": "2", "ntasks-per-node": "8", "gpus-per-node": "8", "cpus-per-task": "12",
        "mem": "900G", "time": "90", "partition": "long", "account": "us", "signal": "USR1@300", "requeue": "",
        "qos": "low", "exclusive": "",
    }  # fmt: skip


def test_ranks_on_cpus_ask_for_no_gpu():
    options = options_of(batch_script(settings_of("gpus=0", "ranks=4"), run=Path("/runs/a"), folder=Path("/")))
    assert options["ntasks-per-node"] == "4"
    assert not {"gpus-per-node", "mem", "partition", "account"} & set(options)


# Each plan has a line a start and a word a rank: an exit code, or `wait` for one that goes on until it is ended.
@pytest.mark.parametrize(
    ("plan", "state", "starts", "requeues", "code"),
    [
        pytest.param(["0 0"], "RUNNING", 1, 0, 0, id="done"),
        pytest.param(["138 138"], "RUNNING", 1, 1, 0, id="warned of the end of the turn"),
        pytest.param(["143 143"], "RUNNING", 1, 1, 0, id="preempted"),
        pytest.param(["143 138"], "SIGNALING", 1, 1, 0, id="ranks that heard different signals"),
        pytest.param(["143 143"], "COMPLETING", 1, 0, 143, id="cancelled by its user"),
        pytest.param(["143 143"], "", 1, 0, 143, id="cancelled and gone"),
        pytest.param(["130 130"], "RUNNING", 1, 0, 130, id="interrupted by its user"),
        pytest.param(["wait 2"], "RUNNING", 1, 0, 2, id="a mistake of the user's"),
        pytest.param(["1 wait", "0 0"], "RUNNING", 2, 0, 0, id="a rank died, and its peer was ended for it"),
        pytest.param(["wait 137", "138 138"], "RUNNING", 2, 1, 0, id="died once, then warned"),
        pytest.param(["1 1", "wait 1", "1 wait"], "RUNNING", 3, 0, 201, id="dies each time"),
    ],
)
def test_how_ranks_end_decides_what_the_job_does(tmp_path, monkeypatch, plan, state, starts, requeues, code):
    slurm, script = job_of_bash(tmp_path, monkeypatch, plan)
    slurm.say_state(state)
    process = slurm.start_turn(script, num_tasks=2)
    process.communicate(timeout=240)
    assert (slurm.num_starts, slurm.num_requeues, process.returncode) == (starts, requeues, code)


def test_turns_have_an_end(tmp_path, monkeypatch):
    slurm, script = job_of_bash(tmp_path, monkeypatch, ["138 138"] * 2)
    slurm.say_state("RUNNING")
    for turn, requeues in ((6, 1), (7, 1)):
        said = slurm.start_turn(script, num_tasks=2, turn=turn).communicate(timeout=240)[1]
        assert slurm.num_requeues == requeues
    assert "turn 8 of at most 8 ended with 138" in said


def job_of_bash(folder: Path, monkeypatch: pytest.MonkeyPatch, plan: list[str]) -> tuple[Slurm, Path]:
    """A job of at most 3 starts and 8 turns; each rank wants its settings, its place, and the plan's word for it."""
    slurm = Slurm(folder / "fake")
    (slurm.folder / "plan").write_text("\n".join(plan) + "\n")
    rank = """
[[ "$1 $2 $3" == "-m ssl_ft pretrain" && -f $4 && $WORLD_SIZE$LOCAL_WORLD_SIZE$MASTER_ADDR == 22127.0.0.1 ]] || exit 9
[[ $RANK == "$LOCAL_RANK" && $MASTER_PORT -ge 10000 && $MASTER_PORT -lt 30000 && $FROM_SETUP == yes ]] || exit 9
start=$(wc -l < "$FAKE/starts")
words=($(sed -n "${start}p" "$FAKE/plan"))
[[ ${words[$RANK]} == wait ]] && exec sleep 60
# Ranks that end by themselves end together, as after agreeing to stop: none is ended for the other.
touch "$FAKE/ready.$start.$RANK"
[[ ${words[1 - RANK]} == wait ]] || until [[ -e $FAKE/ready.$start.$((1 - RANK)) ]]; do sleep 0.02; done
exit "${words[$RANK]}"
"""
    monkeypatch.setattr("sys.executable", str(slurm.add_program("rank", rank)))
    run = folder / 'it\'s a "run" $HOME'
    (run / "slurm").mkdir(parents=True)
    (run / "slurm" / "settings.yaml").touch()
    slurm_settings = settings_of("gpus=0", "ranks=2", "restarts=2", "turns=8", "setup=export FROM_SETUP=yes")
    script = run / "slurm" / "job.sh"
    script.write_text(batch_script(slurm_settings, run=run, folder=folder))
    return slurm, script


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["slurm.nodes=0"], r"slurm.nodes: must be 1 or more \(got 0\)"),
        (["slurm.partition=a b"], "slurm.partition: must be one word"),
        (["slurm.options=[qos=low]"], "slurm.options: must be options of sbatch in full"),
        (["slurm.ranks=4"], "ranks=4 with gpus=8: each GPU has one rank"),
        (["slurm.hours=0.01"], "warn_seconds=120 leaves nothing of hours=0.01"),
        (["slurm.nodes=2", "devices=2"], "devices=2 with slurm"),
        (["slurm.nodes=3"], "batch_size=256 must be a multiple of ranks x accumulate = 24"),
        (["slurm.node=3"], re.escape("slurm.node: unknown setting; did you mean slurm.nodes?")),
    ],
)
def test_settings_that_cannot_be_meant(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        load_settings(PretrainSettings, recipe=None, overrides=overrides)


def test_the_script_is_bash_without_a_mistake(tmp_path):
    text = batch_script(settings_of("nodes=2", "setup=module load cuda"), run=tmp_path, folder=tmp_path)
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nmodule load cuda\n" in text
