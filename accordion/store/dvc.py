"""Versions of artifact folders in DVC: a repository of its own around the store, with a remote that is verified.

The repository is the store's root (`home()/store`), with its own git history of `KIND/DIGEST.dvc` files, so that
neither DVC nor git ever touches the checkout. Every download is hashed (`verify = true`), because DVC by itself
trusts what a remote gives it.
"""

import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from accordion.errors import ArtifactError, ServiceError
from accordion.store.artifacts import Artifact, Store

REMOTE = "accordion"
IGNORED = "/.staging\n/.quarantine\n"
IDENTITY = {"NAME": "accordion", "EMAIL": "accordion@localhost"}


@dataclass(frozen=True)
class Version:
    """One versioned artifact: DVC's hash of the folder, its size in bytes and its number of files."""

    artifact: str
    hash: str
    bytes: int
    files: int


class Versions:
    """The DVC repository around a store; made on first use, opened once."""

    def __init__(self, store: Store, remote: str) -> None:
        """`remote` is a folder or a URL DVC understands, for example `s3://bucket/path`."""
        self.store = store
        self.remote = remote
        self._opened: Any = None

    def add(self, artifact: Artifact, message: str) -> Version:
        """Record `artifact` in the history and copy it to the remote; one already recorded is only made sure of.

        Raises:
            ServiceError: the remote or the repository refused; the text names the remedy.
        """
        folder = self.store.path(artifact)
        with self._errors(f"versioning {artifact.kind} {artifact.digest[:16]}"):
            repo = self._repo()
            repo.add([str(folder)])
            repo.push([str(self._pointer(artifact))])
        pointer = self._pointer(artifact).relative_to(self.store.root).as_posix()
        self._git("add", "--", pointer, f"{artifact.kind}/.gitignore", ".dvc", ".dvcignore", ".gitignore")
        if self._git("status", "--porcelain", "--untracked-files=no"):
            self._git("commit", "--quiet", "--message", f"{message}\n\n{artifact}")
        return self.version(artifact)

    def restore(self, artifact: Artifact) -> Path:
        """Bring a missing artifact back from DVC's cache or remote; its manifest is verified as everywhere.

        Raises:
            ArtifactError: it was never versioned, or what the remote holds is not what was stored there.
        """
        pointer = self._pointer(artifact)
        if not pointer.is_file() and (self.store.root / ".git").is_dir():
            name = pointer.relative_to(self.store.root).as_posix()
            if self._git("ls-files", "--", name):
                self._git("checkout", "--quiet", "HEAD", "--", name)
        if not pointer.is_file():
            raise ArtifactError(
                f"{artifact.kind} {artifact.digest[:16]} is neither in {self.store.root} nor versioned there by DVC; "
                "run its stage again (a new ACCORDION_HOME forgets cached results, as does removing its flyte/cache)"
            )
        self.close()  # an open repository remembers which cache files it has seen
        what = f"restoring {artifact.kind} {artifact.digest[:16]} from {self.remote}"
        with self._errors(what, hint="the copy there is missing or altered; run its stage again", kind=ArtifactError):
            self._repo().pull([str(self.store.path(artifact))])
        return self.store.open(artifact)

    def version(self, artifact: Artifact) -> Version:
        """DVC's record of one artifact."""
        pointer = self._pointer(artifact)
        if not pointer.is_file():
            raise ArtifactError(f"{artifact.kind} {artifact.digest[:16]}: not versioned by DVC")
        out = yaml.safe_load(pointer.read_text())["outs"][0]
        return Version(str(artifact), out["md5"], out["size"], out["nfiles"])

    def list(self) -> list[tuple[str, str, str]]:
        """(ISO time, `kind:digest`, message) of every recorded artifact, oldest first."""
        if not (self.store.root / ".git").is_dir():
            return []
        text = self._git("log", "--reverse", "--format=%aI%x09%b%x09%s")
        rows = [line.split("\t") for line in text.replace("\n\t", "\t").splitlines() if line.count("\t") == 2]
        return [(at, artifact, message) for at, artifact, message in rows]

    def close(self) -> None:
        """Let go of the repository."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _pointer(self, artifact: Artifact) -> Path:
        return self.store.path(artifact).with_suffix(".dvc")

    def _repo(self) -> Any:
        if self._opened is not None:
            return self._opened
        os.environ.setdefault("DVC_NO_ANALYTICS", "1")
        from dvc.repo import Repo  # a second of imports: only for those who version

        logging.getLogger("dvc").setLevel(logging.CRITICAL)  # its errors come as exceptions
        for noisy in ("dvc_data", "dvc_objects"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        root = self.store.root
        if not (root / ".git").is_dir():
            root.mkdir(parents=True, exist_ok=True)
            self._git("init", "--quiet", "--initial-branch", "main")
        repo = Repo(str(root)) if (root / ".dvc" / "config").is_file() else Repo.init(str(root), force=True)
        with repo.config.edit() as config:
            config["core"].update(analytics=False, autostage=False, check_update=False, remote=REMOTE)
            config["remote"][REMOTE] = {"url": self.remote, "verify": True}
        repo.close()
        (root / ".gitignore").write_text(IGNORED)
        ignore = root / ".dvcignore"
        ignore.write_text(IGNORED)
        self._opened = Repo(str(root))
        self._opened.scm_context.quiet = True
        return self._opened

    def _git(self, *arguments: str) -> str:
        """Run git on the store's repository; a surrounding hook's GIT_* variables must not redirect it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        for role in ("AUTHOR", "COMMITTER"):
            environment |= {f"GIT_{role}_{name}": value for name, value in IDENTITY.items()}
        command = ["git", "-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false", *arguments]
        done = subprocess.run(command, cwd=self.store.root, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise ServiceError(f"git {arguments[0]} in {self.store.root} failed: {done.stderr.strip()}")
        return done.stdout.strip()

    @contextmanager
    def _errors(self, doing: str, hint: str = "", kind: type[Exception] = ServiceError) -> Iterator[None]:
        from dvc.exceptions import DvcException
        from dvc.lock import LockError

        try:
            yield
        except LockError as error:
            raise ServiceError(f"{doing}: another process uses {self.store.root}; try again when it ended") from error
        except DvcException as error:
            remedy = hint or f"check that {self.remote} can be written"
            raise kind(f"{doing}: DVC refused ({str(error).splitlines()[0]}); {remedy}") from error
