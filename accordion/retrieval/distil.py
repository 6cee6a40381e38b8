"""Stage distil: a retrieval encoder from a sub-model, taught by relevance judgements and a sentence encoder."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from accordion.config.retrieval import DistilConfig
from accordion.data.tokenizers.text import TextTokenizer
from accordion.errors import ConfigError, TrainingDiverged
from accordion.observe import progress, record
from accordion.retrieval.beir import Collection, read_collection
from accordion.retrieval.encoder import Encoder, contract_for, new_encoder, save_encoder, save_weights
from accordion.retrieval.export import export_onnx, write_golden
from accordion.retrieval.losses import DistilLoss, LossParts
from accordion.retrieval.teacher import project, teacher_embeddings


@dataclass(frozen=True)
class Texts:
    """Training texts of one side: token ids and the teacher's embedding (texts, dimension) of each."""

    rows: list[list[int]]
    teacher: NDArray[np.float32]


@dataclass(frozen=True)
class TrainingData:
    """Pairs (index of query, index of document), and for each query the indices of all its relevant documents."""

    pairs: list[tuple[int, int]]
    relevant: list[frozenset[int]]
    queries: Texts
    documents: Texts


def distil(config: DistilConfig, *, out: Path, family: Path, corpus: Path, text: Path) -> dict[str, Any]:
    """Stage: train, export and save the encoder; see the module's parts.

    Writes model.safetensors, config.json, contract.json, tokenizer.json, encoder.onnx, golden.npz and
    untrained/model.safetensors (the same encoder before its first step) into `out`.

    Raises:
        ConfigError: the family has no such member, or the corpus no such domain.
        DataError: the domain cannot be trained on.
        TrainingDiverged: the loss became NaN or infinite.
    """
    member = family / "members" / config.member
    if not member.is_dir():
        known = ", ".join(sorted(path.name for path in (family / "members").iterdir()))
        raise ConfigError(f"distil.member: got {config.member!r}; the family has {known}")
    domain = corpus / "retrieval" / config.source_domain
    if not domain.is_dir():
        raise ConfigError(
            f"distil.source_domain: {config.source_domain!r} is not in the corpus; name one of its domains"
        )
    collection = read_collection(domain, "train")
    tokenizer = TextTokenizer.load(text)
    contract = contract_for(
        pooling=config.pooling, bidirectional=config.bidirectional, max_tokens=config.max_tokens,
        dimension=config.dimension,
    )  # fmt: skip
    encoder = new_encoder(member, contract, config.seed)
    save_weights(encoder, out / "untrained" / "model.safetensors")
    started = time.monotonic()
    data, variance = prepare(config, encoder, tokenizer, collection)
    prepared = time.monotonic()
    losses = train(config, encoder, data)
    trained = time.monotonic()
    save_encoder(encoder, out, text)
    golden_texts = golden_sample(collection)
    write_golden(encoder, tokenizer, golden_texts, out)
    export = export_onnx(encoder, tokenizer, golden_texts, out)
    return {
        "loss": losses,
        "pairs": len(data.pairs),
        "steps": config.steps,
        "teacher": {"variance_kept": variance},
        "export": export,
        "speed": {
            "queries_per_second": config.steps * config.batch / (trained - prepared),
            "teacher_seconds": prepared - started,
        },
    }


def prepare(
    config: DistilConfig, encoder: Encoder, tokenizer: TextTokenizer, collection: Collection
) -> tuple[TrainingData, float]:
    """Tokens and teacher targets of the judged queries and their relevant documents; share of variance kept."""
    queries = list(collection.qrels)
    relevant_ids = [{d for d, score in collection.qrels[query].items() if score > 0} for query in queries]
    documents = sorted(set().union(*relevant_ids))
    place = {document: index for index, document in enumerate(documents)}
    relevant = [frozenset(place[document] for document in ids) for ids in relevant_ids]
    query_texts = [collection.queries[query] for query in queries]
    document_texts = [collection.documents[document] for document in documents]
    wide = teacher_embeddings(query_texts + document_texts, max_tokens=config.teacher_tokens)
    narrow, variance = project(wide, config.dimension, config.seed)
    contract = encoder.contract
    data = TrainingData(
        pairs=[(query, document) for query, ids in enumerate(relevant) for document in sorted(ids)],
        relevant=relevant,
        queries=Texts(contract.prepare(tokenizer, query_texts, "query"), narrow[: len(queries)]),
        documents=Texts(contract.prepare(tokenizer, document_texts, "document"), narrow[len(queries) :]),
    )
    return data, variance


