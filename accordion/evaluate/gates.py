"""The evaluation gate: checks over measured figures; what is missing, NaN or under-sampled fails."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accordion.config.release import CheckConfig, GateConfig
from accordion.errors import ConfigError, DataError
from accordion.observe import say

_SIGNS = {"at_least": ">=", "at_most": "<=", "above": ">", "below": "<"}


def gate(
    config: GateConfig, *, out: Path, pretrain: Path, extract: Path, rl: Path, distil: Path, evaluate: Path
) -> dict[str, Any]:
    """Stage: judge the figures of the named artifacts' metrics.json and write `verdict.json`.

    A failed check is a verdict, not an error: the caller branches on `passed`.

    Raises:
        ConfigError: the gate has no checks.
        DataError: a metrics.json is missing or unreadable.
    """
    folders = {"pretrain": pretrain, "extract": extract, "rl": rl, "distil": distil, "evaluate": evaluate}
    verdict = judge(config, {name: _metrics(folder) for name, folder in folders.items()})
    (out / "verdict.json").write_text(json.dumps(verdict, indent=1) + "\n")
    for check in verdict["checks"]:
        say(f"gate: {'pass' if check['passed'] else 'FAIL'}  {check['name']}: {check['message']}")
    return verdict


def judge(config: GateConfig, figures: Mapping[str, Any]) -> dict[str, Any]:
    """`{passed, checks: [{name, figure, value, direction, threshold, count, minimum_count, passed, message}]}`.

    Args:
        figures: nested mapping; a check names a number in it by its dotted path, `evaluate.domains.x.encoder...`.

    Raises:
        ConfigError: no checks; an empty gate would pass everything.
    """
    if not config.checks:
        raise ConfigError("gate.checks: empty; a gate without checks would pass everything, add at least one")
    checks = [_check(name, check, figures) for name, check in config.checks.items()]
    return {"passed": all(check["passed"] for check in checks), "checks": checks}


def _check(name: str, check: CheckConfig, figures: Mapping[str, Any]) -> dict[str, Any]:
    value, problem = _value(check, figures)
    count = _count(check, figures)
    if problem is None and check.minimum_count and count is None:
        problem = f"no sample count is stated beside {check.figure}; wants at least {check.minimum_count}"
    if problem is None and count is not None and count < check.minimum_count:
        problem = f"{count} samples are behind {check.figure}; wants at least {check.minimum_count}"
    passed = problem is None and value is not None and _holds(value, check)
    if problem is None:
        problem = f"{_expression(check)} = {value:.6g}, wants {_SIGNS[check.direction]} {check.threshold:.6g}"
    return {
        "name": name,
        "figure": _expression(check),
        "value": value if value is not None and math.isfinite(value) else None,
        "direction": check.direction,
        "threshold": check.threshold,
        "count": count,
        "minimum_count": check.minimum_count,
        "passed": passed,
        "message": problem,
    }


def _value(check: CheckConfig, figures: Mapping[str, Any]) -> tuple[float | None, str | None]:
    """The checked value, or why there is none."""
    parts = []
    for path in (check.figure, check.minus, check.over):
        if path is None:
            continue
        found = _find(figures, path)
        if found is None:
            return None, f"{path} is missing: the figure was not measured"
        if isinstance(found, bool) or not isinstance(found, int | float):
            return None, f"{path} is {type(found).__name__}, not a number"
        if not math.isfinite(found):
            return float(found), f"{path} is {found}: not a finite number"
        parts.append(float(found))
    if check.minus is not None:
        return parts[0] - parts[1], None
    if check.over is not None:
        if parts[1] == 0:
            return None, f"{check.over} is 0: nothing can be divided by it"
        return parts[0] / parts[1], None
    return parts[0], None


def _count(check: CheckConfig, figures: Mapping[str, Any]) -> int | None:
    """The smallest `count` stated beside the figures of the check."""
    counts = []
    for path in (check.figure, check.minus, check.over):
        beside = _find(figures, f"{path.rpartition('.')[0]}.count") if path else None
        if isinstance(beside, int) and not isinstance(beside, bool):
            counts.append(beside)
    return min(counts, default=None)


def _holds(value: float, check: CheckConfig) -> bool:
    match check.direction:
        case "at_least":
            return value >= check.threshold
        case "at_most":
            return value <= check.threshold
        case "above":
            return value > check.threshold
        case "below":
            return value < check.threshold


def _expression(check: CheckConfig) -> str:
    if check.minus is not None:
        return f"{check.figure} - {check.minus}"
    return f"{check.figure} / {check.over}" if check.over is not None else check.figure


def _find(figures: Mapping[str, Any], path: str) -> Any:
    current: Any = figures
    for key in path.split("."):
        if not isinstance(current, Mapping) or key not in current:
            return None
        current = current[key]
    return current


def _metrics(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file, so nothing was measured there; run its stage again")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); run its stage again") from None
