"""Stage train_text_tokenizer: BPE merges learned from the corpus, and what they achieve on held-out text."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from accordion.config.data import TextTokenizerConfig
from accordion.data.tokenizers.text import ALPHABET, SPECIAL_NAMES, TextTokenizer, split_words, to_characters
from accordion.errors import DataError
from accordion.observe import progress, say


def train_text_tokenizer(config: TextTokenizerConfig, *, out: Path, corpus: Path) -> dict[str, Any]:
    """Learn the vocabulary on the training text of `corpus` and write `tokenizer.json` into `out`.

    Returns:
        for held-out text: characters and UTF-8 bytes per token (all, and by language), and encoding speed.
    """
    texts = corpus_texts(corpus, "train")
    if not texts:
        raise DataError(f"{corpus}: no training text; check text.parquet")
    tokenizer = fit(config, texts)
    tokenizer.save(out)
    say(f"text tokenizer: {tokenizer.vocabulary} tokens from {len(texts)} texts")
    return {"vocabulary": tokenizer.vocabulary, "texts": len(texts), **measure(tokenizer, corpus)}


def corpus_texts(corpus: Path, split: str) -> list[str]:
    """The texts, captions and transcripts of one split."""
    found: list[str] = []
    for name, column in (("text", "text"), ("images", "caption"), ("audio", "transcript"), ("video", "caption")):
        path = corpus / f"{name}.parquet"
        if path.is_file():
            table = pd.read_parquet(path, columns=[column, "split"])
            found += [text for text in table.loc[table["split"] == split, column] if text]
    return found


def fit(config: TextTokenizerConfig, texts: list[str]) -> TextTokenizer:
    """Learn `config.vocabulary` tokens (fewer if the texts hold fewer pairs) from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=list(SPECIAL_NAMES),
        initial_alphabet=list(ALPHABET),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_words(texts), trainer, length=len(texts))
    return TextTokenizer(tokenizer)


def _words(texts: list[str]) -> Iterator[str]:
    written: dict[str, str] = {}
    for text in progress(texts, "text tokenizer", unit="texts"):
        words = split_words(text)
        for word in set(words) - written.keys():
            written[word] = to_characters(word)
        yield " ".join([written[word] for word in words])


def measure(tokenizer: TextTokenizer, corpus: Path) -> dict[str, Any]:
    """Compression on held-out text by language, and tokens a second with a cold and a warm word cache."""
    table = pd.read_parquet(corpus / "text.parquet", columns=["text", "language", "split"])
    held_out = table[table["split"] == "val"]
    if held_out.empty:
        raise DataError(f"{corpus}/text.parquet: no validation text; raise ingest.validation_share")
    by_language: dict[str, float] = {}
    characters = size = tokens = 0
    for language, texts in held_out.groupby("language")["text"]:
        count = sum(len(ids) for ids in tokenizer.encode_batch(texts))
        by_language[str(language)] = float(texts.str.len().sum() / count)
        characters += int(texts.str.len().sum())
        size += sum(len(text.encode()) for text in texts)
        tokens += count
    start = time.perf_counter()
    repeated = sum(len(ids) for ids in tokenizer.encode_batch(held_out["text"]))
    seconds = time.perf_counter() - start
    return {
        "characters_per_token": characters / tokens,
        "bytes_per_token": size / tokens,
        "characters_per_token_by_language": by_language,
        "tokens": tokens,
        "speed": {"tokens_per_second": repeated / seconds},
    }
