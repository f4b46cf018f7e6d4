"""What the stage `index` does about shards: index those that have no index yet, and pack a source into new ones."""

from contextlib import ExitStack
from pathlib import Path

from ssl_ft.build.data import open_data
from ssl_ft.config import IndexSettings
from ssl_ft.data.indexing import build_index
from ssl_ft.data.listing import census
from ssl_ft.data.packing import PackOptions, check_pack_folder, pack
from ssl_ft.data.source import Source, is_unindexed
from ssl_ft.errors import UserError
from ssl_ft.progress import ProgressLine
from ssl_ft.runlog import RunFolder, say


def check_pack(settings: IndexSettings) -> None:
    """Refuse a place that cannot be packed into, before anything long is begun.

    Raises:
        UserError: it is taken, or a URL, or the data have targets, which shards have no place for.
    """
    if settings.pack is not None and settings.data.task != "classes":
        raise UserError(
            f"pack={settings.pack}: shards hold classes, and would lose the targets of data.task={settings.data.task}; "
            "leave the task out to pack images and labels, or keep the manifest"
        )
    if settings.pack is not None:
        check_pack_folder(settings.pack)


def plan_index(settings: IndexSettings) -> list[str]:
    """What would be looked at and written, in sentences.

    Raises:
        UserError: nothing readable there, or a place that cannot be packed into.
    """
    if is_unindexed(settings.data.path, kind=settings.data.kind):
        return [f"{settings.data.path}: shards without an index, which would be written beside them"]
    source = open_data(settings.data)
    check_pack(settings)
    packed = [] if settings.pack is None else [f"packed into shards at {settings.pack}"]
    return [f"{source.location}: {len(source)} images, {source.kind}", *census(source), *packed]


def index_shards(settings: IndexSettings) -> None:
    """Index the shards at the location where they have no index, and so cannot be opened yet.

    Raises:
        UserError: they cannot be read.
    """
    location = settings.data.path
    if not is_unindexed(location, kind=settings.data.kind):
        return
    with ExitStack() as stack:
        lines: list[ProgressLine] = []

        def tell(done: int, total: int) -> None:
            if not lines:
                lines.append(stack.enter_context(ProgressLine("indexing shard", total=total)))
            lines[0].update(done)

        count = build_index(location, on_progress=tell)
    say(f"{location}: {count} images were found in the shards, and the index was written beside them")


def pack_source(settings: IndexSettings, source: Source, run: RunFolder) -> dict[str, str]:
    """Write the source into shards at `settings.pack`; gives the reason of each image that was left out, by name."""
    assert settings.pack is not None, "there is a folder to pack into"
    options = PackOptions(
        settings.pack_format,
        settings.shard_mb * 2**20,
        settings.data.white_level,
        settings.data.max_damaged_share,
        settings.data.workers,
    )
    with ProgressLine("packing image", total=len(source)) as progress:
        left_out = dict(pack(source, Path(settings.pack), options, on_progress=progress.update))
    run.note(f"{len(source) - len(left_out)} images were packed into {settings.pack} ({settings.pack_format})")
    return left_out
