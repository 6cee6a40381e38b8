"""Search a collection with an exported encoder: what `accordion query` does."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from accordion.errors import ArtifactError, DataError
from accordion.observe import say
from accordion.retrieval.beir import read_documents
from accordion.retrieval.index import FlatIndex
from accordion.retrieval.onnx_encoder import ONNX, OnnxEncoder
from accordion.store.atomic import atomic_folder
from accordion.store.manifest import Manifest, describe_files

MAX_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Hit:
    """One ranked document; score is the cosine."""

    rank: int
    document: str
    score: float
    text: str


def query(
    encoder: Path, documents: Path, text: str, *, k: int = 10, cache: Path | None = None, threads: int = 2
) -> list[Hit]:
    """The `k` documents nearest to `text`, best first.

    Args:
        encoder: folder of an encoder artifact.
        documents: a corpus.jsonl in the BEIR layout, or a domain folder that holds one.
        text: the query; beyond the encoder's longest input it is cut.
        cache: folder in which the index of this encoder and collection is kept between calls.

    Raises:
        DataError: the query is empty or longer than a million characters, k < 1, or a bad collection.
        ArtifactError: the encoder is incomplete.
    """
    if not text.strip():
        raise DataError("query: the text is empty; give at least one word")
    if len(text) > MAX_CHARACTERS:
        raise DataError(f"query: {len(text)} characters; wants at most {MAX_CHARACTERS}")
    if k < 1:
        raise DataError(f"query: k is {k}; wants at least 1")
    path = documents / "corpus.jsonl" if documents.is_dir() else documents
    model = OnnxEncoder(encoder, threads=threads)
    texts = read_documents(path)
    index = _index(model, encoder, path, texts, cache)
    (ranking,) = index.search(model.encode([text], "query"), k)
    return [Hit(rank, document, score, texts[document]) for rank, (document, score) in enumerate(ranking, 1)]


def _index(model: OnnxEncoder, encoder: Path, path: Path, texts: dict[str, str], cache: Path | None) -> FlatIndex:
    """Embed and index the documents, or read the index that an earlier call left in `cache`."""
    if cache is None:
        return FlatIndex.build(list(texts), model.encode(list(texts.values()), "document", "documents"))
    key = hashlib.sha256()
    for file in (encoder / ONNX, encoder / "contract.json", encoder / "tokenizer.json", path):
        with open(file, "rb") as stream:
            key.update(hashlib.file_digest(stream, "sha256").digest())
    target = cache / key.hexdigest()[:32]
    if target.is_dir():
        try:
            Manifest.read(target).verify(target)
            return FlatIndex.load(target)
        except ArtifactError as error:
            say(f"{error}; it is only kept to save time, and is built again")
            shutil.rmtree(target)
    index = FlatIndex.build(list(texts), model.encode(list(texts.values()), "document", "documents"))
    with atomic_folder(target) as folder:
        index.save(folder)
        Manifest(kind="index", stage="query", config={}, parents={}, files=describe_files(folder)).write(folder)
    return index
