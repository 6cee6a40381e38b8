"""Media files with what is written about them: folders (metadata file or sidecars) and WebDataset tar shards."""

import csv
import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from accordion.config.data import SourceConfig
from accordion.data.media.kinds import KINDS, SUFFIXES
from accordion.data.sources.base import REMEDY, Quarantine, Row, ZipMembers, expand, half_characters, json_rows, lines
from accordion.errors import DataError

METADATA = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "transcripts.jsonl", "clips.jsonl")
ANIMATED = {".gif", ".webp"}  # films as well as images
LARGEST_MEMBER = 2**30  # bytes of a file in a tar shard


@dataclass(frozen=True)
class Item:
    """One media file.

    Attributes:
        name: its path in the folder or shard, with suffix.
        data: its bytes, or where it lies.
        fields: what is written about it: caption, text or transcript; language, source, licence, key, ...
        file, record: where a refusal of the file is to be looked for.
        said: the same for what is written about it.
    """

    name: str
    data: bytes | Path
    fields: Row
    file: Path
    record: str
    said: tuple[Path, str]


def items(source: SourceConfig, suffixes: set[str], quarantine: Quarantine) -> Iterator[Item]:
    """The media files of a source, in the order of its folders and shards.

    Raises:
        DataError: the path is missing, an empty folder, or no folder and no tar shard.
    """
    for path in expand(source):
        if path.is_dir():
            yield from _folder(path, suffixes, quarantine)
        elif ".tar" in path.suffixes[-2:]:
            yield from _shard(path, suffixes, quarantine)
        else:
            raise DataError(f"{path}: wants a folder of {source.kind} or a .tar shard; correct ingest.sources")


def suffixes_of(kind: str) -> set[str]:
    """Suffixes of the files of a kind (`image`, `audio`, `video`)."""
    return {suffix for suffix, found in SUFFIXES.items() if KINDS[found] == kind} | (
        ANIMATED if kind == "video" else set()
    )


def caption_of(fields: Row) -> str:
    """The caption or transcript of a file; empty where none is written."""
    for key in ("caption", "transcript", "text"):
        if isinstance(fields.get(key), str) and fields[key].strip():
            return str(fields[key]).strip()
    return ""


def _folder(folder: Path, suffixes: set[str], quarantine: Quarantine) -> Iterator[Item]:
    listing = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if listing is not None:
        yield from _listed(folder, listing, quarantine)
        return
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not found:
        raise DataError(f"{folder}: no media file in the folder; {REMEDY}")
    for path in found:
        name = path.relative_to(folder).as_posix()
        fields = _sidecar(path, quarantine)
        if fields is not None:
            yield Item(name, path, fields, path, name, (path, name))


def _sidecar(path: Path, quarantine: Quarantine) -> Row | None:
    """Fields of the .json or .txt file beside a media file; none: no fields; None after refusing it."""
    for suffix in (".json", ".txt"):
        beside = path.with_suffix(suffix)
        if beside.is_file():
            return _fields(suffix, beside.read_bytes(), beside, beside.name, quarantine)
    return {}


def _fields(suffix: str, data: bytes, file: Path, record: str, quarantine: Quarantine) -> Row | None:
    try:
        text = data.decode("utf-8-sig")
        fields = {"text": text} if suffix == ".txt" else json.loads(text)
    except UnicodeDecodeError as error:
        quarantine.refuse(file, record, f"not UTF-8: byte {error.start}")
    except (ValueError, RecursionError) as error:
        quarantine.refuse(file, record, f"not JSON: {error}")
    else:
        wrong = half_characters(text, fields) if isinstance(fields, dict) else f"a JSON {type(fields).__name__}"
        if not wrong:
            return fields
        quarantine.refuse(file, record, f"{wrong}; wants an object of text")
    return None


def _listed(folder: Path, listing: Path, quarantine: Quarantine) -> Iterator[Item]:
    """Files named by the metadata file; they lie in the folder, or in zip archives in it."""
    archives = [ZipMembers(path, quarantine) for path in sorted(folder.glob("*.zip"))]
    rows = _csv_rows(listing, quarantine) if listing.suffix == ".csv" else json_rows(listing, quarantine, ())
    for record, row in rows:
        name = row.get("file") or row.get("file_name")
        if not isinstance(name, str):
            quarantine.refuse(listing, record, "no text in file")
            continue
        path = folder / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            quarantine.refuse(listing, record, f"{name}: lies outside of the folder")
        elif path.is_file():
            yield Item(name, path, row, path, name, (listing, record))
        elif archives:
            archive = next((each for each in archives if name in each.archive.NameToInfo), archives[0])
            data = archive.read(name)
            if data is not None:
                yield Item(name, data, row, archive.path, name, (listing, record))
        else:
            quarantine.refuse(listing, record, f"{name}: no such file")


def _csv_rows(path: Path, quarantine: Quarantine) -> Iterator[tuple[str, Row]]:
    numbers: list[str] = []

    def texts() -> Iterator[str]:
        for record, text in lines(path, quarantine):
            numbers[:] = [record]
            yield text + "\n"

    reader = csv.DictReader(texts())
    try:
        for row in reader:
            if None in row or None in row.values():
                quarantine.refuse(
                    path, numbers[0], f"other than the {len(reader.fieldnames or ())} fields of the header"
                )
            else:
                yield numbers[0], row
    except csv.Error as error:
        quarantine.refuse(path, f"after {numbers[0]}", f"not CSV: {error}")


def _shard(path: Path, suffixes: set[str], quarantine: Quarantine) -> Iterator[Item]:
    """Samples of a WebDataset shard: neighbours with the same name up to the first dot are one sample."""
    key = ""
    parts: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|*") as shard:
            for member in shard:
                if not member.isfile():
                    continue
                name = PurePosixPath(member.name)
                stem, _, extension = name.name.partition(".")
                found = (name.parent / stem).as_posix()
                if found != key:
                    yield from _sample(path, key, parts, suffixes, quarantine)
                    key, parts = found, {}
                if member.size > LARGEST_MEMBER:
                    quarantine.refuse(path, member.name, f"{member.size} bytes; at most {LARGEST_MEMBER} are read")
                    continue
                data = shard.extractfile(member)
                parts[f".{extension.lower()}"] = data.read() if data else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        quarantine.refuse(path, f"from {key or 'its beginning'}", f"damaged tar file: {error}")
        return
    if path.suffix == ".tar" and not _ends(path):
        quarantine.refuse(path, f"from {key}", "damaged tar file: its end mark is missing")
    else:
        yield from _sample(path, key, parts, suffixes, quarantine)


def _ends(path: Path) -> bool:
    """Whether a tar file ends with a block of zeros; a cut between two files is passed over by `tarfile`."""
    with path.open("rb") as file:
        file.seek(-min(tarfile.BLOCKSIZE, path.stat().st_size), 2)
        return not any(file.read())


def _sample(
    path: Path, key: str, parts: dict[str, bytes], suffixes: set[str], quarantine: Quarantine
) -> Iterator[Item]:
    if not parts:
        return
    media = [suffix for suffix in parts if suffix in suffixes]
    if len(media) != 1:
        quarantine.refuse(path, key, f"{len(media)} media files ({', '.join(sorted(parts))}); wants one")
        return
    fields: Row = {}
    for suffix in (".txt", ".json"):
        if suffix in parts:
            found = _fields(suffix, parts[suffix], path, key, quarantine)
            if found is None:
                return
            fields |= found
    yield Item(f"{key}{media[0]}", parts[media[0]], fields, path, key, (path, key))
