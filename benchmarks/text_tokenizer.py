"""Our text tokenizer against Hugging Face tokenizers and tiktoken: speed at equal vocabulary, and fertility.

Speed: all three learn vocabularies of the same size from the same text (tiktoken runs the merges that tokenizers
learned) and encode the same held-out text, in characters a second of processor time. `cold` starts with a freshly
loaded tokenizer, so that nothing is remembered; `warm` has encoded the same text before; `new words` holds each word
once, so that remembering never helps. All rows run on one thread but those of `all cores`, which compare by the
clock. `tokenizers encode` takes one text a call, `tokenizers batch` all of them (`encode_batch_fast`, no offsets).

Fertility: ours, at three sizes of vocabulary, beside tokenizers that others published. `in domain` is held-out text
of the pages that ours learned from, which favours ours; `other domain` is text that it never saw the like of.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from accordion.config.data import SourceConfig, TextTokenizerConfig
from accordion.data.sources.base import Quarantine, Split
from accordion.data.sources.text import read_faq, text_rows
from accordion.data.tokenizers.text import TextTokenizer, split_words
from accordion.data.tokenizers.text_training import fertility, fit
from accordion.home import REPOSITORY
from benchmarks.harness import Figures, Row, Sheet, paired
from benchmarks.published import Published, published

REPEATS = 7
VOCABULARIES = (2048, 8192, 32_768)  # ours, for fertility
SPEED_VOCABULARIES = (2048, 32_768)
CHUNK = 2000  # characters of a text made of new words only
AIM = "ratio at least 0.9"
# The pattern that tokenizers' ByteLevel and tiktoken's GPT-2 encoding split with
GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
Texts = Mapping[str, Sequence[str]]  # language -> texts
EncodeAll = Callable[[Sequence[str]], int]  # texts -> number of tokens


@dataclass(frozen=True)
class Data:
    """What is learned from, and by language what is encoded."""

    train: list[str]
    in_domain: Texts
    other_domain: Texts


def run(repeats: int, source: Path = REPOSITORY / "data" / "sample") -> list[Row | Sheet]:
    """Measure on the text of `source`, a folder in the layout of data/sample."""
    data = read(source)
    texts = [text for language in data.in_domain.values() for text in language]
    rows: list[Row | Sheet] = []
    with TemporaryDirectory(prefix="accordion-text-tokenizer-") as folder:
        for vocabulary in SPEED_VOCABULARIES:
            rows += speed(vocabulary, data.train, texts, Path(folder), repeats)
    return rows + sheets(data)


def read(source: Path) -> Data:
    """The text of `source`, split as ingest does; the FAQ is the other domain."""
    quarantine, split = Quarantine(source), Split(0, 0.1)
    train: list[str] = []
    held_out: dict[str, list[str]] = defaultdict(list)
    for _, _, row in text_rows(SourceConfig(kind="text", path=str(source / "text")), quarantine):
        if split.of(row["group"]) == "train":
            train.append(row["text"])
        else:
            held_out[row["language"]].append(row["text"])
    faq: dict[str, list[str]] = defaultdict(list)
    for row in read_faq(source, quarantine):
        faq[row["language"]].append(f"{row['question']}\n{row['answer']}")
    return Data(train, dict(sorted(held_out.items())), dict(sorted(faq.items())))


def speed(vocabulary: int, train: list[str], texts: list[str], folder: Path, repeats: int) -> list[Row]:
    """Rows for one size of vocabulary."""
    fit(TextTokenizerConfig(vocabulary=vocabulary), train).save(folder)
    peer = folder / "peer.json"
    learn_bytes(vocabulary, train).save(str(peer))
    once = "".join(dict.fromkeys(word for text in texts for word in split_words(text)))
    new = [once[start : start + CHUNK] for start in range(0, len(once), CHUNK)]
    makers = {"one by one": lambda: one_by_one(peer), "batch": lambda: batch(peer), "tiktoken": lambda: tiktokens(peer)}
    names = {"one by one": "tokenizers encode", "batch": "tokenizers batch", "tiktoken": "tiktoken"}
    rows = []
    for regime, what in (("cold", texts), ("warm", texts), ("new words", new)):
        for key, maker in makers.items():
            aim = "" if key == "tiktoken" else AIM
            with threads(all_cores=False):
                row = _speed_row(f"{vocabulary:,}, {regime}", regime, folder, names[key], maker, what, repeats, aim)
            rows.append(row)
    with threads(all_cores=True):
        name = "tokenizers batch, all cores"
        row = _speed_row(
            f"{vocabulary:,}, cold", "cold", folder, name, makers["batch"], texts, repeats, "", clock=time.perf_counter
        )
        rows.append(row)
    return rows


def _speed_row(
    figure: str, regime: str, folder: Path, name: str, peer: Callable[[], EncodeAll], texts: Sequence[str],
    repeats: int, aim: str, clock: Callable[[], float] = time.process_time,
) -> Row:  # fmt: skip
    def ours() -> EncodeAll:
        tokenizer = TextTokenizer.load(folder)
        return lambda texts: sum(map(len, tokenizer.encode_batch(texts)))

    sides = [_side(maker, texts, clock, fresh=regime != "warm") for maker in (ours, peer)]
    values = paired(*sides, repeats=repeats, label=f"{figure}, {name}")["speed"]
    return Row(
        figure=figure, unit="characters/s", ours="Accordion", peer=name, ours_values=values[0], peer_values=values[1],
        aim=aim,
    )  # fmt: skip


def _side(
    maker: Callable[[], EncodeAll], texts: Sequence[str], clock: Callable[[], float], *, fresh: bool
) -> Callable[[], Figures]:
    kept = None if fresh else maker()
    characters = sum(map(len, texts))

    def measure() -> Figures:
        encode = kept or maker()
        start = clock()
        encode(texts)
        return {"speed": characters / (clock() - start)}

    return measure


def learn_bytes(vocabulary: int, train: Sequence[str]) -> Tokenizer:
    """A byte-level BPE of Hugging Face tokenizers, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(train, trainer, length=len(train))
    return tokenizer


