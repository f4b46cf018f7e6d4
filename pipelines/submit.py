"""Stage pretrain as a Slurm job: claims the run folder, sends the job off, says its number and where to look."""

from pathlib import Path

from ssl_ft import handover
from ssl_ft.build.cluster import settings_of_ranks, submit
from ssl_ft.config import PretrainSettings
from ssl_ft.runlog import RunFolder, say


def main(settings: PretrainSettings) -> int:
    """Send the job off; its ranks run the same stage in the same run folder until training is done."""
    assert settings.slurm is not None, "sent off without slurm settings"
    path = Path.cwd() / handover.pretrain_path(settings)
    # Claimed here already: a folder that is another run's is told now, not when the job's turn comes.
    run = RunFolder(path, stage="pretrain", settings=settings_of_ranks(settings, path).model_dump(mode="json"))
    if run.is_finished:
        return handover.already_done(run)
    with run:
        job = submit(settings, path)
    slurm = settings.slurm
    say(f"job {job}: {slurm.nodes} x {slurm.ranks_per_node} ranks in turns of {slurm.hours:g} h until training is done")
    say(f"its log:   {path / 'slurm' / f'{job}.log'}\nits state: squeue --jobs={job}\nend it:    scancel {job}")
    print(path)
    return 0
