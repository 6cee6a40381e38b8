"""Versions of artifact folders in DVC: a repository of its own around the store, with a remote that is verified.

The repository is the store's root (`home()/store`), with its own git history of `KIND/DIGEST.dvc` files, so that
neither DVC nor git ever touches the checkout. Every download is hashed (`verify = true`), because DVC by itself
trusts what a remote gives it.
"""

import configparser
import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from accordion.errors import ArtifactError, ServiceError
from accordion.store.artifacts import Artifact, Store

REMOTE = "accordion"
IGNORED = "/.staging\n/.quarantine\n"
OBJECTS_NAMED = 5
BLOCK = 1 << 20  # bytes hashed at once
IDENTITY = {"NAME": "accordion", "EMAIL": "accordion@localhost"}


@dataclass(frozen=True)
class Version:
    """One versioned artifact: DVC's hash of the folder, its size in bytes and its number of files."""

    artifact: str
    hash: str
    bytes: int
    files: int


@dataclass(frozen=True)
class Record:
    """One line of the history: that an artifact was made, or that a run used it.

    Attributes:
        at: ISO time.
        artifact: `kind:digest`.
        message: who made or used it, for example `ingest of run 20261122-010203-ab12`.
        profile: of that run; empty in records that tell none.
        parents: what it was made from; empty in records of its use.
    """

    at: str
    artifact: str
    message: str
    profile: str = ""
    parents: Mapping[str, str] = field(default_factory=dict)


