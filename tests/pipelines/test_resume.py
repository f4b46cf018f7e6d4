"""Resume is exact: stopped anywhere and gone on with, a run ends with the very same encoder; also on other ranks."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines import pretrain
from ssl_ft import loop
from ssl_ft.artifact import read_card
from ssl_ft.config import PretrainSettings
from tests.conftest import CHECKOUT
from tests.pipelines.conftest import write_photos
from tests.pipelines.training import settings_of, write_images
from tests.ranks import run_on_ranks


def digest(run: Path) -> str:
    return read_card(run / "encoder")[1]


def losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


@pytest.mark.parametrize("case", ["joint-convnet", "shared-vit", "rotation-convnet", "supervised-vit"])
def test_five_and_five_steps_equal_ten(tmp_path, case, monkeypatch):
    images = write_images(tmp_path)
    whole, parts = (
        settings_of(case, images, out=str(tmp_path / name), optim={"ema": 0.9, "warmup": 0.3})
        for name in ("whole", "parts")
    )
    assert pretrain.main(whole) == 0

    with monkeypatch.context() as patch:
        patch.setattr("ssl_ft.loop._agree_to_stop", lambda step, calls: stop_at_seven(step))
        with pytest.raises(KeyboardInterrupt):
            pretrain.main(parts)
    assert pretrain.main(parts) == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_damage_met_before_a_stop_is_listed_at_the_end(tmp_path, monkeypatch):
    photos = write_photos(tmp_path / "photos", count=24, size=32)
    spoilt = photos / "a" / "03.png"
    whole = spoilt.read_bytes()
    spoilt.write_bytes(whole[:200])
    data = {"path": str(photos), "workers": 1, "max_damaged_share": 0.1, "test_share": 0.01}
    settings = settings_of("simclr-convnet", photos, out=str(tmp_path / "o"), data=data)
    with monkeypatch.context() as patch:
        patch.setattr("ssl_ft.loop._agree_to_stop", lambda step, calls: stop_at_seven(step))
        with pytest.raises(KeyboardInterrupt):
            pretrain.main(settings)
    spoilt.write_bytes(whole)
    assert pretrain.main(settings) == 0
    rows = (tmp_path / "o" / "damaged.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["a/03.png"]


def stop_at_seven(step: int) -> bool:
    """Die two steps after the checkpoint of step 5, as a killed process does: nothing is saved on the way out."""
    if step == 7:
        raise KeyboardInterrupt
    return False


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks_resumed_as_one(tmp_path, monkeypatch):
    images = write_images(tmp_path)
    # A low rate: at a high one rounding alone sets float32 runs apart within ten steps.
    slow = {"rate": 1e-4, "warmup": 0.3}
    whole = settings_of("simclr-convnet", images, out=str(tmp_path / "whole"), optim=slow)
    assert pretrain.main(whole) == 0
    two = settings_of("simclr-convnet", images, out=str(tmp_path / "two"), devices=2, optim=slow)
    run_on_ranks(_five_steps, two, num_ranks=2)
    one = two.model_copy(update={"devices": 1})
    assert pretrain.main(one) == 0
    ours, theirs = losses(tmp_path / "two"), losses(tmp_path / "whole")
    assert sorted(ours) == list(range(1, 11))
    np.testing.assert_allclose([ours[s] for s in sorted(ours)], [theirs[s] for s in sorted(theirs)], rtol=1e-4)


def _five_steps(settings: PretrainSettings) -> None:
    """One rank's run, which dies once the checkpoint of step 5 is there."""
    loop._agree_to_stop = lambda step, calls: stop_at_seven(step)
    with pytest.raises(KeyboardInterrupt):
        pretrain.run(settings)


def last_step(run: Path) -> int:
    """The step of the last whole row, 0 before there is one."""
    rows = (run / "metrics.jsonl").read_text().split("\n")[:-1] if (run / "metrics.jsonl").is_file() else []
    return int(json.loads(rows[-1])["step"]) if rows else 0


@pytest.mark.slow
@pytest.mark.parametrize("case", ["simclr-convnet", "masked-vit"])
def test_killed_at_five_random_moments(tmp_path, case):
    images = write_images(tmp_path)
    more = [
        f"data={images}",
        "duration=60 steps",
        "save_every=4 steps",
        "eval_every=20 steps",
        "batch_size=16",
        "eval_images=16",
        "threads=1",
        "log_every=1",
    ]
    if case == "simclr-convnet":
        more += ["encoder=test_resnet", "size=64"]
    else:
        more += [
            "encoder=vit_tiny_patch16_224",
            "encoder.patch_size=4",
            "size=20",
            "objective=masked",
            "encoder.args={depth: 4}",
        ]

    def start(out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ssl_ft", "pretrain", *more, f"out={tmp_path / out}"]
        return subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start("whole").wait(timeout=300) == 0
    for moment in sorted(random.Random(0).sample(range(3, 58), 5)):
        process = start("parts")
        while last_step(tmp_path / "parts") < moment:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("parts").wait(timeout=300) == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
