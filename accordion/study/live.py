"""What units tell while they run: how much of the study is done, how long the rest takes, and live curves."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from accordion.model.losses import MODALITIES
from accordion.observe import record


@dataclass(frozen=True)
class Report:
    """How far a unit is.

    Attributes:
        unit: its name.
        step, steps: done, and of the whole run.
        losses: modality -> mean training loss, nats, of the steps since its last report.
        tokens, flops, seconds: of all its steps so far.
    """

    unit: str
    step: int
    steps: int
    losses: Mapping[str, float]
    tokens: int
    flops: int
    seconds: float


@dataclass(frozen=True)
class Ended:
    """A unit has ended: whole, or stopped with its state saved."""

    unit: str
    whole: bool


@dataclass(frozen=True)
class Expected:
    """The seconds of work that a unit is expected to be.

    Attributes:
        begun: steps that were done before.
        step: of one step.
        training: of all steps to come.
        judging: of judging what was trained.
    """

    begun: int
    step: float
    training: float
    judging: float

    @property
    def seconds(self) -> float:
        return self.training + self.judging


class RecentLosses:
    """Means of the losses since they were last asked for; a modality that no step since then held keeps its mean."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}
        self._means: dict[str, float] = {}

    def add(self, figures: Mapping[str, float]) -> None:
        """Take the figures of a step."""
        for name in MODALITIES:
            if (loss := figures.get(f"loss/{name}")) is not None:
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + loss, count + 1)

    def take(self) -> dict[str, float]:
        """The means, by modality."""
        self._means |= {name: total / count for name, (total, count) in self._sums.items()}
        self._sums.clear()
        return dict(self._means)


class Watch:
    """Follows the units of a study and records their curves.

    A unit's curve is the mean of its losses over the modalities: a curve for each modality of each unit would be
    hundreds. Besides, over the seconds of this call: how much is done, tokens and operations a second, and their
    share of what the device can do.

    Args:
        expected: unit -> the work it is expected to be.
        peak: operations a second that all processes together could do.
    """

    def __init__(self, expected: Mapping[str, Expected], peak: float) -> None:
        self.expected, self.peak = expected, peak
        self.finished = 0
        self._done = dict.fromkeys(expected, 0.0)  # seconds of expected work
        self._running: dict[str, Report] = {}
        self._ended: set[str] = set()
        self._start = time.monotonic()

    def hear(self, event: Report | Ended) -> None:
        """Take note of what a unit tells."""
        expected = self.expected[event.unit]
        if isinstance(event, Ended):
            self._running.pop(event.unit, None)
            self._ended.add(event.unit)
            if event.whole:
                self.finished += 1
                self._done[event.unit] = expected.seconds
        else:
            if event.unit not in self._ended:  # the last report of a process may come after its end
                self._running[event.unit] = event
                self._done[event.unit] = min(max(event.step - expected.begun, 0) * expected.step, expected.training)
            record(event.step, {f"loss/{event.unit}": sum(event.losses.values()) / len(event.losses)})
        record(int(time.monotonic() - self._start), self._figures())

    @property
    def percent(self) -> float:
        """How much of the work is done."""
        whole = sum(expected.seconds for expected in self.expected.values())
        return 100 * sum(self._done.values()) / whole if whole else 100.0

    def note(self) -> str:
        """The units that are finished, and those at hand."""
        parts = [f"{self.finished} of {len(self.expected)} units"]
        for name, report in self._running.items():
            loss = f" text {report.losses['text']:.3f}" if "text" in report.losses else ""
            parts.append(f"{name} {report.step}/{report.steps}{loss}")
        if self._running:
            parts.append(f"{self._figures()['flops_utilisation']:.0%} of peak")
        return "; ".join(parts)

    def _figures(self) -> dict[str, float]:
        running = self._running.values()
        flops = sum(report.flops / report.seconds for report in running)
        return {
            "percent_done": self.percent,
            "units_done": float(self.finished),
            "tokens_per_second": sum(report.tokens / report.seconds for report in running),
            "flops_per_second": flops,
            "flops_utilisation": flops / self.peak,
        }
