"""Finding out what lies in tar or Parquet shards, once, so that their images can be read by number.

Shards are read and never written. Memory depends on the images of one shard, not on how many there are in all.
"""

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from ssl_ft.data.folders import IMAGE_EXTENSIONS
from ssl_ft.data.index_files import INDEX_FILE, INDEX_FOLDER, IndexWriter
from ssl_ft.data.places import Folder, open_folder
from ssl_ft.data.tables import SPLIT_FILE, bytes_leaf, metadata_names, open_table, row_groups
from ssl_ft.errors import UserError

_ROWS_AT_ONCE = 65_536
_MOST_SIDE_BYTES = 2**20  # a label or description larger than this is something else
_COMPRESSED = re.compile(r"\.(tgz|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
_COLUMNS = ("label", "label_name", "split", "name", "path")


def build_index(location: str, *, on_progress: Callable[[int, int], None] | None = None) -> int:
    """Index the shards in a folder (a path or a URL), write the index beside them, and give the number of images.

    A tar holds samples: runs of members whose names agree up to the first dot. Of each, KEY.jpg (or another image) is
    taken and, where known, KEY.cls (the label) or KEY.json with label, label_name, split or name. Parquet holds a
    column `image` of bytes, or of a struct with bytes, and where known label, label_name, split, and name or path.
    Shards called train, val (valid, validation) or test, with or without a number, are of that split.

    Args:
        location: the folder.
        on_progress: told (shards done, shards in all).

    Raises:
        UserError: no shards or no images, a shard that cannot be read, or labels and splits that make no sense.
    """
    folder = open_folder(location)
    sizes = folder.sizes()
    layout, names = _shard_files(location, list(sizes))
    if folder.has(INDEX_FILE):
        raise UserError(f"{location} has an index already. Remove its folder {INDEX_FOLDER} to build it anew.")
    with folder.new_folder(INDEX_FOLDER) as target, IndexWriter(target, location=location, layout=layout) as writer:
        for done, name in enumerate(names, start=1):
            (_scan_tar if layout == "tar" else _scan_parquet)(folder, name, writer)
            writer.end_shard(name, sizes[name])
            if on_progress is not None:
                on_progress(done, len(names))
        return writer.finish()


def _shard_files(location: str, names: list[str]) -> tuple[Literal["tar", "parquet"], list[str]]:
    tars, tables = (sorted(n for n in names if n.lower().endswith(end)) for end in (".tar", ".parquet"))
    if tars and tables:
        raise UserError(
            f"{location} holds tar shards ({tars[0]}) and Parquet shards ({tables[0]}). Put them into two folders."
        )
    if tars:
        return "tar", tars
    if tables:
        return "parquet", tables
    compressed = sorted(name for name in names if _COMPRESSED.search(name))
    if compressed:
        raise UserError(
            f"{location} holds compressed tars ({compressed[0]}), in which no image can be read without all before it. "
            "Decompress them: the images inside are compressed anyway."
        )
    raise UserError(f"There are no .tar or .parquet files in {location}. Name the folder that holds the shards.")


def _split_of(shard: str) -> str | None:
    match = SPLIT_FILE.fullmatch(Path(shard).stem)
    return match[1] if match else None


def _scan_tar(folder: Folder, shard: str, writer: IndexWriter) -> None:
    where = f"{folder.location}/{shard}"
    try:
        with folder.open(shard) as raw, tarfile.open(fileobj=raw, mode="r:") as archive:
            for sample in _samples(archive, writer):
                _add_sample(archive, sample, _split_of(shard), writer)
            raw.seek(archive.offset)
            rest = raw.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{where} cannot be read as a tar: {error}. It may be cut short: write it again, or remove it."
        ) from error
    if rest.strip(b"\0"):
        raise UserError(f"{where} is damaged: no member begins at byte {archive.offset}. Write it again, or remove it.")
    if not rest:
        writer.passed_over[f"missing end of {shard}, which may be cut short"] += 1


