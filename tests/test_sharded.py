"""Weights shared out over ranks: the numbers of whole ones, exact resume, and checkpoints for any number of ranks.

Two gloo ranks; GPUs take the same path.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipelines import pretrain
from ssl_ft import dist, loop
from ssl_ft.build.pretraining import assemble, open_pool
from ssl_ft.checkpoint import save_checkpoint
from ssl_ft.config import PretrainSettings
from ssl_ft.errors import UserError
from ssl_ft.runlog import RunFolder
from ssl_ft.sharded import gathered
from ssl_ft.sharded_checkpoint import ShardWriter, last_files, load_shards
from tests.pipelines.test_resume import digest, losses
from tests.pipelines.training import settings_of, train_steps, write_images
from tests.ranks import run_on_ranks

FSDP = {"sharding": "fsdp"}


def trained(case: str, images: Path, out: Path, **more: Any) -> dict[str, np.ndarray]:
    """Losses and gradient norms of 4 clipped steps, and the encoder they lead to."""
    # In float32 a high rate magnifies rounding from step to step; what is compared is the ranks, not that.
    rate = 1e-3 if more["precision"] == "float64" else 1e-5
    settings = settings_of(case, images, optim={"rate": rate, "warmup": 0.3, "clip_norm": 0.5}, **more)
    run = RunFolder(out / "-".join(map(str, [case, *more.values()])), stage="pretrain", settings={})
    work, _, _ = assemble(settings, open_pool(settings), run)
    rows = train_steps(work, num_steps=4, rate=work.plan.rate)
    weights = torch.cat([value.double().flatten() for value in work.encoder().state_dict().values()])
    return {
        "loss": np.array([row["loss"] for row in rows]),
        "grad_norm": np.array([row["grad_norm"] for row in rows]),
        "weights": weights.numpy(),
    }


def both_ways(images: Path, out: Path) -> dict[str, Any]:
    wide, narrow = {"precision": "float64"}, {"precision": "float32"}
    return {
        "joint-convnet": trained("joint-convnet", images, out, **wide, **FSDP),
        "simclr-convnet": trained("simclr-convnet", images, out, **wide, **FSDP, activation_checkpointing=True),
        "shared-vit": trained("shared-vit", images, out, **wide, **FSDP),
        "fsdp": trained("masked-vit", images, out, **narrow, **FSDP),
        "ddp": trained("masked-vit", images, out, **narrow),
    }


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks_with_shared_out_weights_equal_whole_ones(tmp_path):
    images = write_images(tmp_path)
    cases = ("joint-convnet", "simclr-convnet", "shared-vit")
    alone = {case: trained(case, images, tmp_path / "one", precision="float64") for case in cases}
    assert all(found["grad_norm"].max() > 0.5 for found in alone.values()), "clipping has something to do"
    for found in run_on_ranks(both_ways, images, tmp_path / "two", num_ranks=2):
        for key in ("loss", "grad_norm", "weights"):
            np.testing.assert_allclose(found["fsdp"][key], found["ddp"][key], rtol=1e-6, atol=1e-7, err_msg=key)
            for case in cases:
                least = 1e-9 if key == "weights" else 0
                np.testing.assert_allclose(found[case][key], alone[case][key], rtol=1e-9, atol=least, err_msg=case)


def whole_and_broken_run(images: Path, out: Path) -> None:
    """A run of ten steps, and one that dies at step 7 and is gone on with; its folder at that moment is kept."""
    pretrain.dist.stop = lambda: None  # the next run needs the ranks again

    def die_at_seven(step: int, calls: object) -> bool:
        if step == 7:
            while not (out / "parts/checkpoints/last-000000005").is_dir():
                time.sleep(0.01)
            raise KeyboardInterrupt
        return False

    settings = {name: sharded_settings(images, out / name) for name in ("whole", "parts")}
    assert pretrain.run(settings["whole"]) == 0
    agree, loop._agree_to_stop = loop._agree_to_stop, die_at_seven
    try:
        pretrain.run(settings["parts"])
    except KeyboardInterrupt:
        loop._agree_to_stop = agree
    dist.barrier()
    if dist.is_main():
        shutil.copytree(out / "parts", out / "one")
    dist.barrier()
    assert pretrain.run(settings["parts"]) == 0


def sharded_settings(images: Path, out: Path, **more: Any) -> PretrainSettings:
    # A low rate, so that rounding does not set one rank and two apart.
    optim = {"rate": 1e-4, "warmup": 0.3}
    return settings_of("joint-vit", images, **{**FSDP, "out": str(out), "devices": 2, "optim": optim, **more})


@pytest.mark.slow
@pytest.mark.dist
def test_a_broken_run_goes_on_exactly_and_on_one_rank_too(tmp_path):
    images = write_images(tmp_path)
    run_on_ranks(whole_and_broken_run, images, tmp_path, num_ranks=2)
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert [p.name for p in (tmp_path / "whole/checkpoints").glob("*last*")] == ["last-000000010"]
    assert (tmp_path / "whole/pictures/reconstruction.png").is_file()

    assert last_files(tmp_path / "one/checkpoints")[0].parent.name == "last-000000005"
    one = sharded_settings(images, tmp_path / "one", devices=1, sharding="none")
    assert pretrain.main(one) == 0
    ours, theirs = losses(tmp_path / "one"), losses(tmp_path / "whole")
    assert list(ours) == list(range(1, 11))
    np.testing.assert_allclose([*ours.values()], [*theirs.values()], rtol=1e-5)


def network() -> nn.Module:
    """Rows that do not divide evenly, and a layer of one row, of which the second rank has none."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.arange(12.0).view(4, 3).sin()).square().sum().backward()
    optimizer.step()


