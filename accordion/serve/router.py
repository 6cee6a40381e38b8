"""Which version answers a request: the pinned versions of a model, on disk, so that they survive any restart.

Triton sends a request that names no version to the highest one loaded. So every client names one, and it is
this file that says which: the stable version, or for a share of the request keys the canary.
"""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accordion.errors import ServiceError
from accordion.store import atomic_write
from accordion.store.journal import seal, unseal


@dataclass(frozen=True, kw_only=True)
class Pins:
    """The pinned versions of one model.

    Attributes:
        stable: version that answers by default; None before the first promotion.
        previous: version that was stable before, kept loaded for an immediate rollback.
        canary: version on trial.
        share: share of request keys that the canary answers, 0 to 1.
    """

    stable: int | None = None
    previous: int | None = None
    canary: int | None = None
    share: float = 0.0

    def choose(self, key: str) -> int:
        """The version that answers the request with this key; the same key keeps its version as `share` grows.

        Raises:
            ServiceError: nothing has been rolled out.
        """
        if self.canary is not None and (self.stable is None or position(key) < self.share):
            return self.canary
        if self.stable is None:
            raise ServiceError("no encoder version has been rolled out; run the pipeline (`make run`) first")
        return self.stable

    @property
    def resident(self) -> list[int]:
        """Every version that must be loaded, ascending."""
        return sorted({version for version in (self.stable, self.previous, self.canary) if version is not None})


def position(key: str) -> float:
    """A stable hash of `key` in [0, 1), the same on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()) / 2**64


class Router:
    """Reads and writes the pins of one model; a reader sees a change at its next request."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None
        self._pins = Pins()

    def pins(self) -> Pins:
        """The pins now on disk (read again only when the file changed)."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return Pins()
        seen = (status.st_mtime_ns, status.st_ino)
        if seen != self._seen:
            try:
                self._pins = Pins(**unseal(self.path.read_bytes()))
            except (ValueError, TypeError) as error:
                raise ServiceError(
                    f"{self.path}: not readable ({error}); remove it and roll a version out again"
                ) from None
            self._seen = seen
        return self._pins

    def write(self, pins: Pins) -> None:
        """Replace the pins, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, seal(asdict(pins)) + "\n")

    def try_canary(self, version: int, share: float) -> None:
        """Send `share` of the keys to `version`."""
        self.write(replace(self.pins(), canary=version, share=share))

    def promote(self, version: int) -> None:
        """Make `version` stable and the stable one previous; done twice it changes nothing more."""
        pins = self.pins()
        previous = pins.previous if pins.stable == version else pins.stable
        self.write(Pins(stable=version, previous=previous))

    def drop_canary(self) -> None:
        """All keys to the stable version."""
        self.write(replace(self.pins(), canary=None, share=0.0))

    def roll_back(self) -> Pins:
        """Make the previous version stable; the one rolled back becomes previous, so that this can be undone.

        Raises:
            ServiceError: there is no previous version.
        """
        pins = self.pins()
        if pins.previous is None:
            raise ServiceError(f"version {pins.stable} has no predecessor to go back to; roll another version out")
        swapped = Pins(stable=pins.previous, previous=pins.stable)
        self.write(swapped)
        return swapped