def _samples(archive: tarfile.TarFile, writer: IndexWriter) -> Iterator[list[tarfile.TarInfo]]:
    """Runs of files whose names agree up to the first dot after the last slash."""
    run: list[tarfile.TarInfo] = []
    last = ""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every member of a shard
        folder, _, base = member.name.rpartition("/")
        if not member.isreg() or member.issparse() or base.startswith("."):
            writer.passed_over["folders, links or hidden files"] += 1
            continue
        key = f"{folder}/{base.partition('.')[0]}"
        if run and key != last:
            yield run
            run = []
        run.append(member)
        last = key
    if run:
        yield run


def _add_sample(
    archive: tarfile.TarFile, sample: list[tarfile.TarInfo], split: str | None, writer: IndexWriter
) -> None:
    images: list[tarfile.TarInfo] = []
    found: dict[str, Any] = {}
    for member in sample:
        extension = os.path.splitext(member.name)[1].lower()
        if extension in IMAGE_EXTENSIONS:
            images.append(member)
        elif extension in (".cls", ".json") and member.size <= _MOST_SIDE_BYTES:
            found |= _side_values(archive, member, extension, writer)
        else:
            writer.passed_over[f"{extension} files" if extension else "files without extension"] += 1
    if not images:
        writer.passed_over["samples without an image"] += 1
        return
    # KEY.jpg comes before KEY.mask.png and the like.
    image = min(images, key=lambda member: member.name.rpartition("/")[2].count("."))
    if len(images) > 1:
        writer.passed_over["further images of samples that hold several"] += len(images) - 1
    writer.add(
        name=found.get("name") or image.name,
        label=found.get("cls", found.get("label")),
        word=found.get("label_name"),
        split=found.get("split") or split,
        place=(image.offset_data, image.size),
    )


def _side_values(
    archive: tarfile.TarFile, member: tarfile.TarInfo, extension: str, writer: IndexWriter
) -> dict[str, Any]:
    """What a sample's label file or description says."""
    file = archive.extractfile(member)
    assert file is not None, "it is a regular file"
    content = file.read()
    try:
        if extension == ".cls":
            return {"cls": content.decode("utf-8").strip()}
        values = json.loads(content)
    except (ValueError, RecursionError):
        writer.passed_over[f"unreadable {extension} files"] += 1
        return {}
    known = ("name", "label", "label_name", "split")
    return {key: values[key] for key in known if key in values} if isinstance(values, dict) else {}


def _scan_parquet(folder: Folder, shard: str, writer: IndexWriter) -> None:
    import pyarrow as pa

    where = f"{folder.location}/{shard}"
    with folder.open(shard) as raw, open_table(where, raw) as file:
        schema = file.schema_arrow
        if "image" not in schema.names:
            raise UserError(
                f"{where} has no column `image`; its columns are {', '.join(schema.names)}. Wanted is a column of "
                "encoded image bytes, or a struct with `bytes`."
            )
        leaf = bytes_leaf(where, schema.field("image").type)
        writer.add_groups(row_groups(file.metadata, leaf))
        columns = [name for name in _COLUMNS if name in schema.names]
        if leaf == "image.bytes" and schema.field("image").type.get_field_index("path") >= 0:
            columns.append("image.path")
        words = metadata_names(schema.metadata or {}) if "label_name" not in schema.names else []
        try:
            for row in _rows(file, columns):
                label = row.get("label")
                word = words[label] if isinstance(label, int) and 0 <= label < len(words) else row.get("label_name")
                writer.add(
                    name=row.get("name") or row.get("path") or (row.get("image") or {}).get("path"),
                    label=label,
                    word=word,
                    split=row.get("split") or _split_of(shard),
                )
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{where} cannot be read: {str(error)[:200]}. Write it again, or remove it.") from error


def _rows(file: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    if not columns:
        yield from ({} for _ in range(file.metadata.num_rows))
        return
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
        yield from batch.to_pylist()
