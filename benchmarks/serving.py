"""Triton against ONNX Runtime in this process: the same encoder and texts, one by one and with eight clients.

`request` is what a caller waits for one text; `CPU a request` counts this process and, on Triton's side, the
server's processes too; `throughput` is with eight threads that each send one text after another. Both sides
tokenize and use one ONNX Runtime thread for an inference. The encoder is the newest in the artifact store.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import psutil

from accordion.data.tokenizers.text import TextTokenizer
from accordion.errors import ArtifactError
from accordion.home import home
from accordion.retrieval.contract import EncoderContract
from accordion.serve import repository
from accordion.serve.client import Admin, EncoderClient
from accordion.serve.router import Router
from accordion.serve.server import throwaway
from accordion.store import Store
from benchmarks.harness import Figures, Row, paired

REPEATS = 7
REQUESTS = 200  # of one side in one repeat
CLIENTS = 8
INSTANCES = 2
MODEL = "encoder"
Embed = Callable[[str], np.ndarray]


def run(repeats: int) -> list[Row]:
    """Measure with the newest encoder.

    Raises:
        ArtifactError: the store holds no encoder yet.
    """
    encoder = newest_encoder()
    texts = [str(text) for text in np.load(encoder / "golden.npz")["texts"] if str(text).strip()]
    folder = Path(tempfile.mkdtemp(prefix="accordion-serving-"))
    try:
        repository.stage_encoder(folder, MODEL, 1, encoder, str(encoder))
        dimension = EncoderContract.load(encoder).dimension
        policy = repository.encoder_config(MODEL, [1], dimension, instances=INSTANCES, threads=1)
        repository.write_config(folder, MODEL, policy)
        with throwaway("triton-benchmark", folder) as record, Admin(record) as admin:
            admin.load(MODEL)
            with EncoderClient(record.grpc, Router(folder / "router.json"), model=MODEL) as client:
                return compare(
                    lambda text: client.ask([text], 1).embeddings[0], in_process(encoder), texts, record.pid, repeats
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare(served: Embed, local: Embed, texts: Sequence[str], server: int, repeats: int) -> list[Row]:
    """Rows for both ways to embed, after checking that they give the same vectors."""
    for text in texts[:8]:
        cosine = float(served(text) @ local(text))
        if not cosine > 0.999:
            raise ArtifactError(
                f"Triton and this process embed {text!r} differently (cosine {cosine}); nothing to compare"
            )
    sides = {"Triton": (served, server), "in process": (local, None)}
    single = {name: (lambda e=embed, s=pid: one_by_one(e, texts, s)) for name, (embed, pid) in sides.items()}
    many = {name: (lambda e=embed: together(e, texts)) for name, (embed, _) in sides.items()}
    figures = paired(*single.values(), repeats=repeats, label="one by one")
    figures |= paired(*many.values(), repeats=repeats, label=f"{CLIENTS} clients")
    aims = {"CPU a request": "difference under 2 ms", "throughput": "ratio at least 0.9"}
    units = {"request": "ms, median", "CPU a request": "ms", "throughput": "texts/s"}
    return [
        Row(figure=name, unit=units[name], ours="Triton", peer="in process", ours_values=ours, peer_values=peer,
            aim=aims.get(name, ""))
        for name, (ours, peer) in figures.items()
    ]  # fmt: skip


def in_process(encoder: Path) -> Embed:
    """What the server's model does to one query, without the server."""
    tokenizer, contract = TextTokenizer.load(encoder), EncoderContract.load(encoder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(encoder / "encoder.onnx"), options, providers=["CPUExecutionProvider"])
    wanted = {given.name: given.type for given in session.get_inputs()}["mask"]
    mask_type = {"tensor(int64)": np.int64, "tensor(bool)": np.bool_, "tensor(float)": np.float32}[wanted]

    def embed(text: str) -> np.ndarray:
        ids, mask = contract.pad_batch(contract.prepare(tokenizer, [text], "query"))  # (1, length) each
        return session.run(None, {"ids": ids, "mask": mask.astype(mask_type)})[0][0]  # (dimension,)

    return embed


def one_by_one(embed: Embed, texts: Sequence[str], server: int | None) -> Figures:
    """Median milliseconds and CPU milliseconds of one request."""
    processor, seconds = cpu_seconds(server), []
    for index in range(REQUESTS):
        start = time.perf_counter()
        embed(texts[index % len(texts)])
        seconds.append(time.perf_counter() - start)
    used = cpu_seconds(server) - processor
    return {"request": float(np.median(seconds)) * 1e3, "CPU a request": used / REQUESTS * 1e3}


def together(embed: Embed, texts: Sequence[str]) -> Figures:
    """Texts a second with `CLIENTS` threads."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        start = time.perf_counter()
        list(pool.map(lambda index: embed(texts[index % len(texts)]), range(REQUESTS * 2)))
        return {"throughput": REQUESTS * 2 / (time.perf_counter() - start)}


def cpu_seconds(server: int | None) -> float:
    """CPU seconds used so far by this process and, if given, by a server and its children (these to 10 ms)."""
    total = time.process_time()
    if server is not None:
        parent = psutil.Process(server)
        for process in (parent, *parent.children(recursive=True)):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def newest_encoder() -> Path:
    """Verified folder of the newest encoder in the store."""
    store = Store(home() / "store")
    encoders = [artifact for artifact in store.list() if artifact.kind == "encoder"]
    if not encoders:
        raise ArtifactError(f"{store.root} holds no encoder yet; run `make run` once, then this benchmark")
    return store.open(encoders[-1])
