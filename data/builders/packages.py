"""Public packages on disk: found in a folder or downloaded with apt-get, npm or pip, then unpacked."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

DOWNLOAD = {
    "deb": ("apt-get", "download"),
    "npm": ("npm", "pack", "--silent"),
    "wheel": (sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"),
}
PATTERN = {"deb": "{}_*.deb", "npm": "{}-[0-9]*.tgz", "wheel": "{}-*.whl"}


class Packages:
    """Packages by kind and name; missing ones are downloaded into `folder`, which is said on stderr.

    Debian point releases replace package versions, so no version is pinned; callers check counts instead.
    """

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder = folder
        self.work = work
        folder.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)

    def deb(self, name: str) -> Path:
        """Root folder of the unpacked Debian package `name`."""
        return self._unpacked("deb", name)

    def npm(self, name: str) -> Path:
        """The `package/` folder of the unpacked npm package `name`."""
        return self._unpacked("npm", name) / "package"

    def wheel(self, name: str) -> Path:
        """Root folder of the unpacked wheel of the PyPI project `name`."""
        return self._unpacked("wheel", name)

    def _file(self, kind: str, name: str) -> Path:
        pattern = PATTERN[kind].format(name.replace("-", "_") if kind == "wheel" else name)
        found = sorted(self.folder.glob(pattern))
        if not found:
            command = [*DOWNLOAD[kind], name]
            print(f"{name}: not in {self.folder}, downloading: {' '.join(command)}", file=sys.stderr, flush=True)
            subprocess.run(command, cwd=self.folder, check=True)
            found = sorted(self.folder.glob(pattern))
        if not found:
            raise SystemExit(f"{name}: no file {pattern} in {self.folder} after the download; fetch it there by hand")
        return found[-1]

    def _unpacked(self, kind: str, name: str) -> Path:
        target = self.work / name
        if target.is_dir():
            return target
        file = self._file(kind, name)
        partial = self.work / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        if kind == "deb":
            subprocess.run(["dpkg", "-x", str(file), str(partial)], check=True)
        elif kind == "npm":
            with tarfile.open(file) as archive:
                archive.extractall(partial, filter="data")
        else:
            with zipfile.ZipFile(file) as archive:
                archive.extractall(partial)
        partial.rename(target)
        return target
