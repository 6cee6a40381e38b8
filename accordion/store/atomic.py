"""Writes that are seen whole or not at all: temporary name, fsync, rename (POSIX rename(2) is atomic)."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from accordion.errors import StorageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, largest file allowed


def atomic_write(path: Path, data: bytes | str) -> None:
    """Replace `path` with `data`; a reader or a crash sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with enough_disk(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Give a temporary sibling folder to fill; on a clean exit it is synced and renamed to `target`.

    On an error nothing is left behind. If `target` appeared meanwhile (another process made the
    same thing), the new copy is dropped and the existing one stays.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    with enough_disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            sync_tree(temporary)
            try:
                os.rename(temporary, target)
            except OSError:
                if not target.is_dir():
                    raise
            sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def enough_disk(path: Path) -> Iterator[None]:
    """Turn a write that found no space, whichever library made it, into an error that says where.

    Raises:
        StorageError: names `path`, which is as it was before.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, StorageError) or not disk_full(error):
            raise
        raise StorageError(
            f"{path}: no space to write it ({error}); nothing of it is left and what was there before is whole. Free "
            "space on that disk, or raise the quota, and run again"
        ) from error


def disk_full(error: BaseException) -> bool:
    """Whether an error says that there was no space; libraries that wrap the system's error keep its words."""
    if isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in FULL):
        return True
    return any(os.strerror(number) in str(error) for number in FULL)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder under `folder`, children first."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            with open(Path(root) / name, "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """fsync a folder so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