def there_and_back(folder: Path) -> None:
    """Checkpoints of whole and shared out weights fill each other."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def fresh(*, is_shared: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = network()
        model = fully_shard(model, mesh=init_device_mesh("cpu", (2,))) if is_shared else model
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    plain, plain_optimizer = fresh(is_shared=False)
    step(plain, plain_optimizer)
    if dist.is_main():
        save_checkpoint(
            folder / "last.safetensors", modules={"m": plain}, optimizer=plain_optimizer, values={"step": 1}
        )
    dist.barrier()
    shared, optimizer = fresh(is_shared=True)
    assert load_shards(last_files(folder), modules={"m": shared}, optimizer=optimizer) == {"step": 1}
    writer = ShardWriter(folder)
    writer.save("last", 1, modules={"m": shared}, optimizer=optimizer, values={"step": 1})
    with torch.no_grad():
        shared[0].weight.zero_()  # what is written is what was, not what is
    writer.wait()
    dist.barrier()
    again, again_optimizer = fresh(is_shared=False)
    files = last_files(folder)
    assert [file.parent.name for file in files] == ["last-000000001"] * 2
    load_shards(files, modules={"m": again}, optimizer=again_optimizer)
    shared, optimizer = fresh(is_shared=True)
    load_shards(files, modules={"m": shared}, optimizer=optimizer)
    for model, own in ((plain, plain_optimizer), (again, again_optimizer), (shared, optimizer)):
        step(model, own)
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in again.state_dict().items())
    for key, value in gathered(shared, network()).state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[key], rtol=1e-6, atol=1e-7)

    if dist.rank() == 1:
        writer.folder = folder / "absent"
    writer.save("last", 2, modules={"m": shared}, optimizer=optimizer, values={"step": 2})
    with pytest.raises((OSError, UserError), match="another rank" if dist.rank() == 0 else "No such file"):
        writer.wait()
    assert last_files(folder) == files


@pytest.mark.dist
def test_checkpoints_are_read_by_any_number_of_ranks_and_last_through_a_failure(tmp_path):
    run_on_ranks(there_and_back, tmp_path, num_ranks=2)
    files = last_files(tmp_path)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(UserError, match="written by 2 ranks and holds 1"):
        load_shards(files[:1], modules={"m": model}, optimizer=optimizer)
    with pytest.raises(UserError, match=r"does not fit this m: \['m/0\.weight'\]"):
        load_shards(files, modules={"m": nn.Sequential(nn.Linear(4, 5), *network()[1:])}, optimizer=optimizer)
    files[1].write_bytes(b"{")
    with pytest.raises(UserError, match="cannot be read"):
        load_shards(files, modules={"m": model}, optimizer=optimizer)


def test_what_does_not_go_with_sharding_is_refused(tmp_path):
    images = write_images(tmp_path)
    for optim, why in (
        ({"name": "muon"}, "whole matrices"),
        ({"ema": 0.9}, "running average"),
        ({"accumulate": 2}, "cached"),
    ):
        with pytest.raises(ValueError, match=why):
            settings_of("simclr-vit", images, **FSDP, optim=optim)
    settings = settings_of("simclr-vit", images, **FSDP)
    with pytest.raises(UserError, match="and there is one"):
        assemble(settings, open_pool(settings), RunFolder(tmp_path / "a", stage="pretrain", settings={}))