def one_by_one(path: Path) -> EncodeAll:
    tokenizer = Tokenizer.from_file(str(path))
    return lambda texts: sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)


def batch(path: Path) -> EncodeAll:
    tokenizer = Tokenizer.from_file(str(path))
    return lambda texts: sum(
        len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    )


def tiktokens(path: Path) -> EncodeAll:
    """tiktoken with the vocabulary of a byte-level tokenizers file."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # GPT-2 writes these bytes as themselves
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
    vocabulary = json.loads(path.read_text())["model"]["vocab"]
    ranks = {bytes(byte_of[character] for character in token): rank for token, rank in vocabulary.items()}
    encoding = tiktoken.Encoding("peer", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={})
    return lambda texts: sum(len(encoding.encode_ordinary(text)) for text in texts)


@contextmanager
def threads(*, all_cores: bool) -> Iterator[None]:
    """Let tokenizers use one thread or one for each core, for the length of the block."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if all_cores else "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def sheets(data: Data, vocabularies: Sequence[int] = VOCABULARIES) -> list[Row | Sheet]:
    """Characters a token and tokens a word by language, and how many texts come back exactly."""
    peers, absent = published()
    candidates = [*(_ours(vocabulary, data.train) for vocabulary in vocabularies), *peers]
    columns = [candidate.name for candidate in candidates]
    found: list[Row | Sheet] = []
    exact: dict[str, list[float | None]] = {}
    for domain, languages in (("in domain", data.in_domain), ("other domain", data.other_domain)):
        figures: dict[str, list[dict[str, float]]] = {language: [] for language in languages}
        exact[domain] = []
        for candidate in candidates:
            same = count = 0
            for language, texts in languages.items():
                encoded = [candidate.encode(text) for text in texts]
                figures[language].append(fertility(texts, encoded, language))
                same += sum(candidate.decode(ids) == text for ids, text in zip(encoded, texts, strict=True))
                count += len(texts)
            exact[domain].append(100 * same / count)
        for key, title in (("characters_per_token", "characters a token"), ("tokens_per_word", "tokens a word")):
            lines = {
                language: [each.get(key) for each in values] for language, values in figures.items() if key in values[0]
            }
            found.append(Sheet(title=f"{title}, {domain}", columns=columns, lines=lines))
    return [*found, Sheet(title="texts that come back exactly, %", columns=columns, lines=exact, notes=absent)]


def _ours(vocabulary: int, train: list[str]) -> Published:
    tokenizer = fit(TextTokenizerConfig(vocabulary=vocabulary), train)
    return Published(name=f"Accordion {tokenizer.vocabulary:,}", encode=tokenizer.encode, decode=tokenizer.decode)