class Versions:
    """The DVC repository around a store; made on first use, opened once."""

    def __init__(self, store: Store, remote: str) -> None:
        """`remote` is a folder or a URL DVC understands, for example `s3://bucket/path`."""
        self.store = store
        self.remote = remote
        self._opened: Any = None

    def add(self, artifact: Artifact, message: str, *, profile: str = "") -> Version:
        """Record `artifact` in the history and copy it to the remote; one already recorded is only made sure of.

        Args:
            message: who made it.
            profile: of the run that made it, by which `before` finds it.

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
            parents = "".join(f"\n{name} = {parent}" for name, parent in self.store.manifest(artifact).parents.items())
            self._git("commit", "--quiet", "--message", f"{message}\n\n{artifact}\nprofile = {profile}{parents}")
        return self.version(artifact)

    def mark(self, artifacts: Iterable[Artifact], message: str, *, profile: str = "") -> None:
        """Record that a run used these artifacts, also those it found in the cache."""
        if not (self.store.root / ".git").is_dir():
            self._repo()
        names = "\n".join(str(artifact) for artifact in artifacts)
        self._git("commit", "--quiet", "--allow-empty", "--message", f"{message}\n\n{names}\nprofile = {profile}")

    def before(self, data: Artifact, kind: str, profile: str) -> Artifact | None:
        """The newest artifact of `kind` that runs of `profile` made from another artifact of data's kind.

        A run on unchanged data finds the same one again, however often it runs: what was made from the data itself
        is passed over.
        """
        history = self.history()
        parents = {record.artifact: record.parents for record in history if record.parents}
        for record in reversed(history):
            if record.profile == profile and record.artifact.startswith(f"{kind}:"):
                made_from = parents.get(record.artifact, {}).get(data.kind)
                if made_from is not None and made_from != str(data):
                    return Artifact.parse(record.artifact)
        return None

    @classmethod
    def around(cls, store: Store, default: str) -> "Versions":
        """The repository of a store with the remote it was last used with, or `default` when there is none yet."""
        settings = configparser.ConfigParser()
        settings.read(store.root / ".dvc" / "config")
        return cls(store, settings.get(f"'remote \"{REMOTE}\"'", "url", fallback=default))

    def open(self, artifact: Artifact, say: Callable[[str], None]) -> Path:
        """The verified folder of `artifact`; one that is missing or damaged is brought back, and `say` is told.

        Raises:
            ArtifactError: it is not in the store and cannot be brought back whole.
        """
        name = f"{artifact.kind} {artifact.digest[:16]}"
        if self.store.path(artifact).is_dir():
            try:
                return self.store.open(artifact)
            except ArtifactError as error:
                say(f"{error}\nmoved to {self.store.quarantine(artifact)}; restoring it with DVC")
        else:
            say(f"{name} is not in the store; restoring it with DVC")
        return self.restore(artifact)

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
        self._drop_damaged_cache(artifact)
        try:
            with self._errors(f"restoring {artifact.kind} {artifact.digest[:16]}", kind=ArtifactError):
                self._repo().pull([str(self.store.path(artifact))])
        except ArtifactError as error:
            damaged = self.damaged(artifact)
            if not damaged:
                raise
            raise ArtifactError(
                f"restoring {artifact.kind} {artifact.digest[:16]} from {self.remote}: {'; '.join(damaged)}; "
                "nothing was restored. Put the object back from a copy of the remote, or run the stage again"
            ) from error
        try:
            return self.store.open(artifact)
        except ArtifactError:
            self.store.quarantine(artifact)
            raise

    def damaged(self, artifact: Artifact) -> list[str]:
        """What is wrong with the objects of `artifact` in the remote, each by its path there; at most five."""
        remote = self._repo().cloud.get_remote_odb(REMOTE, "status")
        found = []
        for oid, name in self._objects(artifact):
            state = _state(remote, oid)
            if state:
                found.append(f"object {remote.oid_to_path(oid)} ({name}) {state}")
        return [*found[:OBJECTS_NAMED], *([f"{len(found) - OBJECTS_NAMED} more"] if found[OBJECTS_NAMED:] else [])]

    def _drop_damaged_cache(self, artifact: Artifact) -> None:
        """Remove cache objects that are not what their name says: DVC would trust them (they are read-only)."""
        cache = self._repo().cache.local
        for oid, _ in self._objects(artifact):
            if _state(cache, oid) == "was altered":
                cache.fs.remove(cache.oid_to_path(oid))
        self.close()

    def _objects(self, artifact: Artifact) -> Iterator[tuple[str, str]]:
        """(DVC's hash, name) of the list of files and of each file, as far as a whole list can be had."""
        listing = self.version(artifact).hash
        yield listing, "the list of its files"
        repo = self._repo()
        for odb in (repo.cache.local, repo.cloud.get_remote_odb(REMOTE, "status")):
            if _state(odb, listing) is None:
                with odb.fs.open(odb.oid_to_path(listing), "rb") as file:
                    yield from ((entry["md5"], entry["relpath"]) for entry in json.load(file))
                return

    def version(self, artifact: Artifact) -> Version:
        """DVC's record of one artifact.

        Raises:
            ArtifactError: it has none.
        """
        pointer = self._pointer(artifact)
        name = pointer.relative_to(self.store.root).as_posix()
        if pointer.is_file():
            text = pointer.read_text()
        elif (self.store.root / ".git").is_dir() and self._git("ls-tree", "HEAD", "--", name):
            text = self._git("show", f"HEAD:{name}")
        else:
            raise ArtifactError(f"{artifact.kind} {artifact.digest[:16]}: not versioned by DVC")
        out = yaml.safe_load(text)["outs"][0]
        return Version(str(artifact), out["md5"], out["size"], out["nfiles"])

    def history(self) -> list[Record]:
        """What was made and used, oldest first."""
        if not (self.store.root / ".git").is_dir():
            return []
        text = self._git("log", "--reverse", "--format=%x1e%aI%x1f%s%x1f%b")
        found = []
        for entry in filter(None, text.split("\x1e")):
            at, message, body = entry.split("\x1f")
            lines = [line for line in body.splitlines() if line]
            facts = {key.strip(): value.strip() for key, sign, value in (line.partition("=") for line in lines) if sign}
            profile = facts.pop("profile", "")
            found += [Record(at, line, message, profile, facts) for line in lines if "=" not in line]
        return found

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
        from dvc_objects.errors import ObjectFormatError

        try:
            yield
        except LockError as error:
            raise ServiceError(f"{doing}: another process uses {self.store.root}; try again when it ended") from error
        except (DvcException, ObjectFormatError) as error:
            remedy = hint or f"check that {self.remote} can be written"
            raise kind(f"{doing}: DVC refused ({str(error).splitlines()[0]}); {remedy}") from error


def _state(odb: Any, oid: str) -> str | None:
    """None for an object that is what its name (its MD5) says, else `is missing` or `was altered`."""
    path = odb.oid_to_path(oid)
    if not odb.fs.exists(path):
        return "is missing"
    digest = hashlib.md5(usedforsecurity=False)
    with odb.fs.open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return None if digest.hexdigest() == oid.removesuffix(".dir") else "was altered"
