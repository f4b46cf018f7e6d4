"""A pretraining as a Slurm job: its batch script, the settings its ranks read, sending it off. Ranks are `srun`'s work.

A script of our own rather than submitit: that hands its work over as a pickle, which this package never loads, and a
person can neither read it nor mend it nor send it again. What signals mean to a rank is in `interrupt.py`.
"""

import math
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from ssl_ft.config import PretrainSettings
from ssl_ft.config.slurm import SlurmSettings
from ssl_ft.errors import UserError
from ssl_ft.runlog import write_text

# Runs as each task of a step, with the rank's own command as its arguments. Slurm signals every process of a step, so
# this shell catches what the rank catches and lives to tell how it ended. `srun` gives the highest code of all tasks:
# a rank that failed must outrank those that were ended because it did (143), or a failure would look like a warning.
_RANK = """\
trap : TERM USR1
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
"$@"
code=$?
case $code in
  0 | 130 | 138 | 143) exit $code ;;
  2) exit 202 ;;
  *) echo "ssl-ft: rank $RANK ended with $code" >&2; exit 201 ;;
esac"""

_SCRIPT = """\
#!/bin/bash
# A pretraining as a Slurm job, written by `ssl-ft pretrain`. To send it off again: sbatch {path}
{options}

rank={rank}
# This shell must outlive the signals that end its ranks, or nobody would ask for another turn.
trap : TERM USR1
{setup}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE={ranks}
for start in {{0..{restarts}}}; do
  # Below the ports that Linux hands out by itself, and another one each time.
  export MASTER_PORT=$((10000 + (SLURM_JOB_ID + start) % 20000))
  srun --kill-on-bad-exit=1 --cpus-per-task={cpus} bash -c "$rank" rank \\
    {command}
  code=$?
  case $code in
    0 | 130) exit $code ;;
    138 | 143) break ;;
    202) exit 2 ;;
  esac
  echo "ssl-ft: the ranks ended with $code after start $((start + 1)) of {starts}" >&2
done

# 138 is our own warning before the time is up, 143 Slurm's before it takes the nodes away; the ranks have saved. A job
# that was cancelled is told 143 as well, but is not running any more and must not come back.
state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
turn=$((${{SLURM_RESTART_COUNT:-0}} + 1))
if [[ $code != 138 && $code != 143 ]] || [[ $state != RUNNING && $state != SIGNALING ]] || ((turn >= {turns})); then
  echo "ssl-ft: turn $turn of at most {turns} ended with $code; no other one is asked for" >&2
  exit "$code"
fi
echo "ssl-ft: turn $turn is over; asking for another one, which goes on from the checkpoint" >&2
scontrol requeue "$SLURM_JOB_ID"
"""


def batch_script(slurm: SlurmSettings, *, run: Path, folder: Path) -> str:
    """The text of a job's batch script, for `sbatch`.

    Args:
        slurm: nodes, time and the like.
        run: the run folder, absolute; script, settings and logs are in `slurm/` below it.
        folder: where the job works, absolute: relative paths of the settings start here.
    """
    place = run / "slurm"
    options = {
        "job-name": f"ssl-ft-{run.name}",
        "chdir": folder,
        # Slurm reads %j and its like as patterns; a percent sign in a folder's name is doubled.
        "output": str(place).replace("%", "%%") + "/%j.log",
        "open-mode": "append",
        "nodes": slurm.nodes,
        "ntasks-per-node": slurm.ranks_per_node,
        "cpus-per-task": slurm.cpus,
        "gpus-per-node": slurm.gpus or None,
        "mem": f"{slurm.memory_gb}G" if slurm.memory_gb else None,
        "time": math.ceil(slurm.hours * 60),
        "partition": slurm.partition,
        "account": slurm.account,
        "signal": f"USR1@{slurm.warn_seconds}",
    }
    lines = [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in slurm.options)]
    command = [sys.executable, "-m", "ssl_ft", "pretrain", str(place / "settings.yaml")]
    return _SCRIPT.format(
        path=shlex.quote(str(place / "job.sh")),
        options="\n".join(lines),
        rank=shlex.quote(_RANK),
        setup=slurm.setup or "",
        ranks=slurm.ranks_per_node,
        cpus=slurm.cpus,
        restarts=slurm.restarts,
        starts=slurm.restarts + 1,
        turns=slurm.turns,
        command=shlex.join(command),
    )


def settings_of_ranks(settings: PretrainSettings, run: Path) -> PretrainSettings:
    """What each rank of the job pretrains with: the same, in the run folder `run` and without another job."""
    assert settings.slurm is not None, "these settings are not those of a job"
    threads = settings.threads or settings.slurm.cpus
    return settings.model_copy(update={"slurm": None, "out": str(run), "threads": threads})


def submit(settings: PretrainSettings, run: Path) -> str:
    """Write script and settings of a job into the run folder and send it off; gives the number Slurm gave it.

    Args:
        settings: with `slurm`.
        run: the run folder, absolute and there.

    Raises:
        UserError: no Slurm here, Slurm refuses the job, or one is at work in this folder already.
    """
    assert settings.slurm is not None, "these settings are not those of a job"
    # The ranks' command line would take "=" for a setting, and a line of the script cannot hold the end of one.
    if set("=\n") & set(f"{run}{Path.cwd()}"):
        raise UserError(f"out={run} and the folder the job is sent from must not have '=' in their names; rename it")
    place = run / "slurm"
    place.mkdir(exist_ok=True)
    _refuse_a_second_job(run)
    plain = settings_of_ranks(settings, run).model_dump(mode="json")
    write_text(place / "settings.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    write_text(place / "job.sh", batch_script(settings.slurm, run=run, folder=Path.cwd()))
    answer = _ask("sbatch", "--parsable", str(place / "job.sh"))
    if answer.returncode:
        raise UserError(f"Slurm refuses the job: {answer.stderr.strip() or f'sbatch ended with {answer.returncode}'}")
    job = answer.stdout.strip().partition(";")[0]
    write_text(place / "job.txt", f"{job}\n")
    return job


def _refuse_a_second_job(run: Path) -> None:
    """Two jobs in one run folder would write over each other's checkpoints."""
    path = run / "slurm" / "job.txt"
    job = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    # An old job is unknown to Slurm; the command then fails and says nothing.
    state = _ask("squeue", "--noheader", f"--jobs={job}", "--format=%T").stdout.strip() if job else ""
    if state:
        raise UserError(
            f"job {job} is at work in out={run} already ({state.lower()}); wait for it, or end it with: scancel {job}"
        )


def _ask(*words: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError(
            f"slurm settings send the stage off as a Slurm job, but there is no `{words[0]}` here: run the command "
            "where jobs are sent from, or leave slurm out; --dry-run shows the script"
        ) from error
