"""Two small stages in the shape of the library's, to test the runner with."""

from pathlib import Path

from accordion.config import Settings
from accordion.errors import ValidationFailed
from accordion.observe import record


class CountConfig(Settings):
    """Count up to `to`; refuse numbers above `most`."""

    to: int = 5
    most: int = 100


class SumConfig(Settings):
    """Sum with an offset."""

    offset: int = 0


def count(config: CountConfig, *, out: Path, resume: Path) -> dict:
    (resume / "seen").touch()
    for number in range(config.to):
        record(number, {"number": float(number)})
    (out / "numbers.txt").write_text("\n".join(map(str, range(config.to))))
    if config.to > config.most:
        raise ValidationFailed(f"{config.to} numbers; at most {config.most} are allowed")
    return {"count": config.to, "nested": {"mean": 2.0, "low": 1.0}}


def total(config: SumConfig, *, out: Path, numbers: Path) -> dict:
    value = config.offset + sum(map(int, (numbers / "numbers.txt").read_text().split()))
    (out / "total.txt").write_text(str(value))
    return {"total": value}
