"""Public packages on disk: found in a folder or downloaded with apt-get, npm or pip, then unpacked and counted."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from accordion.errors import DataError
from accordion.observe import progress

DOWNLOAD = {
    "deb": ("apt-get", "download", "-qq"),
    "npm": ("npm", "pack", "--silent"),
    "wheel": (sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"),
}
PATTERN = {"deb": "{}_*.deb", "npm": "{}-[0-9]*.tgz", "wheel": "{}-*.whl"}
TOOLS = {  # kind -> program, and what to do without it
    "deb": ("apt-get", "apt-get belongs to Debian: build on a Debian 12 machine, or bring the .deb files from one"),
    "npm": ("npm", "install it with: apt-get install npm"),
    "wheel": (sys.executable, "make the environment with: make setup"),
}
HINT = {
    "deb": "are the package lists up to date? run: apt-get update",
    "npm": "is a registry of npm reachable? try: npm view {} version",
    "wheel": "is a package index reachable? try: pip download --no-deps {}",
}
Package = tuple[str, str]  # (kind, name)


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

    def fetch(self, wanted: Iterable[Package]) -> None:
        """Download what is missing and unpack everything, so that a failure comes before any work.

        Raises:
            DataError: a download tool is missing, or a package could not be had; the text says what to do.
        """
        wanted = list(wanted)
        missing = {kind for kind, name in wanted if not self._found(kind, name)}
        remedies = [
            f"{TOOLS[kind][0]}: {TOOLS[kind][1]}" for kind in sorted(missing) if not shutil.which(TOOLS[kind][0])
        ]
        if any(kind == "deb" for kind, _ in wanted) and not shutil.which("dpkg"):
            remedies.append("dpkg: it belongs to Debian: build on a Debian 12 machine")
        if remedies:
            raise DataError(f"packages of the data cannot be fetched, programs are missing: {'; '.join(remedies)}")
        for kind, name in progress(wanted, "packages", unit="packages"):
            self._unpacked(kind, name)

    def version(self, kind: str, name: str) -> str:
        """Version of a package, from the name of its file."""
        stem = self._file(kind, name).name
        if kind == "deb":
            return stem.split("_")[1].replace("%3a", ":")
        return stem.removesuffix(".tgz").rsplit("-", 1)[1] if kind == "npm" else stem.split("-")[1]

    def licences(self, kind: str, name: str) -> list[Path]:
        """Files of the package that state its licence.

        Raises:
            DataError: it has none.
        """
        root = self._unpacked(kind, name)
        found = {
            "deb": lambda: root.glob("usr/share/doc/*/copyright"),
            "npm": lambda: (path for path in (root / "package").iterdir() if path.name.lower() == "license"),
            "wheel": lambda: [*root.glob("*.dist-info/**/LICENSE*"), *root.glob("*.dist-info/METADATA")][:1],
        }[kind]()
        files = sorted(path for path in found if path.is_file())
        if not files:
            raise DataError(
                f"{name} {self.version(kind, name)}: no licence file in the package; its data are not taken"
            )
        return files

    def _found(self, kind: str, name: str) -> Path | None:
        pattern = PATTERN[kind].format(name.replace("-", "_") if kind == "wheel" else name)
        return max(self.folder.glob(pattern), default=None)

    def _file(self, kind: str, name: str) -> Path:
        return self._found(kind, name) or self._download(kind, name)

    def _download(self, kind: str, name: str) -> Path:
        """Into a folder beside, then one rename: a broken download is never taken for a package."""
        command = [*DOWNLOAD[kind], name]
        print(f"{name}: downloading into {self.folder}: {' '.join(command)}", file=sys.stderr, flush=True)
        partial = self.folder / f".{name}.download"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        done = subprocess.run(command, cwd=partial, capture_output=True, text=True)
        files = [path for path in partial.iterdir() if path.is_file()]
        if done.returncode or not files:
            said = (done.stderr or done.stdout).strip().splitlines()
            shutil.rmtree(partial)
            raise DataError(
                f"{name}: `{' '.join(command)}` failed ({said[-1] if said else 'it said nothing'}); "
                f"{HINT[kind].format(name)}; or put the file {PATTERN[kind].format(name)} into {self.folder}"
            )
        files[0].rename(self.folder / files[0].name)
        shutil.rmtree(partial)
        found = self._found(kind, name)
        if found is None:
            raise DataError(
                f"{name}: the download is called {files[0].name}, which is not {PATTERN[kind].format(name)}"
            )
        return found

    def _unpacked(self, kind: str, name: str) -> Path:
        file = self._file(kind, name)
        target = self.work / file.name
        if target.is_dir():
            return target
        partial = self.work / f".{file.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            if kind == "deb":
                subprocess.run(["dpkg", "-x", str(file), str(partial)], check=True, capture_output=True)
            elif kind == "npm":
                with tarfile.open(file, "r:gz") as archive:
                    archive.extractall(partial, filter="data")
            else:
                with zipfile.ZipFile(file) as archive:
                    archive.extractall(partial)
        except (subprocess.CalledProcessError, tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise DataError(f"{file}: cannot be unpacked ({error}); remove it, and it is downloaded again") from None
        partial.rename(target)
        return target


def check_count(package: str, what: str, counted: int, expected: int, tolerance: float = 0.02) -> None:
    """A point release may add or lose a few records; more means another format, or a reader that fails.

    Raises:
        DataError: `counted` is off by more than the tolerance (a share; 0: exactly).
    """
    if abs(counted - expected) > tolerance * expected:
        around = f" within {tolerance:.0%}" if tolerance else ""
        raise DataError(
            f"{package}: counted {counted:,} {what}, expected {expected:,}{around}; if the package has changed for "
            "good, look at its records and change the figure in data/builders"
        )
