"""A stand-in for Slurm on this machine: `sbatch`, `srun`, `squeue` and `scontrol` as far as our batch script uses them.

Tasks are started and signalled as Slurm does it: each is a process group of its own, all of which a signal reaches, and
`srun` gives the highest exit code. No queue, no nodes.
"""

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

_PROGRAMS = {
    "sbatch": """
if [[ -f $FAKE/refusal ]]; then cat "$FAKE/refusal" >&2; exit 1; fi
echo "$2" > "$FAKE/script"
echo "4711;cluster"
""",
    "squeue": 'cat "$FAKE/state" 2> /dev/null',
    "scontrol": 'if [[ $1 == show ]]; then echo 127.0.0.1; else echo "$*" >> "$FAKE/requeued"; fi',
    "srun": """
while [[ $1 == --* ]]; do shift; done
echo start >> "$FAKE/starts"
tasks=()
for ((i = 0; i < SLURM_NTASKS; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i setsid "$@" &
  tasks+=($!)
done
echo "${tasks[@]}" > "$FAKE/tasks"
worst=0
for _ in "${tasks[@]}"; do
  wait -n
  code=$?
  ((code > worst)) && worst=$code
  # --kill-on-bad-exit, which here leaves those that are ending a moment to end
  if ((code)); then sleep 0.5; for task in "${tasks[@]}"; do kill -TERM -- "-$task" 2> /dev/null; done; fi
done
rm "$FAKE/tasks"
exit $worst
""",
}


class Slurm:
    """The programs in `folder`/bin, what they were told beside them; `path` is a PATH that begins with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for name, body in _PROGRAMS.items():
            self.add_program(name, body)
        self.path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def add_program(self, name: str, body: str) -> Path:
        """An executable of bash."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/bash\nFAKE={self.folder}\n{body}\n")
        path.chmod(0o755)
        return path

    def say_state(self, state: str) -> None:
        """What `squeue` says of every job; nothing where it knows of none."""
        (self.folder / "state").write_text(state)

    def start_turn(self, script: Path, *, num_tasks: int, turn: int = 0) -> "subprocess.Popen[str]":
        """Start the batch shell of a job's turn, counted from 0."""
        env: Mapping[str, str] = {
            **os.environ,
            "PATH": self.path,
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "here",
            "SLURM_NTASKS": str(num_tasks),
            **({"SLURM_RESTART_COUNT": str(turn)} if turn else {}),
        }
        return subprocess.Popen(["bash", script], env=env, stderr=subprocess.PIPE, text=True)

    def signal_tasks(self, number: signal.Signals) -> None:
        """A signal for every process of the running step, as by `--signal` or before a preemption."""
        for task in (self.folder / "tasks").read_text().split():
            os.killpg(int(task), number)

    def kill_rank(self, number: int) -> None:
        """End the rank of one task as the system does where memory runs out: that process alone, without a warning.

        The task's shell lives on and tells how its rank ended.
        """
        task = int((self.folder / "tasks").read_text().split()[number])
        os.kill(int(Path(f"/proc/{task}/task/{task}/children").read_text()), signal.SIGKILL)

    @property
    def num_starts(self) -> int:
        """How often `srun` was called."""
        path = self.folder / "starts"
        return len(path.read_text().splitlines()) if path.is_file() else 0

    @property
    def num_requeues(self) -> int:
        """How often a job asked for another turn."""
        path = self.folder / "requeued"
        return len(path.read_text().splitlines()) if path.is_file() else 0
