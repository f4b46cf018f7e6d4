"""Stage pretrain: unlabelled images in, a pretrained encoder out."""

import torch

from pipelines import submit
from ssl_ft import dist, handover
from ssl_ft.artifact import ModelCard, save_model
from ssl_ft.build.origins import record_pretrained
from ssl_ft.build.parts import choose_device
from ssl_ft.build.pretraining import Pool, assemble, num_labels, open_pool
from ssl_ft.config import PretrainSettings
from ssl_ft.interrupt import StopWish
from ssl_ft.launch import run_ranks
from ssl_ft.pretraining import finished, train
from ssl_ft.report.pretrain_pictures import write_pretrain_pictures
from ssl_ft.result import LabelsUsed, Metric
from ssl_ft.runlog import RunFolder, say
from ssl_ft.trackers import open_trackers


def main(settings: PretrainSettings) -> int:
    """Pretrain as the settings say, on as many ranks, or send it off as a job; gives the exit code."""
    if settings.slurm is not None:
        return submit.main(settings)
    if settings.devices > 1 and dist.world_size() == 1 and not dist.is_launched():
        return run_ranks(run, settings, num_ranks=settings.devices)
    return run(settings)


def run(settings: PretrainSettings, *, are_labels_watched: bool = True) -> int:
    """One rank's part; rank 0 writes the run folder."""
    dist.start_from_environment(choose_device(settings.device).type)
    dist.use_threads(settings.threads)
    plain = settings.model_dump(mode="json")
    data = open_pool(settings)
    folder = RunFolder(handover.pretrain_path(settings), stage="pretrain", settings=plain)
    if folder.is_finished:
        return handover.already_done(folder)
    with folder:
        return _pretrain(settings, data, folder, are_labels_watched=are_labels_watched)


def _pretrain(settings: PretrainSettings, data: Pool, folder: RunFolder, *, are_labels_watched: bool) -> int:
    handover.record_data(folder, data.source, data.pool, role="pool")
    handover.keep_pool_keys(folder, data.pool, settings.data)
    origin = record_pretrained(folder, settings.encoder.pretrained)
    before = [] if origin is None else origin.runs()
    handover.report_duplicates(folder, [folder.path, *before], data.source, data.test, data=settings.data)
    work, spec, contract = assemble(settings, data, folder, are_labels_watched=are_labels_watched)
    folder.write_manifest(device=str(work.device))
    with StopWish() as wish:
        done = train(work, folder, should_stop=lambda: bool(wish), track=open_trackers(settings.trackers, folder.path))
        # Not `if wish`: one rank may have heard the signal, but all have stopped.
        if done < work.plan.num_steps:
            say(f"stopped at step {done} of {work.plan.num_steps}; the same command goes on from there")
            dist.barrier()  # the first to leave may take the others along: rank 0 must have written the checkpoint
            dist.stop()
            return wish.exit_code
    work = finished(work, folder.path / "checkpoints")
    encoder = work.encoder().to("cpu")
    used = LabelsUsed(train=num_labels(settings, data), watch=work.watcher.num_labels,
                      earlier=0 if origin is None else origin.num_labels)  # fmt: skip
    if dist.is_main():
        start = settings.encoder.pretrained
        learnt = used.train + used.earlier
        about = handover.provenance(settings.objective, start, folder, steps=done, num_labels=learnt)
        save_model(folder.path / "encoder", encoder, ModelCard("encoder", spec, contract, about=about))
        write_pretrain_pictures(work, folder.path / "pictures")
        handover.write_damages(folder, work.store.damages)
    rows = folder.read_rows()
    metrics = [
        Metric(name=key, value=value, n=len(work.watcher.images), split="train", model="encoder")
        for key, value in next((row for row in reversed(rows) if row["kind"] == "eval"), {}).items()
        if key not in ("step", "kind", "seconds") and torch.isfinite(torch.tensor(value))
    ]
    last = next((row["loss"] for row in reversed(rows) if row["kind"] == "train"), None)
    if last is not None:
        metrics.append(Metric(name="loss", value=last, n=settings.batch_size, split="train", model="encoder"))
    if used.watch:
        also = "" if used.train else ", not to train or choose"
        folder.note(f"{used.watch} training labels were used to watch progress{also}")
    folder.write_manifest(device=str(work.device))
    folder.finish(metrics=metrics, labels_used=used, test_scored=0)
    dist.barrier()
    if dist.is_main():  # before the end of the group, after which every rank is the main one
        print(folder.path)
    dist.stop()
    return 0
