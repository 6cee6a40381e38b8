"""What a version must show before and while it serves: golden embeddings, shadow comparison, canary traffic."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accordion.errors import AccordionError, ArtifactError
from accordion.serve.client import MAX_TEXTS, EncoderClient
from accordion.serve.router import Pins


class CheckFailed(Exception):
    """A version is not fit to serve; the text says why. Handled inside the rollout, which then rolls back."""


@dataclass
class Traffic:
    """Requests of one version: latencies in seconds of those answered, and the messages of those that failed."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return len(self.seconds) + len(self.errors)

    def percentile_ms(self, percent: float) -> float:
        """Latency percentile in milliseconds (nearest rank), over at least one answered request."""
        ordered = sorted(self.seconds)
        rank = max(0, -(-len(ordered) * percent // 100) - 1)
        return ordered[int(rank)] * 1000.0

    def add(self, other: "Traffic") -> None:
        """Count the requests of `other` too."""
        self.seconds += other.seconds
        self.errors += other.errors


def golden_cosine(client: EncoderClient, version: int, encoder: Path) -> float:
    """Lowest cosine between the embeddings a served version gives and those of the evaluated model.

    Texts that the server refuses by design (without a visible character) are left out.

    Args:
        encoder: the encoder artifact, whose golden.npz holds texts and document embeddings of the torch model.
    """
    from accordion.retrieval.export import read_golden

    texts, wanted = read_golden(encoder)
    rows = [index for index, text in enumerate(texts) if text.strip()]
    if not rows:
        raise ArtifactError(f"{encoder}/golden.npz: holds no text to compare; run stage distil again")
    found = []
    for start in range(0, len(rows), MAX_TEXTS):
        batch = [texts[index] for index in rows[start : start + MAX_TEXTS]]
        found.append(client.ask(batch, version, kind="document").embeddings)
    return lowest_cosine(np.concatenate(found), wanted[rows])


def lowest_cosine(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Lowest cosine of paired rows (n, dimension); NaN when a row is not finite, which passes no check."""
    if found.shape != wanted.shape:
        raise CheckFailed(f"embeddings have shape {found.shape}, the evaluated model's {wanted.shape}")
    left, right = found.astype(np.float64), wanted.astype(np.float64)
    cosines = (left * right).sum(axis=1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))
    return float(cosines.min())  # min() of an array with a NaN is NaN


def shadow(client: EncoderClient, old: int, new: int, queries: Sequence[str]) -> dict[str, Any]:
    """Send the same queries to both versions, and compare; clients see nothing of it.

    Returns:
        requests, errors of the new version, its p50_ms and the old one's, and the mean cosine between their
        embeddings (a description of how far the new model moved, no check; None when dimensions differ).
    """
    cosines, traffic = [], {old: Traffic(), new: Traffic()}
    for query in queries:
        rows = {}
        for version in (old, new):
            try:
                answer = client.ask([query], version)
            except AccordionError as error:
                traffic[version].errors.append(str(error))
                continue
            traffic[version].seconds.append(answer.seconds)
            rows[version] = answer.embeddings[0]
        if len(rows) == 2 and rows[old].shape == rows[new].shape:
            cosines.append(float(rows[old] @ rows[new]))
    if traffic[new].errors:
        raise CheckFailed(f"shadow: {len(traffic[new].errors)} of {len(queries)} failed: {traffic[new].errors[0]}")
    return {
        "requests": traffic[old].requests + traffic[new].requests,
        "errors": len(traffic[old].errors),
        "mean_cosine": float(np.mean(cosines)) if cosines else None,
        "old_p50_ms": traffic[old].percentile_ms(50) if traffic[old].seconds else None,
        "new_p50_ms": traffic[new].percentile_ms(50),
    }


def send(
    client: EncoderClient, pins: Pins, queries: Iterable[str], watched: int, wanted: int, most: int
) -> dict[int, Traffic]:
    """Send queries, each to the version its key chooses, until `watched` got `wanted` of them or `most` were sent."""
    traffic: dict[int, Traffic] = {version: Traffic() for version in pins.resident}
    for number, query in enumerate(itertools.islice(itertools.cycle(queries), most)):
        version = pins.choose(f"request-{number}")
        try:
            traffic[version].seconds.append(client.ask([query], version).seconds)
        except AccordionError as error:
            traffic[version].errors.append(str(error))
        if traffic[watched].requests >= wanted:
            break
    return traffic


def judge(traffic: Traffic, counted: float, *, step: str, wanted: int, error_rate: float, p99_ms: float) -> None:
    """Decide over one canary step; no data is no pass.

    Args:
        counted: successful requests of the version in Triton's own metrics during the step.

    Raises:
        CheckFailed: too few requests, too many errors, too slow, or the server's count denies the client's.
    """
    if traffic.requests < wanted:
        raise CheckFailed(f"{step}: the new version got {traffic.requests} requests, {wanted} are needed to judge it")
    if len(traffic.errors) > error_rate * traffic.requests:
        raise CheckFailed(f"{step}: {len(traffic.errors)} of {traffic.requests} failed: {traffic.errors[0]}")
    if not traffic.seconds:
        raise CheckFailed(f"{step}: no request was answered")
    if not traffic.percentile_ms(99) <= p99_ms:
        raise CheckFailed(f"{step}: p99 is {traffic.percentile_ms(99):.1f} ms, allowed are {p99_ms} ms")
    if not counted >= len(traffic.seconds):
        raise CheckFailed(f"{step}: Triton counts {counted:.0f} answers where the client got {len(traffic.seconds)}")
