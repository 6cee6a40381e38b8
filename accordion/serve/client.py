"""Clients of the Triton server: `EncoderClient` for embeddings, always pinned to a version, and `Admin` for loading."""

import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from accordion.errors import DataError, ServiceError
from accordion.serve.repository import ECHO
from accordion.serve.router import Router
from accordion.serve.server import ADMIN_KEY, ServerRecord

MAX_TEXTS = 256  # in one request
REQUEST_SECONDS = 30.0
SETTLE_SECONDS = 120.0
COUNT_SECONDS = 3.0
# Nothing shared with other channels of this process, and at most a second between tries to connect: gRPC would let a
# new client of a restarted server inherit the failure, and the growing pause, of an older one at the same address.
_CHANNEL = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_REFUSED = ("StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND", "400", "404")


def connect(grpc: str) -> triton.InferenceServerClient:
    """Triton's own client of host:port, on a channel that a restart of the server does not leave behind."""
    return triton.InferenceServerClient(grpc, channel_args=_CHANNEL)


@dataclass(frozen=True)
class Answer:
    """What one request gave: the embeddings, the version that made them, and how long it took."""

    embeddings: NDArray[np.float32]  # (texts, dimension)
    version: int
    seconds: float


class EncoderClient:
    """Embeds texts on the server; safe to share between threads.

    Args:
        grpc: host:port of the server's gRPC endpoint.
        router: the pinned versions.
        model: name of the model in the repository.
    """

    def __init__(self, grpc: str, router: Router, *, model: str = "encoder") -> None:
        self.grpc = grpc
        self.router = router
        self.model = model
        self._client = connect(grpc)

    def embed(self, texts: Sequence[str], *, kind: str = "query", key: str | None = None) -> NDArray[np.float32]:
        """Embeddings (texts, dimension) of length 1, from the version that the pins name.

        Args:
            texts: any number; sent 256 at a time.
            kind: `query` or `document`.
            key: what the canary choice hangs on, for example a user or session; the first text when not given.

        Raises:
            DataError: the server refuses the texts; the text says which one and why.
            ServiceError: the server cannot be reached or failed.
        """
        if not texts:
            raise DataError("embed: got no texts; send at least one")
        version = self.router.pins().choose(key if key is not None else texts[0])
        parts = [
            self.ask(texts[start : start + MAX_TEXTS], version, kind=kind).embeddings
            for start in range(0, len(texts), MAX_TEXTS)
        ]
        return np.concatenate(parts)

    def ask(self, texts: Sequence[str], version: int, *, kind: str = "query") -> Answer:
        """One request to a named version (what a rollout uses to try one; others want `embed`)."""
        tensors = [_bytes_input("TEXT", texts), _bytes_input("KIND", [kind])]
        start = time.perf_counter()
        try:
            result = self._client.infer(self.model, tensors, model_version=str(version), client_timeout=REQUEST_SECONDS)
        except InferenceServerException as error:
            raise explain(error, f"{self.model} version {version} at {self.grpc}") from None
        seconds = time.perf_counter() - start
        return Answer(result.as_numpy("EMBEDDING"), version, seconds)

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def __enter__(self) -> "EncoderClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Admin:
    """Loads and unloads models of one server, waits until it has settled, and reads its metrics."""

    def __init__(self, record: ServerRecord) -> None:
        self.record = record
        self._client = connect(record.grpc)
        self._headers = {f"triton-grpc-protocol-{ADMIN_KEY}": record.secret}

    def load(self, model: str) -> None:
        """Load or reload `model` as its config.pbtxt on disk says.

        Two loads at once while a version is UNLOADING crashed this server: it must be settled first and is after.

        Raises:
            ServiceError: a version does not initialise; versions that served before keep serving.
        """
        self.wait_settled()
        try:
            self._client.load_model(model, headers=self._headers)
        except InferenceServerException as error:
            raise explain(error, f"loading {model} at {self.record.grpc} (log {self.record.log})") from None
        finally:
            self.wait_settled()

    def states(self, model: str | None = None) -> dict[tuple[str, str], str]:
        """(model, version) -> READY, UNAVAILABLE, LOADING or UNLOADING, for what the server knows."""
        try:
            index = self._client.get_model_repository_index(headers=self._headers)
        except InferenceServerException as error:
            raise explain(error, f"Triton at {self.record.grpc} (log {self.record.log})") from None
        return {
            (entry.name, entry.version): entry.state
            for entry in index.models
            if entry.state and (model is None or entry.name == model)
        }

    def ready_versions(self, model: str) -> list[int]:
        """Versions of `model` that the index calls READY (a dead stub still does: gate on an inference as well)."""
        return sorted(int(version) for (_, version), state in self.states(model).items() if state == "READY")

    def wait_settled(self) -> None:
        """Wait until nothing is LOADING or UNLOADING.

        Raises:
            ServiceError: that did not happen within two minutes.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            moving = {key: state for key, state in self.states().items() if state in ("LOADING", "UNLOADING")}
            if not moving:
                return
            time.sleep(0.05)
        raise ServiceError(f"Triton at {self.record.grpc} is still {moving}; log {self.record.log}")

    def counters(self, model: str, version: int) -> dict[str, float]:
        """Triton's own Prometheus counters of one version, for example `nv_inference_request_success`."""
        try:
            with urllib.request.urlopen(f"http://{self.record.metrics}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, TimeoutError) as error:
            raise ServiceError(f"metrics of Triton at {self.record.metrics}: {error}; log {self.record.log}") from None
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if (sample.labels.get("model"), sample.labels.get("version")) == (model, str(version)):
                    suffix = f":{sample.labels['quantile']}" if "quantile" in sample.labels else ""
                    totals[sample.name + suffix] = totals.get(sample.name + suffix, 0.0) + sample.value
        return totals

    def answered(self, model: str, version: int, *, at_least: float = 0.0) -> float:
        """Requests that one version answered, by Triton's own count.

        The server counts a request just after its answer has left, so it is asked again for up to three
        seconds while it says less than `at_least`.
        """
        deadline = time.monotonic() + COUNT_SECONDS
        while True:
            count = self.counters(model, version).get("nv_inference_request_success_total", 0.0)
            if count >= at_least or time.monotonic() > deadline:
                return count
            time.sleep(0.05)

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def __enter__(self) -> "Admin":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def explain(error: InferenceServerException, what: str) -> DataError | ServiceError:
    """The error of this library that says what Triton said: DataError when the request was at fault."""
    status = error.status() or ""
    message = " ".join(error.message().partition("\n\nAt:\n")[0].split())  # without the stub's traceback
    if status == "StatusCode.UNAVAILABLE" and "unknown model" not in message:  # the transport's word, not Triton's
        return ServiceError(f"{what}: not reachable ({message[:120]}); start it with `accordion up`")
    if status in _REFUSED:
        return DataError(f"{what}: {message}")
    return ServiceError(f"{what}: {message} ({status or 'no status'})")


def echo_differs(grpc: str) -> str:
    """Send known FP32 and BYTES tensors through the echo model; what differs in the answer, or the empty string."""
    floats = np.array([0.0, -1.5, 3.25e-7, 65504.0], dtype=np.float32)
    texts = ["known tensor", "écho"]
    tensor = triton.InferInput("FLOATS", list(floats.shape), "FP32")
    tensor.set_data_from_numpy(floats)
    with connect(grpc) as client:
        try:
            result = client.infer(ECHO, [tensor, _bytes_input("TEXT", texts)], client_timeout=REQUEST_SECONDS)
        except InferenceServerException as error:
            return f"echo failed: {error.message()}"
    returned, words = result.as_numpy("FLOATS_OUT"), result.as_numpy("TEXT_OUT")
    if not np.array_equal(returned, floats):
        return f"FP32 {floats.tolist()} came back as {returned.tolist()}"
    if [word.decode("utf-8", "replace") for word in words] != texts:
        return f"BYTES {texts} came back as {list(words)}"
    return ""


def _bytes_input(name: str, texts: Sequence[str]) -> triton.InferInput:
    values = np.array([text.encode("utf-8", "surrogatepass") for text in texts], dtype=np.object_)
    tensor = triton.InferInput(name, [len(texts)], "BYTES")
    tensor.set_data_from_numpy(values)
    return tensor
