"""Where a tier of the data lies: the shipped sample, or what `make data` built."""

from pathlib import Path

from accordion.config.data import IngestConfig
from accordion.errors import DataError
from accordion.home import REPOSITORY, home

STAMP = "complete.json"  # the builder writes it last: names its code, the parts and the packages


def full_tier() -> Path:
    """Folder of the full tier, whether or not it has been built."""
    return home() / "data/full"


def source_folder(config: IngestConfig) -> Path:
    """The folder that ingest reads: the user's own, or the tier's.

    Raises:
        DataError: it is not there; the text says how to get it.
    """
    if config.source is not None:
        folder = Path(config.source)
        if not folder.is_dir():
            raise DataError(f"ingest.source: {folder}: missing, or no folder; name one in the layout of data/sample")
        return folder
    if config.tier == "full":
        folder = full_tier()
        if not (folder / STAMP).is_file():
            raise DataError(
                f"ingest.tier: full, but {folder} has not been built; run `make data` (fetches about 96 MB of "
                "packages), or take what is shipped with ingest.tier=sample"
            )
        return folder
    folder = REPOSITORY / "data/sample"
    if not folder.is_dir():
        raise DataError(f"{folder}: missing (source folder); restore it with `git checkout data/sample`")
    return folder