def batches(data: TrainingData, size: int, seed: int) -> Iterator[list[tuple[int, int]]]:
    """Endless batches of pairs in which no pair's document is relevant to another pair's query.

    So each in-batch negative is a true one as far as the judgements know. Every pair comes once an epoch;
    a pair that does not fit waits for a later batch. A batch is shorter than `size` only if the epoch has no
    more that fit.
    """
    generator = np.random.default_rng(seed)
    while True:
        waiting = [data.pairs[index] for index in generator.permutation(len(data.pairs))]
        while waiting:
            batch: list[tuple[int, int]] = []
            left: list[tuple[int, int]] = []
            for position, (query, document) in enumerate(waiting):
                if len(batch) == size:
                    left += waiting[position:]
                    break
                clash = any(d in data.relevant[query] or document in data.relevant[q] for q, d in batch)
                (left if clash else batch).append((query, document))
            if len(batch) < min(size, len(data.pairs)) // 2:
                break  # the tail of an epoch: too few that fit together to be a contrast
            yield batch
            waiting = left


def train(config: DistilConfig, encoder: Encoder, data: TrainingData) -> dict[str, float]:
    """Train in place with AdamW, linear warm-up and decay; mean losses of the last tenth of the steps."""
    criterion = DistilLoss(temperature=config.temperature, weight=config.teacher_weight)
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    warmup = max(1, config.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (config.steps - step) / max(1, config.steps - warmup))
    )
    source = batches(data, config.batch, config.seed)
    history: list[tuple[float, float, float]] = []
    encoder.eval()  # no dropout anywhere, and the router keeps its balance from pre-training
    steps = progress(
        range(config.steps), "distil", unit="step", note=lambda: f"loss {history[-1][0]:.3f}" if history else ""
    )
    for step in steps:
        parts = _loss(encoder, criterion, data, next(source))
        if not math.isfinite(parts.total.item()):
            raise TrainingDiverged(f"distil: loss is {parts.total.item()} at step {step}; lower distil.learning_rate")
        optimizer.zero_grad(set_to_none=True)
        parts.total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        history.append((parts.total.item(), parts.contrastive.item(), parts.distillation.item()))
        record(step, dict(zip(("loss/total", "loss/contrastive", "loss/distillation"), history[-1], strict=True)))
    last = np.mean(history[-max(1, config.steps // 10) :], axis=0)
    return {"total": float(last[0]), "contrastive": float(last[1]), "distillation": float(last[2])}


def _loss(encoder: Encoder, criterion: DistilLoss, data: TrainingData, batch: Sequence[tuple[int, int]]) -> LossParts:
    students, teachers = [], []
    for texts, indices in ((data.queries, [q for q, _ in batch]), (data.documents, [d for _, d in batch])):
        ids, mask = encoder.contract.pad_batch([texts.rows[index] for index in indices])
        students.append(encoder(torch.from_numpy(ids), torch.from_numpy(mask)))
        teachers.append(torch.from_numpy(texts.teacher[indices]))
    return criterion(students, teachers)


def golden_sample(collection: Collection, count: int = 32) -> list[str]:
    """Texts whose embeddings are kept for serving checks: documents and queries, spread out, and edge cases."""

    def spread(values: Sequence[str]) -> list[str]:
        return [value.rstrip("\0") for value in values[:: max(1, len(values) // count)][:count]]

    edge_cases = ["", " ", "a", "0123456789", "été 漢字 👍🏽", "a\0b", "long " * 400]
    return [*spread(list(collection.queries.values())), *spread(list(collection.documents.values())), *edge_cases]
