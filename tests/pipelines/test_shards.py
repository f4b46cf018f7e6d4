"""Shards through the stages: packed and indexed by `ssl-ft index`, pretrained on, stopped and gone on with."""

import json
from pathlib import Path

import pytest

from pipelines import pretrain
from ssl_ft.artifact import read_card
from ssl_ft.data.source import open_source
from tests.data.shardmaking import shaded_tar
from tests.pipelines.conftest import Command
from tests.pipelines.test_resume import losses, stop_at_seven
from tests.pipelines.training import settings_of, write_images


def test_index_packs_and_says_so(command: Command, photos: Path) -> None:
    words = ["index", str(photos), "pack=packed", "pack_format=parquet", "duplicates=false", "out=o"]
    outcome = command(words)
    assert outcome.code == 0, outcome.err
    assert "24 images were packed into packed (parquet)" in outcome.err
    assert "packing image 24/24" in outcome.err
    assert len(open_source("packed")) == 24
    metrics = {m["name"]: m["value"] for m in json.loads(Path("o/result.json").read_text())["metrics"]}
    assert metrics == {"images": 24, "damaged": 0, "packed": 24}
    assert "nothing to do" in command(words).err  # the same command finds its finished run
    again = command([*words[:-1], "out=o2"])
    assert again.code == 2
    assert "pack=packed is there already" in again.err
    assert not Path("o2").exists()
    assert "is a URL" in command(["index", str(photos), "pack=s3://b/x"]).err


def test_index_of_foreign_shards_counts_without_decoding(command: Command, tmp_path: Path) -> None:
    shaded_tar(tmp_path / "shards/a.tar", range(6))
    refused = command(["pretrain", "data=shards", "out=o"])
    assert refused.code == 2
    assert "ssl-ft index data=shards" in refused.err
    outcome = command(["index", "shards", "look=false", "out=o"])
    assert outcome.code == 0, outcome.err
    assert "shards: 6 images were found" in outcome.err
    assert json.loads(Path("o/result.json").read_text())["metrics"][0]["value"] == 6
    assert command(["index", "shards", "duplicates=false", "out=o2"]).code == 0  # with the index that is there


@pytest.mark.parametrize("layout", ["tar", "parquet"])
def test_pretraining_on_shards_stopped_and_gone_on_with(
    tmp_path: Path, command: Command, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_images(tmp_path)
    assert command(["index", str(images), f"pack={tmp_path / 's'}", f"pack_format={layout}", "shard_mb=1"]).code == 0
    data = {"path": str(tmp_path / "s"), "workers": 2, "cache": "none", "window_images": 20}
    whole, parts = (
        settings_of("simclr-convnet", images, out=str(tmp_path / name), data=data, threads=1)
        for name in ("whole", "parts")
    )
    assert pretrain.main(whole) == 0
    with monkeypatch.context() as patch:
        patch.setattr("ssl_ft.loop._agree_to_stop", lambda step, calls: stop_at_seven(step))
        with pytest.raises(KeyboardInterrupt):
            pretrain.main(parts)
    assert pretrain.main(parts) == 0
    assert read_card(tmp_path / "parts/encoder")[1] == read_card(tmp_path / "whole/encoder")[1]
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["stall_share"] <= 1 for row in rows if row["kind"] == "train")
