"""The run folder: who may write it, and its manifest, rows, notes, tables and result. Only rank 0 writes.

<run>/manifest.json  metrics.jsonl  checkpoints/  encoder/ or classifier/  result.json  pictures/
"""

import contextlib
import csv
import hashlib
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from ssl_ft import __version__, dist
from ssl_ft.errors import UserError, short_path, system_sentence
from ssl_ft.result import DataUsed, LabelsUsed, Metric, Parent, Result

# Settings that may differ when a run goes on: where and how fast, never what is computed.
_FREE_KEYS = {
    "out", "devices", "device", "threads", "workers", "trackers", "slurm", "data.workers", "data.cache",
    "data.cache_mb", "compile", "activation_checkpointing", "sharding",
}  # fmt: skip


class RunFolder:
    """One run's folder. As a context it takes away a folder it made in which a mistake left nothing to go on from.

    Args:
        path: the folder, created here where absent.
        stage: the stage's name.
        settings: its resolved settings as plain values.

    Raises:
        UserError: the folder belongs to a run with other settings, or cannot be written.
    """

    def __init__(self, path: Path, *, stage: str, settings: dict[str, Any]) -> None:
        self.path, self.stage, self.settings = path, stage, settings
        self.started = time.monotonic()
        self.notes: list[str] = []
        self.data: list[DataUsed] = []
        self.parents: list[Parent] = []
        self._seconds_before = 0.0
        self._damaged: list[tuple[str, str, str]] = []
        self._is_new, self._made = False, list[Path]()
        if dist.is_main():
            self._claim()
        dist.barrier()

    @property
    def is_finished(self) -> bool:
        """Whether the run ended before and needs no more work."""
        return bool(dist.broadcast_object((self.path / "result.json").is_file()))

    def _claim(self) -> None:
        manifest = self.path / "manifest.json"
        try:
            self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            if manifest.is_file():
                self._compare(self._read_manifest(manifest))
                return
            foreign = sorted(p.name for p in self.path.iterdir())
            if foreign:
                raise self._foreign(f"it holds {', '.join(foreign[:3])}")
            self._is_new = True
            self.write_manifest()
        except OSError as error:
            self._discard()
            why = system_sentence(error) or str(error)
            raise UserError(f"out={short_path(self.path)} cannot be used as a run folder: {why}") from error

    def _foreign(self, why: str) -> UserError:
        return UserError(f"out={self.path} is not empty and not a run of ours ({why}); choose another folder")

    def _read_manifest(self, path: Path) -> dict[str, Any]:
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self._foreign("its manifest.json is damaged") from error
        if not isinstance(manifest, dict) or not {"stage", "settings", "created"} <= manifest.keys():
            raise self._foreign("its manifest.json is another program's")
        return manifest

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        sentence = system_sentence(error)
        has_checkpoint = any(self.path.glob("**/checkpoints/last*"))  # a run within this one may have its own
        # A defect of ours leaves what it wrote, to be looked at.
        if not has_checkpoint and (sentence or isinstance(error, (UserError, KeyboardInterrupt))):
            self._discard()
        if sentence:
            more = "; then the same command goes on from the last checkpoint" if has_checkpoint else ""
            raise UserError(f"the run out={short_path(self.path)} stopped: {sentence}{more}") from error

    def keep(self) -> None:
        """From now on a mistake leaves the folder as it is: there is work in it, perhaps that of other processes."""
        self._is_new, self._made = False, []

    def _discard(self) -> None:
        """Take away what this run made, if the folder was empty or absent before."""
        if self._is_new and dist.is_main():
            for path in self.path.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _compare(self, manifest: dict[str, Any]) -> None:
        """Refuse to go on with other settings than the run was started with."""
        before, now = _flat(manifest["settings"]), _flat(json.loads(json.dumps(self.settings)))
        keys = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        changed = [k for k in keys if not _is_free(k)]
        if manifest["stage"] != self.stage:
            raise UserError(f"out={self.path} holds a {manifest['stage']} run, not {self.stage}; choose another out=")
        if changed:
            lines = "; ".join(f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in changed[:5])
            raise UserError(
                f"out={self.path} holds a run with other settings ({lines}). Use them to go on with it, or choose "
                "another out= for a new run"
            )
        rows = self.read_rows()
        self._seconds_before = max((row.get("seconds", 0.0) for row in rows), default=0.0)

    def write_manifest(self, **more: Any) -> None:
        """Write what is known so far about the run: settings, data, parents, versions."""
        if not dist.is_main():
            return
        names = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "pillow")
        content = {
            "stage": self.stage,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["ssl-ft", *sys.argv[1:]]),
            "settings": self.settings,
            "versions": {
                "python": platform.python_version(),
                "ssl_ft": __version__,
                **{name: version(name) for name in names},
            },
            "num_ranks": dist.world_size(),
            "threads": dist.num_threads(),
            "parents": [parent.model_dump() for parent in self.parents],
            "notes": self.notes,
            "data": [data.model_dump() for data in self.data],
            **more,
        }
        path = self.path / "manifest.json"
        if path.is_file():
            content["created"] = json.loads(path.read_text(encoding="utf-8"))["created"]
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def note(self, sentence: str) -> None:
        """Keep a sentence a reader of the run should know, and say it."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            say(sentence)

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to `metrics.jsonl`."""
        if dist.is_main():
            line = json.dumps({**row, "seconds": round(self.seconds(), 3)})
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def read_rows(self) -> list[dict[str, Any]]:
        """The rows so far; a last line cut off by a crash is left out."""
        path, rows = self.path / "metrics.jsonl", []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def forget_rows_after(self, step: int) -> None:
        """Drop rows of steps that will be done again."""
        rows = [row for row in self.read_rows() if row["step"] <= step]
        if dist.is_main():
            write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def write_table(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write a CSV file into the run folder."""
        if dist.is_main():
            with (self.path / name).open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(header)
                writer.writerows(rows)

    def list_damaged(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Add (path, reason, replacement) of damaged images to `damaged.csv`, which is written anew; each row once."""
        self._damaged += [row for row in dict.fromkeys(rows) if row not in self._damaged]
        self.write_table("damaged.csv", ["path", "reason", "replacement"], self._damaged)

    def leave_out_damaged(self, damaged: Sequence[tuple[str, str]]) -> None:
        """List (path, reason) of damaged images that no other one replaces, and say how many; none is fine."""
        if damaged:
            self.list_damaged([(name, reason, "") for name, reason in damaged])
            self.note(f"{len(damaged)} damaged images were left out of their roles; see damaged.csv")

    def seconds(self) -> float:
        """Seconds this run has taken, earlier parts included."""
        return self._seconds_before + time.monotonic() - self.started

    def finish(
        self,
        *,
        metrics: Sequence[Metric],
        labels_used: LabelsUsed,
        test_scored: int,
        seconds: float | None = None,
        memory_mb: float | None = None,
    ) -> None:
        """Write `result.json`, which marks the run as finished.

        Args:
            metrics: its rows.
            labels_used: by role.
            test_scored: times any test label was used to score a model.
            seconds: what the run took; None: as long as this process saw it take.
            memory_mb: the most any process held; None: this one.
        """
        if not dist.is_main():
            return
        result = Result(
            stage=self.stage,
            run=str(self.path),
            parents=self.parents,
            settings=self.settings,
            data=self.data,
            labels_used=labels_used,
            test_scored=test_scored,
            seconds=round(self.seconds() if seconds is None else seconds, 3),
            peak_memory_mb=round(peak_memory_mb() if memory_mb is None else memory_mb, 1),
            metrics=list(metrics),
        )
        write_text(self.path / "result.json", result.model_dump_json(indent=1) + "\n")


def default_folder(stage: str, name: str, settings: dict[str, Any]) -> Path:
    """`runs/<stage>-<name>-<6 hex digits of the settings>`: the same command finds its run again."""
    flat = {k: v for k, v in _flat(settings).items() if not _is_free(k)}
    digest = hashlib.sha256(json.dumps(flat, sort_keys=True, default=str).encode()).hexdigest()[:6]
    clean = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")[:60] or "run"
    return Path("runs") / f"{stage}-{clean}-{digest}"


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="")
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def say(sentence: str) -> None:
    """A line for the person at the terminal; stdout is kept for the run folder's path."""
    if dist.is_main():
        print(sentence, file=sys.stderr, flush=True)


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _is_free(key: str) -> bool:
    return key in _FREE_KEYS or key.partition(".")[0] in _FREE_KEYS


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
